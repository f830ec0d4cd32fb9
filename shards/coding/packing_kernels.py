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
_BYTES_IN = types.Array(types.uint8, 2, "C", readonly=True)
_BYTES_OUT = types.Array(types.uint8, 2, "C")

u64 = np.uint64


def compiled(*signatures: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for these signatures only, with numba's disk cache if it is usable."""

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit([*signatures], nogil=True, cache=True)(function)
        except (RuntimeError, OSError):  # no folder for the cache, or it cannot be written
            return numba.njit([*signatures], nogil=True)(function)

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


@compiled(types.uint16(_UNITS_IN, _BYTES_OUT, types.int64, types.int64))
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
    return np.uint16(seen)


@compiled(types.void(_BYTES_IN, _UNITS_OUT, types.int64, types.int64))
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
