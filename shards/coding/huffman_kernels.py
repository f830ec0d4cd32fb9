"""Compiled inner loops of the `huffman` codec; imported on first use, like `packing_kernels`.

A decoding table has 2**width entries for every context, looked up by the next `width` bits:

    singles: bits 0 to 3 length, 4 to 5 kind (ID, ESCAPE, NO_CODE), 6 to 15 the id
    pairs:   bits 0 to 3 length of all, 4 to 5 ids (0: look in singles), 6 to 15 first id,
             16 to 25 last id; an entry holds two ids if their codes fit in `width` bits

Context c starts at entry c << width, where c is the preceding id, or the number of ids at the
start; a codec of order 0 has one context, so c is multiplied by 0. The bits after a value's end
are read as ones, which are no code, so the end needs no separate test.
"""

from typing import Any

import numba
import numpy as np
from numba import types

from im2sp.shards.coding.packing_kernels import compiled, u64

ID, ESCAPE, NO_CODE = 0, 1, 2
DONE, NOT_A_CODE, CUT_OFF, BAD_ESCAPE = 0, 1, 2, 3

_IDS_IN = types.Array(types.uint16, 1, "C", readonly=True)
_IDS_OUT = types.Array(types.uint16, 1, "C")
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES_OUT = types.Array(types.uint8, 1, "C")
_NUMBERS_IN = types.Array(types.int64, 1, "C", readonly=True)
_NUMBERS_OUT = types.Array(types.int64, 1, "C")
_TABLE_IN = types.Array(types.uint32, 1, "C", readonly=True)
_TABLE_OUT = types.Array(types.uint32, 1, "C")
_CODES_IN = types.Array(types.uint32, 2, "C", readonly=True)


@compiled(types.void(_CODES_IN, types.int64, types.int64, _TABLE_OUT, _TABLE_OUT))
def fill_tables(codes: Any, width: int, order: int, singles: Any, pairs: Any) -> None:
    """Fill both decoding tables.

    Args:
        codes: (contexts, ids + 1) uint32: length << 16 | code, lowest bit first; 0: no code. The
            last column is the escape.
        width: Longest code of all.
        order: 0 or 1.
        singles: (contexts << width,) uint32, written.
        pairs: (contexts << width,) uint32, written.
    """
    num_windows = 1 << width
    num_ids = codes.shape[1] - 1
    singles[:] = NO_CODE << 4
    for context in range(codes.shape[0]):
        for i in range(num_ids + 1):
            length = np.int64(codes[context, i] >> 16)
            if length == 0:
                continue
            entry = length | ESCAPE << 4 if i == num_ids else length | i << 6
            for window in range(np.int64(codes[context, i]) & 65535, num_windows, 1 << length):
                singles[context << width | window] = entry
    for k in range(singles.size):
        first = np.int64(singles[k])
        pairs[k] = 0
        if first >> 4 & 3 == ID:
            length, i = first & 15, first >> 6
            rest = (k & (num_windows - 1)) >> length
            second = np.int64(singles[i * order << width | rest])
            if second >> 4 & 3 == ID and length + (second & 15) <= width:
                pairs[k] = length + (second & 15) | 2 << 4 | i << 6 | (second >> 6) << 16
            else:
                pairs[k] = length | 1 << 4 | i << 6 | i << 16


@numba.njit(inline="always")
def _bits(data: Any, at: Any) -> Any:
    """At least 57 bits starting at bit `at`; 8 bytes must be available."""
    held = u64(0)
    for k in range(8):  # LLVM merges these into one load
        held |= u64(data[(at >> u64(3)) + u64(k)]) << u64(8 * k)
    return held >> (at & u64(7))


@numba.njit(inline="always")
def _inverted_bits(data: Any, at: Any, end: Any) -> Any:
    """Inverted bits starting at bit `at`, safe near the end; zeros from bit `end` on."""
    byte = at >> u64(3)
    if byte + u64(8) <= u64(data.size):
        held = ~_bits(data, at)
    else:
        held = u64(0)
        for k in range(u64(data.size) - byte):
            held |= u64(data[byte + u64(k)]) << u64(8 * k)
        held = ~(held >> (at & u64(7)))
    num_left = min(end - at, u64(57))
    return held & ((u64(1) << num_left) - u64(1))


@numba.njit
def _decode_pairs(
    data: Any, pairs: Any, width: Any, rows: Any, end: Any, state: Any, ids: Any
) -> Any:
    """Decode up to the next escape, the end of the value, or an error.

    `state` and the result are the next bit, the start of the next context's entries, and the
    number of ids so far.
    """
    at, context, num = state
    mask, row_shift = (u64(1) << width) - u64(1), u64(16) - width
    while at + u64(57) <= end and (at >> u64(3)) + u64(8) <= u64(data.size):
        held = _bits(data, at)
        for _ in range(4):  # at most 48 of the 57 bits held
            entry = u64(pairs[context + (held & mask)])
            num_found = entry >> u64(4) & u64(3)
            if num_found == u64(0):
                return at, context, num
            ids[num] = entry >> u64(6) & u64(1023)
            ids[num + u64(1)] = entry >> u64(16)
            num += num_found
            at += entry & u64(15)
            held >>= entry & u64(15)
            context = entry >> row_shift & rows
    if at + u64(57) <= end:
        return at, context, num
    inverted = _inverted_bits(data, at, end)
    while True:
        entry = u64(pairs[context + (~inverted & mask)])
        num_found = entry >> u64(4) & u64(3)
        if num_found == u64(0) or at + (entry & u64(15)) > end:
            return at, context, num
        ids[num] = entry >> u64(6) & u64(1023)
        ids[num + u64(1)] = entry >> u64(16)
        num += num_found
        at += entry & u64(15)
        inverted >>= entry & u64(15)
        context = entry >> row_shift & rows


@numba.njit
def _decode_both(
    data: Any, pairs: Any, width: Any, rows: Any, ends: Any, states: Any, ids: Any, others: Any
) -> Any:
    """Decode two values in parallel while `_bits` is valid in both and no id is escaped.

    A lookup depends on the previous one in the same value, so two values take little longer than
    one. Ids of the first value are written to `ids`, those of the second to `others`.
    """
    (at, context, num), (other_at, other_context, other_num) = states
    end, other_end = ends
    mask, row_shift = (u64(1) << width) - u64(1), u64(16) - width
    last = u64(data.size) - u64(8)
    while (
        at + u64(57) <= end
        and other_at + u64(57) <= other_end
        and other_at >> u64(3) <= last
        and at >> u64(3) <= last
    ):
        held, other_held = _bits(data, at), _bits(data, other_at)
        for _ in range(4):  # at most 48 of the 57 bits held
            entry = u64(pairs[context + (held & mask)])
            other_entry = u64(pairs[other_context + (other_held & mask)])
            num_found, num_other = entry >> u64(4) & u64(3), other_entry >> u64(4) & u64(3)
            if num_found == u64(0) or num_other == u64(0):
                return (at, context, num), (other_at, other_context, other_num)
            ids[num] = entry >> u64(6) & u64(1023)
            ids[num + u64(1)] = entry >> u64(16)
            others[other_num] = other_entry >> u64(6) & u64(1023)
            others[other_num + u64(1)] = other_entry >> u64(16)
            num += num_found
            other_num += num_other
            at += entry & u64(15)
            other_at += other_entry & u64(15)
            held >>= entry & u64(15)
            other_held >>= other_entry & u64(15)
            context = entry >> row_shift & rows
            other_context = other_entry >> row_shift & rows
    return (at, context, num), (other_at, other_context, other_num)


@numba.njit
def _decode_one(
    data: Any, singles: Any, codes: Any, settings: Any, end: Any, at: Any, context: Any
) -> Any:
    """Decode one id; return the error code (or -1), the id, and the next bit."""
    width, num_ids, minimum, escape_bits = settings[0], settings[2], settings[3], settings[4]
    inverted = _inverted_bits(data, at, end)
    entry = u64(singles[context + (~inverted & ((u64(1) << u64(width)) - u64(1)))])
    number = entry >> u64(6)
    after = at + (entry & u64(15))
    kind = entry >> u64(4) & u64(3)
    if kind == u64(NO_CODE):
        is_end = end - at < u64(8) and inverted == u64(0)
        return DONE if is_end else NOT_A_CODE, number, at
    if kind == u64(ESCAPE):
        number = (~inverted >> (entry & u64(15))) & ((u64(1) << u64(escape_bits)) - u64(1))
        after += u64(escape_bits)
    if after > end:
        return CUT_OFF, number, at
    if kind == u64(ESCAPE):
        is_listed = number < u64(codes.shape[1] - 1) and codes[context >> u64(width), number] != 0
        if is_listed or number < u64(minimum) or number >= u64(num_ids):
            return BAD_ESCAPE, number, at
    return -1, number, after


@numba.njit
def _decode_rest(
    data: Any,
    singles: Any,
    pairs: Any,
    codes: Any,
    settings: Any,
    end: Any,
    state: Any,
    ids: Any,
) -> Any:
    """Decode a value from `state` on; return DONE or an error, the next bit, and the ids so far."""
    width, order = u64(settings[0]), u64(settings[1])
    rows = (u64(1023) * order) << width
    at, context, num = state
    wrong = -1
    while wrong < 0:
        at, context, num = _decode_pairs(data, pairs, width, rows, end, (at, context, num), ids)
        wrong, number, at = _decode_one(data, singles, codes, settings, end, at, context)
        if wrong < 0:
            ids[num] = number
            num += u64(1)
            context = number << width & rows
    return wrong, at, num


@numba.njit
def _largest_size(offsets: Any) -> Any:
    """Bytes of the longest value."""
    largest = 0
    for value in range(offsets.size - 1):
        largest = max(largest, offsets[value + 1] - offsets[value])
    return largest


@compiled(
    types.int64(
        _BYTES_IN,
        _NUMBERS_IN,
        _TABLE_IN,
        _TABLE_IN,
        _CODES_IN,
        _NUMBERS_IN,
        _IDS_OUT,
        _NUMBERS_OUT,
    )
)
def decode(
    data: Any,
    offsets: Any,
    singles: Any,
    pairs: Any,
    codes: Any,
    settings: Any,
    ids: Any,
    ends: Any,
) -> int:
    """Decode consecutive values.

    Args:
        data: (bytes,) uint8.
        offsets: (values + 1,) int64, ascending, inside the data: value v is bytes `offsets[v]` to
            `offsets[v + 1] - 1`.
        singles: Table of `fill_tables`.
        pairs: Table of `fill_tables`.
        codes: The codes given to `fill_tables`.
        settings: (5,) int64: width, order, number of ids, smallest id, bits after an escape.
        ids: (n,) uint16, written; n is the number of shortest codes that fit in the data, plus 2.
        ends: (values + 1,) int64, written: value v is ids `ends[v]` to `ends[v + 1] - 1`.

    Returns:
        DONE or an error code; on error `ends` starts with the number of the value and the bit in
        it.
    """
    width, order, num_ids = u64(settings[0]), u64(settings[1]), u64(settings[2])
    rows = (u64(1023) * order) << width
    start = (num_ids * order) << width
    others = np.empty(8 * _largest_size(offsets) + 2, np.uint16)
    num = u64(0)
    ends[0] = 0
    other = (u64(0), start, u64(0))
    for value in range(offsets.size - 1):
        first, end = u64(8 * offsets[value]), u64(8 * offsets[value + 1])
        is_other = order == u64(1) and value & 1 == 1  # started with the previous value
        if is_other:
            wrong, at, num_others = _decode_rest(
                data, singles, pairs, codes, settings, end, other, others
            )
            for i in range(num_others):
                ids[num + u64(i)] = others[i]
            num += num_others
        else:
            state = (first, start, num)
            if order == u64(1) and value + 2 < offsets.size:
                other = (end, start, u64(0))
                bounds = (end, u64(8 * offsets[value + 2]))
                state, other = _decode_both(
                    data, pairs, width, rows, bounds, (state, other), ids, others
                )
            wrong, at, num = _decode_rest(data, singles, pairs, codes, settings, end, state, ids)
        if wrong != DONE:
            ends[0], ends[1] = value, np.int64(at - first)
            return wrong
        ends[value + 1] = np.int64(num)
    return DONE


@compiled(types.int64(_IDS_IN, _CODES_IN, _NUMBERS_IN, _BYTES_OUT))
def encode(ids: Any, codes: Any, settings: Any, data: Any) -> int:
    """Code ids, all in range.

    Args:
        ids: (n,) uint16.
        codes: As for `fill_tables`.
        settings: As for `decode`.
        data: Written; has space for n longest codes with escaped bits, plus 1 byte.

    Returns:
        Bytes written.
    """
    _, order, num_ids, _, escape_bits = settings
    escape = codes.shape[1] - 1
    held, num_held = u64(0), u64(0)
    size = 0
    row = num_ids * order
    for i in range(ids.size):
        number = np.int64(ids[i])
        code = u64(codes[row, number]) if number < escape else u64(0)
        if code != u64(0):
            held |= (code & u64(65535)) << num_held
            num_held += code >> u64(16)
        else:
            code = u64(codes[row, escape])
            held |= (code & u64(65535)) << num_held
            num_held += code >> u64(16)
            held |= u64(number) << num_held
            num_held += u64(escape_bits)
        while num_held >= u64(8):
            data[size] = held & u64(255)
            size += 1
            held >>= u64(8)
            num_held -= u64(8)
        row = number * order
    if num_held > u64(0):
        data[size] = (held | (u64(255) << num_held)) & u64(255)
        size += 1
    return size
