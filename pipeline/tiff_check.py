"""Is a TIFF whole? Its directories, values, strips and tiles must lie within the file."""

import struct

from im2sp.pipeline.image_errors import ImageError

_MAX_DIRECTORIES = 10_000
_VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # fmt: skip  # noqa: E501
_VALUE_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_STRIPS = ((273, 279), (324, 325))
"""Tags of offsets and byte counts: strips, tiles."""


def check_tiff(data: bytes) -> None:
    """Every directory of the chain, and the strips or tiles each declares, within the file.

    Raises:
        ImageError: Something declared lies past the end.
    """
    order = "<" if data[:2] == b"II" else ">"
    is_big = 43 in data[2:4]
    at = _unpack(data, order + ("Q" if is_big else "I"), 8 if is_big else 4)
    seen: set[int] = set()
    while at and at not in seen and len(seen) < _MAX_DIRECTORIES:
        seen.add(at)
        at = _check_directory(data, at, order, is_big)


def _check_directory(data: bytes, at: int, order: str, is_big: bool) -> int:
    """Check one directory; returns where the next one begins, 0 for none."""
    count_code, entry_bytes, inline_bytes = ("Q", 20, 8) if is_big else ("H", 12, 4)
    offset_code = "Q" if is_big else "I"
    num_entries = _unpack(data, order + count_code, at)
    first = at + struct.calcsize(order + count_code)
    if first + num_entries * entry_bytes + inline_bytes > len(data):
        raise ImageError(
            f"cut: the TIFF directory at byte {at:,} declares {num_entries} entries, more than "
            f"the {len(data):,} bytes of the file hold"
        )
    values: dict[int, tuple[int, ...]] = {}
    wanted = {tag for pair in _STRIPS for tag in pair}
    for entry in range(first, first + num_entries * entry_bytes, entry_bytes):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag not in wanted or kind not in _VALUE_CODES:
            continue
        count = _unpack(data, order + offset_code, entry + 4)
        start = entry + 4 + struct.calcsize(order + offset_code)
        if count * _VALUE_BYTES[kind] > inline_bytes:
            start = _unpack(data, order + offset_code, start)
        if start + count * _VALUE_BYTES[kind] > len(data):
            raise ImageError(f"cut: the TIFF's tag {tag} lies past the end of the file")
        values[tag] = struct.unpack_from(f"{order}{count}{_VALUE_CODES[kind]}", data, start)
    for offsets_tag, counts_tag in _STRIPS:
        for start, size in zip(
            values.get(offsets_tag, ()), values.get(counts_tag, ()), strict=False
        ):
            if start + size > len(data):
                raise ImageError(
                    f"cut: a TIFF strip or tile lies at bytes {start:,} to {start + size:,}, the "
                    f"file holds {len(data):,}"
                )
    return _unpack(data, order + offset_code, first + num_entries * entry_bytes)


def _unpack(data: bytes, code: str, at: int) -> int:
    try:
        return struct.unpack_from(code, data, at)[0]
    except struct.error:
        raise ImageError(f"cut: the TIFF ends before byte {at:,}, where it goes on") from None
