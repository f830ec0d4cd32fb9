"""Reader of one shard file: mapped into memory, each batch checked on first access."""

import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.arrow import read_message
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.layouts.shard_info import Layout, ShardInfo
from im2sp.shards.layouts.webdataset import read_packed, read_plain
from im2sp.shards.manifest import ADVICE
from im2sp.shards.schema import Schema


def reader_of_layout(layout: Layout) -> Callable[[pa.Buffer, Schema], pa.RecordBatch]:
    """Function that reads a batch's byte range as a record batch."""
    if layout.kind == "arrow":
        return read_message
    return read_plain if layout.is_plain else read_packed


class ShardReader:
    """A mapped shard file.

    Only the byte ranges that the manifest lists are read.
    """

    def __init__(
        self,
        path: Path,
        info: ShardInfo,
        layout: Layout,
        schema: Schema,
    ) -> None:
        """Open the file of a shard.

        Raises:
            ShardError: It is missing, not a regular file, or its size differs from the manifest.
        """
        self.path = path
        self.info = info
        self._read = reader_of_layout(layout)
        self._schema = schema
        self._checked = bytearray(len(info.batches))
        self.data = _map_file(self.path, info.size_bytes)

    def batch(self, k: int, *, is_compared: bool = True) -> Batch:
        """Views of batch k; copies nothing in the Arrow and packed layouts.

        Args:
            k: Number of the batch in the file.
            is_compared: Compare its checksum on first access. Otherwise only if its structure is
                invalid; values are then as the file has them, damaged or not.

        Raises:
            ShardError: The checksum differs or the bytes are invalid.
        """
        info = self.info.batches[k]
        data = self.data.slice(info.offset, info.size_bytes)
        where = f"{self.path}: bytes {info.offset} to {info.offset + info.size_bytes - 1}"
        if is_compared and not self._checked[k]:
            found = zlib.crc32(memoryview(data))
            if found != info.crc32:
                raise ShardError(
                    f"{where}: crc32 {found:08x} != {info.crc32:08x} in dataset.json; {ADVICE}"
                )
        try:
            batch = self._read(data, self._schema)
            views = Batch(batch, self._schema)
        except ShardError as error:
            if not is_compared:
                return self.batch(k)
            raise ShardError(f"{where}: {error}; {ADVICE}") from None
        if views.num_samples != info.num_samples:
            raise ShardError(
                f"{where}: {views.num_samples} samples, dataset.json says {info.num_samples}; "
                f"{ADVICE}"
            )
        self._checked[k] |= is_compared
        return views


def _map_file(path: Path, size_bytes: int) -> pa.Buffer:
    """Map a whole file; the mapping outlives the closed file, so no descriptor stays open."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ShardError(f"{path}: missing, dataset.json lists it; {ADVICE}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ShardError(f"{path}: not a regular file; {ADVICE}")
    if status.st_size != size_bytes:
        raise ShardError(
            f"{path}: {status.st_size} bytes, dataset.json says {size_bytes}; {ADVICE}"
        )
    with pa.memory_map(os.fspath(path), "r") as file:
        data = file.read_buffer()
    if data.size != size_bytes:
        raise ShardError(f"{path}: changed while it was opened; open the dataset again")
    return data
