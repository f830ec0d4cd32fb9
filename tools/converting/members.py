"""Samples of a folder or of WebDataset tars: files `KEY.FIELD` that share a key are one sample.

As in WebDataset, the key of a file is its path up to the first dot of its name. Tars are read from
start to end, compressed ones as well, and nothing is unpacked.
"""

import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards import ShardError, UnitColumn
from im2sp.shards.files import parse_json, read_regular
from im2sp.tools.converting.records import (
    Record,
    Source,
    array_of_files,
    captions_of,
    own_value,
    split_of,
    text_value,
)
from im2sp.tools.converting.specs import ColumnSpec

MAX_MEMBER_BYTES = 1 << 28
_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ABOUT = ("json", "txt")
_File = tuple[str, str, Callable[[], bytes]]
"""Key, field, and a function that reads the content."""


def read_folder(folder: Path, source: Source) -> Iterator[Record]:
    """Samples of the files in a folder and below, in the order of their paths.

    Raises:
        ValueError: The folder is missing or holds no file.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    names = sorted(
        os.path.relpath(os.path.join(path, name), folder)
        for path, _, found in os.walk(folder)
        for name in found
    )
    if not names:
        raise ValueError(f"{folder}: holds no files")
    files = (
        (*split_path(name), partial(read_regular, folder / name, MAX_MEMBER_BYTES))
        for name in sorted(names, key=split_path)
    )
    return _records(str(folder), files, source)


def read_tars(paths: Sequence[Path], source: Source) -> Iterator[Record]:
    """Samples of tars, or of the tars directly in folders.

    Raises:
        ValueError: A file is missing, no tar, or cut.
    """
    tars: list[Path] = []
    for path in paths:
        if path.is_dir():
            tars += [one for one in sorted(path.iterdir()) if one.name.endswith(_TAR_SUFFIXES)]
        elif path.is_file():
            tars.append(path)
        else:
            raise ValueError(f"{path}: no such file")
    if not tars:
        raise ValueError(f"{paths[0]}: holds no tars ({', '.join(_TAR_SUFFIXES)})")
    for tar in tars:
        yield from _records(str(tar), _members(tar, source), source)


def _members(tar: Path, source: Source) -> Iterator[_File]:
    wanted = _is_wanted(source.specs)
    try:
        with tarfile.open(tar, "r|*") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                key, field = split_path(member.name)
                data = b""
                if wanted(field) and member.size <= MAX_MEMBER_BYTES:
                    file = archive.extractfile(member)
                    assert file is not None
                    data = file.read()
                yield key, field, partial(_content, data, member.size)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{tar}: no tar, or cut ({error})") from None


def _content(data: bytes, size_bytes: int) -> bytes:
    if size_bytes > MAX_MEMBER_BYTES:
        raise ShardError(f"{size_bytes:,} bytes, over the limit of {MAX_MEMBER_BYTES:,}")
    return data


def split_path(name: str) -> tuple[str, str]:
    """Key and field of a path: `a/b.codes.npy` is `a/b` and `codes.npy`."""
    folder, base = os.path.split(name)
    stem, _, field = base.partition(".")
    return os.path.join(folder, stem), field


def _records(place: str, files: Iterable[_File], source: Source) -> Iterator[Record]:
    for key, group in groupby(files, key=lambda file: file[0]):
        yield _record(place, key, {field: read for _, field, read in group}, source)


def _record(place: str, key: str, files: dict[str, Callable[[], bytes]], source: Source) -> Record:
    about, problem = _about(key, files)
    values: dict[str, Callable[[], Any]] = {}
    used = {*_ABOUT}
    for spec in source.specs:
        fields = _fields_of(spec, files, source.specs)
        used |= {*fields}
        values[spec.name] = partial(_value, spec, {f: files[f] for f in fields}, about, problem)
    source.unused.update(f".{field}" for field in files if field not in used)
    return Record(
        name=f"{place}: {key}",
        key=str(about.get("key", key)),
        split=split_of(about, source.split),
        captions=captions_of(about),
        values=values,
    )


def _about(key: str, files: dict[str, Callable[[], bytes]]) -> tuple[dict[str, Any], str]:
    """Content of `.json` and `.txt`, and what is wrong with them."""
    about: dict[str, Any] = {}
    try:
        if "json" in files:
            about = parse_json(files["json"]())
        if not isinstance(about, dict):
            return {}, f"{key}.json: no JSON object"
        if "txt" in files:
            about.setdefault("txt", files["txt"]().decode().strip())
    except (ValueError, OSError) as error:
        return {}, f"{key}.json or .txt: cannot be read ({error})"
    return about, ""


def _value(
    spec: ColumnSpec, files: dict[str, Callable[[], bytes]], about: dict[str, Any], problem: str
) -> Any:
    if problem:
        raise ShardError(problem)
    if isinstance(spec.column, UnitColumn):
        return array_of_files(files, spec.column)
    for read in files.values():
        data = read()
        if spec.column == "bytes":
            return data
        return text_value(data.decode("utf-8", "replace"), spec.column)
    return own_value(about.get(spec.field or spec.name), spec.column)


def _fields_of(
    spec: ColumnSpec, files: Mapping[str, object], specs: Sequence[ColumnSpec]
) -> list[str]:
    """Fields of a sample that hold a column's value, in order.

    For a unit column without a given field that is `NAME.npy`, or `npy` if it is the only one; for
    many arrays also `NAME.0.npy`, `NAME.1.npy` and so on.
    """
    if not isinstance(spec.column, UnitColumn):
        name = spec.field or spec.name
        return [name] if name in files else []
    num_units = sum(isinstance(one.column, UnitColumn) for one in specs)
    defaults = [f"{spec.name}.npy", *(["npy"] if num_units == 1 else [])]
    for field in [spec.field] if spec.field else defaults:
        stem, dot, suffix = field.rpartition(".")
        number = r"(?:(\d+)\.)?" if spec.column.many else "()"
        pattern = re.compile(re.escape(stem + dot) + number + re.escape(suffix))
        matches = [match for name in files if (match := pattern.fullmatch(name))]
        if matches:
            return [match[0] for match in sorted(matches, key=lambda match: int(match[1] or -1))]
    return []


def _is_wanted(specs: Sequence[ColumnSpec]) -> Callable[[str], bool]:
    """Function that selects the fields to read."""

    def is_wanted(field: str) -> bool:
        return field in _ABOUT or any(_fields_of(spec, {field: bytes}, specs) for spec in specs)

    return is_wanted


def read_stack(path: Path, source: Source) -> Iterator[Record]:
    """Samples of one `.npy` file, whose first axis counts them.

    Raises:
        ValueError: It is no such file, or there is not exactly one column.
    """
    spec, column = source.specs[0], source.specs[0].column
    if len(source.specs) != 1 or not isinstance(column, UnitColumn):
        raise ValueError(f"{path}: one .npy holds one unit column; give one with --columns")
    try:
        stack = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a .npy file of integers ({error})") from None
    if stack.ndim < 2:
        raise ValueError(f"{path}: shape {stack.shape}, expected (samples, ...)")
    width = len(str(len(stack) - 1))
    for i, array in enumerate(stack):
        key = f"{path.stem}-{i:0{width}d}"
        value = [array] if column.many else array
        yield Record(
            name=f"{path}: row {i}",
            key=key,
            split=source.split,
            values={spec.name: lambda value=value: value},
        )
