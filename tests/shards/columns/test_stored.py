import numpy as np
import pytest

from im2sp.shards import ShardError, UnitColumn
from im2sp.shards.coding import PackedCodec
from im2sp.shards.columns.stored import StoredUnits


def test_axes_whose_product_does_not_fit() -> None:
    """16 * 2**30 * 2**30 is 0 in 64 bits, and no units follow."""
    column = UnitColumn(shape=(16, None, None), num_codes=4, many=True)
    stored = StoredUnits(column, PackedCodec(bits=2), has_lengths=True)
    value = np.frombuffer(b"\x80\x80\x80\x80\x04" * 2, np.uint8)
    with pytest.raises(ShardError, match="18446744073709551616 units of 2 bits"):
        stored.decode(value)
    offsets = np.array([0, 0, value.size], np.int32)
    for read in (stored.lengths, lambda data, at: stored.decode_values(data, at.astype(np.int64))):
        with pytest.raises(ShardError, match="the lengths of a value are cut off"):
            read(value, offsets)
        with pytest.raises(ShardError, match="value 0 has more than 2147483647 units"):
            read(value, offsets[1:])
