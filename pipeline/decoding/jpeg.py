"""JPEG decoding with libjpeg-turbo's warnings as errors: every declared pixel or one error.

libjpeg fills missing data with gray and only warns. In simplejpeg's strict mode a warning is an
error. But some warnings do not affect pixels, and missing progressive scans cause no warning. So
`split_jpeg` first brings the segments into the form that libjpeg expects and requires that each
coefficient is sent down to its last bit. A missing end marker is accepted if nothing else is
missing; bytes after it (further images of an MPO file) are ignored. For Motion-JPEG without Huffman
tables libjpeg-turbo uses the standard tables.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import simplejpeg

from im2sp.pipeline.decoding.media import ImageError

_MAX_SCANS = 100
"""Encoders write about ten; each one costs a pass over the whole image."""
_MAX_STRAY_BYTES, _MAX_PADDING_BYTES = 8192, 64
"""Limits of the bytes ignored between the last block of a scan and the next marker: in the only
scan of a sequential image, where they can be distinguished from blocks, and in other scans. Any
number of zeros or of 0xFF is ignored."""
_MAX_ATTEMPTS = 6
_SYNC_BYTES, _LATE_SYNC_BYTES = 2048, 64
"""Bytes before the stray bytes where decoding starts to find out if they are blocks,
and the stray bytes (at most half of them) after which no more errors are allowed."""

_DHT, _EOI, _SOS, _APP0, _APP2, _APP14 = 0xC4, 0xD9, 0xDA, 0xE0, 0xE2, 0xEE
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
_FRAMES = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, 0xCC}
_SEGMENTS = _FRAMES | {_DHT, 0xCC, 0xDB, 0xDD, _SOS, *range(_APP0, 0xF0)}
"""Markers of segments that are needed; others (comments) are skipped."""
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Any marker but a restart marker."""

_Codes = dict[str, int]
"""Huffman table: from the bits of a code, as text, to its value."""


@dataclass(kw_only=True)
class SplitJpeg:
    """Segments of one image in the form that libjpeg expects, without the end marker."""

    parts: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])
    """Segments and scan data in the order of the file."""
    scans: list[int] = field(default_factory=list)
    """Indices of the parts that are scan data; the scan's header precedes each."""
    frame: bytes = b""
    """Frame header with its marker."""
    missing_bits: dict[int, list[int]] = field(default_factory=dict)
    """For each component, the low bits of each coefficient that are not sent yet; 255 for all."""
    has_end: bool = False

    def join(self) -> bytes:
        """Return a JPEG file."""
        return b"".join(self.parts) + b"\xff\xd9"

    def num_missing(self) -> int:
        """Count the components that still lack data."""
        return sum(any(bits) for bits in self.missing_bits.values())

    def decode(self, colorspace: str) -> np.ndarray | None:
        """Decode to uint8 [H, W, 4]; None for a subsampling that simplejpeg does not support.

        Args:
            colorspace: "RGBX" or "CMYK".

        Raises:
            ImageError: The file is cut or damaged.
        """
        message = ""
        for _ in range(_MAX_ATTEMPTS):
            try:
                return simplejpeg.decode_jpeg(self.join(), colorspace, strict=True)
            except ValueError as error:
                message = str(error)
            if "subsampling" in message and self.has_end:
                return None
            stray = re.search(r"(\d+) extraneous bytes before marker 0x(..)", message)
            if stray is None:
                break
            self._trim(int(stray[1]), int(stray[2], 16))
        raise ImageError(f"cut or damaged JPEG: {message}")

    def _trim(self, num_bytes: int, next_marker: int) -> None:
        """Remove bytes between the last block of a scan and the next marker, if harmless."""
        if next_marker == _EOI and not self.has_end:
            raise ImageError(
                f"cut: the JPEG ends without its end marker, {num_bytes:,} bytes follow its last "
                "block"
            )
        nexts = [*self.parts[1:], b"\xff\xd9"]
        at = max(
            (at for at in self.scans if nexts[at][:2] == bytes([0xFF, next_marker])), default=0
        )
        stray = self.parts[at][-num_bytes:]
        is_padding = not stray.strip(b"\0") or not stray.strip(b"\xff")
        if len(self.scans) == 1 and self.frame[1] in _SEQUENTIAL:
            is_harmless = num_bytes <= _MAX_STRAY_BYTES and not self._ends_with_block(num_bytes)
        else:
            is_harmless = num_bytes <= _MAX_PADDING_BYTES
        if at == 0 or not (is_padding or is_harmless):
            raise ImageError(f"damaged: {num_bytes:,} bytes follow the last block of a JPEG scan")
        self.parts[at] = self.parts[at][:-num_bytes]

    def _ends_with_block(self, num_stray: int) -> bool:
        """True if the stray bytes of the only scan are blocks, that is, end exactly with one.

        If so, earlier damage has consumed blocks, and the image shows others in their place. Codes
        resynchronise, so decoding can start anywhere before the stray bytes.
        """
        data = re.split(rb"\xff[\xd0-\xd7]", self.parts[self.scans[0]])[-1]
        data = data[-num_stray - _SYNC_BYTES :].replace(b"\xff\0", b"\xff")
        bits = "".join(f"{byte:08b}" for byte in data)
        sync_end = len(bits) - 8 * num_stray + 8 * min(num_stray // 2, _LATE_SYNC_BYTES)
        blocks = list(self._blocks())
        at = 0
        while at < len(bits) - 7:
            start = at
            for dc_codes, ac_codes in blocks:
                at = _after_block(bits, at, dc_codes, ac_codes)
                if at < 0:  # no block starts at `start`
                    at = start + 1
                    break
            if at == start + 1 and at > sync_end:
                return False
        return at <= len(bits) and "0" not in bits[at:]

    def _blocks(self) -> Iterator[tuple[_Codes, _Codes]]:
        """Yield the DC and AC tables of each block of an MCU of the first scan."""
        tables: dict[int, _Codes] = {}
        for part in self.parts:
            if part[:2] == bytes([0xFF, _DHT]):
                _read_tables(part[4:], tables)
        names, selectors = _scan_components(self.parts[self.scans[0] - 1])
        for name, selector in zip(names, selectors, strict=True):
            at = 10 + 3 * list(self.missing_bits).index(name)
            num_blocks = (self.frame[at + 1] >> 4) * (self.frame[at + 1] & 15)
            for _ in range(num_blocks if len(names) > 1 else 1):
                yield tables.get(selector >> 4, {}), tables.get(16 + (selector & 15), {})


def split_jpeg(data: bytes) -> SplitJpeg:
    """Split a JPEG into the segments, up to the end marker, that pixels and orientation need.

    Raises:
        ImageError: A segment is cut, or scans are missing.
    """
    jpeg, at = SplitJpeg(), 2
    while not jpeg.has_end:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            break
        marker = data[at + 1]
        jpeg.has_end = marker == _EOI
        if marker not in _SEGMENTS:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if end > len(data) or end < at + 4:
            raise ImageError(
                f"cut or damaged: JPEG segment {marker:02X} at byte {at:,} declares "
                f"{end - at - 2:,} bytes, {len(data) - at - 2:,} follow"
            )
        if marker != _APP2:  # colour profiles; libjpeg warns about damaged ones
            jpeg.parts.append(data[at:end])
        at = end
        if marker in _FRAMES:
            _record_frame(jpeg)
        elif marker == _APP0 and jpeg.parts[-1][4:9] == b"JFIF\0":
            jpeg.parts[-1] = jpeg.parts[-1][:9] + b"\1" + jpeg.parts[-1][10:]  # major version
        elif marker == _SOS:
            _record_scan(jpeg)
            found = _SCAN_END.search(data, end)
            at = found.start() if found else len(data)
            jpeg.scans.append(len(jpeg.parts))
            jpeg.parts.append(data[end:at].rstrip(b"\xff"))
            if not jpeg.num_missing():
                jpeg.has_end = data.find(b"\xff\xd9", at, at + _MAX_STRAY_BYTES) >= 0
                break
    if not jpeg.frame:
        raise ImageError("cut: the JPEG ends before its frame header")
    if jpeg.num_missing():
        raise ImageError(
            f"cut: {jpeg.num_missing()} of {len(jpeg.missing_bits)} JPEG components still lack "
            f"data after {len(jpeg.scans)} scans"
        )
    return jpeg


def _record_frame(jpeg: SplitJpeg) -> None:
    """Record the components declared by the last part, a frame header."""
    if jpeg.frame:
        raise ImageError("damaged: the JPEG has two frame headers")
    jpeg.frame = frame = jpeg.parts[-1]
    if len(frame) < 10 or len(frame) < 10 + 3 * frame[9]:
        raise ImageError("damaged: the JPEG frame header is shorter than it declares")
    jpeg.missing_bits = {frame[10 + 3 * index]: 64 * [255] for index in range(frame[9])}
    for index, part in enumerate(jpeg.parts):
        # libjpeg treats unknown colour transforms as YCbCr or YCCK, with a warning.
        if part[:2] == bytes([0xFF, _APP14]) and part[4:9] == b"Adobe" and part[15:16] > b"\0":
            jpeg.parts[index] = part[:15] + (b"\2" if frame[9] == 4 else b"\1") + part[16:]


def _record_scan(jpeg: SplitJpeg) -> None:
    """Record the bits sent by the scan of the last part, a scan header."""
    header = jpeg.parts[-1]
    names, _ = _scan_components(header)
    number = len(jpeg.scans) + 1
    if number > _MAX_SCANS:
        raise ImageError(f"a JPEG of more than {_MAX_SCANS} scans")
    if not names or any(name not in jpeg.missing_bits for name in names):
        raise ImageError(f"damaged: JPEG scan {number} holds a component that no frame declares")
    at = 5 + 2 * len(names)
    first, last, bits = header[at : at + 3]
    if jpeg.frame[1] not in _PROGRESSIVE:
        if jpeg.frame[1] in _SEQUENTIAL:  # some cameras write other values, which have no meaning
            jpeg.parts[-1] = header[:at] + b"\0\x3f\0"
        first, last, bits = 0, 63, 0
    elif first > last or last > 63:
        raise ImageError(f"damaged: JPEG scan {number} declares coefficients {first} to {last}")
    for name in names:
        jpeg.missing_bits[name][first : last + 1] = (last + 1 - first) * [bits & 15]


def _scan_components(header: bytes) -> tuple[bytes, bytes]:
    """Components of a scan header and the selectors of their Huffman tables."""
    if len(header) < 5 or len(header) < 8 + 2 * header[4]:
        raise ImageError("damaged: the header of a JPEG scan is shorter than it declares")
    return header[5 : 5 + 2 * header[4] : 2], header[6 : 5 + 2 * header[4] : 2]


def _read_tables(segment: bytes, tables: dict[int, _Codes]) -> None:
    """Add the Huffman tables of a segment to `tables`."""
    at = 0
    while at + 17 <= len(segment):
        codes = tables[segment[at]] = {}
        code, index = 0, at + 17
        for size, count in enumerate(segment[at + 1 : at + 17], start=1):
            for value in segment[index : index + count]:
                codes[f"{code:0{size}b}"] = value
                code += 1
            code, index = code << 1, index + count
        at = index


def _after_block(bits: str, at: int, dc_codes: _Codes, ac_codes: _Codes) -> int:
    """Index of the first bit after the block that starts at bit `at`; -1 if none does."""
    codes, k = dc_codes, 0
    while k < 64:
        size = next((size for size in range(1, 17) if bits[at : at + size] in codes), 0)
        if size == 0:
            return -1
        value = codes[bits[at : at + size]]
        at += size + (value & 15)
        if k and value & 15 == 0 and value != 0xF0:  # end of block
            return at
        k += 1 + (value >> 4 if k else 0)
        codes = ac_codes
    return at if k == 64 else -1
