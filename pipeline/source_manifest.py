"""A manifest as a source: a `.jsonl`, `.csv` or `.parquet` table of images, audio and captions."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from im2sp.pipeline.source_items import SourceError, SourceListing
from im2sp.pipeline.source_rows import (
    Row,
    Spoken,
    check_some_audio,
    items_of_rows,
    make_audio_finder,
    make_resolver,
)

_EXPECTED = (
    "expected an 'image' column with paths, an 'audio' column or both and, as wanted, 'key', "
    "'caption' (or 'captions', a list) and 'split'"
)
_COLUMNS = ("key", "image", "audio", "caption", "captions", "split")


def list_manifest(path: Path, image_root: Path | None, audio_root: Path | None) -> SourceListing:
    """The samples of a manifest; other columns than the known ones are left alone.

    Relative image paths start at `image_root` or else at the manifest's folder; absolute ones are
    taken as they are; audio paths likewise with `audio_root`. A missing or empty key is derived
    from the image path or, without an image, from the (first) audio path. `audio` is a path, which
    goes with the row's caption, or a list of paths, each of which goes with the caption at its
    place. Rows that repeat a key and its image add captions and clips to the sample.

    Raises:
        SourceError: It cannot be read as a table at all, has neither an `image` nor an `audio`
            column, or no row; or no clip can be used below an `audio_root` that was given.
    """
    kind = path.suffix.lower()
    try:
        rows = list(MANIFEST_READERS[kind](path))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not rows:
        raise SourceError(f"{path}: holds no rows; {_EXPECTED}")
    root = path.parent if image_root is None else image_root
    find_audio = None
    if audio_root is not None or any(row.speech for row in rows):
        find_audio = make_audio_finder(path.parent if audio_root is None else audio_root)
    items = items_of_rows(rows, make_resolver(root), find_audio)
    if audio_root is not None:
        unnamed = (
            f"no row names a sound file under 'audio', so an audio root ({audio_root}) has no use; "
            "leave it out"
        )
        check_some_audio(path, items, audio_root, unnamed=unnamed)
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
    if not {"image", "audio"} & columns:
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
    if not {"image", "audio"} & set(columns):
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
    elif isinstance(audio := _audio_paths(entry, image, captions), str):
        row.error = audio
    else:
        row.key = "" if key is None else str(key)
        row.split = split or ""
        texts = captions if any(captions) else [None] * len(audio)
        row.speech = [
            Spoken(path, text or None, where)
            for path, text in zip(audio, texts, strict=False)
            if path
        ]
        spoken = [bool(path) for path in audio] + [False] * (len(captions) - len(audio))
        row.captions = [
            text for text, said in zip(captions, spoken, strict=False) if text and not said
        ]
    return row


def _audio_paths(entry: dict[str, Any], image: Any, captions: list[str]) -> list[str] | str:
    """The paths of a row's clips, "" for a caption that has none, or why they cannot be had."""
    value = entry.get("audio")
    paths = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(paths, list) or not all(isinstance(one, str | None) for one in paths):
        return f"audio is {type(value).__name__}, expected a path or a list of paths"
    if not any(paths):
        return "neither an image path nor an audio path" if not image and "audio" in entry else []
    if any(captions) and len(captions) != len(paths):
        return f"{len(paths)} audio paths, but {len(captions)} captions; they pair by their places"
    return [one or "" for one in paths]
