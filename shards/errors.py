"""Exception for bad data, checks of integers and memory, and text in messages."""

import re
import sys

# Control characters, half surrogates (broken UTF-8), and those that reorder or break lines.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class ShardError(ValueError):
    """Data that contradicts the format or manifest; the message names the place and the remedy."""


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raise unless the value is an int (no bool) from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ShardError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


MEMORY_BASE_BYTES = 64_000_000
MEMORY_FACTOR = 8


def memory_limit(size_bytes: int) -> int:
    """Memory that reading a file of this size may take, in bytes; what needs more is refused."""
    return MEMORY_BASE_BYTES + MEMORY_FACTOR * size_bytes


def shown(text: str, kept: str = "") -> str:
    r"""Text that is safe to print: characters that control a terminal become `\n` or `\u001b`.

    shown("line\nbreak.jpg") == "line\\nbreak.jpg"; accents and quotes stay, JSON stays JSON.

    Args:
        text: Text, such as a name from a file.
        kept: Control characters that stay, such as the line breaks of a table.
    """
    return _UNSAFE.sub(
        lambda found: (
            found[0] if found[0] in kept else _SHORT.get(found[0], f"\\u{ord(found[0]):04x}")
        ),
        text,
    )


def log(line: str) -> None:
    """Print a line on stderr, safely; see `shown`."""
    print(shown(line), file=sys.stderr, flush=True)


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
