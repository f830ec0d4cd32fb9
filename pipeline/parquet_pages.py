"""Sizes of the pages of a Parquet file, from the headers of the pages.

The footer of a file states sizes too, but pages are read by their own headers. A page is its
header, a struct in Thrift's compact protocol, and its content, which is often compressed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

_FIRST_BYTES, _MOST_BYTES = 1 << 14, 1 << 24
# Fields of a page header; of the headers inside it, by the kind of page, the field of the encoding.
_SIZE, _STORED_SIZE, _DICTIONARY = 2, 3, 7
_ENCODINGS = {5: 2, 8: 4}
_BOOLEANS, _NUMBERS, _MAX_DEPTH = (1, 2), (4, 5, 6), 8
_BYTE, _DOUBLE, _BINARY, _LISTS, _STRUCT = 3, 7, 8, (9, 10), 12


@dataclass(frozen=True, slots=True)
class Page:
    """Sizes in the header of a page."""

    size_bytes: int
    """Bytes of its content without compression."""

    num_values: int
    """Values in it, nulls included."""

    encoding: int | None
    """Number of the encoding of its values; None for a dictionary."""


def pages_of(file: BinaryIO, chunk: Any) -> Iterator[Page]:
    """Yield the pages of a column chunk.

    Args:
        file: The Parquet file.
        chunk: Metadata of the column chunk, of pyarrow.

    Raises:
        ValueError: A header is damaged, or states negative sizes.
    """
    place = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < place:
        place = chunk.dictionary_page_offset
    end = place + chunk.total_compressed_size
    while place < end:
        header, size_bytes = _header(file, place)
        kind = next((kind for kind in (*_ENCODINGS, _DICTIONARY) if kind in header), None)
        numbers = header[kind] if kind and isinstance(header[kind], dict) else {}
        sizes: list[Any] = [header.get(_SIZE), numbers.get(1, 0), header.get(_STORED_SIZE)]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"a damaged page at byte {place:,}")
        page = Page(sizes[0], sizes[1], numbers.get(_ENCODINGS.get(kind or 0)))
        yield page
        place += size_bytes + sizes[2]


def _header(file: BinaryIO, place: int) -> tuple[dict[int, Any], int]:
    """The fields of a page header, and its size."""
    for size_bytes in (_FIRST_BYTES, _MOST_BYTES):
        file.seek(place)
        data = file.read(size_bytes)
        try:
            return _struct(data, 0, 0)
        except IndexError:  # its statistics may be long
            continue
    raise ValueError(f"a damaged page header at byte {place:,}")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Numbers and structs of a struct by their fields, and the place behind it."""
    if depth > _MAX_DEPTH:
        raise ValueError("a page header that is nested too deeply")
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            field += head >> 4
        else:
            field, at = _number(data, at)
        found[field], at = _value(data, at, head & 15, depth)
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """Value of a field or of an item of a list, None for what is skipped, and the place behind."""
    if kind in _BOOLEANS:
        return None, at
    if kind in _NUMBERS:
        return _number(data, at)
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    if kind == _BINARY:
        size_bytes, at = _varint(data, at)
        return None, at + size_bytes
    if kind in _LISTS:
        head, at = data[at], at + 1
        num, at = _varint(data, at) if head >> 4 == 15 else (head >> 4, at)
        for _ in range(min(num, len(data))):
            at = _value(data, at, head & 15, depth + 1)[1] + ((head & 15) in _BOOLEANS)
        return None, at
    if kind in (_BYTE, _DOUBLE):
        return None, at + (1 if kind == _BYTE else 8)
    raise ValueError(f"a page header with a field of kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("a page header with a number of more than 64 bits")


def _number(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
