"""WAV: RIFF and RF64/BW64.

This module parses the chunks and passes the decoder a plain WAV of only the format and the samples.
The rules:

- The length of the data chunk is used, the outer one is ignored.
- A data chunk that extends past the file is cut, unless its length is a placeholder, which writers
  to a pipe leave (0xFFFFFFFF, 0x7FFFFFFF, 2,000,000,000 ..): at least 1,000,000,000 bytes, and more
  than twice the bytes that follow. No clip within the default limit is that large (an hour of
  24-bit stereo at 44.1 kHz has 953 million). The samples then extend to the end of the file, or to
  the `LIST` or `id3 ` chunk that ends there.
- The same applies to a length of 0 followed by bytes that are not chunks. Samples may spell the
  name of a chunk; one that extends past the file counts as a chunk only if writers are known to put
  it after the samples.
- Data that ends within a frame is cut. A pad byte is not part of a frame.
- If fewer samples (but not 0) are declared than the RIFF contains, the recorder was stopped before
  it wrote the length, so the clip is cut.
- Data after the samples is not needed, and not checked.
"""

import struct
from dataclasses import dataclass

from im2sp.pipeline.decoding.audio_checks import DeclaredAudio, declared_rate
from im2sp.pipeline.decoding.media import AudioError

_PLACEHOLDER_BYTES = 1_000_000_000
_MAX_CHUNKS = 10_000

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_KNOWN_CHUNKS = (b"data", b"fmt ", b"fact", b"LIST")
_CHUNKS_BEHIND = (*_KNOWN_CHUNKS, b"bext", b"cue ", b"id3 ", b"iXML", b"JUNK", b"PEAK", b"smpl")


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    kind: bytes
    start: int
    size_bytes: int
    next: int
    """Offset of the next chunk."""


def check_wav(data: bytes) -> DeclaredAudio:
    """Check a RIFF, RF64 or BW64 file.

    Raises:
        AudioError: The file is cut or damaged, or declares nothing that can be decoded.
    """
    chunks: dict[bytes, bytes] = {}
    at = 12
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            raise AudioError(f"cut: the WAV ends after {len(data):,} bytes, before its samples")
        chunk = _riff_chunk(data, at)
        if chunk.kind == b"data":
            size_bytes = chunk.size_bytes
            if size_bytes == 0xFFFFFFFF and len(chunks.get(b"ds64", b"")) >= 16:
                (size_bytes,) = struct.unpack_from("<Q", chunks[b"ds64"], 8)
            return _wav(data, chunk.start, size_bytes, chunks)
        if chunk.start + chunk.size_bytes > len(data):
            raise AudioError(
                f"cut: WAV chunk {ascii(chunk.kind)[2:-1]} at byte {at:,} declares "
                f"{chunk.size_bytes:,} bytes, {len(data) - chunk.start:,} follow"
            )
        chunks.setdefault(chunk.kind, data[chunk.start : chunk.start + chunk.size_bytes])
        at = chunk.next
    raise AudioError(f"the WAV holds more than {_MAX_CHUNKS:,} chunks before its samples")


def _riff_chunk(data: bytes, at: int) -> _Chunk:
    kind, size_bytes = struct.unpack_from("<4sI", data, at)
    end = at + 8 + size_bytes
    # Some writers omit the pad byte of a chunk of odd length.
    if size_bytes % 2 and data[end : end + 4] not in _KNOWN_CHUNKS:
        end += 1
    return _Chunk(kind=kind, start=at + 8, size_bytes=size_bytes, next=end)


def _wav(data: bytes, start: int, size_bytes: int, chunks: dict[bytes, bytes]) -> DeclaredAudio:
    """Check the samples from byte `start` on, and build a plain WAV."""
    if b"fmt " not in chunks:
        raise AudioError("damaged or cut: the WAV holds no format chunk before its samples")
    frame_bytes = _frame_bytes(chunks[b"fmt "])
    available = len(data) - start
    riff_end = 8 + struct.unpack_from("<I", data, 4)[0]
    if (
        _are_samples(data[start:], 0)
        if size_bytes == 0
        else size_bytes >= _PLACEHOLDER_BYTES and size_bytes > 2 * available
    ):
        size_bytes = _samples_end(data, start) - start
        # Data of odd length may be followed by a pad byte, which no length declares here.
        if frame_bytes and size_bytes % frame_bytes == 1 and size_bytes % 2 == 0 and not data[-1]:
            size_bytes -= 1
    elif size_bytes > available:
        raise AudioError(
            f"cut: the WAV declares {size_bytes:,} bytes of samples, {available:,} follow"
        )
    elif size_bytes and _are_samples(data[start + size_bytes : riff_end], size_bytes):
        raise AudioError(
            f"damaged: the WAV declares {size_bytes:,} bytes of samples, yet {available:,} follow; "
            "a recorder that was stopped leaves such files"
        )
    if frame_bytes and size_bytes % frame_bytes:
        raise AudioError(
            f"cut: {size_bytes:,} bytes of samples end within a frame of {frame_bytes} bytes"
        )
    samples = data[start : start + size_bytes]
    parts = [(b"fmt ", chunks[b"fmt "]), (b"fact", chunks.get(b"fact", b"")), (b"data", samples)]
    body = b"WAVE" + b"".join(
        struct.pack("<4sI", kind, len(part)) + part + b"\0" * (len(part) % 2)
        for kind, part in parts
        if part or kind == b"data"
    )
    return DeclaredAudio(
        data=b"RIFF" + struct.pack("<I", len(body)) + body,
        num_frames=size_bytes // frame_bytes if frame_bytes else None,
    )


def _samples_end(data: bytes, start: int) -> int:
    """End of samples of unknown length: the end of the file, or the start of its last chunk."""
    for kind in (b"LIST", b"id3 "):
        at = data.rfind(kind, start)
        if 0 <= at <= len(data) - 8 and _riff_chunk(data, at).next in (len(data), len(data) + 1):
            return at
    return len(data)


def _are_samples(rest: bytes, size_bytes: int) -> bool:
    """True if the bytes after `size_bytes` of samples are neither chunks nor all zero."""
    num_used = len(rest.rstrip(b"\0"))
    at = size_bytes % 2 if rest[:4] not in _KNOWN_CHUNKS else 0
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(rest) or at >= num_used:
            return False
        kind = rest[at : at + 4]
        if not (kind.isascii() and kind.decode("ascii").isprintable()):
            return True
        at = _riff_chunk(rest, at).next
        if size_bytes == 0 and at > len(rest) + 1 and kind not in _CHUNKS_BEHIND:
            return True
    return False


def _frame_bytes(header: bytes) -> int | None:
    """Bytes of one sample of all channels; None for codecs that pack several into a block."""
    if len(header) < 16:
        raise AudioError(f"damaged: the WAV's format chunk holds {len(header)} bytes, expected 16")
    tag, num_channels, rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", header)
    declared_rate(rate_hz, num_channels)
    if tag == _EXTENSIBLE:
        if len(header) < 40:
            raise AudioError(
                f"damaged: an extensible WAV's format chunk holds {len(header)} bytes, expected 40"
            )
        (tag,) = struct.unpack_from("<H", header, 24)
    if tag not in (_PCM, _FLOAT, _ALAW, _MULAW):
        return None
    if bits == 0 or frame_bytes != num_channels * ((bits + 7) // 8):
        raise AudioError(
            f"damaged: the WAV declares {num_channels} channels of {bits} bits in frames of "
            f"{frame_bytes} bytes"
        )
    return frame_bytes
