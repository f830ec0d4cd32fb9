"""Column specifications of the command line, such as `image_units=codes.npy:16x16:16384`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

from im2sp.shards import ShardError, UnitColumn
from im2sp.shards.columns.own import OWN_TYPES
from im2sp.shards.columns.units import Coding

_SHAPE = re.compile(r"(\d+|T)(x(\d+|T))*")
_FORM = (
    "expected NAME[=FIELD]:SHAPE:CODES[:many][:coded], such as image_units=codes.npy:16x16:16384 "
    f"or audio_units:8xT:2048, or NAME[=FIELD]:TYPE with TYPE one of {', '.join(OWN_TYPES)}"
)


@dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """A column of the new dataset, and where its values come from."""

    name: str
    field: str | None
    """Field of the source; None for the default of the source."""
    column: UnitColumn | str
    """`UnitColumn`, or the type of an own column."""


def parse_specs(texts: Sequence[str]) -> list[ColumnSpec]:
    """Parse `--columns`.

    Raises:
        ValueError: A text has another form, a value is out of range, or a name occurs twice.
    """
    specs = [_parsed(text) for text in texts]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--columns: {name} is given twice")
    return specs


def _parsed(text: str) -> ColumnSpec:
    head, *rest = text.split(":")
    name, equals, field = head.partition("=")
    if not name or not rest or (equals and not field):
        raise ValueError(f"--columns {text}: {_FORM}")
    if rest[0] in OWN_TYPES:
        if len(rest) > 1:
            raise ValueError(f"--columns {text}: {_FORM}")
        return ColumnSpec(name=name, field=field or None, column=rest[0])
    shape, codes, *flags = [*rest, ""] if len(rest) == 1 else rest
    codings = [flag for flag in flags if flag in get_args(Coding)]
    is_known = all(flag == "many" or flag in codings for flag in flags)
    if not _SHAPE.fullmatch(shape) or not codes.isdecimal() or not is_known or len(codings) > 1:
        raise ValueError(f"--columns {text}: {_FORM}")
    try:
        column = UnitColumn(
            shape=tuple(None if size == "T" else int(size) for size in shape.split("x")),
            num_codes=int(codes),
            many="many" in flags,
            coding=cast(Coding, codings[0] if codings else "packed"),
        )
    except ShardError as error:
        raise ValueError(f"--columns {text}: {error}") from None
    return ColumnSpec(name=name, field=field or None, column=column)


def parse_pairs(flag: str, texts: Sequence[str], value: str) -> dict[str, str]:
    """Parse flags of the form NAME=VALUE.

    Args:
        flag: Name of the flag, for the message.
        texts: The texts.
        value: What stands after the equals sign, for the message.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        if not name or not equals or not rest:
            raise ValueError(f"{flag} {text}: expected NAME={value}")
        found[name] = rest
    return found
