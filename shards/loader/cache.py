"""Arrays in the user's cache folder, made by one process and mapped by all others of the machine.

A file is the CRC-32 of the rest in 8 hex digits, a line of JSON that names the arrays, and the
arrays, each from a multiple of 64 bytes on.
"""

import mmap
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.files import atomic_file, file_lock, open_regular, parse_json, user_cache_dir
from im2sp.shards.schema import compact_json

_ALIGNMENT = 64
_WAIT_S = 0.1

Arrays = dict[str, NDArray[Any]]


def cache_path(name: str) -> Path:
    """Path of an index in the user's cache folder."""
    return user_cache_dir() / "index" / name


def cached(
    path: Path, make: Callable[[], tuple[Arrays, dict[str, int]]]
) -> tuple[Arrays, dict[str, int], bool]:
    """Arrays and counts of a file, which is made if it is absent or damaged.

    One process makes it, others wait. Where it cannot be written, each has its own in memory.

    Args:
        path: The file.
        make: Function that makes arrays and counts.

    Returns:
        Arrays, counts, and True if another process or an earlier one made them.
    """
    if (found := read_arrays(path)) is not None:
        return *found, True
    made = None
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with file_lock(path.with_name(path.name + ".lock")) as is_ours:
                if (found := read_arrays(path)) is not None:
                    return *found, True
                if is_ours:
                    made = make()
                    write_arrays(path, *made)
                    break
            time.sleep(_WAIT_S)
    if made is None:
        return *make(), False
    return *(read_arrays(path) or made), False


def write_arrays(path: Path, arrays: Arrays, counts: Mapping[str, int]) -> None:
    """Write a file atomically."""
    shapes = [[name, array.dtype.str, array.size] for name, array in arrays.items()]
    head = compact_json({"arrays": shapes, "counts": counts}).encode() + b"\n"
    parts: list[bytes | memoryview] = [head + bytes(-(8 + len(head)) % _ALIGNMENT)]
    for array in arrays.values():
        parts += [array.view(np.uint8).data, bytes(-array.nbytes % _ALIGNMENT)]
    crc32 = 0
    for part in parts:
        crc32 = zlib.crc32(part, crc32)
    with atomic_file(path) as file:
        file.writelines([f"{crc32:08x}".encode(), *parts])


def read_arrays(path: Path) -> tuple[Arrays, dict[str, int]] | None:
    """Mapped arrays and counts of a file; None if it is absent or damaged."""
    try:
        with open_regular(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: it is empty
        return None
    if data[:8] != f"{zlib.crc32(memoryview(data)[8:]):08x}".encode():
        return None
    end = data.find(b"\n")
    head = parse_json(data[8:end])
    start = end + 1
    arrays: Arrays = {}
    for name, dtype, size in head["arrays"]:
        start += -start % _ALIGNMENT
        arrays[name] = np.frombuffer(data, dtype, size, start) if size else np.zeros(0, dtype)
        start += arrays[name].nbytes
    return arrays, head["counts"]
