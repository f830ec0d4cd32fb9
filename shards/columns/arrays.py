"""Arrow arrays from Python values, and the numpy views of their buffers.

`pa.array` imports pandas if it is installed, which takes a second; and indexing views is
memory-bound, where `Table.take` reads a few thousand rows a second.
"""

import itertools
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from im2sp.shards.errors import ShardError

MAX_ITEMS = 65_536
"""Most values of a list: utterances or captions of a sample."""
_NO_OFFSETS = np.zeros(1, np.int32)
_NO_BYTES = np.zeros(0, np.uint8)
_DTYPES: dict[str, Any] = {"bool": np.bool_, "int64": np.int64, "double": np.float64}


def check_items(num: int) -> None:
    """Refuse lists whose values take much more memory than their bytes, if these are short."""
    if num > MAX_ITEMS:
        raise ShardError(f"a list of {num} values, expected at most {MAX_ITEMS}")


def array_of(values: list[Any], type_: pa.DataType) -> pa.Array:
    """Array with None for null, with the buffers that `pa.array` makes."""
    present = np.array([value is not None for value in values], np.bool_)
    validity = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    if isinstance(type_, pa.FixedSizeBinaryType):
        blank = bytes(type_.byte_width)
        filled = pa.py_buffer(b"".join(blank if value is None else value for value in values))
        return pa.Array.from_buffers(type_, len(values), [validity, filled])
    if pa.types.is_primitive(type_):
        numbers = np.array([value or 0 for value in values], _DTYPES[str(type_)])
        if type_ == pa.bool_():
            numbers = np.packbits(numbers, bitorder="little")
        return pa.Array.from_buffers(type_, len(values), [validity, pa.py_buffer(numbers)])
    data: list[pa.Buffer] = []
    children: list[pa.Array] = []
    if isinstance(type_, pa.ListType):
        values = [[] if value is None else value for value in values]
        children = [array_of(list(itertools.chain(*values)), type_.value_type)]
    else:
        values = [v.encode() if isinstance(v, str) else v or b"" for v in values]
        data = [pa.py_buffer(b"".join(values))]
    offsets = np.cumsum([0, *map(len, values)])
    if offsets[-1] >= 2**31:
        raise ShardError(f"{len(values)} values of {offsets[-1]} bytes; at most 2 GiB a batch")
    buffers = [validity, pa.py_buffer(offsets.astype(np.int32)), *data]
    return pa.Array.from_buffers(type_, len(values), buffers, children=children)


@dataclass(frozen=True, slots=True)
class Values:
    """Values of varying length: value i is `data[offsets[i]:offsets[i + 1]]`."""

    offsets: NDArray[np.int32]
    """(n + 1,) ascending."""
    data: NDArray[np.uint8]
    """Bytes of all values, concatenated."""
    valid: NDArray[np.bool_] | None = None
    """(n,) False for null; None if no value is null."""

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """Bytes of value i."""
        return self.data[self.offsets[i] : self.offsets[i + 1]]

    def text(self, i: int) -> str:
        """Value i as text; Arrow has checked that it is UTF-8."""
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()


@dataclass(frozen=True, slots=True)
class Lists:
    """One list of values per row: row i has values `offsets[i]` to `offsets[i + 1] - 1`."""

    offsets: NDArray[np.int32]
    """(n + 1,) ascending."""
    values: Values
    """All rows' values."""
    valid: NDArray[np.bool_] | None
    """(n,) False for null rows; None if no row is null."""

    def range(self, i: int) -> range:
        """Indices of row i's values."""
        return range(int(self.offsets[i]), int(self.offsets[i + 1]))


@dataclass(frozen=True, slots=True)
class Rows:
    """Values of one size, or numbers: row i is `data[i]`."""

    data: NDArray[Any]
    """(n, bytes) uint8, or (n,) numbers; undefined (zeros) for null."""
    valid: NDArray[np.bool_] | None
    """(n,) False for null rows; None if no row is null."""


View = Values | Lists | Rows


def view_of(array: pa.Array) -> View:
    """Views of an array that starts at its buffers' start."""
    type_: Any = cast(Any, array).type  # the stubs lack it
    num, buffers = len(array), array.buffers()
    valid = _valid(array)
    if isinstance(type_, pa.FixedSizeBinaryType):
        width = type_.byte_width
        return Rows(_numbers(buffers[1], np.uint8, num * width).reshape(num, width), valid)
    if type_ == pa.bool_():
        bits = _numbers(buffers[1], np.uint8, (num + 7) // 8)
        return Rows(np.unpackbits(bits, count=num, bitorder="little").astype(np.bool_), valid)
    if pa.types.is_primitive(type_):
        return Rows(_numbers(buffers[1], _DTYPES[str(type_)], num), valid)
    if not isinstance(type_, pa.ListType):
        return _values(num, buffers[1], buffers[2], valid)
    if array.values.null_count or array.values.offset:
        raise ShardError("nulls inside a list")
    offsets = _numbers(buffers[1], np.int32, num + 1)
    check_items(int(np.diff(offsets).max(initial=0)))
    return Lists(offsets, _values(len(array.values), buffers[3], buffers[4], None), valid)


def _values(
    num: int, offsets: pa.Buffer | None, data: pa.Buffer | None, valid: NDArray[np.bool_] | None
) -> Values:
    if num == 0:
        return Values(_NO_OFFSETS, _NO_BYTES, valid)
    size_bytes = 0 if data is None else data.size
    return Values(_numbers(offsets, np.int32, num + 1), _numbers(data, np.uint8, size_bytes), valid)


def _valid(array: pa.Array) -> NDArray[np.bool_] | None:
    if not array.null_count:
        return None
    bits = _numbers(array.buffers()[0], np.uint8, (len(array) + 7) // 8)
    return np.unpackbits(bits, count=len(array), bitorder="little").astype(np.bool_)


def _numbers(buffer: pa.Buffer | None, dtype: Any, count: int) -> NDArray[Any]:
    if buffer is None or count == 0:
        return np.zeros(count, dtype)
    return np.frombuffer(memoryview(buffer), dtype, count)
