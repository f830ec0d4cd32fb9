"""Code shared by images and audio: sources of bytes, reading, and error messages."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from im2sp.shards.errors import shown
from im2sp.shards.stores import StoreError, read_url, shown_url

MAX_FILE_BYTES = 2**30
"""Largest file that is read into memory. Any reasonable image or clip is smaller."""
DEFAULT_MAX_PIXELS = 2**28 // 3
"""Largest image that is read: 89,478,485 pixels, 256 MiB as RGB (Pillow's own limit)."""
DEFAULT_MAX_SECONDS = 3600.0
"""Longest clip that is read: an hour is 220 MiB at 16 kHz, twice that while blocks are joined."""


class MediaError(ValueError):
    """An input cannot be used; the message says what was found. It becomes one reject."""


class SourceError(ValueError):
    """A source as a whole cannot be used; the message says what was found and what to do."""


class ImageError(MediaError):
    """An image cannot be used."""


class AudioError(MediaError):
    """A clip cannot be used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ByteRange:
    """File inside another file, such as a member of a tar; read in place."""

    path: Path
    """File that contains it."""

    offset: int
    """First byte of the content in `path`."""

    size_bytes: int
    """Length of the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Content of a file as a value of a Parquet file."""

    path: Path
    """The Parquet file."""

    row: int
    """Number of the row in it."""

    column: str
    """Path of the binary column: `image.bytes` is a field of the struct `image`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Url:
    """File in an object store or on a web server."""

    url: str
    """Its URL."""

    version: str = ""
    """Whatever changes when the file does, as a listing states it; "" if unknown."""


Location = Path | ByteRange | Cell | Url
"""Location of the content of an image or clip."""


def place_in_file(location: Location | None) -> list[int]:
    """Numbers that distinguish the content from others in its file; none for a file itself."""
    if isinstance(location, ByteRange):
        return [location.offset, location.size_bytes]
    return [location.row] if isinstance(location, Cell) else []


def read_bytes(source: Location | bytes, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the source's bytes; never blocks on a pipe or device, and uses bounded memory.

    Raises:
        MediaError: It is missing, not a regular file, too large, or shorter than its range.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Cell):
        return _read_cell(source)
    if isinstance(source, Url):
        try:
            return read_url(source.url, max_bytes)
        except StoreError as error:
            raise MediaError(str(error).removeprefix(f"{shown_url(source.url)}: ")) from None
    path = source.path if isinstance(source, ByteRange) else source
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError("not a regular file")
        size_bytes = source.size_bytes if isinstance(source, ByteRange) else status.st_size
        if size_bytes > max_bytes:
            raise MediaError(f"{size_bytes:,} bytes; files over {max_bytes:,} are not read")
        with open(path, "rb") as file:
            if not isinstance(source, ByteRange):
                return file.read(max_bytes)
            file.seek(source.offset)
            data = file.read(source.size_bytes)
    except OSError as error:
        raise MediaError(f"cannot be read: {error.strerror or error}") from None
    if len(data) != source.size_bytes:
        raise MediaError(
            f"cut: {path.name} ends after {len(data):,} of its {source.size_bytes:,} bytes"
        )
    return data


def _read_cell(cell: Cell) -> bytes:
    # Imported here, as most sources need no pyarrow in the processes that decode.
    from im2sp.pipeline.parquet_cells import read_cell

    try:
        value = read_cell(cell.path, cell.row, cell.column)
    except OSError as error:
        raise MediaError(f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise MediaError(str(error)) from None
    if value is None:
        raise MediaError(f"no content: {cell.column} is empty in row {cell.row:,}")
    return value


def refusal(name: str, error: Exception) -> str:
    """One-line message for an input `name` that a reader or decoder failed on."""
    if isinstance(error, MediaError):
        return f"{shown(name)}: {error}"
    if isinstance(error, MemoryError):
        return f"{shown(name)}: decoding needs more memory than there is"
    detail = " ".join(str(error).split()) or type(error).__name__
    return f"{shown(name)}: cannot be decoded: {detail}"


_MAGICS = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"8BPS", "a Photoshop file, which is not read"),
    (b"qoif", "a QOI image, which is not read"),
    (b"DDS ", "a DDS texture, which is not read"),
    (b"\x01\xda", "an SGI image, which is not read"),
    (b"\x0a\x05\x01", "a PCX image, which is not read"),
    (b".snd", "AU audio; convert it to WAV or FLAC"),
    (b"dns.", "AU audio; convert it to WAV or FLAC"),
    (b"caff", "CAF audio; convert it to WAV or FLAC"),
    (b"riff\x2e\x91\xcf\x11", "Wave64 audio; convert it to WAV or FLAC"),
    (b"RIFX", "a big-endian WAV (RIFX); convert it to a plain WAV"),
    (b"fLaC", "FLAC audio"),
    (b"OggS", "Ogg audio"),
    (b"ID3", "MP3 audio"),
    (b"\xff\xf1", "AAC audio; convert it to WAV or FLAC"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the files themselves"),
)


def seems_to_be(data: bytes) -> str:
    """Describe content of another kind than expected, for messages."""
    head = data[:512]
    if not data.strip(b"\0"):
        return f"it holds nothing but {len(data):,} zero bytes"
    for magic, words in _MAGICS:
        if head.startswith(magic):
            return f"it seems to be {words}"
    if head[:4] == b"RIFF":
        kinds = {b"WAVE": "WAV audio", b"WEBP": "a WebP image"}
        return "it seems to be " + kinds.get(head[8:12], "RIFF data, such as an AVI film")
    if head[4:8] == b"ftyp":
        kinds = {
            b"he": "HEIC, which Pillow does not read",
            b"av": "an AVIF image",
            b"M4": "M4A audio, which libsndfile does not read",
        }
        return "it seems to be " + kinds.get(head[8:10], "an MP4 film")
    try:
        # The head may end within a character, so an invalid end is ignored.
        text = head.decode("utf-8", errors="strict" if len(data) <= 512 else "ignore").lower()
    except UnicodeDecodeError:
        text = "\0"
    if all(char.isprintable() or char in "\ufeff\t\r\n\f" for char in text):
        if "<html" in text:
            return "it seems to be an HTML page, such as a download's error message"
        return "it seems to be SVG (vector graphics)" if "<svg" in text else "it seems to be text"
    return f"it seems to be data of no known kind (it begins with {head[:8].hex(' ')})"
