"""Compiled walk over the Huffman-coded data of a JPEG scan: is every block there?

The walk reads codes as a decoder does but keeps no coefficients; of a progressive picture it keeps
which ones are non-zero, because a refinement scan holds one bit for each of those. ITU-T T.81,
annexes F and G. Imported on first use, because numba is slow to import.

Every walk takes (data, at, num_mcus, restart_interval, ...) and returns three numbers: how it
ended, how many MCUs (units of one or more blocks) were whole, and the first byte that no block
needs. Their common arguments:

- `data`: uint8 [n], the file; `at`: the first byte of the scan's data.
- `num_mcus`: how many the scan must hold; `restart_interval`: MCUs between restart markers or 0.
- `dc_tables`, `ac_tables`: int64 [b], the row of the Huffman table for each block of an MCU.
- `lookup`: int16 [8, 1024], what the next 10 bits mean: 256 x code length + value, or 0 when the
  code is longer.
- `limits`, `offsets`: int32 [8, 17]; `limits[t, n]` is the first 16-bit prefix past the codes of up
  to n bits, `offsets[t, n]` turns a code of n bits into the index of its value.
- `values`: uint8 [8, 256], the values in the order of their codes.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

COMPLETE, OUT_OF_DATA, BAD_CODE, NO_RESTART = 0, 1, 2, 3
"""How a walk ends."""

_INT = types.int64
_DATA = types.Array(types.uint8, 1, "C", readonly=True)
_ROWS = types.Array(types.int64, 1, "C")
_LOOKUP = types.Array(types.int16, 2, "C")
_LIMITS = types.Array(types.int32, 2, "C")
_VALUES = types.Array(types.uint8, 2, "C")
_MASKS = types.Array(types.uint64, 1, "C")
_RESULT = types.UniTuple(_INT, 3)
_TABLES = (_LOOKUP, _LIMITS, _LIMITS, _VALUES)

_inlined = numba.njit(inline="always")


def _compiled(*signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for one signature, with numba's disk cache where it can be used."""

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit([_RESULT(*signature)], nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # no folder for the cache, or it cannot be written
            return numba.njit([_RESULT(*signature)], nogil=True)(function)

    return compile_function


# The reader's state is four numbers: the next byte, the bit buffer, the bits in it, and how many of
# those are not from the file but zeros put in at its end. What was read past the end shows as
# fewer bits left than were put in.


@_inlined
def _fill(data: Any, pos: Any, bits: Any, num_bits: Any, num_added: Any) -> Any:
    """At least 48 bits in the buffer; 0xFF 0x00 stands for 0xFF, any other 0xFF is the end."""
    while num_bits <= 47:
        byte = 0
        if pos < data.size and num_added == 0:
            byte = _INT(data[pos])
            if byte != 0xFF:
                pos += 1
            elif pos + 1 < data.size and data[pos + 1] == 0:
                pos += 2
            else:
                byte = 0
                num_added = 8
        else:
            num_added += 8
        bits = ((bits & 0xFFFFFFFFFFFF) << 8) | byte
        num_bits += 8
    return pos, bits, num_bits, num_added


@_inlined
def _read_code(
    bits: Any, num_bits: Any, row: Any, lookup: Any, limits: Any, offsets: Any, values: Any
) -> Any:
    """The value of the next code and the bits left; value -1 when no table row has the code."""
    entry = _INT(lookup[row, (bits >> (num_bits - 10)) & 1023])
    if entry != 0:
        return entry & 255, num_bits - (entry >> 8)
    prefix = (bits >> (num_bits - 16)) & 0xFFFF
    for size in range(11, 17):
        if prefix < limits[row, size]:
            index = (prefix >> (16 - size)) + offsets[row, size]
            return _INT(values[row, index & 255]), num_bits - size
    return -1, num_bits


@_inlined
def _find_restart(data: Any, pos: Any, number: Any) -> Any:
    """The byte behind the next marker; -1 when that is not restart marker `number` (0 to 7)."""
    while pos + 1 < data.size and (
        data[pos] != 0xFF or data[pos + 1] == 0 or data[pos + 1] == 0xFF
    ):
        pos += 1
    if pos + 1 >= data.size or data[pos + 1] != 0xD0 + number:
        return -1
    return pos + 2


@_inlined
def _bad(num_bits: Any, num_added: Any) -> Any:
    """What an unknown code means: damage, unless it reaches past the end."""
    return OUT_OF_DATA if num_bits - 16 < num_added else BAD_CODE


@_compiled(_DATA, _INT, _INT, _INT, _ROWS, _ROWS, *_TABLES)
def walk_sequential(
    data: Any,
    at: Any,
    num_mcus: Any,
    restart_interval: Any,
    dc_tables: Any,
    ac_tables: Any,
    lookup: Any,
    limits: Any,
    offsets: Any,
    values: Any,
) -> Any:
    """Walk a scan of a sequential picture."""
    pos, bits, num_bits, num_added = at, 0, 0, 0
    for mcu in range(num_mcus):
        if restart_interval > 0 and mcu > 0 and mcu % restart_interval == 0:
            pos = _find_restart(data, pos, (mcu // restart_interval - 1) & 7)
            if pos < 0:
                return NO_RESTART, mcu, at
            bits, num_bits, num_added = 0, 0, 0
        for index in range(dc_tables.size):
            pos, bits, num_bits, num_added = _fill(data, pos, bits, num_bits, num_added)
            row = dc_tables[index]
            value, num_bits = _read_code(bits, num_bits, row, lookup, limits, offsets, values)
            if value < 0:
                return _bad(num_bits, num_added), mcu, at
            num_bits -= value & 15
            row = ac_tables[index]
            k = 1
            while k < 64:
                if num_bits < 32:
                    pos, bits, num_bits, num_added = _fill(data, pos, bits, num_bits, num_added)
                value, num_bits = _read_code(bits, num_bits, row, lookup, limits, offsets, values)
                if value < 0:
                    return _bad(num_bits, num_added), mcu, at
                size = value & 15
                num_bits -= size
                if size == 0 and value != 0xF0:  # end of block
                    break
                k += (value >> 4) + 1
            if num_bits < num_added:
                return OUT_OF_DATA, mcu, at
    return COMPLETE, num_mcus, pos - (num_bits - num_added) // 8


@_compiled(_DATA, _INT, _INT, _INT, _ROWS, _INT, *_TABLES)
def walk_dc(
    data: Any,
    at: Any,
    num_mcus: Any,
    restart_interval: Any,
    dc_tables: Any,
    is_first: Any,
    lookup: Any,
    limits: Any,
    offsets: Any,
    values: Any,
) -> Any:
    """Walk a progressive scan of DC coefficients: `is_first` 1 for codes, 0 for one bit a block."""
    pos, bits, num_bits, num_added = at, 0, 0, 0
    for mcu in range(num_mcus):
        if restart_interval > 0 and mcu > 0 and mcu % restart_interval == 0:
            pos = _find_restart(data, pos, (mcu // restart_interval - 1) & 7)
            if pos < 0:
                return NO_RESTART, mcu, at
            bits, num_bits, num_added = 0, 0, 0
        for index in range(dc_tables.size):
            if num_bits < 32:
                pos, bits, num_bits, num_added = _fill(data, pos, bits, num_bits, num_added)
            value = 1
            if is_first == 1:
                row = dc_tables[index]
                value, num_bits = _read_code(bits, num_bits, row, lookup, limits, offsets, values)
                if value < 0:
                    return _bad(num_bits, num_added), mcu, at
            num_bits -= value & 15
            if num_bits < num_added:
                return OUT_OF_DATA, mcu, at
    return COMPLETE, num_mcus, pos - (num_bits - num_added) // 8


@_compiled(_DATA, _INT, _INT, _INT, _INT, _INT, _INT, _MASKS, *_TABLES)
def walk_ac_first(
    data: Any, at: Any, num_blocks: Any, restart_interval: Any, row: Any, first: Any, last: Any,
    nonzero: Any, lookup: Any, limits: Any, offsets: Any, values: Any,
) -> Any:  # fmt: skip
    """Walk a progressive scan that begins coefficients `first` to `last`, noted in `nonzero`."""
    pos, bits, num_bits, num_added = at, 0, 0, 0
    num_empty = 0  # blocks to come that have no code
    for block in range(num_blocks):
        if restart_interval > 0 and block > 0 and block % restart_interval == 0:
            pos = _find_restart(data, pos, (block // restart_interval - 1) & 7)
            if pos < 0:
                return NO_RESTART, block, at
            bits, num_bits, num_added, num_empty = 0, 0, 0, 0
        if num_empty > 0:
            num_empty -= 1
            continue
        k = first
        while k <= last:
            if num_bits < 32:
                pos, bits, num_bits, num_added = _fill(data, pos, bits, num_bits, num_added)
            value, num_bits = _read_code(bits, num_bits, row, lookup, limits, offsets, values)
            if value < 0:
                return _bad(num_bits, num_added), block, at
            run, size = value >> 4, value & 15
            num_bits -= size
            if size == 0 and run < 15:
                num_bits -= run
                num_empty = (1 << run) + ((bits >> num_bits) & ((1 << run) - 1)) - 1
                break
            k += run
            if size > 0 and k < 64:
                nonzero[block] |= np.uint64(1) << np.uint64(k)
            k += 1
        if num_bits < num_added:
            return OUT_OF_DATA, block, at
    return COMPLETE, num_blocks, pos - (num_bits - num_added) // 8


@_compiled(_DATA, _INT, _INT, _INT, _INT, _INT, _INT, _MASKS, *_TABLES)
def walk_ac_refine(
    data: Any, at: Any, num_blocks: Any, restart_interval: Any, row: Any, first: Any, last: Any,
    nonzero: Any, lookup: Any, limits: Any, offsets: Any, values: Any,
) -> Any:  # fmt: skip
    """Walk a progressive scan with one more bit of coefficients `first` to `last`.

    A coefficient that is non-zero already has a bit wherever it is passed over.
    """
    pos, bits, num_bits, num_added = at, 0, 0, 0
    num_empty = 0  # blocks to come, this one included, in which no coefficient appears
    for block in range(num_blocks):
        if restart_interval > 0 and block > 0 and block % restart_interval == 0:
            pos = _find_restart(data, pos, (block // restart_interval - 1) & 7)
            if pos < 0:
                return NO_RESTART, block, at
            bits, num_bits, num_added, num_empty = 0, 0, 0, 0
        mask = nonzero[block]
        k = first
        while k <= last:
            run, appears = 64, False  # an empty block: pass over everything
            if num_empty == 0:
                if num_bits < 32:
                    pos, bits, num_bits, num_added = _fill(data, pos, bits, num_bits, num_added)
                value, num_bits = _read_code(bits, num_bits, row, lookup, limits, offsets, values)
                if value < 0:
                    return _bad(num_bits, num_added), block, at
                run, appears = value >> 4, value & 15 != 0
                if appears:
                    num_bits -= 1  # its sign
                elif run < 15:
                    num_bits -= run
                    num_empty = (1 << run) + ((bits >> num_bits) & ((1 << run) - 1))
                    run = 64
            while k <= last:
                if (mask >> np.uint64(k)) & np.uint64(1):
                    if num_bits < 1:
                        pos, bits, num_bits, num_added = _fill(data, pos, bits, num_bits, num_added)
                    num_bits -= 1
                elif run == 0:
                    break
                else:
                    run -= 1
                k += 1
            if appears and k <= last:
                nonzero[block] |= np.uint64(1) << np.uint64(k)
            k += 1
        if num_empty > 0:
            num_empty -= 1
        if num_bits < num_added:
            return OUT_OF_DATA, block, at
    return COMPLETE, num_blocks, pos - (num_bits - num_added) // 8
