"""Is a TIFF whole? Its directories, values, strips and tiles must lie within the file."""

import struct

from im2sp.pipeline.jpeg_check import check_jpeg
from im2sp.pipeline.media import ImageError

_MAX_DIRECTORIES = 10_000
_VALUE_CODES = dict(enumerate("BsHIQbBhiqfdI", start=1)) | {16: "Q", 17: "q", 18: "Q"}
"""Type of a value to its `struct` code; a rational counts as one number of 8 bytes."""

_COMPRESSION, _JPEG_TABLES = 259, 347
_JPEG = 7
_STRIPS = ((273, 279), (324, 325))
"""Tags of offsets and byte counts: strips, tiles."""

Values = dict[int, tuple[int, ...] | tuple[bytes]]


def check_tiff(data: bytes) -> None:
    """Every directory, and all that each declares, within the file; JPEG strips whole.

    Raises:
        ImageError: Something declared lies past the end.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    at = _unpack(data, order + ("Q" if is_big else "I"), 8 if is_big else 4)
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MAX_DIRECTORIES:
        seen.add(at)
        values, at = _read_directory(data, at, order, is_big)
        _check_strips(data, values)


def _read_directory(data: bytes, at: int, order: str, is_big: bool) -> tuple[Values, int]:
    """The values of one directory's strip tags, and where the next directory begins (0: none)."""
    count_code, entry_bytes, inline_bytes = ("Q", 20, 8) if is_big else ("H", 12, 4)
    offset_code = "Q" if is_big else "I"
    num_entries = _unpack(data, order + count_code, at)
    first = at + struct.calcsize(order + count_code)
    end = first + num_entries * entry_bytes
    if end + inline_bytes > len(data):
        raise ImageError(
            f"cut: the TIFF directory at byte {at:,} declares {num_entries:,} entries, more than "
            f"the {len(data):,} bytes of the file hold"
        )
    values: Values = {}
    wanted = {_COMPRESSION, _JPEG_TABLES, *_STRIPS[0], *_STRIPS[1]}
    for entry in range(first, end, entry_bytes):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        code = _VALUE_CODES.get(kind)
        if code is None:
            continue
        count = _unpack(data, order + offset_code, entry + 4)
        start = entry + 4 + struct.calcsize(order + offset_code)
        size_bytes = count * struct.calcsize(order + code)
        if size_bytes > inline_bytes:
            start = _unpack(data, order + offset_code, start)
        if start + size_bytes > len(data):
            raise ImageError(f"cut: the TIFF's tag {tag} lies past the end of the file")
        if tag in wanted:
            code = "s" if tag == _JPEG_TABLES else code
            values[tag] = struct.unpack_from(f"{order}{count}{code}", data, start)
    return values, _unpack(data, order + offset_code, end)


def _check_strips(data: bytes, values: Values) -> None:
    """Strips and tiles within the file; those that are JPEG hold every block."""
    is_jpeg = values.get(_COMPRESSION) == (_JPEG,)
    tables = b"".join(part for part in values.get(_JPEG_TABLES, ()) if isinstance(part, bytes))
    for offsets_tag, sizes_tag in _STRIPS:
        offsets, sizes = values.get(offsets_tag, ()), values.get(sizes_tag, ())
        for start, size in zip(offsets, sizes, strict=False):
            if not isinstance(start, int) or not isinstance(size, int):
                raise ImageError("damaged: the TIFF's strip offsets are no numbers")
            if start + size > len(data):
                raise ImageError(
                    f"cut: a TIFF strip or tile lies at bytes {start:,} to {start + size:,}, the "
                    f"file holds {len(data):,}"
                )
            if is_jpeg:
                # The tables stand once for all strips, between start and end markers of their own.
                check_jpeg(b"\xff\xd8" + tables[2:-2] + data[start + 2 : start + size])


def _unpack(data: bytes, code: str, at: int) -> int:
    try:
        return struct.unpack_from(code, data, at)[0]
    except struct.error:
        raise ImageError(f"cut: the TIFF ends before byte {at:,}, where it goes on") from None
