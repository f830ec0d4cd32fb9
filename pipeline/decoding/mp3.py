"""MP3: checks of the frames, and the Xing header that makes libsndfile decode them all.

Most encoders write a first frame with a Xing header (`Xing` or `Info`), which holds the number of
the other frames; libsndfile decodes that many, or too few if the file is cut. Without a correct
header libsndfile would guess the length from the first frame's bit rate and drop the rest, so
frames without a header get one here. In a file without a header, a cut within a frame is detected;
a cut between two frames cannot be. Concatenated MP3s (`cat a.mp3 b.mp3`), with ID3 tags between
them, are one clip if their version, layer and rate are the same.
"""

import struct

from im2sp.pipeline.decoding.audio_checks import DeclaredAudio, after_id3
from im2sp.pipeline.decoding.media import AudioError

_KBITS = {
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def is_mp3_frame(head: bytes) -> bool:
    """True if these bytes start a frame of layer II or III."""
    return _frame_size(head) is not None


def check_mp3(data: bytes) -> DeclaredAudio:
    """Check runs of MPEG frames of layer II or III, with or without tags around them.

    Raises:
        AudioError: The file is cut, as far as can be detected, or damaged between frames.
    """
    at = end = _after_tags(data, 0)
    first, rows, num_frames = data[at : at + 4], list[bytes](), 0
    while not rows or (at > end and _is_same_format(data[at : at + 4], first)):
        end, num_more = _run_of_frames(data, at, first)
        rows.append(data[at:end])
        num_frames += num_more
        at = _after_tags(data, end)
    if _frame_size(data[at : at + 4]) is not None:
        raise AudioError(
            f"an MP3 of another version, layer or rate begins at byte {at:,}; one clip a file is "
            "read: split it, or convert it to one rate"
        )
    _check_rest(data, at, first)
    declared = _declared_frames(rows[0])
    if len(rows) == 1 and declared and declared + 1 >= num_frames:
        return DeclaredAudio(data=rows[0])
    starts = [0 if _declared_frames(row) is None else _frame_size(row[:4]) or 0 for row in rows]
    frames = b"".join(row[start:] for row, start in zip(rows, starts, strict=True))
    return _with_xing_header(frames, num_frames - sum(start > 0 for start in starts))


def _run_of_frames(data: bytes, begin: int, first: bytes) -> tuple[int, int]:
    """End and count of the frames from byte `begin` on that have the format of `first`."""
    num_frames, at = 0, begin
    while _is_same_format(header := data[at : at + 4], first):
        size = _frame_size(header)
        if size is None:
            break
        if at + size > len(data):
            raise AudioError(
                f"cut: MP3 frame {num_frames} at byte {at:,} declares {size:,} bytes, "
                f"{len(data) - at:,} follow"
            )
        num_frames, at = num_frames + 1, at + size
    return at, num_frames


def _after_tags(data: bytes, at: int) -> int:
    """End of the ID3 and APE tags that start at byte `at`."""
    while True:
        if data[at : at + 3] == b"TAG":
            end = at + 128
        elif data[at : at + 8] == b"APETAGEX" and len(data) >= at + 32:
            end = at + 32 + struct.unpack_from("<I", data, at + 12)[0]
        else:
            end = after_id3(data, at)
        if end == at or end > len(data):
            return at
        at = end


def _check_rest(data: bytes, at: int, first: bytes) -> None:
    """Check the bytes after the last frame: stray bytes are ignored, further frames are refused."""
    if 0 < len(data) - at < 4 and data[at : at + 2] == first[:2][: len(data) - at]:
        raise AudioError("cut: the MP3 ends within the header of a frame")
    near = data.find(first[:2], at)
    while near >= 0:
        header = data[near : near + 4]
        size = _frame_size(header) if _is_same_format(header, first) else None
        if size and (
            near + size == len(data) or _is_same_format(data[near + size : near + size + 4], first)
        ):
            raise AudioError(
                f"damaged: no MP3 frame at byte {at:,}, yet more after {near - at:,} other bytes"
            )
        near = data.find(first[:2], near + 1)


def _declared_frames(first: bytes) -> int | None:
    """Frame count in the Xing header of the first frame, 0 if not given; None without a header."""
    at = 4 + _num_side_bytes(first)
    xing = first[at : at + 12]
    if len(xing) < 12 or xing[:4] not in (b"Xing", b"Info"):
        return None
    return struct.unpack_from(">I", xing, 8)[0] if xing[7] & 1 else 0


def _with_xing_header(data: bytes, num_frames: int) -> DeclaredAudio:
    """Prepend a Xing header; the decoder then drops the 529 samples of the decoder's delay."""
    if not num_frames:
        raise AudioError("the MP3 declares no samples")
    if data[1] >> 1 & 3 != 1:  # layer II has no Xing headers, and a constant rate
        return DeclaredAudio(data=data)
    xing_at = 4 + _num_side_bytes(data)
    header, size = data[:4], 0
    for bitrate in range(1, 15):
        header = bytes([data[0], data[1] | 1, bitrate << 4 | data[2] & 0x0C, data[3]])
        size = _frame_size(header) or 0
        if size >= xing_at + 12:
            break
    xing = b"Xing" + struct.pack(">II", 1, num_frames)
    frame = (header + bytes(xing_at - 4) + xing).ljust(size, b"\0")
    return DeclaredAudio(data=frame + data)


def _num_side_bytes(header: bytes) -> int:
    """Bytes between a layer III frame's header and its Xing header."""
    is_first_version, is_mono = header[1] >> 3 & 3 == 3, header[3] >> 6 == 3
    return (17 if is_mono else 32) if is_first_version else (9 if is_mono else 17)


def _frame_size(header: bytes) -> int | None:
    """Bytes of the frame that starts with these four; None if they start no supported frame."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer not in (2, 3) or bitrate in (0, 15) or rate == 3:
        return None
    is_first_version = version == 3
    kbits = _KBITS[is_first_version, layer][bitrate]
    samples_per_frame = 1152 if is_first_version or layer == 2 else 576
    return samples_per_frame // 8 * kbits * 1000 // _RATES_HZ[version][rate] + padding


def _is_same_format(header: bytes, first: bytes) -> bool:
    """True if version, layer and rate are those of the first frame."""
    return (
        len(header) >= 4
        and header[0] == 0xFF
        and header[1] & 0xFE == first[1] & 0xFE
        and header[2] & 0x0C == first[2] & 0x0C
    )
