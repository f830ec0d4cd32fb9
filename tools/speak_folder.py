"""The folder that im2sp-speak writes into: only its own files are ever replaced.

`.im2sp-speak.json` lists them. It is written before the first of them, so that what a killed run
left is known as ours. The page comes last: a folder without `index.html` is not done.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from im2sp.shards.files import TMP_SUFFIX, atomic_file, is_plain_name

LIST_NAME = ".im2sp-speak.json"
PAGE_NAME = "index.html"
SPOKEN_NAME = "spoken.jsonl"
REJECTS_NAME = "rejects.jsonl"
_TABLES = [PAGE_NAME, SPOKEN_NAME, REJECTS_NAME]
_FORM = "im2sp-speak 1"
_LONGEST_STEM = 80


class SpeechFolder:
    """Files of one run of im2sp-speak."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        """Make the folder, note what will be written, and remove the tables of an earlier run.

        Args:
            path: The folder.
            names: Of all files that may be written, beside the tables.

        Raises:
            ValueError: A file that is not ours has one of the names. Nothing is changed then.
            OSError: The folder cannot be written.
        """
        self.path = path
        self._written: set[str] = set()
        self._former = _own_names(path)
        wanted = {*_TABLES, *names}
        for name in sorted(wanted - self._former):
            if (path / name).exists():
                raise ValueError(
                    f"--out {path}: holds {name}, which no earlier im2sp-speak wrote there; move it"
                    " away or choose another --out"
                )
        path.mkdir(parents=True, exist_ok=True)
        self._list(self._former | wanted)
        for name in _TABLES:
            (path / name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all."""
        with atomic_file(self.path / name) as file:
            file.write(data)
        self._written.add(name)

    def write_rows(self, name: str, rows: Sequence[object]) -> None:
        """Write JSON lines."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        self.write(name, "".join(lines).encode())

    def finish(self, page: str) -> None:
        """Remove what is left of earlier runs, and write the page."""
        for name in self._former - self._written - {PAGE_NAME}:
            (self.path / name).unlink(missing_ok=True)
            (self.path / (name + TMP_SUFFIX)).unlink(missing_ok=True)
        self.write(PAGE_NAME, page.encode())
        self._list(self._written)

    def _list(self, names: Iterable[str]) -> None:
        content = {"form": _FORM, "files": sorted(names)}
        with atomic_file(self.path / LIST_NAME) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")


def _own_names(path: Path) -> set[str]:
    """Names of files that an earlier run wrote there, or began to."""
    place = path / LIST_NAME
    try:
        content = json.loads(place.read_bytes())
        names = content["files"] if content["form"] == _FORM else None
    except FileNotFoundError:
        return set()
    except (ValueError, TypeError, KeyError):
        names = None
    if not isinstance(names, list) or not all(is_plain_name(name) for name in names):
        raise ValueError(f"{place}: not what im2sp-speak writes; remove it or choose another --out")
    return set(names)


def file_stems(keys: Sequence[str]) -> list[str]:
    """A file name without suffix for each key, different even where case does not count.

    file_stems(["a/b.c", "A_B_C", ""]) == ["a_b_c", "A_B_C-2", "_"]
    """
    stems: list[str] = []
    taken: set[str] = set()
    for key in keys:
        first = stem = re.sub(r"[^A-Za-z0-9_-]", "_", key)[:_LONGEST_STEM] or "_"
        number = 1
        while stem.lower() in taken:
            number += 1
            stem = f"{first}-{number}"
        taken.add(stem.lower())
        stems.append(stem)
    return stems
