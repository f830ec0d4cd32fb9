"""Is a FLAC whole? Its metadata, its count of samples, its MD5, or else each of its frames.

libFLAC checks the CRC of every frame it meets, but it fills frames that are not there with silence,
takes a cut for the end and does not compare the MD5 of all samples. Where the header declares count
and MD5, what comes out is held against them. Where one is missing (a FLAC written to a pipe), the
frames are walked: their numbers must follow each other and the last one must be whole.
"""

from im2sp.pipeline.declared_audio import DeclaredAudio, declared_rate, without_id3
from im2sp.pipeline.media import AudioError

_STREAMINFO_BYTES = 34
_MAX_FRAME_BYTES = 2**21
"""More than 65,535 samples of eight channels of 32 bits, stored as they are, take in any real file;
most frames are under 16 KiB."""
_MAX_CRC_BYTES = 2**22


def check_flac(data: bytes) -> DeclaredAudio:
    """Check a FLAC file, with or without an ID3 tag before it.

    Raises:
        AudioError: It is cut or damaged, as far as can be seen without decoding.
    """
    data = without_id3(data)
    if data[:4] != b"fLaC":
        raise AudioError("damaged: no FLAC follows the ID3 tag")
    start = _after_metadata(data)
    info = int.from_bytes(data[8 : 8 + 18], "big")
    rate_hz = info >> 44 & 0xFFFFF
    num_channels = (info >> 41 & 7) + 1
    bits = (info >> 36 & 31) + 1
    num_frames = info & 0xFFFFFFFFF
    declared_rate(rate_hz, num_channels)
    if start >= len(data):
        raise AudioError(f"cut: the FLAC ends after its metadata ({len(data):,} bytes)")
    md5 = data[26:42]
    if not num_frames or not any(md5):
        num_found = _count_samples(data, start)
        if num_frames and num_found != num_frames:
            raise AudioError(
                f"cut or damaged: the FLAC declares {num_frames:,} samples, its frames hold "
                f"{num_found:,}"
            )
        patched = bytearray(data)
        patched[8:26] = (info | num_found).to_bytes(18, "big")
        data, num_frames = bytes(patched), num_found
    return DeclaredAudio(
        data=data, num_frames=num_frames, md5=md5 if any(md5) else None, md5_bits=bits
    )


def _after_metadata(data: bytes) -> int:
    """Where the first frame begins; STREAMINFO comes first and every block is whole."""
    at, is_last = 4, False
    while not is_last:
        size_bytes = int.from_bytes(data[at + 1 : at + 4], "big")
        if at + 4 + size_bytes > len(data) or at + 4 > len(data):
            raise AudioError(f"cut: the FLAC ends within its metadata, at byte {len(data):,}")
        kind = data[at] & 0x7F
        if (at == 4) != (kind == 0) or (at == 4 and size_bytes != _STREAMINFO_BYTES):
            raise AudioError(
                f"damaged: FLAC metadata block of kind {kind} and {size_bytes:,} bytes at byte "
                f"{at:,}"
            )
        is_last = bool(data[at] & 0x80)
        at += 4 + size_bytes
    return at


def _count_samples(data: bytes, start: int) -> int:
    """Samples of all frames, which must follow each other; the last one must be whole.

    A frame has no length. The next one begins where its sync code, a header with a right CRC and
    the number that continues the count stand together.
    """
    end = len(data) - 128 if data[-128:-125] == b"TAG" else len(data)
    sync = data[start : start + 2]
    num_samples, last, at, budget = 0, start, start, _MAX_CRC_BYTES
    while at >= 0 and sync in (b"\xff\xf8", b"\xff\xf9"):
        span = _frame_span(data[at : at + 16], data[8:12])
        if span is not None and span[0] == num_samples:
            num_samples, last = span[1], at
        elif span is not None and budget > at - last:
            budget -= at - last
            if at > last and _crc16(data[last:at]) == 0:
                raise AudioError(
                    f"damaged: FLAC samples {num_samples:,} to {span[0]:,} are missing at byte "
                    f"{at:,}"
                )
        at = data.find(sync, at + 2, end)
    if not num_samples or end - last > _MAX_FRAME_BYTES or _crc16(data[last:end]):
        raise AudioError(
            f"cut: the FLAC's last frame, at byte {last:,}, is not whole, and its header does not "
            "count the samples"
        )
    return num_samples


def _frame_span(header: bytes, block_sizes: bytes) -> tuple[int, int] | None:
    """First sample of the frame that begins like this, and that of the next; None if none does."""
    if len(header) < 6 or header[3] & 1:
        return None
    lead = header[4]  # the frame's number, coded as UTF-8 codes characters
    num_ones = 8 - (lead ^ 0xFF).bit_length()
    if num_ones in (1, 8):
        return None
    at = 4 + max(1, num_ones)
    number = lead & (0x7F >> num_ones)
    for byte in header[5:at]:
        number = number << 6 | byte & 0x3F
    size_code, rate_code = header[2] >> 4, header[2] & 15
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    block_size = int.from_bytes(header[at : at + size_bytes], "big") + 1
    if size_code == 0 or rate_code == 15:
        return None
    if size_code == 1:
        block_size = 192
    elif size_code in (2, 3, 4, 5):
        block_size = 576 << (size_code - 2)
    elif size_code >= 8:
        block_size = 256 << (size_code - 8)
    at += size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(header) or _crc8(header[:at]) != header[at]:
        return None
    # A fixed-size stream numbers its frames, a variable one the first sample.
    first = number if header[1] & 1 else number * int.from_bytes(block_sizes[2:4], "big")
    return first, first + block_size


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc


def _crc16(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc = (crc << 8 & 0xFF00) ^ _CRC16[crc >> 8 ^ byte]
    return crc


def _crc16_table() -> tuple[int, ...]:
    table: list[int] = []
    for crc in range(0, 0x10000, 0x100):
        value = crc
        for _ in range(8):
            value = (value << 1 ^ 0x18005) if value & 0x8000 else value << 1
        table.append(value)
    return tuple(table)


_CRC16 = _crc16_table()
