"""What the header of a clip promises, as the checks of each format found it."""

from dataclasses import dataclass

from im2sp.pipeline.media import AudioError


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredAudio:
    """A clip whose container was checked and whose samples are decoded next."""

    data: bytes
    """What is decoded: the file, or the part and header of it that hold the samples."""

    num_frames: int | None = None
    """Samples of one channel that must come out; None where only the decoder can count them."""

    md5: bytes | None = None
    """MD5 of the integer samples; None where the file has none."""

    md5_bits: int = 16
    """Width of a sample that `md5` counts."""


def without_id3(data: bytes) -> bytes:
    """`data` without the ID3v2 tags before it, which MP3 and FLAC files may have.

    Zero bytes behind a tag are padding and go with it.

    Raises:
        AudioError: A tag is longer than the file.
    """
    at = 0
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        end = at + 10 + size + (10 if data[at + 5] & 0x10 else 0)
        if end > len(data):
            raise AudioError(f"cut: the ID3 tag declares {size:,} bytes, {len(data) - at:,} follow")
        at = end
    return data[at:].lstrip(b"\0") if at else data


def declared_rate(rate_hz: float, num_channels: int) -> None:
    """Refuse a header without a rate or channels, before anything divides by them."""
    if rate_hz <= 0:
        raise AudioError(f"declares a sample rate of {rate_hz:g} Hz")
    if num_channels <= 0:
        raise AudioError("declares no channels")
