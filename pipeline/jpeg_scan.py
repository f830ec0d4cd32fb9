"""Compiled walk over the Huffman-coded data of a JPEG scan: is every block there?

The walk reads codes as a decoder does but keeps no coefficients; of a progressive picture it keeps
which ones are non-zero, because a refinement scan holds one bit for each of those. ITU-T T.81,
annexes F and G. Imported on first use, because numba is slow to import.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

COMPLETE, OUT_OF_DATA, BAD_CODE, NO_RESTART = 0, 1, 2, 3
"""How a walk ends."""

SEQUENTIAL, DC_FIRST, DC_REFINE, AC_FIRST, AC_REFINE = 0, 1, 2, 3, 4
"""What a scan holds."""

# The reader's state, one int64 each: next byte, bit buffer, bits in it, blocks without more codes.
POS, BITS, NUM_BITS, EOB_RUN = 0, 1, 2, 3

_DATA = types.Array(types.uint8, 1, "C", readonly=True)
_STATE = types.Array(types.int64, 1, "C")
_LIMITS = types.Array(types.int32, 2, "C")
_VALUES = types.Array(types.uint8, 2, "C")
_MASKS = types.Array(types.uint64, 1, "C")
_INT = types.int64


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for one signature, with numba's disk cache where it can be used."""

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit([signature], nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # no folder for the cache, or it cannot be written
            return numba.njit([signature], nogil=True)(function)

    return compile_function


@_compiled(types.void(_DATA, _STATE))
def _fill(data: Any, state: Any) -> None:
    """Move bytes into the bit buffer, up to the next marker; 0xFF 0x00 stands for 0xFF."""
    pos, bits, num_bits = state[POS], state[BITS], state[NUM_BITS]
    while num_bits <= 40 and pos < data.size:
        byte = _INT(data[pos])
        pos += 1
        if byte == 0xFF:
            if pos >= data.size or data[pos] != 0:
                pos -= 1
                break
            pos += 1
        bits = ((bits & 0xFFFFFFFFFF) << 8) | byte
        num_bits += 8
    state[POS], state[BITS], state[NUM_BITS] = pos, bits, num_bits


@_compiled(types.boolean(_DATA, _STATE, _INT))
def _skip_bits(data: Any, state: Any, count: Any) -> Any:
    """Pass over `count` bits; False when there are not as many."""
    if state[NUM_BITS] < count:
        _fill(data, state)
    state[NUM_BITS] -= count
    return state[NUM_BITS] >= 0


@_compiled(_INT(_DATA, _STATE, _INT))
def _read_bits(data: Any, state: Any, count: Any) -> Any:
    """The next `count` bits as a number; -OUT_OF_DATA when there are not as many."""
    if not _skip_bits(data, state, count):
        return -OUT_OF_DATA
    return (state[BITS] >> state[NUM_BITS]) & ((1 << count) - 1)


@_compiled(_INT(_DATA, _STATE, _INT, _LIMITS, _LIMITS, _VALUES))
def _read_code(data: Any, state: Any, table: Any, limits: Any, offsets: Any, values: Any) -> Any:
    """The value of the next Huffman code; -OUT_OF_DATA or -BAD_CODE when there is none.

    `limits[table, n]` is the first 16-bit prefix past the codes of n bits, and
    `offsets[table, n]` turns a code of n bits into the index of its value.
    """
    if state[NUM_BITS] < 16:
        _fill(data, state)
    have = state[NUM_BITS]
    if have >= 16:
        prefix = (state[BITS] >> (have - 16)) & 0xFFFF
    else:
        prefix = (state[BITS] << (16 - have)) & 0xFFFF
    for size in range(1, 17):
        if prefix < limits[table, size]:
            if size > have:
                return -OUT_OF_DATA
            state[NUM_BITS] = have - size
            index = (prefix >> (16 - size)) + offsets[table, size]
            return _INT(values[table, index & 0xFF])
    return -BAD_CODE if have >= 16 else -OUT_OF_DATA


@_compiled(_INT(_DATA, _STATE, _INT, _INT, _LIMITS, _LIMITS, _VALUES))
def _walk_block(
    data: Any, state: Any, dc: Any, ac: Any, limits: Any, offsets: Any, values: Any
) -> Any:
    """One block of a sequential scan."""
    code = _read_code(data, state, dc, limits, offsets, values)
    if code < 0:
        return -code
    if not _skip_bits(data, state, code & 31):
        return OUT_OF_DATA
    k = 1
    while k < 64:
        code = _read_code(data, state, ac, limits, offsets, values)
        if code < 0:
            return -code
        run, size = code >> 4, code & 15
        if size:
            if not _skip_bits(data, state, size):
                return OUT_OF_DATA
        elif run != 15:
            break
        k += run + 1
    return COMPLETE


@_compiled(_INT(_DATA, _STATE, _INT, _INT, _INT, _LIMITS, _LIMITS, _VALUES, _MASKS, _INT))
def _walk_ac_first(
    data: Any,
    state: Any,
    ac: Any,
    first: Any,
    last: Any,
    limits: Any,
    offsets: Any,
    values: Any,
    nonzero: Any,
    block: Any,
) -> Any:
    """One block of a progressive scan that sends coefficients `first` to `last`."""
    if state[EOB_RUN] > 0:
        state[EOB_RUN] -= 1
        return COMPLETE
    k = first
    while k <= last:
        code = _read_code(data, state, ac, limits, offsets, values)
        if code < 0:
            return -code
        run, size = code >> 4, code & 15
        if size:
            k += run
            if not _skip_bits(data, state, size):
                return OUT_OF_DATA
            if k < 64:
                nonzero[block] |= np.uint64(1) << np.uint64(k)
        elif run != 15:
            extra = _read_bits(data, state, run)
            if extra < 0:
                return -extra
            state[EOB_RUN] = (1 << run) + extra - 1
            break
        else:
            k += 15
        k += 1
    return COMPLETE


@_compiled(_INT(_DATA, _STATE, _INT, _INT, _INT, _LIMITS, _LIMITS, _VALUES, _MASKS, _INT))
def _walk_ac_refine(
    data: Any,
    state: Any,
    ac: Any,
    first: Any,
    last: Any,
    limits: Any,
    offsets: Any,
    values: Any,
    nonzero: Any,
    block: Any,
) -> Any:
    """One block of a progressive scan that sends one more bit of `first` to `last`."""
    k = first
    mask = nonzero[block]
    while k <= last and state[EOB_RUN] == 0:
        code = _read_code(data, state, ac, limits, offsets, values)
        if code < 0:
            return -code
        run, size = code >> 4, code & 15
        if size == 0 and run != 15:
            extra = _read_bits(data, state, run)
            if extra < 0:
                return -extra
            state[EOB_RUN] = (1 << run) + extra
            break
        if size and not _skip_bits(data, state, 1):  # the sign of a coefficient that appears
            return OUT_OF_DATA
        while k <= last:  # pass over `run` zeros; each non-zero on the way has a bit
            if (mask >> np.uint64(k)) & np.uint64(1):
                if not _skip_bits(data, state, 1):
                    return OUT_OF_DATA
            else:
                run -= 1
                if run < 0:
                    break
            k += 1
        if size and k <= last:
            nonzero[block] |= np.uint64(1) << np.uint64(k)
        k += 1
    if state[EOB_RUN] > 0:
        while k <= last:
            if (mask >> np.uint64(k)) & np.uint64(1) and not _skip_bits(data, state, 1):
                return OUT_OF_DATA
            k += 1
        state[EOB_RUN] -= 1
    return COMPLETE


@_compiled(types.boolean(_DATA, _STATE, _INT))
def _pass_restart(data: Any, state: Any, number: Any) -> Any:
    """Go behind the next marker; False when it is not restart marker `number` (0 to 7)."""
    pos = state[POS]
    while pos + 1 < data.size:
        if data[pos] == 0xFF and data[pos + 1] != 0 and data[pos + 1] != 0xFF:
            break
        pos += 1
    if pos + 1 >= data.size or data[pos + 1] != 0xD0 + number:
        return False
    state[POS], state[BITS], state[NUM_BITS], state[EOB_RUN] = pos + 2, 0, 0, 0
    return True


@_compiled(
    types.UniTuple(_INT, 2)(
        _DATA,
        _STATE,
        _INT,
        _INT,
        _INT,
        _STATE,
        _STATE,
        _INT,
        _INT,
        _LIMITS,
        _LIMITS,
        _VALUES,
        _MASKS,
    )
)
def walk_scan(
    data: Any,
    state: Any,
    mode: Any,
    num_mcus: Any,
    restart_interval: Any,
    dc_tables: Any,
    ac_tables: Any,
    first: Any,
    last: Any,
    limits: Any,
    offsets: Any,
    values: Any,
    nonzero: Any,
) -> Any:
    """Walk one scan.

    Args:
        data: uint8 [n], the file.
        state: int64 [4]; `state[POS]` is the first byte of the scan's data and, afterwards, of what
            was not moved into the bit buffer, which then holds `state[NUM_BITS]` bits.
        mode: What the scan holds, `SEQUENTIAL` to `AC_REFINE`.
        num_mcus: How many units (of one or more blocks) it must hold.
        restart_interval: Units between restart markers, 0 for none.
        dc_tables, ac_tables: int64 [b], for each block of a unit the row of its Huffman table.
        first, last: Coefficients of a progressive scan.
        limits, offsets: int32 [8, 17], see `_read_code`.
        values: uint8 [8, 256], the values of each table.
        nonzero: uint64 [blocks], bit k of a block says whether coefficient k is non-zero.

    Returns:
        How it ended and how many units were whole.
    """
    for mcu in range(num_mcus):
        if restart_interval and mcu and mcu % restart_interval == 0:
            number = (mcu // restart_interval - 1) & 7
            if not _pass_restart(data, state, number):
                return NO_RESTART, mcu
        for index in range(dc_tables.size):
            dc, ac = dc_tables[index], ac_tables[index]
            status = COMPLETE
            if mode == SEQUENTIAL:
                status = _walk_block(data, state, dc, ac, limits, offsets, values)
            elif mode == DC_FIRST:
                code = _read_code(data, state, dc, limits, offsets, values)
                if code < 0:
                    status = -code
                elif not _skip_bits(data, state, code & 31):
                    status = OUT_OF_DATA
            elif mode == DC_REFINE:
                if not _skip_bits(data, state, 1):
                    status = OUT_OF_DATA
            elif mode == AC_FIRST:
                status = _walk_ac_first(
                    data, state, ac, first, last, limits, offsets, values, nonzero, mcu
                )
            else:
                status = _walk_ac_refine(
                    data, state, ac, first, last, limits, offsets, values, nonzero, mcu
                )
            if status != COMPLETE:
                return status, mcu
    return COMPLETE, num_mcus
