"""What pictures and sound share: where their bytes lie, how they are read, how one is refused."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 2**30
"""Largest file that is read into memory. Any sane picture or clip is smaller."""
DEFAULT_MAX_PIXELS = 2**28 // 3
"""Largest image that is read: 89,478,485 pixels, 256 MiB as RGB (Pillow's own limit)."""
DEFAULT_MAX_SECONDS = 3600.0
"""Longest clip that is read: an hour is 220 MiB at 16 kHz, and twice that while it is joined."""


class MediaError(ValueError):
    """An input cannot be used; the message says what was found. Costs one reject, never a run."""


class ImageError(MediaError):
    """A picture cannot be used."""


class AudioError(MediaError):
    """A clip cannot be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """A file that lies inside another one, such as a member of a tar, read in place."""

    path: Path
    """The file that holds it."""

    offset: int
    """First byte of the content in `path`."""

    size_bytes: int
    """Length of the content."""


def source_size_bytes(source: Path | ByteRange) -> int:
    """Size of the original file in bytes; `OSError` when the file is not there."""
    return source.size_bytes if isinstance(source, ByteRange) else source.stat().st_size


def read_bytes(source: Path | bytes | ByteRange) -> bytes:
    """The source's bytes; never waits on a pipe or device, never takes unbounded memory.

    Raises:
        MediaError: It is missing, no regular file, too large, or shorter than its range.
    """
    if isinstance(source, bytes):
        return source
    path = source.path if isinstance(source, ByteRange) else source
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError("not a regular file")
        size_bytes = source.size_bytes if isinstance(source, ByteRange) else status.st_size
        if size_bytes > MAX_FILE_BYTES:
            raise MediaError(f"{size_bytes:,} bytes; files over {MAX_FILE_BYTES:,} are not read")
        with open(path, "rb") as file:
            if not isinstance(source, ByteRange):
                return file.read(MAX_FILE_BYTES)
            file.seek(source.offset)
            data = file.read(source.size_bytes)
    except OSError as error:
        raise MediaError(f"cannot be read: {error.strerror or error}") from None
    if len(data) != source.size_bytes:
        raise MediaError(
            f"cut: {path.name} ends after {len(data):,} of its {source.size_bytes:,} bytes"
        )
    return data


def refusal(name: str, error: Exception) -> str:
    """The one-line message for an input called `name` that a reader or decoder gave up on."""
    if isinstance(error, MediaError):
        return f"{shown(name)}: {error}"
    if isinstance(error, MemoryError):
        return f"{shown(name)}: decoding needs more memory than there is"
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"{shown(name)}: cannot be decoded: {detail}"


def shown(name: str) -> str:
    r"""`name` on one line: control characters and broken UTF-8 as backslash escapes.

    shown("line\nbreak.jpg") == "line\\nbreak.jpg"; accents, spaces and quotes stay.
    """
    if name.isprintable():
        return name
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in name
    )
