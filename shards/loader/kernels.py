"""Compiled inner loops of the loader; imported on first use, like `packing_kernels`.

A row may be in any of hundreds of record batches, so a column is the bytes of all shards and a
table of the byte ranges of each record batch in them, `opened.OpenBatches`. Every index that was
read from a mapped file is checked against the size of the indexed array on each use, so a file that
changes while it is mapped causes an error, not an out-of-bounds read. All kernels release the GIL.

A *place* is a row of a record batch: the batch's number << 8 | row.

Compiled code is at least twice as fast as numpy over the same views (batches of 256 shuffled
rows, page cache warm, `docs/benchmarks/2026-11-27-loader.md`): a whole batch with packed speech 4.5
times (`gather_rows`, `choose`, `gather`, `spread`), `permute` 15, `spread` 11, `decode_packed` 34,
`drawn_lengths` 2.7 times. With a cold page cache the disk is the limit (1.2 to 1.3 times, on a
virtual disk). Varints and the characters of captions are counted with numpy.
"""

from typing import Any

import numba
import numpy as np
from numba import types
from numba.typed import List

from im2sp.shards.coding.packing_kernels import compiled, u64

_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.Array(types.uint8, 1, "C")
_ROWS_OUT = types.Array(types.uint8, 2, "C")
_PLACES = types.Array(types.uint32, 1, "C", readonly=True)
_INT32_IN = types.Array(types.int32, 1, "C", readonly=True)
_INT32_OUT = types.Array(types.int32, 1, "C")
_NUMBERS_IN = types.Array(types.int64, 1, "C", readonly=True)
_NUMBERS_OUT = types.Array(types.int64, 1, "C")
_IDS_IN = types.Array(types.uint16, 1, "C", readonly=True)
_WIDE_IN = types.Array(types.uint32, 1, "C", readonly=True)

_FILES = types.ListType(_BYTES_IN)
_TABLE = types.Array(types.int64, 2, "C", readonly=True)
FILE, ROWS, NUM_ROWS, VALUES, NUM_VALUES, DATA, DATA_SIZE, MAX_ITEMS = range(8)
"""Columns of a table, which has a row for each record batch:

FILE: number of its file.
ROWS: offset of (rows + 1,) int32: row r of a list column is values `rows[r]` to `rows[r + 1] - 1`;
    -1 if row r is value r. NUM_ROWS: number of rows, 0 if the record batch is not open.
VALUES: offset of (values + 1,) int32: value v is bytes `values[v]` to `values[v + 1] - 1` of the
    data; -1 if they have one size. NUM_VALUES: number of values.
DATA: offset of the bytes of the values. DATA_SIZE: their number.
MAX_ITEMS: most values of a row.
"""
NUM_ENTRIES = 8


@compiled(_FILES(types.int64, _BYTES_IN))
def new_files(num: int, empty: Any) -> Any:
    """A list of `num` files without bytes, `empty`."""
    files = List.empty_list(_BYTES_IN)
    for _ in range(num):
        files.append(empty)
    return files


@compiled(types.void(_FILES, types.int64, _BYTES_IN))
def set_file(files: Any, number: int, data: Any) -> None:
    """Set the bytes of a file that no record batch refers to yet."""
    files[number] = data


@numba.njit(inline="always")
def _int32(data: Any, at: Any) -> Any:
    """The little-endian number at a byte."""
    i = u64(at)
    low = np.uint32(data[i]) | np.uint32(data[i + u64(1)]) << np.uint32(8)
    high = np.uint32(data[i + u64(2)]) | np.uint32(data[i + u64(3)]) << np.uint32(8)
    return np.int64(np.int32(np.uint32(low | high << np.uint32(16))))


@numba.njit(inline="always")
def _value_start(data: Any, entries: Any, value: Any) -> Any:
    """Start of a value in the data of its record batch."""
    if entries[VALUES] >= 0:
        return _int32(data, entries[VALUES] + 4 * value)
    return value * (entries[DATA_SIZE] // max(entries[NUM_VALUES], 1))


@numba.njit(inline="always")
def _copy(source: Any, start: Any, size: Any, target: Any, at: Any) -> None:
    """Copy a range of 1-D arrays. Unsigned, because signed indices prevent vectorisation."""
    first, to = u64(start), u64(at)
    for i in range(u64(size)):
        target[to + i] = source[first + i]


@numba.njit(inline="always")
def _mixed(number: Any) -> Any:
    """A 64-bit hash in which each bit depends on all bits of `number` (splitmix64)."""
    number += u64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> u64(27))) * u64(0x94D049BB133111EB)
    return number ^ (number >> u64(31))


@numba.njit(inline="always")
def _below(number: Any, bound: Any) -> Any:
    """A number below `bound` (at most 2**32) from a hashed one."""
    return ((number >> u64(32)) * bound) >> u64(32)


@compiled(types.void(_NUMBERS_IN, types.int64, types.uint64, _NUMBERS_OUT))
def permute(numbers: Any, num_all: int, key: Any, permuted: Any) -> None:
    """Map numbers through a permutation of [0, num_all).

    A Feistel network: a number is a pair (a, b), and alternately a hash of one half is added to the
    other, modulo that half's range. Each step is invertible, so the network is a bijection of the
    pairs. The few results at `num_all` and above are mapped again until they are below it (cycle
    walking), which keeps it a bijection.

    Args:
        numbers: (n,) int64, each below `num_all`.
        num_all: 1 to 2**62.
        key: Key of the permutation.
        permuted: (n,) int64, written; may be `numbers`.
    """
    range_b = u64(np.ceil(np.sqrt(np.float64(num_all))))
    range_a = (u64(num_all) + range_b - u64(1)) // range_b
    for i in range(permuted.size):
        number = u64(numbers[i])
        while True:
            a, b = number // range_b, number % range_b
            for turn in range(3):
                a += _below(_mixed(key ^ _mixed(b + (u64(2 * turn) << u64(32)))), range_a)
                if a >= range_a:
                    a -= range_a
                b += _below(_mixed(key ^ _mixed(a + (u64(2 * turn + 1) << u64(32)))), range_b)
                if b >= range_b:
                    b -= range_b
            number = a * range_b + b
            if number < u64(num_all):
                break
        permuted[i] = np.int64(number)


@numba.njit(inline="always")
def _drawn(num_kept: Any, key: Any, place: Any) -> Any:
    """Index of the item drawn among the kept items of a place."""
    return np.int64(_below(_mixed(key ^ _mixed(u64(place))), u64(num_kept)))


@compiled(
    types.void(
        _PLACES,
        _NUMBERS_IN,
        _NUMBERS_IN,
        _INT32_IN,
        types.int64,
        types.int64,
        types.uint64,
        _INT32_OUT,
    )
)
def drawn_lengths(
    places: Any, starts: Any, ends: Any, lengths: Any, low: int, high: int, key: Any, drawn: Any
) -> None:
    """Length of the item that `choose` draws at each place.

    Args:
        places: (n,) uint32, each with an item in bounds.
        starts: (n,) int64: start in `lengths` of the place's items.
        ends: (n,) int64: end in `lengths` of the place's items.
        lengths: All lengths.
        low: Minimum length of an item.
        high: Maximum length of an item.
        key: As for `choose`.
        drawn: (n,) int32, written.
    """
    for k in range(places.size):
        num_kept = 0
        for i in range(starts[k], ends[k]):
            num_kept += low <= lengths[i] <= high
        skip = _drawn(num_kept, key, places[k])
        for i in range(starts[k], ends[k]):
            if low <= lengths[i] <= high:
                if skip == 0:
                    drawn[k] = lengths[i]
                skip -= 1


@compiled(types.int64(_PLACES, _FILES, _TABLE, _ROWS_OUT))
def gather_rows(places: Any, files: Any, table: Any, copied: Any) -> int:
    """Copy rows of one size to (n, bytes) `copied`; return the number of rows found."""
    size = copied.shape[1]
    for k in range(places.size):
        entries = table[np.int64(places[k]) >> 8]
        start = (np.int64(places[k]) & 255) * size
        if start + size > entries[DATA_SIZE]:
            return k
        _copy(files[entries[FILE]], entries[DATA] + start, size, copied[k], 0)
    return places.size


@compiled(
    types.int64(
        _PLACES,
        _FILES,
        _TABLE,
        _NUMBERS_IN,
        _INT32_IN,
        types.int64,
        types.int64,
        types.boolean,
        types.uint64,
        _NUMBERS_OUT,
        _NUMBERS_OUT,
        _INT32_OUT,
    )
)
def choose(
    places: Any,
    files: Any,
    table: Any,
    first_lengths: Any,
    lengths: Any,
    low: int,
    high: int,
    is_drawn: bool,
    key: Any,
    starts: Any,
    offsets: Any,
    owner: Any,
) -> int:
    """Choose items of a list column.

    Args:
        places: (n,) uint32.
        files: Bytes of all files.
        table: The column's byte ranges of each record batch; those of the places are open.
        first_lengths: (n,) int64: start in `lengths` of the place's items; not read if there are
            no lengths.
        lengths: (all,) int32; if empty, an item's length is its size in bytes.
        low: Minimum length of an item.
        high: Maximum length of an item.
        is_drawn: Draw one of the place's items instead of taking all.
        key: Key of the draw.
        starts: (capacity,) int64, written: start of each item in the bytes of its file.
        offsets: (capacity + 1,) int64, written: its start in the contiguous output.
        owner: (capacity,) int32, written: index of its place.

    Returns:
        Number of items chosen, or -1 - k if the offsets at places[k] are invalid.
    """
    num = 0
    offsets[0] = 0
    for k in range(places.size):
        entries = table[np.int64(places[k]) >> 8]
        data = files[entries[FILE]]
        row = np.int64(places[k]) & 255
        if row >= entries[NUM_ROWS]:
            return -1 - k
        start, end = row, row + 1
        if entries[ROWS] >= 0:
            start = _int32(data, entries[ROWS] + 4 * row)
            end = _int32(data, entries[ROWS] + 4 * row + 4)
        num_items = end - start
        is_beyond = num_items < 0 or end > entries[NUM_VALUES] or num + num_items > owner.size
        if start < 0 or is_beyond:
            return -1 - k
        first = first_lengths[k] if lengths.size else 0
        if lengths.size and (first < 0 or first + num_items > lengths.size):
            return -1 - k
        before, at = num, _value_start(data, entries, start)
        for i in range(num_items):
            next_at = _value_start(data, entries, start + i + 1)
            if at < 0 or next_at < at or next_at > entries[DATA_SIZE]:
                return -1 - k
            length = np.int64(lengths[first + i]) if lengths.size else next_at - at
            if low <= length <= high:
                starts[num] = entries[DATA] + at
                offsets[num + 1] = offsets[num] + next_at - at
                owner[num] = k
                num += 1
            at = next_at
        if is_drawn and num > before:
            pick = before + _drawn(num - before, key, places[k])
            size = offsets[pick + 1] - offsets[pick]
            starts[before] = starts[pick]
            offsets[before + 1] = offsets[before] + size
            num = before + 1
    return num


@compiled(types.void(_PLACES, _FILES, _TABLE, _NUMBERS_IN, _NUMBERS_IN, _INT32_IN, _BYTES_OUT))
def gather(
    places: Any, files: Any, table: Any, starts: Any, offsets: Any, owner: Any, copied: Any
) -> None:
    """Copy the items that `choose` chose to the (n + 1,) `offsets` in `copied`."""
    num, k = offsets.size - 1, 0
    while k < num:
        first, size = k, offsets[k + 1] - offsets[k]
        k += 1
        while k < num and owner[k] == owner[first] and starts[k] == starts[first] + size:
            size += offsets[k + 1] - offsets[k]  # adjacent items in one copy
            k += 1
        data = files[table[np.int64(places[owner[first]]) >> 8, FILE]]
        _copy(data, starts[first], size, copied, offsets[first])


@compiled(
    *(
        types.void(ids, _NUMBERS_IN, types.Array(kind, 2, "C"))
        for ids, kind in (
            (_BYTES_IN, types.int16),
            (_IDS_IN, types.int16),
            (_IDS_IN, types.int32),
            (_WIDE_IN, types.int32),
            (_WIDE_IN, types.int64),
        )
    )
)
def spread(ids: Any, offsets: Any, rows: Any) -> None:
    """Copy values to rows, padded with -1.

    Args:
        ids: Ids of all values.
        offsets: (n + 1,) int64: value v is ids `offsets[v]` to `offsets[v + 1] - 1`.
        rows: (n, length) integers, written; length is at least that of the longest value.
    """
    for k in range(rows.shape[0]):
        size = offsets[k + 1] - offsets[k]
        _copy(ids, offsets[k], size, rows[k], 0)
        for i in range(u64(size), u64(rows.shape[1])):
            rows[k, i] = -1
