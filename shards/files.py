"""Atomic writing of files, reading of regular files, and file names from a manifest."""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tomllib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO

from im2sp.shards.errors import memory_limit

TMP_SUFFIX = ".tmp"
HELD_SUFFIX = ".held"
MAX_READ_BYTES = 1 << 30
"""Limit of files that are read whole, such as manifests and lists of captions."""
MAX_SETTINGS_BYTES = 4_000_000
"""Limit of files of settings."""
MAX_LINE = 1 << 24
"""Limit of a line, in bytes or characters."""
_CONTAINER_BYTES = 72
"""Memory of an empty list or object in another one."""
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
_TEMPORARY = re.compile(r"(.+)\.im2sp-[0-9a-f]{8}\.tmp")
_NO_FLOCK = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


def user_cache_dir() -> Path:
    """Folder of im2sp in the user's cache folder, `$XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "im2sp")


def size_of(path: Path) -> int | None:
    """Size of a regular file in bytes; None if there is none."""
    return path.stat().st_size if path.is_file() else None


def temporary_path(path: Path) -> Path:
    """A new name beside `path`, `NAME.im2sp-1f0c9a7e.tmp`, that no other writer uses."""
    return path.with_name(f"{path.name}.im2sp-{secrets.token_hex(4)}{TMP_SUFFIX}")


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """Open a temporary file for writing; on success fsync it and rename it over `path`.

    Several writers may write the same path at once: each publishes a whole file, and the last one
    stays. On any exception, a full disk included, the temporary file is removed and `path` is
    unchanged.
    """
    tmp_path = temporary_path(path)
    try:
        with open(tmp_path, "xb") as file:
            _mark_in_use(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(tmp_path, path)
    except BaseException as error:
        with suppress(OSError):
            tmp_path.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    fsync_path(path.parent)


def create_file(path: Path, data: bytes) -> None:
    """Write a file whole unless it exists; of several writers at once, one succeeds."""
    if path.exists():
        return
    tmp_path = temporary_path(path)
    try:
        with open(tmp_path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(tmp_path, path)
    finally:
        tmp_path.unlink(missing_ok=True)
    fsync_path(path.parent)


@contextmanager
def atomic_dir(path: Path) -> Generator[Path]:
    """Make a temporary folder; on success rename it to `path`, which is absent or an empty folder.

    The folder and the files directly in it are flushed to disk first. On any exception the
    temporary folder is removed.
    """
    tmp_path = temporary_path(path)
    tmp_path.mkdir()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        _mark_in_use(fd)
        yield tmp_path
        for file_path in tmp_path.iterdir():
            fsync_path(file_path)
        os.fsync(fd)
        os.replace(tmp_path, path)
    except BaseException:
        shutil.rmtree(tmp_path, ignore_errors=True)
        raise
    finally:
        os.close(fd)
    fsync_path(path.parent)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files and folders that killed writers left in a folder.

    Those that a process is writing are kept, and all of them where there is no `flock`.

    Args:
        folder: The folder; may be absent.
        name: Only temporaries of this file or folder; None for all.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found and name in (None, found[1]) and not path.is_symlink() and not _is_in_use(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _mark_in_use(fd: int) -> None:
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_in_use(path: Path) -> bool:
    """True if a process is writing a temporary file or folder, or if that is unknown."""
    try:
        fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


@contextmanager
def output_lock(path: Path, *, is_folder: bool = True) -> Generator[None]:
    """Hold an output for one process, and remove what killed writers left of it.

    The lock is a file in the folder, or beside the file; it is removed at the end, and so is
    a new folder in which nothing was written.

    Args:
        path: The output; a folder is created.
        is_folder: False for a file, whose folder is created.

    Raises:
        ValueError: Another process holds it.
    """
    folder, name = (path, "") if is_folder else (path.parent, path.name)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{name}.im2sp-lock"
    with file_lock(lock) as is_ours:
        if not is_ours:
            raise ValueError(
                f"--out {path}: another im2sp command is writing here; wait for it or choose"
                " another --out"
            )
        try:
            remove_leftovers(folder)
            yield
        finally:
            lock.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # not empty
                    folder.rmdir()


@contextmanager
def file_lock(path: Path, *, is_shared: bool = False) -> Generator[bool]:
    """Hold a lock on a file while the block runs; gives False if another process excludes it.

    The file is created and stays. Where the file system has no `flock` (Lustre without the option,
    some FUSE), `path` + ".held" is created instead; one that a dead process of this host left is
    taken over.

    Args:
        path: The file.
        is_shared: Several processes may share the lock. Without `flock` a process that shares it
            excludes no other; it has to hold an exclusive lock on another file, too.
    """
    how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    with open(path, "a+") as file:  # NFS needs a readable file for a shared lock
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            # Removed and created again meanwhile, it is another file than the one of the others.
            is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            held_path = path.with_name(path.name + HELD_SUFFIX)
            if is_shared:
                yield not _is_held(held_path)
                return
            with _held_file(held_path) as is_ours:
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
            if _is_held(path):
                yield False
                return
            path.unlink(missing_ok=True)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    """True if a file of `_held_file` exists whose process is alive, or on another host."""
    try:
        host, _, pid = path.read_text().partition(" ")
    except FileNotFoundError:
        return False
    return host != socket.gethostname() or not pid.isdigit() or _is_alive(int(pid))


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
        and name.isprintable()
        and 0 < len(os.fsencode(name)) <= 255
        and name not in (".", "..")
        and not any(c in name for c in '/\\:*?"<>|')
    )


def fsync_path(path: Path) -> None:
    """Flush a folder, such as a rename in it, or a file to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading that is not a folder, pipe, socket or device; never blocks.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
    """
    _check_regular(path, os.stat(path))  # opening a device can have effects
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(path, os.fstat(fd))  # it may be another file by now
    except OSError:
        os.close(fd)
        raise
    return open(fd, "rb")


def _check_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise OSError(errno.EINVAL, f"found {kind}, expected a file", str(path))


def read_regular(path: Path, max_bytes: int = MAX_READ_BYTES) -> bytes:
    """Content of a regular file.

    Raises:
        OSError: As for `open_regular`, or the file has more than `max_bytes`.
    """
    with open_regular(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > max_bytes:
            message = f"{size_bytes:,} bytes, expected at most {max_bytes:,}"
            raise OSError(errno.EFBIG, message, str(path))
        return file.read(size_bytes)


def lines_of(file: IO[AnyStr]) -> Iterator[AnyStr]:
    """Lines of an open file, of at most `MAX_LINE` bytes or characters.

    Raises:
        OSError: A line is longer.
    """
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            message = f"a line of more than {MAX_LINE:,} bytes"
            raise OSError(errno.EFBIG, message, str(file.name))
        yield line


def read_text(path: Path, max_bytes: int = MAX_READ_BYTES) -> str:
    """Text of a regular UTF-8 file, without a byte order mark.

    Raises:
        OSError: As for `read_regular`.
        ValueError: It is not UTF-8.
    """
    return read_regular(path, max_bytes).decode("utf-8-sig")


def read_json(path: Path, max_bytes: int = MAX_READ_BYTES) -> Any:
    """Content of a regular JSON file.

    Raises:
        OSError: As for `read_regular`.
        ValueError: As for `parse_json`.
    """
    return parse_json(read_regular(path, max_bytes))


def parse_json(text: str | bytes, parse_constant: Callable[[str], object] | None = None) -> Any:
    """Value of a JSON text, with or without a byte order mark.

    Args:
        text: The text.
        parse_constant: As for `json.loads`.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or has more lists and objects than
            `memory_limit` allows for a text of its size.
    """
    marks = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    num = sum(text.count(mark) for mark in marks)  # pyright: ignore[reportArgumentType]  # of the same type
    if num * _CONTAINER_BYTES > memory_limit(len(text)):
        raise ValueError(f"{num:,} lists and objects in {len(text):,} bytes")
    if isinstance(text, str):
        text = text.removeprefix("\ufeff")
    try:
        return json.loads(text, parse_constant=parse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Content of a regular TOML file, with or without a byte order mark.

    Raises:
        OSError: As for `read_regular`.
        ValueError: It is not TOML, or nested too deeply.
    """
    try:
        return tomllib.loads(read_text(path, MAX_SETTINGS_BYTES))
    except RecursionError:
        raise ValueError("nested too deeply") from None
