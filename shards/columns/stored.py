"""`StoredUnits`: a unit column with the codec of its bytes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding import Codec, PackedCodec
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import ShardError

_MAX_LENGTH = (1 << 31) - 1
_MAX_LENGTH_BYTES = 5


@dataclass(frozen=True)
class StoredUnits:
    """A unit column with the codec of its bytes."""

    column: UnitColumn
    codec: Codec
    has_lengths: bool
    """Each value starts with the lengths of its variable axes."""

    @property
    def size_bytes(self) -> int | None:
        """Bytes of each value; None if values differ."""
        return self.codec.value_size_bytes if isinstance(self.codec, PackedCodec) else None

    def encode(self, value: object) -> bytes:
        """Bytes of one array; raises `ShardError` if it does not fit the column."""
        array = self.column.checked(value)
        head = b""
        if self.has_lengths:
            axes = zip(self.column.shape, array.shape, strict=True)
            head = b"".join(_leb128(length) for size, length in axes if size is None)
        return head + self.codec.encode(array.reshape(-1))

    def decode(self, data: NDArray[np.uint8]) -> NDArray[np.uint16 | np.uint32]:
        """The array of a value's bytes.

        Raises:
            ShardError: The bytes are invalid for the codec or the shape.
        """
        column, start = self.column, 0
        lengths: list[int] = []
        if self.has_lengths:
            lengths, start = read_lengths(data, column.num_variable)
        count = column.num_fixed * math.prod(lengths)
        if self.has_lengths and isinstance(self.codec, PackedCodec):
            ids = self.codec.decode(data[start:], count)
        else:
            ids = self.codec.decode(data[start:])
        if column.num_variable and not self.has_lengths:
            lengths = [ids.size // column.num_fixed]
            count = column.num_fixed * lengths[0]
        if ids.size != count:
            raise ShardError(f"{ids.size} units, expected {count} for shape {column.shape}")
        rest = iter(lengths)
        try:
            return ids.reshape([next(rest) if size is None else size for size in column.shape])
        except ValueError as error:  # no units, and lengths that numpy cannot multiply
            raise ShardError(f"lengths {lengths}: {error}") from None

    def lengths(self, data: NDArray[np.uint8], offsets: NDArray[np.int32]) -> NDArray[np.int32]:
        """Number of units of each array; see `decode_values`."""
        column = self.column
        wide = offsets.astype(np.int64)
        if column.num_variable == 0:
            return np.full(offsets.size - 1, column.num_fixed, np.int32)
        if self.has_lengths:
            return self._counts(split_lengths(data, wide, column.num_variable)[0]).astype(np.int32)
        return np.diff(self.decode_values(data, wide)[1]).astype(np.int32)

    def decode_values(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64] | None]:
        """Decode many values in one call.

        Args:
            data: (bytes,) uint8.
            offsets: (n + 1,) int64: value v is `data[offsets[v]:offsets[v + 1]]`.

        Returns:
            ids: Units of all arrays, flattened.
            id_offsets: (n + 1,) int64: array v is `ids[id_offsets[v]:id_offsets[v + 1]]`.
            axes: (n, variable axes) int64, if values store them; else None.

        Raises:
            ShardError: A value is invalid for its codec or the shape.
        """
        column, codec = self.column, self.codec
        if not self.has_lengths:
            ids, id_offsets = codec.decode_values(data, offsets)
            self._check_sizes(np.diff(id_offsets))
            return ids, id_offsets, None
        axes, data, offsets = split_lengths(data, offsets, column.num_variable)
        counts = self._counts(axes)
        if isinstance(codec, PackedCodec):
            return *codec.decode_values(data, offsets, counts), axes
        ids, id_offsets = codec.decode_values(data, offsets)
        self._check_sizes(np.diff(id_offsets), counts)
        return ids, id_offsets, axes

    def _counts(self, axes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of units of each array."""
        wrong = self.column.num_fixed * axes.astype(np.float64).prod(axis=1) > _MAX_LENGTH
        if wrong.any():
            raise ShardError(f"value {wrong.argmax()} has more than {_MAX_LENGTH} units")
        return self.column.num_fixed * axes.prod(axis=1)

    def _check_sizes(
        self, sizes: NDArray[np.int64], counts: NDArray[np.int64] | None = None
    ) -> None:
        """Refuse arrays whose number of units does not fit the shape."""
        column = self.column
        wrong = sizes % column.num_fixed != 0
        if counts is not None:
            wrong = sizes != counts
        elif column.num_variable == 0:
            wrong = sizes != column.num_fixed
        if wrong.any():
            raise ShardError(f"value {wrong.argmax()} is no array of shape {column.shape}")

    def shapes(
        self, lengths: NDArray[np.int32], axes: NDArray[np.int64] | None
    ) -> NDArray[np.int32]:
        """Shape of each array, (n, axes) int32, from its number of units and its variable axes."""
        column = self.column
        shapes = np.empty((lengths.size, len(column.shape)), np.int32)
        shapes[:] = [size or 0 for size in column.shape]
        if column.num_variable:
            if axes is None:
                axes = (lengths // column.num_fixed)[:, None].astype(np.int64)
            shapes[:, [k for k, size in enumerate(column.shape) if size is None]] = axes
        return shapes


def read_lengths(data: NDArray[np.uint8], num: int) -> tuple[list[int], int]:
    """The lengths that a value starts with, and the place of the first byte after them."""
    lengths: list[int] = []
    place = 0
    head = data[: 5 * num].tolist()
    for _ in range(num):
        length = shift = 0
        while True:
            if place == len(head) or shift > 28:
                raise ShardError("the lengths of its variable axes are cut off or too long")
            byte = head[place]
            length |= (byte & 127) << shift
            place, shift = place + 1, shift + 7
            if byte < 128:
                break
        if length > _MAX_LENGTH or (shift > 7 and byte == 0):
            raise ShardError(f"the length {length} of a variable axis is invalid")
        lengths.append(length)
    return lengths, place


def _leb128(number: int) -> bytes:
    if number > _MAX_LENGTH:
        raise ShardError(f"an axis of {number}, expected at most {_MAX_LENGTH}")
    coded = bytearray()
    while number >= 128:
        coded.append(number & 127 | 128)
        number >>= 7
    coded.append(number)
    return bytes(coded)


def split_lengths(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], num: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]:
    """Read the lengths that each value starts with, and remove them.

    Args:
        data: (bytes,) uint8.
        offsets: (n + 1,) int64: value v is `data[offsets[v]:offsets[v + 1]]`.
        num: Lengths of a value.

    Returns:
        (n, num) int64 lengths, and data and offsets of the rest.

    Raises:
        ShardError: A length is cut off or too long.
    """
    starts, ends = offsets[:-1], offsets[1:]
    places = starts.copy()
    lengths = np.zeros((starts.size, num), np.int64)
    for axis in range(num):
        is_open = np.ones(starts.size, np.bool_)
        for k in range(_MAX_LENGTH_BYTES):
            if not is_open.any():
                break
            if (places[is_open] >= ends[is_open]).any():
                raise ShardError("the lengths of a value are cut off")
            found = data[places[is_open]].astype(np.int64)
            lengths[is_open, axis] |= (found & 127) << 7 * k
            places[is_open] += 1
            is_open[is_open] = found > 127
        if is_open.any() or (lengths[:, axis] >= 1 << 31).any():
            raise ShardError("a length of a value is too long")
    head_sizes = places - starts
    rest_offsets = np.zeros(offsets.size, np.int64)
    np.cumsum(ends - places, out=rest_offsets[1:])
    is_rest = np.ones(int(offsets[-1] - offsets[0]), np.bool_)
    heads = np.repeat(starts - np.cumsum(head_sizes) + head_sizes, head_sizes)
    is_rest[heads + np.arange(heads.size) - offsets[0]] = False
    return lengths, data[offsets[0] : offsets[-1]][is_rest], rest_offsets
