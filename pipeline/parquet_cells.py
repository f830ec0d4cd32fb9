"""Single binary values of Parquet files, read row by row in bounded memory.

A row cannot be read alone: the values before it in its row group are decompressed as well. A reader
therefore stays open and continues where it is, which suits inputs that are read in their order.
Memory is that of a few pages of the file, which the writer of the file determined.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_ROWS_PER_READ = 16


def read_cell(path: Path, row: int, column: str) -> bytes | None:
    """Return the value in a row of a binary column; None for null.

    Args:
        path: The Parquet file.
        row: Number of the row in the file.
        column: Path of the column: `image.bytes` is the field `bytes` of the struct `image`.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is damaged, or has no such row.
    """
    status = path.stat()
    try:
        # A file that is replaced under its name is opened again.
        return _reader(path, column, status.st_size, status.st_mtime_ns).value(row)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        _reader.cache_clear()
        problem = " ".join(str(error).split())
        raise ValueError(f"row {row:,} of {path.name} cannot be read: {problem}") from None


class _Reader:
    """Column of a Parquet file, read forward."""

    def __init__(self, path: Path, column: str) -> None:
        self._path, self._column = path, column
        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**16)
        metadata = self._file.metadata
        sizes = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._group_starts = np.cumsum([0, *sizes])
        self._num_rows = int(self._group_starts[-1])
        self._group, self._next = -1, 0
        self._values: Iterator[bytes | None] = iter(())

    def value(self, row: int) -> bytes | None:
        if not 0 <= row < self._num_rows:
            raise ValueError(f"{self._path.name} has {self._num_rows:,} rows; no row {row:,}")
        group = int(np.searchsorted(self._group_starts, row, side="right")) - 1
        if group != self._group or row < self._next:
            self._group, self._next = group, int(self._group_starts[group])
            self._values = self._read(group)
        for value in self._values:
            self._next += 1
            if self._next > row:
                return value
        raise pa.ArrowInvalid(f"its row group {group} ends before it")

    def _read(self, group: int) -> Iterator[bytes | None]:
        for batch in self._file.iter_batches(
            _ROWS_PER_READ, row_groups=[group], columns=[self._column], use_threads=False
        ):
            array = batch.column(0)
            while pa.types.is_struct(array.type):
                array = array.field(0)
            for value in array:
                yield value.as_py()


@lru_cache(maxsize=4)
def _reader(path: Path, column: str, size_bytes: int, mtime_ns: int) -> _Reader:
    return _Reader(path, column)
