"""A folder of images as a source."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from im2sp.pipeline.source_items import (
    HIDDEN,
    LINKED_FOLDER,
    SourceError,
    SourceItem,
    SourceListing,
    assign_keys,
    clean_key,
    is_candidate,
    nothing_found,
    printable_utf8,
    reject_repeated_keys,
    strip_suffix,
)


def list_folder(folder: Path) -> SourceListing:
    """All candidates below a folder, sorted by path; hidden ones and linked folders left out.

    A linked file counts when what it links to lies in the folder too, else it is a reject.
    """
    ignored: Counter[str] = Counter()
    found: list[tuple[str, str | None]] = []
    root = os.path.realpath(folder)
    for name, entry in _walk(str(folder), "", ignored):
        if isinstance(entry, str):
            found.append((name, entry))
        elif is_candidate(name, ignored):
            found.append((name, _file_problem(entry, root)))
    if not found:
        raise SourceError(nothing_found(folder, ignored))
    found.sort()
    names = [name for name, _ in found]
    keys = assign_keys([(clean_key(strip_suffix(name)), clean_key(name)) for name in names])
    items = [
        SourceItem(
            key=key,
            image=None if error else folder / name,
            name=printable_utf8(name),
            error=error,
        )
        for (name, error), key in zip(found, keys, strict=True)
    ]
    return SourceListing(
        kind="folder", items=reject_repeated_keys(items), ignored=dict(sorted(ignored.items()))
    )


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
    """Why a directory entry with an image's name cannot be read; None when it can."""
    if not entry.is_symlink():
        return None if entry.is_file(follow_symlinks=False) else "not a regular file"
    target = os.path.realpath(entry.path)
    if not target.startswith(root.rstrip(os.sep) + os.sep):
        return "link that leaves the folder; not followed"
    return None if os.path.isfile(target) else "link to nothing"
