"""Compiled inner loops of the loader; imported on first use, like `kernels.py`.

A row may lie in any of hundreds of record batches, so their buffers are reached by address: a
table has a row for each record batch, with the columns IMAGES to NUM_VALUES. What lies there
was checked when the batch was opened. Offsets are checked again as they are used, so that a file
that changes while it is mapped is an error and not a wild read.

A *place* is a row of a record batch: the batch's number << 8 | row. All of this releases the GIL.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # pyright: ignore[reportMissingTypeStubs]  # it has none
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from im2sp.shards.kernels import compiled, u64

IMAGES, ROW_OFFSETS, VALUE_OFFSETS, DATA, DATA_SIZE, NUM_VALUES, NUM_COLUMNS = range(7)
"""Columns of a table: addresses of the image rows, of a list column's offsets, its values' offsets
and their bytes; the number of these bytes and of the values."""

_PLACES = types.Array(types.uint32, 1, "C", readonly=True)
_TABLE = types.Array(types.int64, 2, "C", readonly=True)
_LENGTHS = types.Array(types.int32, 1, "C", readonly=True)
_INT32_OUT = types.Array(types.int32, 1, "C")
_NUMBERS_IN = types.Array(types.int64, 1, "C", readonly=True)
_NUMBERS_OUT = types.Array(types.int64, 1, "C")
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.Array(types.uint8, 1, "C")
_ROWS_OUT = types.Array(types.uint8, 2, "C")
_IDS_IN = types.Array(types.uint16, 1, "C", readonly=True)
_IDS_OUT = types.Array(types.uint16, 1, "C")


def _copy_code(_context: Any, _target: Any, _source: Any, _size: Any) -> Any:
    """Copy `size` bytes from one address to another."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        target, source = (builder.inttoptr(arg, pointer) for arg in args[:2])
        cgutils.raw_memcpy(builder, target, source, args[2], 1)  # pyright: ignore[reportUnknownMemberType]  # numba does not say

    return types.void(types.int64, types.int64, types.int64), generate


def _int32_at_code(_context: Any, _address: Any) -> Any:
    """The int32 at an address."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value = builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer()))
        return builder.sext(value, ir.IntType(64))

    return types.int64(types.int64), generate


def _fill_code(_context: Any, _target: Any, _size: Any) -> Any:
    """Set all bits of `size` bytes at an address, which makes signed integers -1."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        target = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        cgutils.memset(builder, target, args[1], 255)  # pyright: ignore[reportUnknownMemberType]  # numba does not say

    return types.void(types.int64, types.int64), generate


_copy: Any = intrinsic(_copy_code)
_fill: Any = intrinsic(_fill_code)
_int32_at: Any = intrinsic(_int32_at_code)


@numba.njit(inline="always")
def _mixed(number: Any) -> Any:
    """A 64-bit number of which each bit depends on all bits of `number` (splitmix64)."""
    number += u64(0x9E3779B97F4A7C15)
    number = (number ^ (number >> u64(30))) * u64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> u64(27))) * u64(0x94D049BB133111EB)
    return number ^ (number >> u64(31))


@numba.njit(inline="always")
def _below(number: Any, bound: Any) -> Any:
    """A number below `bound` (at most 2**32) from a mixed one."""
    return ((number >> u64(32)) * bound) >> u64(32)


@compiled(types.void(types.int64, types.int64, types.int64, types.uint64, _NUMBERS_OUT))
def permute(first: int, stride: int, num_all: int, key: Any, permuted: Any) -> None:
    """Places in a permutation of [0, num_all) of `first`, `first + stride`, ...

    A Feistel network: a number is a pair (a, b), and in turns a hash of one half is added to the
    other, modulo that half's range. Each such step can be undone, so all of them are a bijection of
    the pairs. The few pairs that stand for `num_all` and above are sent on until they come out
    below it, which keeps it one.

    Args:
        first: Below `num_all`, as are all that follow.
        stride: Step from number to number.
        num_all: 1 to 2**62.
        key: Which permutation.
        permuted: (n,) int64, written.
    """
    range_b = u64(np.ceil(np.sqrt(np.float64(num_all))))
    range_a = (u64(num_all) + range_b - u64(1)) // range_b
    for i in range(permuted.size):
        number = u64(first + i * stride)
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
    """Which of the kept items of a place is drawn."""
    return np.int64(_below(_mixed(key ^ _mixed(u64(place))), u64(num_kept)))


@compiled(
    types.void(
        _PLACES,
        _NUMBERS_IN,
        _NUMBERS_IN,
        _LENGTHS,
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
        starts: (n,) int64: lengths of the place's items start there.
        ends: (n,) int64: and end there.
        lengths: All lengths.
        low: Shortest item that counts.
        high: Longest.
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


@compiled(types.void(_PLACES, _TABLE, _ROWS_OUT))
def gather_images(places: Any, table: Any, images: Any) -> None:
    """Copy the image rows of all places to (n, bytes) `images`."""
    size = images.shape[1]
    start = images.ctypes.data
    for k in range(places.size):
        place = np.int64(places[k])
        _copy(start + k * size, table[place >> 8, IMAGES] + (place & 255) * size, size)


@compiled(
    types.int64(
        _PLACES,
        _TABLE,
        _NUMBERS_IN,
        _LENGTHS,
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
    table: Any,
    first_lengths: Any,
    lengths: Any,
    low: int,
    high: int,
    is_drawn: bool,
    key: Any,
    addresses: Any,
    offsets: Any,
    owner: Any,
) -> int:
    """Choose items of a list column.

    Args:
        places: (n,) uint32.
        table: As described above.
        first_lengths: (n,) int64: where in `lengths` those of the place's items start; not
            looked at if there are no lengths.
        lengths: (all,) int32, or empty: an item's length is its size in bytes then.
        low: Shortest item to take.
        high: Longest.
        is_drawn: Take one of the place's items, not all of them.
        key: Which one.
        addresses: (room,) int64, written: where each item is.
        offsets: (room + 1,) int64, written: where to copy it to, one after the other.
        owner: (room,) int32, written: its place, counted from 0.

    Returns:
        Items chosen, or -1 - k where offsets at places[k] are not what they were.
    """
    num = 0
    offsets[0] = 0
    for k in range(places.size):
        place = np.int64(places[k])
        batch = place >> 8
        row_address = table[batch, ROW_OFFSETS] + 4 * (place & 255)
        start, end = _int32_at(row_address), _int32_at(row_address + 4)
        num_items = end - start
        if start < 0 or num_items < 0 or end > table[batch, NUM_VALUES]:
            return -1 - k
        if num + num_items > owner.size:
            return -1 - k
        address = table[batch, VALUE_OFFSETS] + 4 * start
        before = num
        if num_items > 0:
            at = _int32_at(address)
            for i in range(num_items):
                next_at = _int32_at(address + 4 * (i + 1))
                if at < 0 or next_at < at or next_at > table[batch, DATA_SIZE]:
                    return -1 - k
                length = np.int64(lengths[first_lengths[k] + i]) if lengths.size else next_at - at
                if low <= length <= high:
                    addresses[num] = table[batch, DATA] + at
                    offsets[num + 1] = offsets[num] + next_at - at
                    owner[num] = k
                    num += 1
                at = next_at
        if is_drawn and num > before:
            pick = before + _drawn(num - before, key, places[k])
            size = offsets[pick + 1] - offsets[pick]
            addresses[before] = addresses[pick]
            offsets[before + 1] = offsets[before] + size
            num = before + 1
    return num


@compiled(types.void(_NUMBERS_IN, _NUMBERS_IN, _BYTES_OUT))
def gather(addresses: Any, offsets: Any, data: Any) -> None:
    """Copy items at (n,) `addresses` to the (n + 1,) `offsets` in `data`."""
    start = data.ctypes.data
    for k in range(offsets.size - 1):
        _copy(start + offsets[k], addresses[k], offsets[k + 1] - offsets[k])


def _spread(ids: Any, offsets: Any, rows: Any) -> None:
    """Lay values out in rows, with -1 after their end.

    Args:
        ids: All values' ids.
        offsets: (n + 1,) int64: value v is ids `offsets[v]` to `offsets[v + 1] - 1`.
        rows: (n, length) integers, written; no value is longer.
    """
    width, id_size = rows.shape[1], rows.itemsize
    address = rows.ctypes.data
    for k in range(rows.shape[0]):
        start, length = offsets[k], offsets[k + 1] - offsets[k]
        for i in range(length):
            rows[k, i] = ids[start + i]
        _fill(address + (k * width + length) * id_size, (width - length) * id_size)


_INT16_ROWS, _INT32_ROWS = (types.Array(kind, 2, "C") for kind in (types.int16, types.int32))
spread_bytes = compiled(types.void(_BYTES_IN, _NUMBERS_IN, _INT16_ROWS))(_spread)
spread_ids = compiled(types.void(_IDS_IN, _NUMBERS_IN, _INT16_ROWS))(_spread)
spread_wide = compiled(types.void(_IDS_IN, _NUMBERS_IN, _INT32_ROWS))(_spread)


@compiled(types.int64(_BYTES_IN, _NUMBERS_IN, types.int64, _IDS_OUT, _NUMBERS_OUT))
def decode_varint(data: Any, offsets: Any, minimum: int, ids: Any, id_offsets: Any) -> int:
    """Decode values of the `varint` codec.

    Args:
        data: (bytes,) uint8.
        offsets: (n + 1,) int64: value v is bytes `offsets[v]` to `offsets[v + 1] - 1`.
        minimum: What to add to each number.
        ids: (bytes,) uint16, written.
        id_offsets: (n + 1,) int64, written.

    Returns:
        -1, or the number of a value that the codec did not write.
    """
    num = 0
    id_offsets[0] = 0
    for value in range(offsets.size - 1):
        number, shift = 0, 0
        for i in range(offsets[value], offsets[value + 1]):
            number |= (np.int64(data[i]) & 127) << shift
            shift += 7
            if data[i] < 128:
                if number + minimum > 65535 or (data[i] == 0 and shift > 7):
                    return value
                ids[num] = number + minimum
                num += 1
                number, shift = 0, 0
            elif shift >= 21:
                return value
        if shift:
            return value
        id_offsets[value + 1] = num
    return -1


@compiled(types.int64(_BYTES_IN, _NUMBERS_IN, types.int64, types.int64, _IDS_OUT, _NUMBERS_OUT))
def decode_packed(data: Any, offsets: Any, bits: int, count: int, ids: Any, id_offsets: Any) -> int:
    """Decode values of the `packed` codec.

    Args:
        data: (bytes,) uint8.
        offsets: (n + 1,) int64: value v is bytes `offsets[v]` to `offsets[v + 1] - 1`.
        bits: Width of an id.
        count: Ids in each value, -1 for as many as its bytes hold.
        ids: (8 * bytes // bits,) uint16, written.
        id_offsets: (n + 1,) int64, written.

    Returns:
        -1, or the number of a value that the codec did not write.
    """
    num = 0
    width = u64(bits)
    mask = (u64(1) << width) - u64(1)
    id_offsets[0] = 0
    for value in range(offsets.size - 1):
        at, end = offsets[value], offsets[value + 1]
        num_ids = count if count >= 0 else 8 * (end - at) // bits
        if end - at != (num_ids * bits + 7) // 8:
            return value
        held, num_held = u64(0), u64(0)
        for _ in range(num_ids):
            while num_held < width:
                held |= u64(data[at]) << num_held
                num_held += u64(8)
                at += 1
            ids[num] = held & mask
            num += 1
            held >>= width
            num_held -= width
        if held:
            return value
        id_offsets[value + 1] = num
    return -1


@compiled(types.void(_BYTES_IN, types.Array(types.int32, 1, "C", readonly=True), _INT32_OUT))
def count_characters(data: Any, offsets: Any, counts: Any) -> None:
    """Characters of each UTF-8 value; value v is bytes `offsets[v]` to `offsets[v + 1] - 1`."""
    for value in range(counts.size):
        num = 0
        for i in range(offsets[value], offsets[value + 1]):
            num += (data[i] & 192) != 128
        counts[value] = num
