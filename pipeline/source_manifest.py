"""A manifest as a source: a `.jsonl`, `.csv` or `.parquet` table of key, image, caption, split."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from im2sp.pipeline.source_items import SourceError, SourceListing
from im2sp.pipeline.source_rows import Row, items_of_rows, make_resolver

_EXPECTED = (
    "expected an 'image' column with paths and, as wanted, 'key', 'caption' (or 'captions', a "
    "list) and 'split'"
)
_COLUMNS = ("key", "image", "caption", "captions", "split")


def list_manifest(path: Path, image_root: Path | None) -> SourceListing:
    """The samples of a manifest; other columns than the known ones are left alone.

    Relative image paths start at `image_root` or else at the manifest's folder; absolute ones are
    taken as they are. A missing or empty key is derived from the image path. Rows that repeat a
    key and its image add captions to the sample.

    Raises:
        SourceError: It cannot be read as a table at all, has no `image` column or no row.
    """
    kind = path.suffix.lower()
    try:
        rows = list(MANIFEST_READERS[kind](path))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not rows:
        raise SourceError(f"{path}: holds no rows; {_EXPECTED}")
    root = path.parent if image_root is None else image_root
    items = items_of_rows(rows, make_resolver(root))
    return SourceListing(kind=kind[1:], items=items, ignored={})


def _read_jsonl(path: Path) -> Iterator[Row]:
    """One JSON object a line; blank lines are skipped."""
    columns: set[str] = set()
    num_objects = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not text.strip():
                continue
            where = f"line {number}"
            try:
                entry = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield Row(where=where, error=f"not JSON: {error}")
                continue
            if not isinstance(entry, dict):
                yield Row(where=where, error=f"found {type(entry).__name__}, expected an object")
                continue
            num_objects += 1
            columns.update(entry)
            yield _row(where, entry)
    if "image" not in columns:
        found = f"keys {sorted(columns)[:8]}" if num_objects else "no JSON object"
        raise SourceError(f"{path}: found {found}; {_EXPECTED}")


def _read_csv(path: Path) -> Iterator[Row]:
    """A header line and comma-separated rows, UTF-8; quoted fields may hold line breaks."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = list(reader.fieldnames or [])
        except csv.Error as error:
            raise SourceError(f"{path}: not CSV ({error}); {_EXPECTED}") from None
        _check_columns(path, columns)
        while True:
            where = f"line {reader.reader.line_num + 1}"
            try:
                entry = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(where=where, error=f"not CSV: {error}")
                continue
            extra = entry.pop(None, None)  # pyright: ignore[reportArgumentType] - DictReader's key for surplus fields
            if extra is not None:
                num_fields = len(columns) + len(extra)
                yield Row(where=where, error=f"{num_fields} fields, the header has {len(columns)}")
            else:
                yield _row(where, entry)


def _read_parquet(path: Path) -> Iterator[Row]:
    """A Parquet table, read batch by batch and only in the known columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a Parquet file ({error}); {_EXPECTED}") from None
    with table:
        columns = table.schema_arrow.names
        _check_columns(path, columns)
        wanted = [name for name in _COLUMNS if name in columns]
        number = 0
        try:
            for batch in table.iter_batches(columns=wanted):
                for entry in batch.to_pylist():
                    yield _row(f"row {number}", entry)
                    number += 1
        except pa.ArrowException as error:
            raise SourceError(f"{path}: damaged after row {number} ({error})") from None


MANIFEST_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
"""Reader of each kind of manifest by its suffix."""


def _check_columns(path: Path, columns: list[str]) -> None:
    if "image" not in columns:
        raise SourceError(f"{path}: found columns {columns[:8]}; {_EXPECTED}")


def _row(where: str, entry: dict[str, Any]) -> Row:
    """One row of any kind of manifest; what is wrong with it becomes the row's error."""
    key, image, split = entry.get("key"), entry.get("image"), entry.get("split")
    texts = entry.get("captions")
    texts = entry.get("caption") if texts is None else texts
    captions = [texts] if isinstance(texts, str) else ([] if texts is None else texts)
    row = Row(where=where, image=image if isinstance(image, str) else "")
    if image is not None and not isinstance(image, str):
        row.error = f"image is {type(image).__name__}, expected a path"
    elif not isinstance(key, str | int | None) or isinstance(key, bool):
        row.error = f"key is {type(key).__name__}, expected text"
    elif not isinstance(split, str | None):
        row.error = f"split is {type(split).__name__}, expected text"
    elif not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        row.error = "caption must be text or a list of texts"
    else:
        row.key = "" if key is None else str(key)
        row.split = split or ""
        row.captions = [text for text in captions if text]
    return row
