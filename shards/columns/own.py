"""Own columns: values that are no units, such as a URL or a score."""

import math
from typing import Any, cast

import pyarrow as pa

from im2sp.shards.errors import ShardError

OWN_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bytes": pa.binary(),
    "list of string": pa.list_(pa.string()),
}
"""Type of an own column -> its Arrow type."""


def checked_value(type_name: str, value: Any) -> Any:
    """A value as it is stored; numpy's scalars become Python's.

    Raises:
        ShardError: It has another type, or is out of range.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if type_name == "string":
        check_text(value)
    elif type_name == "list of string":
        if not isinstance(value, list | tuple):
            raise _wrong(type_name, value)
        value = list(cast(list[object], value))
        for text in value:
            check_text(text)
    elif type_name == "bytes":
        if not isinstance(value, bytes | bytearray | memoryview):
            raise _wrong(type_name, value)
        value = bytes(cast(bytes, value))
    elif type_name == "bool":
        if not isinstance(value, bool):
            raise _wrong(type_name, value)
    elif isinstance(value, bool) or not isinstance(
        value, int if type_name == "int" else int | float
    ):
        raise _wrong(type_name, value)
    elif type_name == "int":
        if not -(1 << 63) <= value < 1 << 63:
            raise ShardError(f"{value}, expected an int of 64 bits")
    else:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise ShardError(f"{value}, expected a finite float; use None for an unknown one")
    return value


def check_text(text: object) -> None:
    """Refuse what is not a str, or cannot be written as UTF-8."""
    if not isinstance(text, str):
        raise _wrong("string", text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ShardError(f"not valid Unicode: {error.reason} at {error.start}") from None


def _wrong(type_name: str, value: object) -> ShardError:
    return ShardError(f"a {type(value).__name__}, expected {type_name}")
