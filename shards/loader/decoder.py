"""Decoding of all arrays of a batch to padded rows, for any unit column."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.loader import kernels

_WIDEST_INT16, _WIDEST_INT32 = 1 << 15, 1 << 31


def check_memory(what: str, size_bytes: int, limit_bytes: int) -> None:
    """Raise `ValueError` for a batch that would take more memory than the dataset's size allows."""
    if size_bytes > limit_bytes:
        raise ValueError(
            f"a batch of {what} takes {size_bytes:,} bytes of memory, expected at most"
            f" {limit_bytes:,} for a dataset of this size; set max_length, or a smaller batch_size"
        )


class UnitsDecoder:
    """Decoder of a unit column.

    Attributes:
        stored: The column.
        dtype: Type of padded rows: int16 if every unit fits, else int32, else int64.
    """

    def __init__(self, stored: StoredUnits) -> None:
        self.stored = stored
        column = stored.column
        self.dtype: type[np.int16] | type[np.int32] | type[np.int64] = np.int64
        if column.num_codes <= _WIDEST_INT32:
            self.dtype = np.int16 if column.num_codes <= _WIDEST_INT16 else np.int32

    def rows(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64], limit_bytes: int
    ) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int32]]:
        """Decode all arrays, each flattened to a row.

        Args:
            data: (bytes,) uint8.
            offsets: (n + 1,) int64: value v is `data[offsets[v]:offsets[v + 1]]`.
            limit_bytes: Memory that the rows may take.

        Returns:
            rows: (n, longest) of type `dtype`, padded with -1.
            lengths: (n,) int32.
            shapes: (n, axes) int32.

        Raises:
            ShardError: A value is invalid for its codec.
            ValueError: The rows would exceed the limit.
        """
        ids, id_offsets, axes = self.stored.decode_values(data, offsets)
        lengths = np.diff(id_offsets).astype(np.int32)
        longest = int(lengths.max(initial=0))
        size_bytes = lengths.size * longest * np.dtype(self.dtype).itemsize
        check_memory(f"{lengths.size} arrays padded to {longest} units", size_bytes, limit_bytes)
        rows = np.empty((lengths.size, longest), self.dtype)
        kernels.spread(ids, id_offsets, rows)
        return rows, lengths, self.stored.shapes(lengths, axes)
