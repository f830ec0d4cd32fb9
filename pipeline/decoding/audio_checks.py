"""Declarations in the header of a clip, and the checks of AIFF and NIST SPHERE.

WAV, FLAC, Ogg and MP3 have separate modules. Each check raises `AudioError` and reads only the
bytes given.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from im2sp.pipeline.decoding.media import AudioError

_AIFC_BITS = {b"ulaw": 8, b"alaw": 8, b"ULAW": 8, b"ALAW": 8, b"fl32": 32, b"FL32": 32}
_AIFC_BITS |= {b"fl64": 64, b"FL64": 64, b"in24": 24, b"in32": 32}


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredAudio:
    """Clip whose container passed the checks, ready to decode."""

    data: bytes
    """Bytes to decode: the file, or a header and the part that holds the samples."""

    num_frames: int | None = None
    """Samples of one channel that must be decoded; None if only the decoder can count them."""

    is_open: bool = False
    """True if the header has no count of samples, so that the clip is all that can be decoded."""

    md5: bytes | None = None
    """MD5 of the integer samples; None if not declared."""

    md5_bits: int = 16
    """Bits per sample that `md5` is computed over."""


def without_id3(data: bytes) -> bytes:
    """Return `data` without leading ID3v2 tags, which MP3 and FLAC files may have."""
    return data[after_id3(data, 0) :]


def after_id3(data: bytes, at: int) -> int:
    """End of the ID3v2 tags that start at byte `at`; zero bytes after a tag are its padding.

    Raises:
        AudioError: A tag is longer than the file.
    """
    begin = at
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        end = at + 10 + size + (10 if data[at + 5] & 0x10 else 0)
        if end > len(data):
            raise AudioError(f"cut: the ID3 tag declares {size:,} bytes, {len(data) - at:,} follow")
        at = end
    if at > begin:
        while data[at : at + 1] == b"\0":
            at += 1
    return at


def declared_rate(rate_hz: float, num_channels: int) -> None:
    """Refuse a header without a sample rate or channels, before any division by them."""
    if rate_hz <= 0:
        raise AudioError(f"declares a sample rate of {rate_hz:g} Hz")
    if num_channels <= 0:
        raise AudioError("declares no channels")


def check_aiff(data: bytes) -> DeclaredAudio:
    """Check AIFF and AIFF-C: a COMM chunk, and all samples that it declares."""
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
    # If the codec packs several samples into a block, some writers count blocks.
    return DeclaredAudio(data=data, num_frames=num_frames if width else None)


def _iff_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each chunk; the last may extend past the file."""
    at = 12
    while at + 8 <= len(data):
        kind, size_bytes = struct.unpack_from(">4sI", data, at)
        yield kind, at + 8, at + 8 + size_bytes
        at += 8 + size_bytes + size_bytes % 2


def _extended_float(value: bytes) -> float:
    """Approximate AIFF's 80-bit sample rate; 0 unless it is a positive number below 2**63."""
    exponent, mantissa = struct.unpack(">HQ", value)
    if exponent & 0x8000 or not 16383 <= exponent < 16383 + 63:
        return 0
    return mantissa / 2 ** (16383 + 63 - exponent)


def check_nist(data: bytes) -> DeclaredAudio:
    """Check NIST SPHERE (TIMIT and other speech corpora): a text header, then samples."""
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
