"""Decoding the utterances of a whole batch in one call, whatever their codec."""

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import loader_kernels as kernels
from im2sp.shards.codecs import Codec, PackedCodec, VarintCodec
from im2sp.shards.errors import ShardError
from im2sp.shards.huffman import HuffmanCodec

_WIDEST_INT16 = 1 << 15


class SpeechDecoder:
    """Turns coded utterances that lie one after the other into rows of ids.

    Attributes:
        dtype: int16 where every id fits, else int32.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        num_ids = 1 << 16
        if isinstance(codec, HuffmanCodec):
            num_ids = codec.num_ids
        elif isinstance(codec, PackedCodec):
            num_ids = codec.num_units or 1 << codec.bits
        self.dtype: type[np.int16] | type[np.int32] = (
            np.int16 if num_ids <= _WIDEST_INT16 else np.int32
        )
        self._is_bytes = isinstance(codec, PackedCodec) and (codec.bits, codec.count) == (8, None)

    def rows(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int16 | np.int32], NDArray[np.int32]]:
        """Decode all values.

        Args:
            data: (bytes,) uint8.
            offsets: (n + 1,) int64: value v is `data[offsets[v]:offsets[v + 1]]`.

        Returns:
            rows: (n, longest), padded with -1.
            lengths: (n,) int32.

        Raises:
            ShardError: A value is not what the codec writes.
        """
        if self._is_bytes:
            ids, id_offsets, spread = data, offsets, kernels.spread_bytes
        else:
            ids, id_offsets = self._decode(data, offsets)
            spread = kernels.spread_ids if self.dtype is np.int16 else kernels.spread_wide
        if isinstance(self._codec, PackedCodec):
            self._codec.check_range(ids)
        lengths = (id_offsets[1:] - id_offsets[:-1]).astype(np.int32)
        rows = np.empty((lengths.size, int(lengths.max(initial=0))), self.dtype)
        spread(ids, id_offsets, rows)
        return rows, lengths

    def id_offsets(self, data: NDArray[np.uint8], offsets: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where each value's ids start among the ids of all; see `rows`."""
        wide = offsets.astype(np.int64)
        return wide if self._is_bytes else self._decode(data, wide)[1]

    def _decode(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        codec = self._codec
        if isinstance(codec, HuffmanCodec):
            return codec.decode_values(data, offsets)
        id_offsets = np.empty(offsets.size, np.int64)
        if isinstance(codec, VarintCodec):
            ids = np.empty(data.size, np.uint16)
            wrong = kernels.decode_varint(data, offsets, codec.minimum, ids, id_offsets)
        else:
            assert isinstance(codec, PackedCodec)
            ids = np.empty(8 * data.size // codec.bits, np.uint16)
            count = -1 if codec.count is None else codec.count
            wrong = kernels.decode_packed(data, offsets, codec.bits, count, ids, id_offsets)
        if wrong >= 0:
            raise ShardError(f"value {wrong} is not what its codec writes")
        return ids, id_offsets
