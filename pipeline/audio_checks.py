"""Is a clip whole? AIFF, AU, CAF and NIST SPHERE: what each declares must be in the file.

WAV, FLAC, Ogg and MP3 have files of their own. Each check raises `AudioError` and reads only the
bytes given.
"""

import struct
from collections.abc import Iterator

from im2sp.pipeline.declared_audio import DeclaredAudio, declared_rate
from im2sp.pipeline.media import AudioError

_AIFC_BITS = {b"ulaw": 8, b"alaw": 8, b"ULAW": 8, b"ALAW": 8, b"fl32": 32, b"FL32": 32}
_AIFC_BITS |= {b"fl64": 64, b"FL64": 64, b"in24": 24, b"in32": 32}
_AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}


def check_aiff(data: bytes) -> DeclaredAudio:
    """AIFF and AIFF-C: a COMM chunk, and all samples that it counts."""
    common: bytes | None = None
    num_sample_bytes: int | None = None
    for kind, start, end in _iff_chunks(data):
        if kind == b"COMM":
            common = data[start:end]
        elif kind == b"SSND":
            if end > len(data) or end - start < 8:
                raise AudioError(
                    f"cut: the AIFF declares {end - start - 8:,} bytes of samples, "
                    f"{max(0, len(data) - start - 8):,} follow"
                )
            num_sample_bytes = end - start - 8 - struct.unpack_from(">I", data, start)[0]
        elif end > len(data) and num_sample_bytes is None:
            raise AudioError(f"cut: AIFF chunk {ascii(kind)[2:-1]} is longer than the file")
        if common is not None and num_sample_bytes is not None:
            break
    if common is None or num_sample_bytes is None:
        raise AudioError(f"cut: the AIFF ends after {len(data):,} bytes, before its samples")
    if len(common) < 18:
        raise AudioError(f"damaged: the AIFF's COMM chunk holds {len(common)} bytes, expected 18")
    num_channels, num_frames, bits = struct.unpack_from(">HIH", common)
    declared_rate(_extended_float(common[8:18]), num_channels)
    codec = common[18:22]
    if codec in (b"", b"NONE", b"sowt", b"twos"):
        width = (bits + 7) // 8
    else:
        width = _AIFC_BITS.get(codec, 0) // 8
    if num_frames * num_channels * width > num_sample_bytes:
        raise AudioError(
            f"cut: the AIFF declares {num_frames:,} samples of {num_channels} x {width} bytes, "
            f"{max(0, num_sample_bytes):,} bytes follow"
        )
    # Where the codec packs several samples into a block, some writers count the blocks.
    return DeclaredAudio(data=data, num_frames=num_frames if width else None)


def _iff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each chunk; the last may reach past the file."""
    at = 12
    while at + 8 <= len(data):
        kind, size_bytes = struct.unpack_from(">4sI", data, at)
        yield kind, at + 8, at + 8 + size_bytes
        at += 8 + size_bytes + size_bytes % 2


def _extended_float(value: bytes) -> float:
    """AIFF's 80-bit sample rate, coarse: 0 for anything that is no positive number below 2**63."""
    exponent, mantissa = struct.unpack(">HQ", value)
    if exponent & 0x8000 or not 16383 <= exponent < 16383 + 63:
        return 0
    return mantissa / 2 ** (16383 + 63 - exponent)


def check_au(data: bytes) -> DeclaredAudio:
    """Sun's AU, big- or little-endian; a length of 0xFFFFFFFF is that of a writer to a pipe."""
    order = ">" if data[:4] == b".snd" else "<"
    if len(data) < 24:
        raise AudioError(f"cut: {len(data)} bytes are less than an AU header")
    start, size_bytes, codec, rate_hz, num_channels = struct.unpack_from(order + "5I", data, 4)
    declared_rate(rate_hz, num_channels)
    if size_bytes == 0xFFFFFFFF:
        size_bytes = max(0, len(data) - start)
    if start < 24 or start + size_bytes > len(data):
        raise AudioError(
            f"cut: the AU declares {size_bytes:,} bytes of samples from byte {start:,} on, the "
            f"file holds {len(data):,}"
        )
    width = _AU_BYTES.get(codec)
    if width is None:
        return DeclaredAudio(data=data)
    frame_bytes = width * num_channels
    if size_bytes % frame_bytes:
        raise AudioError(
            f"cut: {size_bytes:,} bytes of samples end within a frame of {frame_bytes} bytes"
        )
    header = data[:4] + struct.pack(order + "5I", 24, size_bytes, codec, rate_hz, num_channels)
    return DeclaredAudio(
        data=header + data[start : start + size_bytes], num_frames=size_bytes // frame_bytes
    )


def check_caf(data: bytes) -> DeclaredAudio:
    """Apple's CAF: every chunk up to the samples whole; a data length of -1 reaches to the end."""
    at, packet_bytes, packet_frames = 8, 0, 0
    while at + 12 <= len(data):
        kind, size_bytes = struct.unpack_from(">4sq", data, at)
        start = at + 12
        if kind == b"data":
            is_open = size_bytes == -1
            size_bytes = len(data) - start if is_open else size_bytes
            if not 4 <= size_bytes <= len(data) - start:
                raise AudioError(
                    f"cut: the CAF declares {size_bytes:,} bytes of samples, "
                    f"{len(data) - start:,} follow"
                )
            if packet_bytes and (size_bytes - 4) % packet_bytes:
                raise AudioError(f"cut: the CAF ends within a frame of {packet_bytes} bytes")
            if is_open:
                data = data[: at + 4] + struct.pack(">q", size_bytes) + data[start:]
            num_frames = (size_bytes - 4) // packet_bytes * packet_frames if packet_bytes else None
            return DeclaredAudio(data=data, num_frames=num_frames)
        if size_bytes < 0 or start + size_bytes > len(data):
            raise AudioError(f"cut: CAF chunk {ascii(kind)[2:-1]} is longer than the file")
        if kind == b"desc" and size_bytes >= 32:
            rate_hz, _, _, packet_bytes, packet_frames, num_channels = struct.unpack_from(
                ">d4s4I", data, start
            )
            declared_rate(rate_hz if rate_hz == rate_hz else 0, num_channels)
        at = start + size_bytes
    raise AudioError(f"cut: the CAF ends after {len(data):,} bytes, before its samples")


def check_nist(data: bytes) -> DeclaredAudio:
    """NIST SPHERE, as TIMIT and other speech corpora have it: a text header, then samples."""
    try:
        header_bytes = int(data[8:16])
        lines = data[16:header_bytes].decode("ascii").splitlines()
        fields = {parts[0]: parts[2] for parts in map(str.split, lines) if len(parts) == 3}
        num_frames = int(fields["sample_count"])
        num_channels = int(fields.get("channel_count", "1"))
        width = int(fields["sample_n_bytes"])
        rate_hz = int(fields["sample_rate"])
    except (ValueError, KeyError):
        raise AudioError("damaged or cut: the NIST header cannot be read") from None
    declared_rate(rate_hz, num_channels)
    needed = num_frames * num_channels * width
    if header_bytes + needed > len(data):
        raise AudioError(
            f"cut: the NIST file declares {needed:,} bytes of samples, "
            f"{max(0, len(data) - header_bytes):,} follow"
        )
    return DeclaredAudio(data=data, num_frames=num_frames)
