"""Arrays of units from the bytes of files: `.npy` and EnCodec's `.ecdc`; nothing is unpickled."""

import io
import math
import struct
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from im2sp.shards import ShardError, UnitColumn, unpack_units
from im2sp.shards.files import parse_json

_ECDC_HEADER = struct.Struct("!4sBI")
_ECDC_BITS = 10
_ECDC_HOP = 320
_MAX_CODEBOOKS = 32


def read_array(name: str, data: bytes) -> NDArray[Any]:
    """The array of a file; what follows the last dot of its name decides.

    Raises:
        ShardError: Its content is damaged, or no array of numbers.
    """
    if name.rpartition(".")[2] == "ecdc":
        return read_ecdc(data)
    return read_npy(data)


def read_npy(data: bytes) -> NDArray[Any]:
    """The array of a `.npy` file; takes no more memory than the file has bytes."""
    file = io.BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
    except (ValueError, EOFError, TypeError, SyntaxError) as error:
        raise ShardError(f"not a .npy file ({' '.join(str(error).split())[:100]})") from None
    if dtype.hasobject:
        raise ShardError("holds Python objects, which are never unpickled; save integers")
    content = memoryview(data)[file.tell() :]
    count = math.prod(shape)
    if count * dtype.itemsize != len(content):
        raise ShardError(
            f".npy of shape {shape} and {dtype} with {len(content):,} bytes, expected"
            f" {count * dtype.itemsize:,}"
        )
    return np.frombuffer(content, dtype, count).reshape(shape, order="F" if is_fortran else "C")


def read_ecdc(data: bytes) -> NDArray[np.uint16]:
    """Codes (codebooks, frames) of a file that EnCodec's command wrote, at 24 kHz and without `-l`.

    The file is a header (`ECDC`, version, size of a JSON object), the object, and the codes of
    10 bits, lowest bit first, all codebooks of a frame together.
    """
    try:
        magic, version, size = _ECDC_HEADER.unpack_from(data)
        start = _ECDC_HEADER.size + size
        about: Any = parse_json(data[_ECDC_HEADER.size : start]) if magic == b"ECDC" else None
        model, num_samples, num_books = about["m"], int(about["al"]), int(about["nc"])
        is_plain = not about["lm"]
    except (struct.error, ValueError, TypeError, KeyError):
        raise ShardError("not an .ecdc file of EnCodec") from None
    if version != 0 or model != "encodec_24khz" or not is_plain:
        raise ShardError(
            f".ecdc of version {version}, model {model!r}"
            f"{'' if is_plain else ', coded with a language model'}; expected version 0,"
            " 'encodec_24khz', without -l: encode again, or save the codes as .npy"
        )
    if not 1 <= num_books <= _MAX_CODEBOOKS or num_samples < 0:
        raise ShardError(f".ecdc of {num_books} codebooks and {num_samples} samples")
    num_frames = -(-num_samples // _ECDC_HOP)
    count = num_books * num_frames
    content = np.frombuffer(data, np.uint8, offset=start)
    if content.size != (count * _ECDC_BITS + 7) // 8:
        raise ShardError(
            f".ecdc of {num_frames:,} frames of {num_books} codebooks with {content.size:,} bytes,"
            f" expected {(count * _ECDC_BITS + 7) // 8:,}"
        )
    codes = unpack_units(content, bits=_ECDC_BITS, count=count)
    return codes.reshape(num_frames, num_books).T.astype(np.uint16)


def fitted(array: NDArray[Any], column: UnitColumn) -> NDArray[Any]:
    """The array without leading axes of 1; a flat one in the column's shape, if that is fixed."""
    while array.ndim > len(column.shape) and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 1 and not column.num_variable and array.size == column.num_fixed:
        return array.reshape([size or 0 for size in column.shape])
    return array
