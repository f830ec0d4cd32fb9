"""Bit packing of unit ids, and collapsing of frame-level units into units and durations.

Units are packed **least significant bit first**: unit k of a row is bits `bits*k` to
`bits*k + bits - 1` of the row's little-endian bit stream, and bit j of that stream is bit `j % 8`
of byte `j // 8`. A row starts on a byte; unused high bits of its last byte are 0. At 13 bits, eight
units take thirteen bytes:

    byte 0    byte 1    byte 2    byte 3    ...
    76543210  76543210  76543210  76543210
    00000000  11100000  11111111  22222211      <- the unit that each bit belongs to
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.errors import ShardError

IMAGE_UNIT_BITS = 13
NUM_IMAGE_UNITS = 784


class SmallWork:
    """Choice between numpy and equivalent compiled kernels.

    Kernels are up to 20 times as fast, but importing numba takes a second, or several if the
    kernels must be compiled. The first `limit` ids of a process are therefore processed by numpy,
    which takes about half a second for all of them.
    """

    def __init__(self, limit: int) -> None:
        self._left = limit

    def takes(self, num_ids: int) -> bool:
        """Count more ids; return False once the total exceeds the limit."""
        self._left -= num_ids
        return self._left >= 0


small_work = SmallWork(2**25)


def id_dtype(bits: int) -> type[np.uint16] | type[np.uint32]:
    """Type of ids of `bits` bits: uint16, or uint32 above 16 bits."""
    return np.uint16 if bits <= 16 else np.uint32


def packed_size_bytes(count: int, bits: int) -> int:
    """Bytes of `count` units of `bits` bits: ceil(count * bits / 8)."""
    return (count * bits + 7) // 8


def pack_units(units: ArrayLike, bits: int = IMAGE_UNIT_BITS) -> NDArray[np.uint8]:
    """Pack unit ids, lowest bit first.

    Args:
        units: (..., n) integers, each in [0, 2**bits). uint16 is fastest, above 16 bits uint32.
        bits: Width of one id, 1 to 32.

    Returns:
        (..., ceil(n * bits / 8)) uint8.

    Raises:
        ShardError: An id does not fit; names its index and value. Or not an integer array.
    """
    _check_bits(bits)
    array = np.asarray(units)
    if array.ndim == 0 or array.dtype.kind not in "iu":
        raise ShardError(
            f"units are {array.dtype} with {array.ndim} dimensions; "
            "expected integers with at least one dimension"
        )
    dtype = id_dtype(bits)
    if array.dtype != dtype:
        _refuse_ids_out_of_range(array, bits)
        array = array.astype(dtype)
    array = np.require(array, requirements=["C", "A"])
    num_units = array.shape[-1]
    size_bytes = packed_size_bytes(num_units, bits)
    packed = np.empty((*array.shape[:-1], size_bytes), np.uint8)
    if array.size == 0:
        return packed
    rows, packed_rows = array.reshape(-1, num_units), packed.reshape(-1, size_bytes)
    if small_work.takes(rows.size):
        _refuse_ids_out_of_range(array, bits)
        width = 8 * rows.itemsize
        little = rows.astype(rows.dtype.newbyteorder("<"), copy=False).view(np.uint8)
        ids_bits = np.unpackbits(little, -1, bitorder="little")
        stream = ids_bits.reshape(-1, num_units, width)[..., :bits].reshape(len(rows), -1)
        packed_rows[:] = np.packbits(stream, -1, bitorder="little")
        return packed
    num_fast, seen = 0, 0
    if bits == IMAGE_UNIT_BITS:
        num_fast = num_units // 8 * 8
        seen = int(kernels().pack_13(rows, packed_rows))
    if num_fast < num_units:
        seen |= int(kernels().pack_any(rows, packed_rows, bits, num_fast))
    if seen >> bits:
        _refuse_ids_out_of_range(array, bits)
    return packed


def unpack_units(
    packed: ArrayLike, bits: int = IMAGE_UNIT_BITS, count: int = NUM_IMAGE_UNITS
) -> NDArray[np.uint16 | np.uint32]:
    """Unpack units packed by `pack_units`.

    Args:
        packed: (..., ceil(count * bits / 8)) uint8.
        bits: Width of one id, 1 to 32.
        count: Number of units in a row.

    Returns:
        (..., count) uint16, or uint32 if `bits` is above 16.

    Raises:
        ShardError: The last dimension does not match `count`, or unused bits of a row are set.
    """
    _check_bits(bits)
    array = np.asarray(packed)
    size_bytes = packed_size_bytes(count, bits)
    if count < 0 or array.dtype != np.uint8 or array.ndim == 0 or array.shape[-1] != size_bytes:
        raise ShardError(
            f"packed units are {array.dtype} of shape {array.shape}; "
            f"{count} units of {bits} bits are uint8 of shape (..., {size_bytes})"
        )
    array = np.require(array, requirements=["C", "A"])
    dtype = id_dtype(bits)
    units = np.empty((*array.shape[:-1], count), dtype)
    if units.size == 0:
        return units
    num_unused_bits = 8 * size_bytes - count * bits
    if num_unused_bits and int(np.bitwise_or.reduce(array[..., -1], None)) >> (8 - num_unused_bits):
        raise ShardError(
            f"packed units: the {num_unused_bits} unused bits at the end of a row are not 0; "
            f"is it really {count} units of {bits} bits?"
        )
    rows, packed_rows = units.reshape(-1, count), array.reshape(-1, size_bytes)
    if small_work.takes(rows.size):
        ids_bits = np.zeros((len(rows), count, 8 * units.itemsize), np.uint8)
        stream = np.unpackbits(packed_rows, -1, count=count * bits, bitorder="little")
        ids_bits[..., :bits] = stream.reshape(-1, count, bits)
        little = np.packbits(ids_bits.reshape(len(rows), -1), -1, bitorder="little")
        rows[:] = little.view(np.dtype(dtype).newbyteorder("<"))
        return units
    num_fast = 0
    if bits == IMAGE_UNIT_BITS:
        num_fast = count // 8 * 8
        kernels().unpack_13(packed_rows, rows)
    if num_fast < count:
        kernels().unpack_any(packed_rows, rows, bits, num_fast)
    return units


def deduplicate(frame_units: ArrayLike) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Collapse runs of equal frame-level units.

    >>> units, durations = deduplicate([7, 7, 7, 4, 4, 7])
    >>> units.tolist(), durations.tolist()
    ([7, 4, 7], [3, 2, 1])

    Args:
        frame_units: (frames,) integers in [0, 65536), one a frame.

    Returns:
        units: (S,) uint16, adjacent units differ.
        durations: (S,) uint16, run lengths in frames; `np.repeat(units, durations)` is the input.

    Raises:
        ShardError: Not one dimension of integers, an id out of range, or a run over 65,535 frames.
    """
    frames = np.asarray(frame_units)
    if frames.ndim != 1 or (frames.dtype.kind not in "iu" and frames.size):
        raise ShardError(
            f"frame units are {frames.dtype} of shape {frames.shape}; expected integers (frames,)"
        )
    _refuse_ids_out_of_range(frames, 16)
    frames = frames.astype(np.uint16)
    if frames.size == 0:
        return frames, frames.copy()
    starts = np.concatenate([[0], np.flatnonzero(frames[1:] != frames[:-1]) + 1])
    durations = np.diff(starts, append=frames.size)
    longest = int(durations.argmax())
    if durations[longest] > 65535:
        raise ShardError(
            f"frame units: the run of {durations[longest]} equal units from frame "
            f"{starts[longest]} is over 65535; cut the recording into shorter clips"
        )
    return frames[starts], durations.astype(np.uint16)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 32:
        raise ShardError(f"bits is {bits}; a unit has 1 to 32 bits")


def _refuse_ids_out_of_range(units: NDArray[Any], bits: int) -> None:
    """Raise if an id is not in [0, 2**bits), naming the index and value of the first one."""
    if units.size == 0 or (int(units.min()) >= 0 and int(units.max()) >> bits == 0):
        return
    index = tuple(int(i) for i in np.argwhere((units < 0) | (units >= 1 << bits))[0])
    raise ShardError(
        f"units[{', '.join(map(str, index))}] is {units[index]}, which does not fit in {bits} bits "
        f"(0 to {(1 << bits) - 1})"
    )


@cache
def kernels() -> ModuleType:
    """The module of compiled kernels."""
    return import_module("im2sp.shards.coding.packing_kernels")
