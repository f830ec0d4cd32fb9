"""What a folder holds: its pictures and sound files, found by walking it."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from im2sp.pipeline.source_items import (
    HIDDEN,
    LINKED_FOLDER,
    count_ignored,
    kind_of_name,
    printable_utf8,
)
from im2sp.pipeline.source_pairs import Found


def find_in_folder(folder: Path, kinds: Collection[str], ignored: Counter[str]) -> list[Found]:
    """All files below a folder that are of `kinds` by their name, sorted by path.

    Hidden files, linked folders and other files are left out and counted in `ignored`. A linked
    file counts when what it links to lies in the folder too, else it is a reject.
    """
    found: list[Found] = []
    root = os.path.realpath(folder)
    base = str(folder)
    for name, entry in _walk(base, "", ignored):
        shown = printable_utf8(name)
        if isinstance(entry, str):
            found.append(Found(name=name, shown=shown, place=entry, kind="other"))
            continue
        kind = kind_of_name(name)
        if kind not in kinds:
            count_ignored(name, ignored)
            continue
        place = _file_problem(entry, root) or Path(f"{base}/{name}")
        found.append(Found(name=name, shown=shown, place=place, kind=kind))
    found.sort(key=lambda one: one.name)
    return found


def _walk(
    folder: str, prefix: str, ignored: Counter[str]
) -> Iterator[tuple[str, "os.DirEntry[str] | str"]]:
    """Relative posix path and entry of each file; a message for a folder that cannot be listed."""
    pending = [(folder, prefix)]
    while pending:
        folder, prefix = pending.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            yield prefix.rstrip("/"), f"folder cannot be listed: {error.strerror}"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                ignored[HIDDEN] += 1
            elif entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, f"{prefix}{entry.name}/"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                ignored[LINKED_FOLDER] += 1
            else:
                yield prefix + entry.name, entry


def _file_problem(entry: "os.DirEntry[str]", root: str) -> str | None:
    """Why a directory entry with a candidate's name cannot be read; None when it can."""
    if not entry.is_symlink():
        return None if entry.is_file(follow_symlinks=False) else "not a regular file"
    target = os.path.realpath(entry.path)
    if not target.startswith(root.rstrip(os.sep) + os.sep):
        return "link that leaves the folder; not followed"
    return None if os.path.isfile(target) else "link to nothing"
