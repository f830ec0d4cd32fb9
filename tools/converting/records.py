"""Records of a source: what becomes a sample, before its values are checked."""

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from im2sp.pipeline.sources.items import split_name
from im2sp.shards import ShardError, UnitColumn
from im2sp.tools.converting.arrays import fitted, read_array
from im2sp.tools.converting.specs import ColumnSpec

CAPTION_FIELDS = ("captions", "caption", "text", "txt")
KEY_FIELDS = ("key", "__key__", "id")


@dataclass(kw_only=True)
class Source:
    """Settings of a source, and what of it is not used."""

    specs: Sequence[ColumnSpec]
    split: str = ""
    """Split of samples that name none."""
    unused: Counter[str] = field(default_factory=Counter[str])
    """Field -> how often it was there and not used."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One sample of a source."""

    name: str
    """File and place, for `rejects.jsonl`."""
    key: str
    split: str = ""
    captions: Sequence[str] = ()
    values: Mapping[str, Callable[[], Any]]
    """Column -> function that reads its value; raises `ShardError`."""

    def read(self) -> dict[str, Any]:
        """Arguments of `DatasetWriter.write`.

        Raises:
            ShardError: A value is damaged; names sample and column.
        """
        found: dict[str, Any] = {}
        for name, value in self.values.items():
            try:
                found[name] = value()
            except (ShardError, OSError) as error:
                text = error.strerror if isinstance(error, OSError) else error
                raise ShardError(f"sample {self.key!r}: column {name}: {text}") from None
        return {"key": self.key, "split": self.split, "captions": self.captions, **found}


def array_of_files(files: Mapping[str, Callable[[], bytes]], column: UnitColumn) -> Any:
    """Value of a unit column from files: an array, a list of them, None without files."""
    arrays = [fitted(read_array(name, read()), column) for name, read in files.items()]
    if column.many:
        return arrays
    return arrays[0] if arrays else None


def array_of_values(value: Any, column: UnitColumn) -> Any:
    """Value of a unit column from nested lists of integers."""
    if value is None:
        return [] if column.many else None
    if column.many:
        if not isinstance(value, list):
            raise ShardError(f"a {type(value).__name__}, expected a list of arrays")
        return [_array(one, column) for one in value]
    return _array(value, column)


def _array(value: Any, column: UnitColumn) -> Any:
    try:
        return fitted(np.asarray(value), column)
    except ValueError:
        raise ShardError(f"lists of different lengths, expected shape {column.shape}") from None


def own_value(value: Any, type_name: str) -> Any:
    """Value of an own column from JSON or a table; bytes are base64 in JSON."""
    if type_name == "bytes" and isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ShardError("not base64, in which JSON holds bytes") from None
    return value


def text_value(text: str, type_name: str) -> Any:
    """Value of an own column from the text of a file, such as `.cls`."""
    text = text.strip()
    try:
        if type_name == "int":
            return int(text)
        if type_name == "float":
            return float(text)
    except ValueError:
        raise ShardError(f"{text[:40]!r}, expected {type_name}") from None
    if type_name == "bool":
        if text not in ("0", "1", "false", "true"):
            raise ShardError(f"{text[:40]!r}, expected 0, 1, false or true")
        return text in ("1", "true")
    if type_name == "list of string":
        return text.splitlines()
    return text


def captions_of(about: Mapping[str, Any]) -> list[str]:
    """Texts of the first field with captions: one, or a list."""
    for name in CAPTION_FIELDS:
        value = about.get(name)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return value
    return []


def split_of(about: Mapping[str, Any], default: str) -> str:
    """Split that a record names, or the default."""
    value = about.get("split")
    return split_name(value) if isinstance(value, str) and value else default
