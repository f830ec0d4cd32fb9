"""Is an MP3 whole? Every frame, and as many as its first one declares.

An MP3 is a row of frames without a header of its own. Most encoders make the first frame a note
(`Xing`, `Info`) that counts the others: then a cut is seen wherever it is. Without the note, a cut
is seen when it goes through a frame; at the border of two frames nothing in the file tells.
"""

import struct

from im2sp.pipeline.declared_audio import DeclaredAudio, without_id3
from im2sp.pipeline.media import AudioError

_KBITS = {
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def is_mp3_frame(head: bytes) -> bool:
    """Whether these bytes begin a frame of layer II or III."""
    return _frame_size(head[:4]) is not None


def check_mp3(data: bytes) -> DeclaredAudio:
    """Check a row of MPEG frames of layer II or III, with or without tags around it.

    Raises:
        AudioError: It is cut, as far as can be told, or damaged between frames.
    """
    tagged = without_id3(data)
    data = _without_end_tags(tagged)
    first = data[:4]
    if _frame_size(first) is None:
        raise AudioError("damaged: no MP3 frame follows the ID3 tag")
    num_frames, at = 0, 0
    while at < len(data) and _is_alike(data[at : at + 4], first):
        size = _frame_size(data[at : at + 4])
        if size is None:
            break
        if at + size > len(data):
            raise AudioError(
                f"cut: MP3 frame {num_frames} at byte {at:,} declares {size:,} bytes, "
                f"{len(data) - at:,} follow"
            )
        num_frames, at = num_frames + 1, at + size
    declared, declared_bytes = _declared_counts(data)
    # Some writers count the frame of the note itself; then its count of bytes decides.
    if num_frames < declared or (num_frames == declared and len(tagged) < declared_bytes):
        raise AudioError(
            f"cut or damaged: the MP3 declares {declared:,} frames, {num_frames - 1:,} are there"
        )
    if declared and declared + 1 >= num_frames:
        return DeclaredAudio(data=data[:at])
    _check_rest(data, at, first, num_frames)
    return _with_note(data[:at], num_frames)


def _with_note(data: bytes, num_frames: int) -> DeclaredAudio:
    """Put a note before frames that have none that is right.

    The decoder would otherwise guess the length from the first frame's bit rate and end there: half
    of many a clip. It drops the 529 samples of its own delay when there is a note.
    """
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
    """Whether version, layer and rate are those of the first frame."""
    return (
        len(header) == 4
        and header[0] == 0xFF
        and header[1] & 0xFE == first[1] & 0xFE
        and header[2] & 0x0C == first[2] & 0x0C
    )


def _declared_counts(data: bytes) -> tuple[int, int]:
    """Frames and bytes that the first frame's note counts; 0 for what is not noted."""
    note_at = 4 + _num_side_bytes(data)
    note = data[note_at : note_at + 16]
    if len(note) == 16 and note[:4] in (b"Xing", b"Info") and note[7] & 1:
        num_frames, num_bytes = struct.unpack_from(">II", note, 8)
        return num_frames, num_bytes if note[7] & 2 else 0
    note = data[36:54]  # Fraunhofer's note lies at one place in all frames
    if len(note) == 18 and note[:4] == b"VBRI":
        num_bytes, num_frames = struct.unpack_from(">II", note, 10)
        return num_frames, num_bytes
    return 0, 0


def _check_rest(data: bytes, at: int, first: bytes, num_frames: int) -> None:
    """Judge what follows the last frame: stray bytes are ignored, frames are not."""
    rest = data[at:]
    if rest and len(rest) < 4 and rest[:2] == first[:2][: len(rest)]:
        raise AudioError(f"cut: the MP3 ends within the header of frame {num_frames}")
    near = rest.find(first[:2])
    while near >= 0:
        header = rest[near : near + 4]
        if _is_alike(header, first) and _frame_size(header):
            raise AudioError(
                f"damaged: no MP3 frame at byte {at:,}, yet more after {near:,} other bytes"
            )
        near = rest.find(first[:2], near + 1)


def _without_end_tags(data: bytes) -> bytes:
    """`data` without the ID3v1 and APE tags behind it."""
    if data[-128:-125] == b"TAG":
        data = data[:-128]
    if data[-32:-24] == b"APETAGEX":
        size_bytes = struct.unpack_from("<I", data, len(data) - 20)[0]
        has_header = data[-9] & 0x80
        if size_bytes + 32 < len(data):
            data = data[: len(data) - size_bytes - (32 if has_header else 0)]
    return data
