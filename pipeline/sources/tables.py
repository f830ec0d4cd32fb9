"""A source list: a `.jsonl`, `.csv`, `.parquet` or `.arrow` table of images, clips and captions."""

import csv
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import pyarrow as pa

from im2sp.pipeline.containers.columnar import Content, open_columnar
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceListing,
    clean_key,
    kind_of_name,
    split_name,
    strip_suffix,
)
from im2sp.pipeline.sources.roots import make_audio_finder, make_resolver
from im2sp.pipeline.sources.rows import (
    Row,
    RowClip,
    check_some_audio,
    items_of_rows,
)
from im2sp.shards.files import lines_of, open_regular, parse_json

FIELDS: dict[str, tuple[str, ...]] = {
    "key": ("key",),
    "image": ("image", "file_name", "path", "jpg", "png", "webp"),
    "audio": ("audio", "wav", "file"),
    "caption": ("caption", "text", "sentence"),
    "captions": ("captions",),
    "split": ("split",),
}
"""Fields of a row and the column names for them; the first name that a table has is used.

Column names are compared without surrounding space and case-insensitively.
"""

_EXPECTED = (
    "expected an 'image' column with paths, an 'audio' column or both and, optionally, 'key', "
    "'caption' (or 'captions', a list) and 'split'; name others with --columns FIELD=COLUMN"
)

_FILE_OF_SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(-\d+-of-\d+.*)?")


class _Columns:
    """Mapping from the fields of a row to the columns of a table."""

    def __init__(self, path: Path, chosen: Mapping[str, str]) -> None:
        for field, name in chosen.items():
            if field not in FIELDS:
                raise SourceError(
                    f"--columns {field}={name}: no field {field!r}; expected one of "
                    f"{', '.join(FIELDS)}"
                )
        self._path = path
        self._chosen = {field: name.strip().casefold() for field, name in chosen.items()}
        self._names: dict[str, str] = {}
        self._by_field: dict[str, str] = {}

    def add(
        self,
        names: Iterable[str],
        values: Mapping[str, Any],
        features: Mapping[str, str] | None = None,
    ) -> None:
        """Add columns, and map the fields to them.

        Args:
            names: Column names of the table, or of one more row if rows differ.
            values: A row, which shows if an alias names images or clips.
            features: Columns by field that the table itself records.
        """
        new = [name for name in names if name not in self._names]
        if not new:
            return
        self._names.update((name, name.strip().casefold()) for name in new)
        by_name: dict[str, str] = {}
        for name, folded in self._names.items():
            by_name.setdefault(folded, name)
        self._by_field = {}
        for field, aliases in FIELDS.items():
            wanted = (self._chosen[field],) if field in self._chosen else aliases
            if features and field in features and field not in self._chosen:
                wanted = (features[field].strip().casefold(),)
            found = [by_name[a] for a in wanted if a in by_name and a not in self._taken(field)]
            if found:
                self._by_field[field] = found[0]
        for field, other in (("image", "audio"), ("audio", "image")):
            name = self._by_field.get(field)
            # An alias such as `path` may name either: the suffix of the value decides.
            if name is None or field in self._chosen or self._names[name] == field:
                continue
            if kind_of_name(str(values.get(name))) == other:
                self._by_field.setdefault(other, self._by_field.pop(field))

    def _taken(self, field: str) -> set[str]:
        return {name for other, name in self._chosen.items() if other != field}

    def check(self) -> None:
        """Refuse a table without a column of images or clips, or without a chosen column.

        Raises:
            SourceError: The message lists the columns found.
        """
        held = f"found columns {list(self._names)[:8]}"
        for field, name in self._chosen.items():
            if field not in self._by_field:
                raise SourceError(
                    f"{self._path}: no column {name!r} for {field} (--columns); {held}"
                )
        if not {"image", "audio"} & set(self._by_field):
            raise SourceError(f"{self._path}: {held}; {_EXPECTED}")

    def fields_of(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return the known fields of a row."""
        return {field: entry.get(name) for field, name in self._by_field.items()}

    def used(self) -> list[str]:
        """Names of the columns that a field uses."""
        return list(self._by_field.values())

    def unused(self) -> list[str]:
        """Names of the columns that no field uses, as spelled in the table."""
        return [name for name in self._names if name not in self._by_field.values()]


def list_table(
    path: Path,
    image_root: Path | None,
    audio_root: Path | None,
    columns: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> SourceListing:
    """List the samples of a source list; unused columns are named in the listing's notes.

    Relative image paths start at `image_root`, by default `folder`, that of the list; absolute ones
    and URLs are used as they are. Audio paths likewise, with `audio_root`. A missing or empty key
    is derived from the image path or, without an image, from the first audio path. `audio` is a
    path, paired
    with the row's caption, or a list of paths, each paired with the caption at the same index.
    Rows that repeat a key and its image add captions and clips to the sample.

    Raises:
        SourceError: The file cannot be read as a table, has no rows, or lacks a column of images
            or clips or one named by `columns`; or no clip in the given `audio_root` can be used.
    """
    kind = path.suffix.lower()
    known = _Columns(path, columns or {})
    try:
        rows = list(TABLE_READERS[kind](path, known))
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    known.check()
    if not rows:
        raise SourceError(f"{path}: holds no rows; {_EXPECTED}")
    folder = folder or path.parent
    root = folder if image_root is None else image_root
    find_audio = None
    if audio_root is not None or any(row.speech for row in rows):
        find_audio = make_audio_finder(folder if audio_root is None else audio_root)
    items = items_of_rows(rows, make_resolver(root), find_audio)
    if audio_root is not None:
        unnamed = (
            f"no row names a clip under 'audio', so an audio root ({audio_root}) does not apply; "
            "leave it out"
        )
        check_some_audio(path, items, audio_root, unnamed=unnamed)
    unused = known.unused()
    note = f"columns not used: {', '.join(map(repr, unused))} (use one with --columns FIELD=COLUMN)"
    return SourceListing(kind=kind[1:], items=items, ignored={}, notes=(note,) if unused else ())


def _read_jsonl(path: Path, columns: _Columns) -> Iterator[Row]:
    """Read one JSON object per line; blank lines are skipped."""
    with open_regular(path) as file:
        for number, line in enumerate(lines_of(file), start=1):
            if not line.strip():
                continue
            where = f"line {number}"
            try:
                entry = parse_json(line)
            except ValueError as error:
                yield Row(where=where, error=f"not JSON: {error}")
                continue
            if not isinstance(entry, dict):
                yield Row(where=where, error=f"found {type(entry).__name__}, expected an object")
                continue
            columns.add(entry, entry)
            yield _row(where, columns.fields_of(entry))


def _read_csv(path: Path, columns: _Columns) -> Iterator[Row]:
    """Read a header line and comma-separated rows, UTF-8; quoted fields may hold line breaks."""
    with TextIOWrapper(open_regular(path), "utf-8-sig", "surrogateescape", "") as file:
        records = _csv_records(lines_of(file))
        _, header = next(records, (1, []))
        if isinstance(header, str):
            raise SourceError(f"{path}: not CSV ({header}); {_EXPECTED}")
        header = [name.strip() for name in header]
        for number, fields in records:
            where = f"line {number}"
            if isinstance(fields, str):
                yield Row(where=where, error=f"not CSV: {fields}")
            elif len(fields) > len(header):
                error = f"{len(fields)} fields, the header has {len(header)}"
                yield Row(where=where, error=error)
            elif fields:
                entry = dict(zip(header, fields, strict=False))
                columns.add(header, entry)
                yield _row(where, columns.fields_of(entry))
        columns.add(header, {})


def _csv_records(file: Iterable[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield line number and fields of each record, or the problem with it.

    An invalid record, such as one with an unclosed quote, rejects only its first line; the other
    lines inside the open quote are read again as separate records.
    """
    source = iter(file)
    waiting: deque[str] = deque()
    taken: list[str] = []

    def lines() -> Iterator[str]:
        while True:
            line = waiting.popleft() if waiting else next(source, "")
            if not line:
                return
            taken.append(line)
            yield line

    number, spaced = 1, False
    reader = csv.reader(lines(), strict=True)
    while True:
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            waiting.extendleft(reversed(taken[1:]))
            problem = str(error)
            if len(taken) > 1:
                problem = f"a quote that opens here is not closed ({error})"
            yield number, problem
            number += 1
            reader = csv.reader(lines(), strict=True, skipinitialspace=spaced)
            continue
        if number == 1 and not spaced and any(name.startswith(" ") for name in fields):
            # `image, caption`: the space is not part of a field. Read the header again.
            spaced = True
            waiting.extendleft(reversed(taken))
            reader = csv.reader(lines(), strict=True, skipinitialspace=True)
            continue
        yield number, fields
        number += len(taken)


def _read_columnar(path: Path, columns: _Columns) -> Iterator[Row]:
    """Read a Parquet or Arrow table, only the columns of known fields."""
    kind = path.suffix[1:].capitalize()
    try:
        table = open_columnar(path)
    except pa.ArrowException as error:
        raise SourceError(f"{path}: not a {kind} file ({error}); {_EXPECTED}") from None
    with table:
        number = 0
        try:
            first = next(table.entries(table.names, num_rows=1), {})
            columns.add(table.names, first, table.features)
            columns.check()
            is_dataset = any(map(table.is_content, columns.used()))
            split = split_of_file(path) if is_dataset else ""
            for entry in table.entries(columns.used()):
                row = _row(f"row {number}", columns.fields_of(entry))
                row.split = row.split or split
                yield row
                number += 1
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            problem = " ".join(str(error).split())
            raise SourceError(f"{path}: damaged after row {number} ({problem})") from None


TABLE_READERS: dict[str, Callable[[Path, _Columns], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_columnar,
    ".arrow": _read_columnar,
}
"""Reader of each kind of source list, by suffix."""


def split_of_file(path: Path) -> str:
    """Split that the datasets library's name of a file states: `train-00000-of-00002.parquet`.

    For `save_to_disk`, the name of the folder states it. Empty for other names.
    """
    name = path.parent.name if path.stem.startswith("data-") else path.stem
    found = _FILE_OF_SPLIT.fullmatch(name)
    return split_name(found[1]) if found else ""


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> Any:
    """Convert a key, split or caption to text; "" if missing, unchanged if it is not text.

    pandas writes a column of integers with gaps as floats, and gaps as NaN: `1.0` becomes `1`, NaN
    counts as missing.
    """
    if _is_missing(value):
        return ""
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int | float) else value


def _row(where: str, entry: Mapping[str, Any]) -> Row:
    """Convert the fields of a row; a problem with them becomes the row's error."""
    contents: dict[str, Content] = {}
    fields = dict(entry)
    for field in ("image", "audio"):
        if isinstance(value := fields.get(field), Content):
            fields[field] = name = f"{where}: {value.name or field}"
            contents[name] = value
    row = _plain_row(where, fields)
    row.contents = {name: content.place for name, content in contents.items()}
    if contents:
        first = next(iter(contents.values())).name
        number = f"{int(where.removeprefix('row ')):06d}"
        named = (clean_key(strip_suffix(first)), clean_key(first)) if first else ()
        row.key_candidates = (*named, number)
    return row


def _plain_row(where: str, entry: Mapping[str, Any]) -> Row:
    image = "" if _is_missing(entry.get("image")) else entry["image"]
    key, split = _text(entry.get("key")), _text(entry.get("split"))
    texts = entry.get("captions")
    texts = entry.get("caption") if texts is None else texts
    captions = [_text(text) for text in texts] if isinstance(texts, list) else [_text(texts)]
    row = Row(where=where, image=image if isinstance(image, str) else "")
    if not isinstance(image, str):
        row.error = f"image is {type(image).__name__}, expected a path"
    elif not isinstance(key, str):
        row.error = f"key is {type(key).__name__}, expected text"
    elif not isinstance(split, str):
        row.error = f"split is {type(split).__name__}, expected text"
    elif not all(isinstance(text, str) for text in captions):
        row.error = "caption must be text or a list of texts"
    elif isinstance(audio := _audio_paths(entry, image, captions), str):
        row.error = audio
    else:
        row.key = key.strip()
        row.split = split_name(split)
        texts = captions if any(captions) else [None] * len(audio)
        row.speech = [
            RowClip(path, text or None, where)
            for path, text in zip(audio, texts, strict=False)
            if path
        ]
        has_clip = [bool(path) for path in audio] + [False] * (len(captions) - len(audio))
        row.captions = [
            text for text, has in zip(captions, has_clip, strict=False) if text and not has
        ]
    return row


def _audio_paths(entry: Mapping[str, Any], image: str, captions: list[str]) -> list[str] | str:
    """Paths of a row's clips ("" for a caption without one), or the problem with them."""
    value = "" if _is_missing(entry.get("audio")) else entry["audio"]
    paths = [value] if isinstance(value, str) else ([] if value is None else value)
    if not isinstance(paths, list) or not all(isinstance(one, str | None) for one in paths):
        return f"audio is {type(value).__name__}, expected a path or a list of paths"
    if not any(paths):
        return "neither an image path nor an audio path" if not image and "audio" in entry else []
    if any(captions) and len(captions) != len(paths):
        return f"{len(paths)} audio paths, but {len(captions)} captions; they pair by their places"
    return [one or "" for one in paths]
