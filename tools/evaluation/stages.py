"""Stages of an evaluation, each kept in a file and gone on with after a kill.

A stage is `NAME.jsonl`: a first line that says what it was made from, then a row an item, in the
items' order. While it grows it is called `NAME.jsonl.part`. It is made anew when what it was made
from has changed; as the first line holds the hash of the file of the stage before, so are all that
follow.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_FORM = "im2sp stage 1"


class StageFolder:
    """The kept stages of one evaluation.

    Attributes:
        folder: Where they lie; made when the first is.
        made: Names of the stages of which a row was made since it was opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []

    def rows(
        self,
        name: str,
        inputs: Mapping[str, Any],
        num_items: int,
        make: Callable[[int], Iterator[Row]],
    ) -> list[Row]:
        """The rows of a stage: those that are kept, and the rest made and kept.

        Args:
            name: Of the stage's file, without suffix.
            inputs: JSON values that all its rows depend on.
            num_items: How many rows there will be.
            make: Makes the rows from an item on, in order. A row is kept as soon as it comes.

        Raises:
            OSError: The folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path, part = self.path(name), self.path(name).with_suffix(".jsonl.part")
        header = {"form": _FORM, "stage": name, "num_items": num_items, "inputs": dict(inputs)}
        line = json.dumps(header, sort_keys=True)
        kept = _kept(path, line)
        if kept is not None and len(kept) == num_items:
            return kept
        rows = _kept(part, line) or []
        # What a kill cut is cut off; what was made from something else is overwritten.
        text = "".join(f"{one}\n" for one in [line, *map(json.dumps, rows)])
        with open(part, "wb") as file:
            file.write(text.encode())
            if len(rows) < num_items:
                self.made.append(name)
                for row in make(len(rows)):
                    rows.append(row)
                    file.write(json.dumps(row).encode() + b"\n")
                    file.flush()
            assert len(rows) == num_items, (name, len(rows), num_items)
            os.fsync(file.fileno())
        os.replace(part, path)
        return rows

    def path(self, name: str) -> Path:
        """The file of a stage that is done."""
        return self.folder / f"{name}.jsonl"

    def sha256(self, name: str) -> str:
        """Of the file of a stage that is done."""
        return hashlib.sha256(self.path(name).read_bytes()).hexdigest()


def _kept(path: Path, header: str) -> list[Row] | None:
    """Whole rows of a file; None where it is not there or was made from something else."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    if not lines or lines[0] != header.encode():
        return None
    return [json.loads(line) for line in lines[1:]]
