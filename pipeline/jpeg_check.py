"""Is a JPEG whole? Every scan must hold every block its frame declares.

libjpeg fills what is missing with gray, and Pillow does not pass its warning on. So a file that was
cut and closed with an end marker, or a progressive one that lost its last scans, decodes "well".

The rule: each scan holds all its blocks, each component is in a scan, and a progressive picture
has every coefficient down to its last bit. When that holds, a missing end marker is forgiven (not a
pixel is missing) and stray bytes after it are ignored. Pictures that are not Huffman-coded
(arithmetic, lossless: rare) are left to the decoder.
"""

import struct
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from im2sp.pipeline.media import ImageError

_MAX_SCANS = 1000
_MAX_STRAY_BYTES = 64
"""Bytes between a scan's last block and the next marker that are taken for padding."""

_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_PROGRESSIVE_FRAME = 0xC2
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_DHT, _EOI, _SOS, _DRI = 0xC4, 0xD9, 0xDA, 0xDD


@dataclass(kw_only=True)
class _Component:
    """One colour component of the frame."""

    horizontal: int
    vertical: int
    num_blocks: int = 0
    """Blocks of a scan that holds this component alone."""
    missing_bits: np.ndarray = field(default_factory=lambda: np.full(64, 255, np.uint8))
    """uint8 [64]: low bits of each coefficient not sent yet; 255 for nothing sent at all."""
    nonzero: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    """uint64 [num_blocks]: non-zero coefficients so far, progressive only."""


@dataclass(kw_only=True)
class _Frame:
    """What the frame header declares."""

    is_progressive: bool
    num_mcus: int
    components: dict[int, _Component]


class _Tables:
    """The Huffman tables in force, rows 0 to 3 for DC and 4 to 7 for AC; see `jpeg_scan`."""

    def __init__(self) -> None:
        self.lookup = np.zeros((8, 1024), np.int16)
        self.limits = np.zeros((8, 17), np.int32)
        self.offsets = np.zeros((8, 17), np.int32)
        self.values = np.zeros((8, 256), np.uint8)

    def define(self, segment: bytes) -> None:
        """Take the tables of one DHT segment."""
        at = 0
        while at + 17 <= len(segment):
            row = (segment[at] >> 4 & 1) * 4 + (segment[at] & 3)
            end = at + 17 + sum(segment[at + 1 : at + 17])
            if end > min(len(segment), at + 17 + 256):
                raise ImageError("damaged: a JPEG Huffman table is longer than its segment")
            rows = _code_table(segment[at + 1 : end])
            self.lookup[row], self.limits[row], self.offsets[row], self.values[row] = rows
            at = end


@lru_cache(maxsize=64)
def _code_table(table: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The rows of `_Tables` for one table: 16 counts of codes by length, then the values.

    Most JPEGs carry the standard's own four tables, so these are kept.
    """
    lookup, values = np.zeros(1024, np.int16), np.zeros(256, np.uint8)
    limits, offsets = np.zeros(17, np.int32), np.zeros(17, np.int32)
    values[: len(table) - 16] = np.frombuffer(table[16:], np.uint8)
    code, index = 0, 0
    for size in range(1, 17):
        offsets[size] = index - code
        for _ in range(table[size - 1]):
            if size <= 10:
                step = 1 << (10 - size)
                lookup[code * step : (code + 1) * step] = size << 8 | int(values[index])
            code, index = code + 1, index + 1
        if code > 1 << size:
            raise ImageError("damaged: a JPEG Huffman table has more codes than there are")
        limits[size] = code << (16 - size)
        code <<= 1
    return lookup, limits, offsets, values


def check_jpeg(data: bytes) -> bytes | None:
    """Check that every declared pixel is there.

    Returns:
        None, or the bytes to decode instead when nothing but the end marker is missing.

    Raises:
        ImageError: The file is cut or damaged.
    """
    tables = _Tables()
    frame: _Frame | None = None
    restart_interval, num_scans = 0, 0
    at = 2
    while True:
        marker, start, end = _next_segment(data, at)
        if marker is None:
            _check_complete(frame, num_scans)
            return data[:at] + b"\xff\xd9"
        at = end
        if marker == _EOI:
            break
        segment = data[start:end]
        if marker in _OTHER_FRAMES:
            return None
        if marker in (*_SEQUENTIAL_FRAMES, _PROGRESSIVE_FRAME):
            if frame is not None:
                raise ImageError("damaged: the JPEG has two frame headers")
            frame = _read_frame(segment, is_progressive=marker == _PROGRESSIVE_FRAME)
        elif marker == _DHT:
            tables.define(segment)
        elif marker == _DRI and len(segment) >= 2:
            (restart_interval,) = struct.unpack_from(">H", segment)
        elif marker == _SOS:
            num_scans += 1
            if frame is None or num_scans > _MAX_SCANS:
                raise ImageError(f"damaged: JPEG scan {num_scans} without frame or end")
            at = _check_scan(data, end, segment, frame, tables, restart_interval, num_scans)
    _check_complete(frame, num_scans)
    return None


def _next_segment(data: bytes, at: int) -> tuple[int | None, int, int]:
    """Marker, start and end of the content of the next segment; None at the end of the file."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return None, len(data), len(data)
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0 or marker == 1 or 0xD0 <= marker <= 0xD8:  # no segment of their own
            at += 2
        else:
            break
    if marker == _EOI:
        return marker, at + 2, at + 2
    size_bytes = int.from_bytes(data[at + 2 : at + 4], "big")
    end = at + 2 + size_bytes
    if at + 4 > len(data) or end > len(data):
        raise ImageError(f"cut: JPEG segment {marker:02X} at byte {at:,} is longer than the file")
    if size_bytes < 2:
        raise ImageError(f"damaged: JPEG segment {marker:02X} at byte {at:,} has no length")
    return marker, at + 4, end


def _read_frame(segment: bytes, *, is_progressive: bool) -> _Frame:
    """The frame header: size, components and their sampling."""
    if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
        raise ImageError("damaged: the JPEG frame header is shorter than it declares")
    height, width, num_components = struct.unpack_from(">HHB", segment, 1)
    components: dict[int, _Component] = {}
    for index in range(num_components):
        name, sampling, _ = segment[6 + 3 * index : 9 + 3 * index]
        components[name] = _Component(horizontal=sampling >> 4, vertical=sampling & 15)
    factors = [f for c in components.values() for f in (c.horizontal, c.vertical)]
    if len(components) != num_components or not factors or min(factors) < 1 or max(factors) > 4:
        raise ImageError("damaged: the JPEG frame header declares impossible components")
    most_h = max(c.horizontal for c in components.values())
    most_v = max(c.vertical for c in components.values())
    for component in components.values():
        columns = _ceil_div(_ceil_div(width * component.horizontal, most_h), 8)
        rows = _ceil_div(_ceil_div(height * component.vertical, most_v), 8)
        component.num_blocks = columns * rows
    num_mcus = _ceil_div(width, 8 * most_h) * _ceil_div(height, 8 * most_v)
    return _Frame(is_progressive=is_progressive, num_mcus=num_mcus, components=components)


def _check_scan(
    data: bytes,
    at: int,
    header: bytes,
    frame: _Frame,
    tables: _Tables,
    restart_interval: int,
    number: int,
) -> int:
    """Walk one scan, whose data begins at `at`; returns where the next marker is looked for."""
    from im2sp.pipeline import jpeg_scan

    if not header or len(header) < 4 + 2 * header[0]:
        raise ImageError(f"damaged: the header of JPEG scan {number} is shorter than it declares")
    first, last, precision = header[1 + 2 * header[0] : 4 + 2 * header[0]]
    names = header[1 : 1 + 2 * header[0] : 2]
    selectors = header[2 : 2 + 2 * header[0] : 2]
    if not names or any(name not in frame.components for name in names):
        raise ImageError(f"damaged: JPEG scan {number} holds a component that no frame declares")
    components = [frame.components[name] for name in names]
    _note_progress(frame, components, first, last, precision, number)
    is_alone = len(components) == 1
    num_mcus = components[0].num_blocks if is_alone else frame.num_mcus
    num_blocks = [1 if is_alone else c.horizontal * c.vertical for c in components]
    dc_rows = np.repeat([selector >> 4 & 3 for selector in selectors], num_blocks)
    ac_rows = np.repeat([4 + (selector & 3) for selector in selectors], num_blocks)
    common = (np.frombuffer(data, np.uint8), at, num_mcus, restart_interval)
    in_force = (tables.lookup, tables.limits, tables.offsets, tables.values)
    is_first = precision >> 4 == 0
    if not frame.is_progressive:
        result = jpeg_scan.walk_sequential(*common, dc_rows, ac_rows, *in_force)
    elif first == 0:
        result = jpeg_scan.walk_dc(*common, dc_rows, int(is_first), *in_force)
    else:
        if not components[0].nonzero.size:
            components[0].nonzero = np.zeros(components[0].num_blocks, np.uint64)
        walk = jpeg_scan.walk_ac_first if is_first else jpeg_scan.walk_ac_refine
        result = walk(*common, ac_rows[0], first, last, components[0].nonzero, *in_force)
    status, num_whole, end = result
    if status != jpeg_scan.COMPLETE:
        what = {
            jpeg_scan.OUT_OF_DATA: "cut: the data ends",
            jpeg_scan.BAD_CODE: "damaged: a code that no table has",
            jpeg_scan.NO_RESTART: "damaged or cut: a restart marker is missing",
        }[status]
        raise ImageError(f"{what} after {num_whole:,} of {num_mcus:,} blocks of JPEG scan {number}")
    return _check_rest(data, end, number)


def _note_progress(
    frame: _Frame,
    components: list[_Component],
    first: int,
    last: int,
    precision: int,
    number: int,
) -> None:
    """Record which bits of which coefficients a scan brings."""
    if not frame.is_progressive:
        first, last, precision = 0, 63, 0
    elif first > last or last > 63 or (first == 0 and last > 0) or (first and len(components) > 1):
        raise ImageError(f"damaged: JPEG scan {number} declares coefficients {first} to {last}")
    for component in components:
        component.missing_bits[first : last + 1] = precision & 15


def _check_rest(data: bytes, start: int, number: int) -> int:
    """Judge what lies between a scan's last block and the next marker; returns where that is."""
    end = start
    while True:
        end = data.find(b"\xff", end)
        if end < 0 or end + 1 >= len(data):
            end = len(data)
            break
        if data[end + 1] not in (0x00, 0xFF):
            break
        end += 1
    num_stray = end - start
    if end == len(data) and num_stray > 2:
        raise ImageError(f"cut: the JPEG ends without its end marker, {num_stray:,} bytes follow")
    stray = data[start:end]
    if num_stray > _MAX_STRAY_BYTES and stray.strip(b"\0") and stray.strip(b"\xff"):
        raise ImageError(
            f"damaged: {num_stray:,} stray bytes after the last block of JPEG scan {number}"
        )
    return end


def _check_complete(frame: _Frame | None, num_scans: int) -> None:
    """Every component seen, every coefficient down to its last bit."""
    if frame is None:
        raise ImageError("cut: the JPEG ends before its frame header")
    num_missing = sum(int(component.missing_bits.any()) for component in frame.components.values())
    if num_missing:
        raise ImageError(
            f"cut: {num_missing} of {len(frame.components)} JPEG components still lack data after "
            f"{num_scans} scans"
        )


def _ceil_div(value: int, by: int) -> int:
    return -(-value // by)
