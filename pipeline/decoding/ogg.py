"""Ogg: checks of the checksum and number of every page, up to the end of the stream.

libogg drops damaged pages and continues, so a gap in the audio would go unnoticed. The position in
the last page is the number of samples. Android's writers omit the end-of-stream flag: a file that
ends where a page and a packet end is complete (a cut exactly there cannot be detected); one that
ends within a page or a packet is cut. Only files with one stream are accepted: a film, or several
concatenated clips, is not one spoken caption.
"""

import struct
import zlib

from im2sp.pipeline.decoding.audio_checks import DeclaredAudio
from im2sp.pipeline.decoding.media import AudioError

_BEGINS, _ENDS = 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_ogg(data: bytes) -> DeclaredAudio:
    """Check an Ogg file with one stream.

    Raises:
        AudioError: The file is cut or damaged, or holds several streams.
    """
    at, number, serial = 0, 0, -1
    while True:
        if data[at : at + 4] == b"OggS"[: len(data) - at] and at + 27 > len(data):
            raise AudioError(f"cut: the Ogg ends within page {number}, at byte {len(data):,}")
        if data[at : at + 5] != b"OggS\0":
            raise AudioError(f"damaged: no Ogg page at byte {at:,}, after {number} pages")
        flags, position, page_serial, page_number, crc, num_segments = struct.unpack_from(
            "<BqIIIB", data, at + 5
        )
        start = at + 27 + num_segments
        end = start + sum(data[at + 27 : start])
        if start > len(data) or end > len(data):
            raise AudioError(f"cut: the Ogg ends within page {number}, at byte {len(data):,}")
        found = _crc(data[at : at + 22] + bytes(4) + data[at + 26 : end])
        if found != crc:
            raise AudioError(
                f"damaged: Ogg page {number} at byte {at:,} has CRC {found:08x}, it declares "
                f"{crc:08x}"
            )
        if number == 0:
            serial = page_serial
        if page_serial != serial or bool(flags & _BEGINS) != (number == 0):
            raise AudioError("the Ogg holds several streams; one clip a file is read")
        if page_number != number:
            raise AudioError(f"damaged: Ogg page {number} is missing, page {page_number} follows")
        page_at, number, at = at, number + 1, end
        if flags & _ENDS:
            break
        if at == len(data):
            if data[start - 1] == 255 or position < 0:
                raise AudioError(f"cut: the Ogg ends within a packet, after {number} pages")
            data = _with_end_flag(data, page_at)
            break
    if data[at : at + 4] == b"OggS":
        raise AudioError("the Ogg holds several streams; one clip a file is read")
    if position <= 0:
        raise AudioError("the Ogg declares no samples")
    return DeclaredAudio(data=data[:at], num_frames=None)


def _with_end_flag(data: bytes, at: int) -> bytes:
    """Set the end-of-stream flag, which libsndfile needs for Opus, in the page at byte `at`."""
    page = bytearray(data[at:])
    page[5] |= _ENDS
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", _crc(bytes(page)))
    return data[:at] + page


def _crc(page: bytes) -> int:
    """Ogg's CRC-32: zlib's, with the bits of every byte and of the result reversed."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4, "little").translate(_REVERSED), "big")
