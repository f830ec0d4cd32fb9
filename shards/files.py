"""Atomic writing of files, and checking of file names from a manifest."""

import errno
import fcntl
import os
import socket
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


@contextmanager
def file_lock(path: Path) -> Generator[bool]:
    """Hold an exclusive lock on a file while the block runs; gives False if another process has it.

    The file is created and stays. Where the file system has no `flock` (Lustre without the option,
    some FUSE), `path` + ".held" is created instead; one that a dead process of this host left is
    taken over.
    """
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Removed and created again meanwhile, it is another file than the one of the others.
            is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            with _held_file(path.with_name(path.name + ".held")) as is_ours:
                yield is_ours
            return
        yield is_ours


@contextmanager
def _held_file(path: Path) -> Generator[bool]:
    owner = f"{socket.gethostname()} {os.getpid()}"
    for _ in range(2):
        try:
            with open(path, "x") as file:
                file.write(owner)
            break
        except FileExistsError:
            host, _, pid = path.read_text().partition(" ")
            is_dead = host == socket.gethostname() and pid.isdigit() and not _is_alive(int(pid))
            if not is_dead:
                yield False
                return
            path.unlink(missing_ok=True)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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
