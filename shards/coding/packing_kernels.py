"""Compiled inner loops of the bit packing; imported on first use, because numba is slow to import.

Signatures are explicit, so a kernel is compiled once (under a second for all) and then loaded
from numba's cache on disk. All of them release the GIL.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

_UNITS_IN = types.Array(types.uint16, 2, "C", readonly=True)
_UNITS_OUT = types.Array(types.uint16, 2, "C")
_WIDE_IN = types.Array(types.uint32, 2, "C", readonly=True)
_WIDE_OUT = types.Array(types.uint32, 2, "C")
_BYTES_IN = types.Array(types.uint8, 2, "C", readonly=True)
_BYTES_OUT = types.Array(types.uint8, 2, "C")
_DATA_IN = types.Array(types.uint8, 1, "C", readonly=True)
_NUMBERS_IN = types.Array(types.int64, 1, "C", readonly=True)
_NUMBERS_OUT = types.Array(types.int64, 1, "C")

u64 = np.uint64


def compiled(
    *signatures: Any, fastmath: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for these signatures only, with numba's disk cache if it is usable."""

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit([*signatures], nogil=True, cache=True, fastmath=fastmath)(function)
        except (RuntimeError, OSError):  # no folder for the cache, or it cannot be written
            return numba.njit([*signatures], nogil=True, fastmath=fastmath)(function)

    return compile_function


@compiled(types.uint16(_UNITS_IN, _BYTES_OUT))
def pack_13(units: Any, packed: Any) -> Any:
    """Pack whole groups of 8 units into 13 bytes each; the rest of a row is not changed.

    Returns:
        The bitwise or of all packed units; the caller checks that it fits in 13 bits.
    """
    seen = u64(0)
    for row in range(units.shape[0]):
        for group in range(units.shape[1] // 8):
            i = 8 * group
            o = 13 * group
            u0 = u64(units[row, i])
            u1 = u64(units[row, i + 1])
            u2 = u64(units[row, i + 2])
            u3 = u64(units[row, i + 3])
            u4 = u64(units[row, i + 4])
            u5 = u64(units[row, i + 5])
            u6 = u64(units[row, i + 6])
            u7 = u64(units[row, i + 7])
            seen |= u0 | u1 | u2 | u3 | u4 | u5 | u6 | u7
            low = u0 | (u1 << u64(13)) | (u2 << u64(26)) | (u3 << u64(39)) | (u4 << u64(52))
            high = (u4 >> u64(12)) | (u5 << u64(1)) | (u6 << u64(14)) | (u7 << u64(27))
            for byte in range(8):  # LLVM merges these into one store
                packed[row, o + byte] = np.uint8(low >> u64(8 * byte))
            for byte in range(5):
                packed[row, o + 8 + byte] = np.uint8(high >> u64(8 * byte))
    return np.uint16(seen)


@compiled(types.void(_BYTES_IN, _UNITS_OUT))
def unpack_13(packed: Any, units: Any) -> None:
    """Unpack whole groups of 13 bytes into 8 units each; the rest of a row is not changed."""
    mask = u64(8191)
    for row in range(units.shape[0]):
        for group in range(units.shape[1] // 8):
            i = 8 * group
            o = 13 * group
            low = u64(0)  # bits 0 to 63 of the group
            high = u64(0)  # bits 40 to 103
            for byte in range(8):  # LLVM merges these into one load
                low |= u64(packed[row, o + byte]) << u64(8 * byte)
                high |= u64(packed[row, o + 5 + byte]) << u64(8 * byte)
            units[row, i] = low & mask
            units[row, i + 1] = (low >> u64(13)) & mask
            units[row, i + 2] = (low >> u64(26)) & mask
            units[row, i + 3] = (low >> u64(39)) & mask
            units[row, i + 4] = (high >> u64(12)) & mask
            units[row, i + 5] = (high >> u64(25)) & mask
            units[row, i + 6] = (high >> u64(38)) & mask
            units[row, i + 7] = high >> u64(51)


@compiled(
    *(types.uint64(units, _BYTES_OUT, types.int64, types.int64) for units in (_UNITS_IN, _WIDE_IN))
)
def pack_any(units: Any, packed: Any, bits: int, first: int) -> Any:
    """Pack units `first` and up of each row at any width; `first` is a multiple of 8.

    Returns:
        The bitwise or of all packed units.
    """
    seen = u64(0)
    width = u64(bits)
    for row in range(units.shape[0]):
        held = u64(0)  # bits not written yet, lowest first
        num_held = u64(0)
        o = first // 8 * bits
        for i in range(first, units.shape[1]):
            unit = u64(units[row, i])
            seen |= unit
            held |= unit << num_held
            num_held += width
            while num_held >= u64(8):
                packed[row, o] = np.uint8(held & u64(255))
                held >>= u64(8)
                num_held -= u64(8)
                o += 1
        if num_held > u64(0):
            packed[row, o] = np.uint8(held & u64(255))
    return seen


@compiled(
    *(types.void(_BYTES_IN, units, types.int64, types.int64) for units in (_UNITS_OUT, _WIDE_OUT))
)
def unpack_any(packed: Any, units: Any, bits: int, first: int) -> None:
    """Unpack units `first` and up of each row at any width; `first` is a multiple of 8."""
    width = u64(bits)
    mask = (u64(1) << width) - u64(1)
    for row in range(units.shape[0]):
        held = u64(0)
        num_held = u64(0)
        o = first // 8 * bits
        for i in range(first, units.shape[1]):
            while num_held < width:
                held |= u64(packed[row, o]) << num_held
                num_held += u64(8)
                o += 1
            units[row, i] = held & mask
            held >>= width
            num_held -= width


@compiled(
    *(
        types.int64(
            _DATA_IN, _NUMBERS_IN, types.int64, _NUMBERS_IN, types.Array(ids, 1, "C"), _NUMBERS_OUT
        )
        for ids in (types.uint16, types.uint32)
    )
)
def decode_packed(
    data: Any, offsets: Any, bits: int, counts: Any, ids: Any, id_offsets: Any
) -> int:
    """Decode values of the `packed` codec.

    Args:
        data: (bytes,) uint8.
        offsets: (n + 1,) int64: value v is bytes `offsets[v]` to `offsets[v + 1] - 1`.
        bits: Width of an id.
        counts: (n,) int64: ids of each value; if empty, all that its bytes contain.
        ids: (8 * bytes // bits,) uint16 or uint32, written.
        id_offsets: (n + 1,) int64, written.

    Returns:
        -1, or the number of an invalid value.
    """
    num = 0
    width = u64(bits)
    mask = (u64(1) << width) - u64(1)
    id_offsets[0] = 0
    for value in range(offsets.size - 1):
        at, end = offsets[value], offsets[value + 1]
        num_ids = counts[value] if counts.size else 8 * (end - at) // bits
        if num_ids < 0 or num_ids > ids.size - num or end - at != (num_ids * bits + 7) // 8:
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
