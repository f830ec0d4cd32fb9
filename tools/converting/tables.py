"""Rows of datasets of the datasets library, of Parquet and of Arrow files, read by pyarrow."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from im2sp.pipeline.containers.columnar import ColumnarTable, open_columnar
from im2sp.pipeline.decoding.media import SourceError
from im2sp.pipeline.sources.items import split_name
from im2sp.shards import UnitColumn
from im2sp.shards.files import read_json
from im2sp.tools.converting.records import (
    CAPTION_FIELDS,
    KEY_FIELDS,
    Record,
    Source,
    array_of_values,
    captions_of,
    own_value,
    split_of,
)
from im2sp.tools.converting.specs import ColumnSpec

_SUFFIXES = (".parquet", ".arrow")
_ROWS = 256
_SPLIT = re.compile(r"(train|validation|valid|val|dev|test)(?=[-_.]|$)")


def read_tables(
    paths: Sequence[Path], source: Source, key: str | None, captions: str | None
) -> Iterator[Record]:
    """Samples of the rows of files, or of folders: `save_to_disk`, or files at any depth.

    Args:
        paths: Files and folders.
        source: Settings of the source.
        key: Column of the keys; None for `key`, `__key__` or `id`, else file and row number.
        captions: Column of the captions; None for `captions`, `caption` or `text`.

    Raises:
        ValueError: A file is missing or damaged, or has no such column.
    """
    for file, split in [one for path in paths for one in _files(path)]:
        yield from _rows(file, split or source.split, source, key, captions)


def _files(path: Path) -> list[tuple[Path, str]]:
    """Files of a path in order, with the splits that their folder or name states."""
    if path.is_file():
        return [(path, _split_of_name(path.stem))]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder")
    try:
        if (path / "dataset_dict.json").is_file():
            splits: list[str] = read_json(path / "dataset_dict.json")["splits"]
            return [(file, split_name(one)) for one in splits for file, _ in _files(path / one)]
        if (path / "state.json").is_file():
            state = read_json(path / "state.json")
            if state.get("_indices_files"):
                raise ValueError("it has indices; call flatten_indices() before save_to_disk")
            split = split_name(str(state.get("_split") or ""))
            return [(path / one["filename"], split) for one in state["_data_files"]]
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: damaged; save it again with save_to_disk") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = sorted(one for one in path.rglob("*") if one.suffix in _SUFFIXES)
    if not found:
        raise ValueError(f"{path}: holds no {' or '.join(_SUFFIXES)} files")
    return [(one, _split_of_name(one.stem) or _split_of_name(one.parent.name)) for one in found]


def _split_of_name(name: str) -> str:
    match = _SPLIT.match(name)
    return split_name(match[1]) if match else ""


def _rows(
    path: Path, split: str, source: Source, key: str | None, captions: str | None
) -> Iterator[Record]:
    number = 0
    try:
        with open_columnar(path) as table:
            texts = [captions] if captions is not None else CAPTION_FIELDS
            keys = [key] if key is not None else KEY_FIELDS
            specs = {spec.field or spec.name: spec for spec in source.specs}
            needed = [*specs, *([key] if key is not None else []), *(texts if captions else [])]
            missing = [name for name in needed if name not in table.names]
            if missing:
                raise ValueError(f"no column {missing[0]!r}, only {table.names}")
            wanted = [n for n in table.names if n in {*specs, *texts, *keys, "split"}]
            for row in _entries(table, wanted):
                yield _record(path, number, row, split, source, keys, captions)
                number += 1
            unused = [name for name in table.names if name not in wanted]
            source.unused.update(dict.fromkeys(unused, number))
    except SourceError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: row {number}: cannot be read ({reason})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _entries(table: ColumnarTable, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Values of some columns in each row; few rows at a time become Python objects."""
    for batch in table.batches():
        for start in range(0, batch.num_rows, _ROWS):
            yield from batch.select(columns).slice(start, _ROWS).to_pylist()


def _record(
    path: Path,
    number: int,
    row: dict[str, Any],
    split: str,
    source: Source,
    keys: Sequence[str],
    captions: str | None,
) -> Record:
    found = (row[name] for name in keys if row.get(name) not in (None, ""))
    texts = row if captions is None else {"captions": row[captions]}
    return Record(
        name=f"{path}: row {number}",
        key=str(next(found, f"{split}{'/' if split else ''}{path.stem}-{number:09d}")),
        split=split_of(row, split),
        captions=captions_of(texts),
        values={s.name: partial(_value, s, row.get(s.field or s.name)) for s in source.specs},
    )


def _value(spec: ColumnSpec, value: Any) -> Any:
    if isinstance(spec.column, UnitColumn):
        return array_of_values(value, spec.column)
    return own_value(value, spec.column)
