"""MP3: frames in a row, and the note that makes libsndfile decode them all.

Most encoders make the first frame a note (`Xing`, `Info`) that counts the others; libsndfile then
decodes as many samples as it counts, or too few where the file is cut. Without a right note it
would guess the length from the first frame's bit rate and drop the rest, so frames without one get
one here. Without a note of its own, a cut is seen when it goes through a frame; at the border of
two frames nothing in the file tells. Joined MP3s (`cat a.mp3 b.mp3`), with ID3 tags between them,
are one clip if their version, layer and rate are the same.
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
    """True if these bytes begin a frame of layer II or III."""
    return _frame_size(head) is not None


def check_mp3(data: bytes) -> DeclaredAudio:
    """Check rows of MPEG frames of layer II or III, with or without tags around them.

    Raises:
        AudioError: It is cut, as far as can be told, or damaged between frames.
    """
    at = end = _after_tags(data, 0)
    first, rows, num_frames = data[at : at + 4], list[bytes](), 0
    while not rows or (at > end and _is_alike(data[at : at + 4], first)):
        end, num_more = _row_of_frames(data, at, first)
        rows.append(data[at:end])
        num_frames += num_more
        at = _after_tags(data, end)
    if _frame_size(data[at : at + 4]) is not None:
        raise AudioError(
            f"an MP3 of another version, layer or rate begins at byte {at:,}; one clip a file is "
            "read: split it, or convert it to one rate"
        )
    _check_rest(data, at, first)
    noted = _noted_frames(rows[0])
    if len(rows) == 1 and noted and noted + 1 >= num_frames:
        return DeclaredAudio(data=rows[0])
    starts = [0 if _noted_frames(row) is None else _frame_size(row[:4]) or 0 for row in rows]
    frames = b"".join(row[start:] for row, start in zip(rows, starts, strict=True))
    return _with_note(frames, num_frames - sum(start > 0 for start in starts))


def _row_of_frames(data: bytes, begin: int, first: bytes) -> tuple[int, int]:
    """End and count of the frames from byte `begin` on that are like `first`."""
    num_frames, at = 0, begin
    while _is_alike(header := data[at : at + 4], first):
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
    """Where the ID3 and APE tags from byte `at` on end."""
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
    """Judge what follows the last frame: stray bytes are ignored, frames in a row are not."""
    if 0 < len(data) - at < 4 and data[at : at + 2] == first[:2][: len(data) - at]:
        raise AudioError("cut: the MP3 ends within the header of a frame")
    near = data.find(first[:2], at)
    while near >= 0:
        header = data[near : near + 4]
        size = _frame_size(header) if _is_alike(header, first) else None
        if size and (
            near + size == len(data) or _is_alike(data[near + size : near + size + 4], first)
        ):
            raise AudioError(
                f"damaged: no MP3 frame at byte {at:,}, yet more after {near - at:,} other bytes"
            )
        near = data.find(first[:2], near + 1)


def _noted_frames(first: bytes) -> int | None:
    """Frames that the note in the first frame counts, 0 if it counts none; None without one."""
    at = 4 + _num_side_bytes(first)
    note = first[at : at + 12]
    if len(note) < 12 or note[:4] not in (b"Xing", b"Info"):
        return None
    return struct.unpack_from(">I", note, 8)[0] if note[7] & 1 else 0


def _with_note(data: bytes, num_frames: int) -> DeclaredAudio:
    """Put a note before frames; the decoder then drops the 529 samples of its own delay."""
    if not num_frames:
        raise AudioError("the MP3 declares no samples")
    if data[1] >> 1 & 3 != 1:  # layer II has no notes, and a constant rate
        return DeclaredAudio(data=data)
    note_at = 4 + _num_side_bytes(data)
    header, size = data[:4], 0
    for bitrate in range(1, 15):
        header = bytes([data[0], data[1] | 1, bitrate << 4 | data[2] & 0x0C, data[3]])
        size = _frame_size(header) or 0
        if size >= note_at + 12:
            break
    note = b"Xing" + struct.pack(">II", 1, num_frames)
    frame = (header + bytes(note_at - 4) + note).ljust(size, b"\0")
    return DeclaredAudio(data=frame + data)


def _num_side_bytes(header: bytes) -> int:
    """Bytes between a layer III frame's header and where a note stands."""
    is_first_version, is_mono = header[1] >> 3 & 3 == 3, header[3] >> 6 == 3
    return (17 if is_mono else 32) if is_first_version else (9 if is_mono else 17)


def _frame_size(header: bytes) -> int | None:
    """Bytes of the frame that begins with these four; None if none that is read does."""
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


def _is_alike(header: bytes, first: bytes) -> bool:
    """True if version, layer and rate are those of the first frame."""
    return (
        len(header) >= 4
        and header[0] == 0xFF
        and header[1] & 0xFE == first[1] & 0xFE
        and header[2] & 0x0C == first[2] & 0x0C
    )
