"""Single binary values of Parquet files, read row by row in bounded memory.

A row cannot be read alone: the values before it in its row group are decompressed as well. A reader
therefore stays open and continues where it is, which suits inputs that are read in their order.
Memory is that of a few pages of the file; a column chunk that states more bytes than
`memory_limit` is refused.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from im2sp.pipeline.parquet_pages import pages_of
from im2sp.shards.errors import memory_limit
from im2sp.shards.files import open_regular

_ROWS_PER_READ = 16
MAX_ROWS = 4096
"""Rows of a table that are read at once."""
# Memory of a value's levels and index, and the encoding DELTA_BYTE_ARRAY.
_VALUE_BYTES, _DIFFERENCES = 8, 7
_OTHERS = frozenset({"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"})


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
        self._file = open_parquet(path)
        self._limit_bytes = memory_limit(path.stat().st_size)
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
        args = (self._path, self._file, group, [self._column], self._limit_bytes)
        num_rows = min(_ROWS_PER_READ, check_chunks(*args))
        for batch in self._file.iter_batches(
            num_rows, row_groups=[group], columns=[self._column], use_threads=False
        ):
            array = batch.column(0)
            while pa.types.is_struct(array.type):
                array = array.field(0)
            for value in array:
                yield value.as_py()


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file whose repeated values are not copied: they are read as dictionaries.

    Raises:
        OSError: It is not a regular file.
        pyarrow.ArrowException: It is damaged.
    """
    open_regular(path).close()
    metadata: Any = pq.read_metadata(path)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    texts = [
        metadata.schema.column(index).path
        for index in range(metadata.num_columns)
        if metadata.schema.column(index).physical_type == "BYTE_ARRAY"
        # Arrow reads other encodings only as they are.
        if not any(_OTHERS.intersection(group.column(index).encodings) for group in groups)
    ]
    return pq.ParquetFile(
        path, metadata=metadata, read_dictionary=texts, pre_buffer=False, buffer_size=2**16
    )


def check_chunks(
    path: Path, file: pq.ParquetFile, group: int, columns: Sequence[str], limit_bytes: int
) -> int:
    """Check what columns of a row group take without compression, before they are read.

    Returns:
        Rows to read at once: fewer than `MAX_ROWS` where each value may be as long as its page, as
        it is stored as the difference from the value before it.

    Raises:
        pyarrow.ArrowInvalid: A column takes more than the limit, or a page's header is damaged.
    """
    metadata: Any = file.metadata.row_group(group)
    num_rows = MAX_ROWS
    with open_regular(path) as opened:
        for index in range(metadata.num_columns):
            chunk = metadata.column(index)
            name = chunk.path_in_schema
            if not any(name == one or name.startswith(f"{one}.") for one in columns):
                continue
            taken_bytes = 0
            try:
                for page in pages_of(opened, chunk):
                    taken_bytes += page.size_bytes + _VALUE_BYTES * page.num_values
                    if page.encoding == _DIFFERENCES:
                        rows = limit_bytes // (4 * max(1, page.size_bytes))
                        num_rows = max(1, min(num_rows, rows))
                        if file.schema.column(index).max_repetition_level:  # a row has many values
                            taken_bytes += page.size_bytes * page.num_values
                    if taken_bytes > limit_bytes:
                        raise ValueError(
                            f"more than {limit_bytes:,} bytes of values in the column {name}, the"
                            " limit for a file of its size"
                        )
            except ValueError as error:
                raise pa.ArrowInvalid(str(error)) from None
    return num_rows


@lru_cache(maxsize=4)
def _reader(path: Path, column: str, size_bytes: int, mtime_ns: int) -> _Reader:
    return _Reader(path, column)
