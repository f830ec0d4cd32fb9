"""Containers of `torch.save`: the zip format, and the legacy format before torch 1.6.

Both store the numbers outside the pickle; they are viewed in place (`mapped` is the whole file as a
uint8 array) after every size has been checked.
"""

# The content of a pickle has no static type.
# pyright: reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from im2sp.shards.errors import memory_limit
from im2sp.shards.weights.joblib_arrays import JOBLIB_REBUILDERS, joblib_setters
from im2sp.shards.weights.opcodes import Budget
from im2sp.shards.weights.pickles import InertUnpickler, ReadableFile, Rebuilder
from im2sp.shards.weights.rebuild import (
    REBUILDERS,
    STATE_SETTERS,
    TENSOR_REBUILDERS,
    Storage,
    storage_dtype,
)

# Place in the record that ends a zip, and memory of an entry of the directory per byte of it.
_DIRECTORY_BYTES, _ENTRY_FACTOR = 5, 20
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
LEGACY_HEAD = b"\x80\x02\x8a\x0a"
LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class StorageTable:
    """Resolver of the persistent ids of one file.

    Args:
        find: Key and byte count of a storage -> its bytes as a uint8 array of that length.
        file_bytes: Size of the file. Storages that are copied, as they start at an address that is
            no multiple of their element size, are no larger together, unless they overlap.
    """

    def __init__(self, find: Callable[[str, int], np.ndarray], file_bytes: int) -> None:
        self.find = find
        self.left_bytes = file_bytes
        self.described: dict[str, tuple[np.dtype, int]] = {}
        self.storages: dict[str, Storage] = {}

    def persistent_load(self, persistent_id: Any) -> Any:
        """Storage, or class of an old pickled module that is stored with its source."""
        if type(persistent_id) is not tuple or len(persistent_id) < 2:
            raise ValueError("a reference to data outside the pickle that is no storage")
        if persistent_id[0] == "module":  # ('module', class, source file, source code)
            return persistent_id[1]
        tag, kind, key, _location, num_elements, *view = persistent_id
        if tag != "storage" or not isinstance(key, str) or type(num_elements) is not int:
            raise ValueError("a reference to data outside the pickle that is no storage")
        dtype = storage_dtype(kind)
        if num_elements < 0 or any(part is not None for part in view):
            raise ValueError(f"storage {key[:40]!r} of {num_elements} elements, or a view of one")
        if self.described.setdefault(key, (dtype, num_elements)) != (dtype, num_elements):
            raise ValueError(f"storage {key[:40]!r} is described in two ways")
        if key not in self.storages:
            data = self.find(key, num_elements * dtype.itemsize)
            # Mapped bytes may start at any address; a copy is aligned for its type.
            if data.ctypes.data % dtype.itemsize:
                self.left_bytes -= data.nbytes
                if self.left_bytes < 0:
                    raise ValueError(f"storage {key[:40]!r} overlaps others")
                data = data.copy()
            self.storages[key] = Storage(data.view(dtype))
        return self.storages[key]


def unpickle(
    file: ReadableFile,
    budget: Budget,
    table: StorageTable | None = None,
    rebuilders: Mapping[str, Rebuilder] = REBUILDERS,
    state_setters: Mapping[type, Callable[[Any, Any], Any]] = STATE_SETTERS,
) -> Any:
    """Read one pickle at the file's position."""
    load = None if table is None else table.persistent_load
    return InertUnpickler(file, budget, rebuilders, load, state_setters).load()


def check_zip_directory(file: Any, file_bytes: int) -> None:
    """Refuse a zip whose directory would take much more memory than the file has.

    Raises:
        ValueError: There are more entries than `memory_limit` allows for.
    """
    end = zipfile._EndRecData(file)  # pyright: ignore[reportAttributeAccessIssue]  # what ZipFile uses
    if end is not None and end[_DIRECTORY_BYTES] * _ENTRY_FACTOR > memory_limit(file_bytes):
        raise ValueError(f"a zip whose directory has {end[_DIRECTORY_BYTES]:,} bytes")


class TorchZip:
    """`NAME/data.pkl`, and each storage uncompressed as `NAME/data/KEY`."""

    def __init__(self, file: Any, mapped: np.ndarray) -> None:
        self.mapped = mapped
        check_zip_directory(file, mapped.size)
        with zipfile.ZipFile(file) as archive:
            self.members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self.members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("a zip without one data.pkl, so not written by torch.save")
        self.root = pickles[0].removesuffix("data.pkl")

    def member(self, name: str) -> np.ndarray:
        """Bytes of a member; compressed members are refused, so sizes cannot grow."""
        info = self.members.get(self.root + name)
        if info is None:
            raise ValueError(f"its part {name[:60]!r} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"its part {name[:60]!r} is compressed, which torch.save never does")
        header = self.mapped[info.header_offset :][: LOCAL_HEADER.size].tobytes()
        signature, *_, name_size, extra_size = LOCAL_HEADER.unpack(header)
        start = info.header_offset + LOCAL_HEADER.size + name_size + extra_size
        if signature != b"PK\x03\x04" or start + info.file_size > self.mapped.size:
            raise ValueError(f"its part {name[:60]!r} is outside the file")
        return self.mapped[start : start + info.file_size]

    def find(self, key: str, size_bytes: int) -> np.ndarray:
        """Bytes of a storage."""
        data = self.member(f"data/{key}")
        if data.size < size_bytes:
            raise ValueError(f"storage {key[:40]!r} has {data.size} bytes, expected {size_bytes}")
        return data[:size_bytes]

    def load(self, budget: Budget) -> Any:
        """Read the content."""
        if self.root + "byteorder" in self.members:
            order = self.member("byteorder")[:10].tobytes()
            if order != b"little":
                raise ValueError(f"byte order {order!r}, expected b'little'")
        pickled = io.BytesIO(self.member("data.pkl").tobytes())
        return unpickle(pickled, budget, StorageTable(self.find, self.mapped.size))


def read_pickles(file: ReadableFile, mapped: np.ndarray, budget: Budget) -> tuple[str, Any]:
    """Format name and content of a legacy torch file, a plain pickle or a joblib pickle.

    Tensors in a plain pickle are complete nested torch files; arrays in a joblib pickle are
    embedded between its instructions (see `joblib_arrays`).
    """
    if mapped[: len(LEGACY_HEAD)].tobytes() == LEGACY_HEAD:
        magic = unpickle(file, budget)
        if type(magic) is int and magic == LEGACY_MAGIC:
            return "torch before 1.6", _read_legacy(file, mapped, budget)
    file.seek(0)
    load = partial(_load_from_bytes, budget)
    nested = {**REBUILDERS, **JOBLIB_REBUILDERS, "torch.storage._load_from_bytes": load}
    return "pickle", unpickle(file, budget, None, nested, joblib_setters(file, mapped))


def _load_from_bytes(budget: Budget, data: Any) -> Any:
    if type(data) is not bytes or not data:
        raise TypeError("a tensor that is not bytes")
    budget.charge(len(data))
    file, mapped = io.BytesIO(data), np.frombuffer(bytearray(data), np.uint8)
    if data.startswith(b"PK\x03\x04"):
        found = TorchZip(file, mapped).load(budget)
    elif data.startswith(LEGACY_HEAD) and unpickle(file, budget) == LEGACY_MAGIC:
        found = _read_legacy(file, mapped, budget)
    else:
        raise ValueError("a tensor that is not a torch file")
    if not isinstance(found, np.ndarray | Storage):
        raise TypeError("a nested torch file of something other than a tensor")
    return found


def _read_legacy(file: ReadableFile, mapped: np.ndarray, budget: Budget) -> Any:
    """Read protocol, system, content, keys, and each storage's count and bytes.

    Tensors precede their storages in the file, so the content is read twice: first to get the
    sizes of the storages, then to build the tensors.
    """
    protocol, system = unpickle(file, budget), unpickle(file, budget)
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict):
        raise ValueError("a torch file from before 1.6, of an unknown version")
    if system.get("little_endian") is not True:
        raise ValueError("a file of a big-endian machine, expected little-endian")
    start = file.tell()
    sizes = StorageTable(lambda _key, _size_bytes: np.empty(0, np.uint8), mapped.size)
    placeholder: Rebuilder = lambda *_: np.empty(0)  # noqa: E731
    without_tensors = dict.fromkeys(TENSOR_REBUILDERS, placeholder)
    unpickle(file, budget, sizes, {**REBUILDERS, **without_tensors})
    keys = unpickle(file, budget)
    position = file.tell()
    found: dict[str, np.ndarray] = {}
    for key in keys:
        if key not in sizes.described:
            raise ValueError("a storage that no tensor uses")
        dtype, num_elements = sizes.described[key]
        (declared,) = struct.unpack("<q", mapped[position : position + 8].tobytes())
        end = position + 8 + num_elements * dtype.itemsize
        if declared != num_elements or end > mapped.size:
            raise ValueError(
                f"storage {key[:40]!r} has {declared} elements or is cut, expected {num_elements}"
            )
        found[key] = mapped[position + 8 : end]
        position = end
    file.seek(start)
    return unpickle(file, budget, StorageTable(lambda key, _: found[key], mapped.size))
