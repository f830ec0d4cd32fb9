"""Names of columns: which are allowed, and which have a meaning that tools rely on."""

import re

from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import ShardError

BUILT_IN = {"key": "string", "split": "string", "captions": "list of string"}
"""Columns of every dataset, and their types."""
SIZES_SUFFIX = "_sizes"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_RESERVED = {*BUILT_IN, "arrow", "format", "json"}


def check_column_name(name: str) -> None:
    """Refuse names that are no names of tar members, or that the format uses."""
    if not _NAME.fullmatch(name) or name in _RESERVED or name.endswith(SIZES_SUFFIX):
        raise ShardError(
            f"column {name!r}: expected a name of lower-case letters, digits and _, that starts "
            f"with a letter, does not end with {SIZES_SUFFIX} and is none of {sorted(_RESERVED)}"
        )


def check_meaning(name: str, column: UnitColumn | str) -> None:
    """Refuse columns whose name has a meaning, with another form than it has."""
    is_units = isinstance(column, UnitColumn)
    if name == "image_units" and not (is_units and not column.many):
        raise ShardError("column image_units: expected one array of units a sample; rename it")
    if name in ("speech_units", "durations") and not (
        is_units and column.many and column.shape == (None,)
    ):
        raise ShardError(
            f"column {name}: expected a list of arrays of one axis that varies, one an utterance:"
            " UnitColumn((None,), NUM_CODES, many=True); rename other units, such as audio_units"
        )
