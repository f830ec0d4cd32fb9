"""Atomic writing of files, and checking of file names from a manifest."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TMP_SUFFIX = ".tmp"


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """Open `path` + ".tmp" for writing; on success fsync it and rename it over `path`.

    On any exception, a full disk included, the temporary file is removed and `path` is unchanged.
    """
    tmp_path = path.with_name(path.name + TMP_SUFFIX)
    try:
        with open(tmp_path, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(tmp_path, path)
    except BaseException:
        with suppress(OSError):
            tmp_path.unlink()
        raise
    _fsync_dir(path.parent)


def is_plain_name(name: object) -> bool:
    """Return True if `name` can only name a file directly inside the dataset's folder."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name.isprintable()
        and name not in (".", "..")
        and not any(c in name for c in '/\\:*?"<>|')
    )


def _fsync_dir(dir_path: Path) -> None:
    """Make a rename in the folder survive a power failure; skipped on Windows."""
    if os.name == "nt":
        return
    fd = os.open(dir_path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
