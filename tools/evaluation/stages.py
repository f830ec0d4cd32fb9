"""Resumable stages of an evaluation, each stored in a file.

A stage is `NAME.jsonl`: a header line with the inputs of the stage, then one row per item, in the
items' order. An incomplete stage is `NAME.jsonl.part`. A stage runs again if its inputs changed;
the header contains the hash of the previous stage's file, so all later stages run again as well.
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
    """Stage files of one evaluation.

    Attributes:
        folder: Their folder; created by the first stage.
        made: Names of the stages that computed rows since the folder was opened.
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
        """Return the rows of a stage: stored ones, and the rest computed and stored.

        Args:
            name: Name of the stage's file, without suffix.
            inputs: JSON values that all its rows depend on.
            num_items: Number of rows of the complete stage.
            make: Yields the rows from a given item on, in order. Each row is stored at once.

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
        # Drops an incomplete last line; overwrites rows of other inputs.
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
        """Path of a complete stage."""
        return self.folder / f"{name}.jsonl"

    def sha256(self, name: str) -> str:
        """Hash of the file of a complete stage."""
        return hashlib.sha256(self.path(name).read_bytes()).hexdigest()


def _kept(path: Path, header: str) -> list[Row] | None:
    """Complete rows of a file; None if it does not exist or has other inputs."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    if not lines or lines[0] != header.encode():
        return None
    return [json.loads(line) for line in lines[1:]]
