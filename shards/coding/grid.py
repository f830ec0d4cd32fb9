"""The `grid-huffman` codec: a grid of units, each coded with tables chosen by its neighbours.

Intended for image units. The codes of a tokenizer are divided into clusters. A unit is written as
its cluster, in a context chosen by the units to the left, above and above right, and then as a
member of the cluster, in a context chosen by the cluster and the unit to the left. A context lists
its symbols from the most to the least likely, and names the Huffman code of their ranks; contexts
share a few such codes, so all tables together stay in the processor's cache. They do not change
while a value is decoded, so each can be decoded on its own. `docs/FORMAT.md` defines the bytes;
`grid_fit.py` fits the tables.
"""

import math
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.coding.grid_tables import MAX_CODE_BITS, GridTables, Ints
from im2sp.shards.errors import ShardError

_WINDOW_BYTES = 8  # that the kernel reads at once


@dataclass(frozen=True, kw_only=True)
class GridHuffmanCodec:
    """`grid-huffman`: a grid of units, each coded with tables chosen by its neighbours."""

    shape: tuple[int, int]
    """Rows and columns of the grid."""
    tables: GridTables
    """Tables fitted to units of the same tokenizer."""

    @property
    def num_codes(self) -> int:
        """All units are below it."""
        return self.tables.clusters.size

    @property
    def count(self) -> int:
        """Units of a grid."""
        return math.prod(self.shape)

    @property
    def min_size_bytes(self) -> int:
        """Bytes of the shortest value: a bit a unit, which bounds the memory of decoding."""
        return -(-self.count // 8)

    def encode(self, ids: NDArray[Any]) -> bytes:
        """Code the (rows * columns,) units of a grid.

        Raises:
            ShardError: The number of units is wrong, or one is out of range.
        """
        if ids.shape != (self.count,):
            raise ShardError(f"{ids.shape} units; every grid has {self.count}")
        wrong = (ids < 0) | (ids >= self.num_codes)
        if wrong.any():
            index = int(wrong.argmax())
            raise ShardError(f"unit {index} is {ids[index]}, not in 0 to {self.num_codes - 1}")
        (first, first_sizes), (second, second_sizes) = self.codes_of(ids.astype(np.int64))
        values = first | second << first_sizes
        places = np.arange(2 * MAX_CODE_BITS)
        stream = (values[:, None] >> places & 1)[places < (first_sizes + second_sizes)[:, None]]
        value = np.packbits(stream.astype(np.uint8), bitorder="little").tobytes()
        return value.ljust(self.min_size_bytes, b"\0")

    def decode(self, data: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """The (rows * columns,) units of a grid; see `decode_values`."""
        return self.decode_values(data, (0, data.size))[0]

    def decode_values(
        self, data: NDArray[np.uint8], offsets: ArrayLike
    ) -> tuple[NDArray[np.uint16], Ints]:
        """Decode many grids in one call; see `HuffmanCodec.decode_values`.

        Raises:
            ShardError: The offsets exceed the data, or a value does not end where its last code
                ends.
        """
        bounds = np.require(offsets, np.int64, ["C", "A"])
        if (
            bounds.ndim != 1
            or not bounds.size
            or bounds[0] < 0
            or bounds[-1] > data.size
            or (bounds[1:] < bounds[:-1]).any()
        ):
            raise ShardError(f"offsets do not ascend inside the {data.size} bytes")
        short = np.diff(bounds) < self.min_size_bytes
        if short.any():
            value = int(short.argmax())
            raise ShardError(
                f"grid-huffman: value {value} has {bounds[value + 1] - bounds[value]} bytes; "
                f"expected at least {self.min_size_bytes} for {self.count} units"
            )
        if data.size < _WINDOW_BYTES or not data.flags.c_contiguous:
            data = np.append(data, np.zeros(_WINDOW_BYTES, np.uint8))
        ids = np.empty((bounds.size - 1) * self.count, np.uint16)
        ends = np.empty(bounds.size - 1, np.int64)
        _kernels().decode(data, bounds, *self.shape, *self.tables.for_kernel, ids, ends)
        self._check_ends(data, bounds, ends)
        return ids, np.arange(bounds.size) * self.count

    def _check_ends(self, data: NDArray[np.uint8], bounds: Ints, ends: Ints) -> None:
        """Check that each value has no bytes and no 1 bits behind its last code."""
        shortest = np.maximum(ends + 7 >> 3, bounds[:-1] + self.min_size_bytes)
        wrong = shortest != bounds[1:]
        last = np.minimum(ends + 7 >> 3, bounds[1:])  # the first byte behind the last code
        wrong |= data[last - 1] >> (ends - 1 & 7).astype(np.uint8) >> 1 != 0
        if (last < bounds[1:]).any():
            num_used = np.append(0, np.cumsum(data != 0))
            wrong |= num_used[bounds[1:]] > num_used[last]
        if wrong.any():
            value = int(wrong.argmax())
            size, bits = bounds[value + 1] - bounds[value], ends[value] - 8 * bounds[value]
            raise ShardError(
                f"grid-huffman: value {value} has {size} bytes, but its {self.count} units end at "
                f"bit {bits}, or a bit behind them is 1"
            )

    def codes_of(self, ids: Ints) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints]]:
        """Codes, the first bit lowest, and their lengths: of each unit's cluster and member."""
        tables = self.tables
        num_rows, num_columns = self.shape
        left = np.full((num_rows, num_columns + 1), len(tables.cluster_contexts) - 1)
        left[:, 1:] = tables.left_classes[ids].reshape(self.shape)
        left = left[:, :-1].reshape(-1)
        above = np.full((num_rows + 1, num_columns + 1), len(tables.joint_classes) - 1)
        above[1:, :-1] = tables.above_classes[ids].reshape(self.shape)
        joint = tables.joint_classes[above[:-1, :-1], above[:-1, 1:]].reshape(-1)
        clusters = tables.clusters[ids]
        contexts = tables.contexts_of_members[clusters, left]
        return (
            self._codes(tables.cluster_contexts[left, joint], clusters),
            self._codes(contexts, tables.members[ids]),
        )

    def _codes(self, contexts: Any, symbols: Any) -> tuple[Ints, Ints]:
        tables = self.tables
        codes, ranks = tables.rank_codes[contexts], tables.ranks[contexts, symbols]
        return tables.codes[codes, ranks].astype("i8"), tables.code_lengths[codes, ranks].astype(
            "i8"
        )


@cache
def _kernels() -> ModuleType:
    from im2sp.shards.coding import grid_kernels

    return grid_kernels
