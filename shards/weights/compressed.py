"""Pickles that joblib compressed: zlib, gzip, bz2, lzma and xz."""

import bz2
import lzma
import zlib
from pathlib import Path

from im2sp.shards.files import read_regular

BASE_BYTES = 16 << 20
BYTES_A_BYTE = 3
_LZMA_MEMORY_BYTES = 48 << 20
_ZLIB_OR_GZIP = 47
_HEADS = {
    b"\x78\x01": "zlib",
    b"\x78\x5e": "zlib",
    b"\x78\x9c": "zlib",
    b"\x78\xda": "zlib",
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
}


def compression_of(head: bytes) -> str | None:
    """Kind of compression, by the first bytes of a file; None if it is not compressed."""
    return next((kind for start, kind in _HEADS.items() if head.startswith(start)), None)


def decompress(path: Path, kind: str, bytes_a_byte: int = BYTES_A_BYTE) -> bytes:
    """Content of a compressed file.

    Raises:
        ValueError: It is damaged or cut, or has more than `BASE_BYTES` and `bytes_a_byte` times the
            size of the file.
    """
    data = read_regular(path)
    limit = BASE_BYTES + bytes_a_byte * len(data)
    try:
        if kind in ("zlib", "gzip"):
            inflater = zlib.decompressobj(_ZLIB_OR_GZIP)
            content, is_whole = inflater.decompress(data, limit + 1), inflater.eof
        else:
            other = bz2.BZ2Decompressor()
            if kind != "bz2":
                other = lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)
            content, is_whole = other.decompress(data, limit + 1), other.eof
    except (zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError(f"damaged {kind} data: {error}") from None
    if len(content) > limit:
        raise ValueError(f"more than {limit:,} bytes of content in {len(data):,} bytes of {kind}")
    if not is_whole:
        raise ValueError(f"cut: its {kind} data have no end")
    return content
