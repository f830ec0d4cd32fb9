"""Parquet and Arrow tables, also with the content of images and clips in them.

A column of `{bytes, path}` structs, as the datasets library writes images and audio, or of binary
values holds the content itself. It is not read when the table is listed: a row gets the place of
its value, in Arrow files the bytes' offset.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from im2sp.pipeline.decoding.media import ByteRange, Cell, Location, SourceError
from im2sp.pipeline.parquet_cells import check_chunks, open_parquet
from im2sp.shards.errors import memory_limit
from im2sp.shards.files import open_regular, parse_json
from im2sp.shards.layouts.arrow import is_compressed

# The stubs of pyarrow lack its functions.
compute: Any = pyarrow.compute
# Least memory of a row that is listed.
_ROW_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """Image or clip whose content is in the table."""

    place: Location
    """Location of the content."""

    name: str
    """Path that the table has for it; empty for none."""


class ColumnarTable:
    """Table of rows; a context manager. See `ParquetTable` and `ArrowTable`."""

    schema: pa.Schema

    def __enter__(self) -> "ColumnarTable":
        return self

    def __exit__(self, *exception: object) -> None:
        raise AssertionError("a subclass closes its file")

    def batches(self) -> Iterator[Any]:
        """Yield the record batches.

        Raises:
            SourceError: One is compressed in the file, which is refused before it is read.
            pyarrow.ArrowException: The file is damaged.
        """
        raise AssertionError("a subclass reads its file")

    def entries(self, columns: list[str], num_rows: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the values of some columns in each row, `Content` for those with content.

        Raises:
            pyarrow.ArrowException: The file is damaged.
        """
        raise AssertionError("a subclass reads its file")

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(dict.fromkeys(self.schema.names))

    @cached_property
    def features(self) -> dict[str, str]:
        """Columns by the field, `image` or `audio`, that the datasets library records for them."""
        try:
            stored = parse_json((self.schema.metadata or {})[b"huggingface"])
            kinds = {name: one.get("_type") for name, one in stored["info"]["features"].items()}
        except (KeyError, ValueError, TypeError, AttributeError):
            return {}
        found: dict[str, str] = {}
        for name, kind in kinds.items():
            if kind in ("Image", "Audio") and name in self.names:
                found.setdefault(kind.lower(), name)
        return found

    def is_content(self, column: str) -> bool:
        """True if a column holds the content of images or clips."""
        kind: Any = self.schema.field(column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    def has_path(self, column: str) -> bool:
        """True if a column of content also has paths."""
        kind: Any = self.schema.field(column).type
        return pa.types.is_struct(kind) and kind.get_field_index("path") >= 0


class ParquetTable(ColumnarTable):
    """Table of a Parquet file.

    A small file can repeat a long value many times, or compress zeros. So repeated values are kept
    once until their sizes are known, and what exceeds `memory_limit` is refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open_parquet(path)
        with pq.ParquetFile(path) as file:  # as it says itself, without dictionaries
            self.schema = file.schema_arrow
        self._limit_bytes = memory_limit(path.stat().st_size)
        num_rows = self._file.metadata.num_rows
        if num_rows * _ROW_BYTES > self._limit_bytes:
            raise SourceError(f"{path}: {num_rows:,} rows in {path.stat().st_size:,} bytes")

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def batches(self) -> Iterator[Any]:
        """Yield the rows in batches of at most 256."""
        return self._file.iter_batches(256)

    def entries(self, columns: list[str], num_rows: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the values of some columns in each row; content is not read."""
        held = [name for name in columns if self.is_content(name)]
        # Of content, the paths alone.
        wanted = [name for name in columns if name not in held]
        wanted += [f"{name}.path" for name in held if self.has_path(name)]
        row = taken_bytes = 0
        for group in range(self._file.metadata.num_row_groups):
            empty = {name: self._empty(group, name) for name in held}
            for entry, size_bytes in self._rows(group, wanted, num_rows):
                taken_bytes += size_bytes
                if taken_bytes > self._limit_bytes:
                    raise SourceError(
                        f"{self._path}: values of more than {self._limit_bytes:,} bytes, the limit"
                        f" for a file of its size, before row {row + 1:,}"
                    )
                for name in held:
                    path = (entry.get(name) or {}).get("path") or ""
                    column = f"{name}.bytes" if self._is_struct(name) else name
                    place = Cell(path=self._path, row=row, column=column)
                    entry[name] = path if next(empty[name]) else Content(place=place, name=path)
                yield entry
                row += 1
                if row == num_rows:
                    return

    def _is_struct(self, column: str) -> bool:
        return pa.types.is_struct(self.schema.field(column).type)

    def _rows(
        self, group: int, columns: list[str], num_rows: int | None
    ) -> Iterator[tuple[dict[str, Any], int]]:
        """Rows, with the bytes of all values of a batch at its first row."""
        if not columns:
            for _ in range(self._file.metadata.row_group(group).num_rows):
                yield {}, 0
            return
        size = check_chunks(self._path, self._file, group, columns, self._limit_bytes)
        size = size if num_rows is None else num_rows
        for batch in self._file.iter_batches(size, row_groups=[group], columns=columns):
            taken_bytes = sum(map(_num_bytes, batch.columns))
            if taken_bytes > self._limit_bytes:
                yield {}, taken_bytes
            for entry in batch.to_pylist():
                yield entry, taken_bytes
                taken_bytes = 0

    def _empty(self, group: int, column: str) -> Iterator[bool]:
        """For each row of a row group, True if it holds no content."""
        metadata = self._file.metadata.row_group(group)
        path = f"{column}.bytes" if self._is_struct(column) else column
        for index in range(metadata.num_columns):
            chunk = metadata.column(index)
            if chunk.path_in_schema == path and chunk.statistics is not None:
                num_empty = chunk.statistics.null_count
                if num_empty in (0, metadata.num_rows):
                    return iter([num_empty > 0] * metadata.num_rows)
        size = check_chunks(self._path, self._file, group, [path], self._limit_bytes)
        return self._read_empty(group, path, min(16, size))

    def _read_empty(self, group: int, path: str, num_rows: int) -> Iterator[bool]:
        for batch in self._file.iter_batches(num_rows, row_groups=[group], columns=[path]):
            array = batch.column(0)
            while pa.types.is_struct(array.type):
                array = array.field(0)
            yield from array.is_null().to_pylist()


def _num_bytes(array: Any) -> int:
    """Bytes of the values of an array, those of a dictionary counted where they are repeated."""
    if pa.types.is_dictionary(array.type):
        lengths = compute.take(compute.binary_length(array.dictionary), array.indices)
        return compute.sum(lengths).as_py() or 0
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return array.nbytes + _num_bytes(array.flatten())
    if pa.types.is_struct(array.type):
        return sum(map(_num_bytes, array.flatten()))
    return array.nbytes


class ArrowTable(ColumnarTable):
    """Table of an Arrow file, in the stream format of `Dataset.save_to_disk` or the file format."""

    def __init__(self, path: Path) -> None:
        self._path = path
        open_regular(path).close()
        self._file: Any = pa.memory_map(str(path))
        self._bytes: Any = self._file.read_buffer()
        # The file format is a stream between a magic number and a footer.
        is_file = self._bytes.slice(0, 6).to_pybytes() == b"ARROW1"
        self._stream: Any = self._bytes.slice(8) if is_file else self._bytes
        with pa.ipc.open_stream(self._stream) as reader:
            self.schema = reader.schema

    def __exit__(self, *exception: object) -> None:
        self._stream = self._bytes = None
        self._file.close()

    def entries(self, columns: list[str], num_rows: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the values of some columns in each row; content has its offset in the file."""
        row = 0
        for batch in self.batches():
            held = [name for name in columns if self.is_content(name)]
            others = [name for name in columns if name not in held]
            values = batch.select(others).to_pylist() if others else [{} for _ in range(len(batch))]
            contents = {name: self._contents(name, batch.column(name)) for name in held}
            for entry in values:
                yield entry | {name: next(contents[name]) for name in held}
                row += 1
                if row == num_rows:
                    return

    def batches(self) -> Iterator[Any]:
        """Yield the record batches as they are in the file."""
        messages: Any = pa.ipc.MessageReader.open_stream(self._stream)
        with pa.ipc.open_stream(self._stream) as reader:
            for message in messages:
                if message.type != "schema" and is_compressed(message):
                    raise SourceError(
                        f"{self._path}: its record batches are compressed, so that no value can be "
                        "read in place; write it without compression, or as Parquet"
                    )
                if message.type == "record batch":
                    batch = reader.read_next_batch()
                    batch.validate(full=True)
                    yield batch

    def _contents(self, column: str, array: Any) -> Iterator[Content | str]:
        """Yield the content in each row of a column, or the path in a row without content."""
        paths = [""] * len(array)
        if pa.types.is_struct(array.type):
            if self.has_path(column):
                paths = [path or "" for path in array.field("path").to_pylist()]
            array = array.field("bytes")
        is_large = pa.types.is_large_binary(array.type)
        _, offsets, data = array.buffers()
        start = data.address - self._bytes.address if data is not None and data.size else 0
        ends = np.frombuffer(offsets, np.int64 if is_large else np.int32)
        ends = ends[array.offset : array.offset + len(array) + 1].astype(int) + start
        for index, (path, is_empty) in enumerate(zip(paths, array.is_null(), strict=True)):
            begin, end = int(ends[index]), int(ends[index + 1])
            place = ByteRange(path=self._path, offset=begin, size_bytes=end - begin)
            yield path if is_empty.as_py() else Content(place=place, name=path)


def open_columnar(path: Path) -> ColumnarTable:
    """Open a `.parquet` or `.arrow` table.

    Raises:
        pyarrow.ArrowException: It is not of its kind.
        SourceError: It is not a regular file.
    """
    if not path.is_file():
        raise SourceError(f"{path}: not a regular file")
    return ParquetTable(path) if path.suffix.lower() == ".parquet" else ArrowTable(path)
