"""Fenced blocks of guides such as the README, and the commands in them."""

import re
from collections.abc import Iterator


def blocks(text: str, *languages: str) -> Iterator[tuple[str, int, str]]:
    """Fenced blocks of the given languages as (language, line number, text), in order."""
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        if match[1] in languages:
            yield match[1], text.count("\n", 0, match.start()) + 1, match[2]


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """Commands of the sh and python blocks as (line number, words to run), in order.

    A block of sh is a command a line, or more lines where each but the last ends in a backslash.
    """
    for language, start, block in blocks(text, "sh", "python"):
        if language == "python":
            yield start + 1, ["python", "-c", block]
            continue
        line = start
        for command in re.findall(r"(?:.*\\\n)*.*\n", block):
            line += 1
            if command.strip() and not command.startswith("#"):
                yield line, ["bash", "-euo", "pipefail", "-c", command]
            line += command.count("\n") - 1
