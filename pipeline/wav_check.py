"""Is a WAV whole? RIFF, RIFX (big-endian), RF64/BW64 and Wave64.

The chunks are walked here and the decoder gets a plain WAV made of the format and the samples, so
that nothing else in the file reaches it. The rules:

- The data chunk's length counts, the outer one is ignored.
- A data chunk that reaches past the file is cut. The lengths that writers to a pipe leave
  (`_STREAMED`) declare nothing: everything up to the end of the file is samples.
- Whole frames only: data that ends within one is cut. A pad byte is no part of a frame.
- No samples declared, yet bytes follow that are no chunks: the recorder was stopped before it
  wrote the length, so the clip is cut. The same for less declared than lies within the RIFF.
- What lies behind the samples is not needed, whole or not.
"""

import struct
from dataclasses import dataclass

from im2sp.pipeline.declared_audio import DeclaredAudio, declared_rate
from im2sp.pipeline.media import AudioError

_STREAMED = (0xFFFFFFFF, 0x80000000, 0x7FFFF000)
"""Data lengths that stand for "not known": of most writers to pipes, of arecord and of SoX."""

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_KNOWN_CHUNKS = (b"data", b"fmt ", b"fact", b"LIST")

_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")
W64_MAGIC = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    kind: bytes
    start: int
    size_bytes: int
    next: int
    """Where the next chunk begins."""


def check_wav(data: bytes) -> DeclaredAudio:
    """Check a RIFF, RIFX, RF64 or BW64 file.

    Raises:
        AudioError: It is cut, damaged or declares nothing that can be decoded.
    """
    order = ">" if data[:4] == b"RIFX" else "<"
    chunks: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        chunk = _riff_chunk(data, at, order)
        if chunk.kind == b"data":
            size_bytes: int | None = chunk.size_bytes
            if chunk.size_bytes == 0xFFFFFFFF and len(chunks.get(b"ds64", b"")) >= 16:
                (size_bytes,) = struct.unpack_from("<Q", chunks[b"ds64"], 8)
            if size_bytes in (*_STREAMED, 2**64 - 1):
                size_bytes = None
            riff_end = 8 + struct.unpack_from(order + "I", data, 4)[0]
            return _wav(data, chunk.start, size_bytes, chunks, order, riff_end)
        if chunk.start + chunk.size_bytes > len(data):
            raise AudioError(
                f"cut: WAV chunk {ascii(chunk.kind)[2:-1]} at byte {at:,} declares "
                f"{chunk.size_bytes:,} bytes, {len(data) - chunk.start:,} follow"
            )
        chunks.setdefault(chunk.kind, data[chunk.start : chunk.start + chunk.size_bytes])
        at = chunk.next
    raise AudioError(f"cut: the WAV ends after {len(data):,} bytes, before its samples")


def _riff_chunk(data: bytes, at: int, order: str) -> _Chunk:
    kind, size_bytes = struct.unpack_from(order + "4sI", data, at)
    end = at + 8 + size_bytes
    # Some writers leave the pad byte of an odd chunk out.
    if size_bytes % 2 and data[end : end + 4] not in _KNOWN_CHUNKS:
        end += 1
    return _Chunk(kind=kind, start=at + 8, size_bytes=size_bytes, next=end)


def check_w64(data: bytes) -> DeclaredAudio:
    """Check a Sony Wave64 file: GUIDs for names, 64-bit lengths that count the chunk's header."""
    chunks: dict[bytes, bytes] = {}
    at = 40
    while at + 24 <= len(data):
        kind, tail, size_bytes = struct.unpack_from("<4s12sQ", data, at)
        start, end = at + 24, at + size_bytes
        if size_bytes < 24 or (kind != b"data" and end > len(data)):
            raise AudioError(
                f"cut or damaged: W64 chunk {ascii(kind)[2:-1]} at byte {at:,} declares "
                f"{size_bytes:,} bytes, {len(data) - at:,} follow"
            )
        if tail == _W64_TAIL and kind == b"data":
            return _wav(data, start, size_bytes - 24, chunks, "<", 0)
        chunks.setdefault(kind, data[start:end])
        at = (end + 7) // 8 * 8
    raise AudioError(f"cut: the W64 ends after {len(data):,} bytes, before its samples")


def _wav(
    data: bytes,
    start: int,
    size_bytes: int | None,
    chunks: dict[bytes, bytes],
    order: str,
    riff_end: int,
) -> DeclaredAudio:
    """Judge the samples from byte `start` on; None stands for a length that is not known."""
    if b"fmt " not in chunks:
        raise AudioError("damaged or cut: the WAV holds no format chunk before its samples")
    frame_bytes = _frame_bytes(chunks[b"fmt "], order)
    available = len(data) - start
    if size_bytes is None:
        size_bytes = available
        # Data of odd length may be followed by a pad byte, which nothing declares here.
        if frame_bytes and size_bytes % frame_bytes == 1 and size_bytes % 2 == 0 and not data[-1]:
            size_bytes -= 1
    elif size_bytes > available:
        raise AudioError(
            f"cut: the WAV declares {size_bytes:,} bytes of samples, {available:,} follow"
        )
    elif _are_samples(data[start + size_bytes : riff_end], order, size_bytes):
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
        struct.pack(order + "4sI", kind, len(part)) + part + b"\0" * (len(part) % 2)
        for kind, part in parts
        if part or kind == b"data"
    )
    magic = b"RIFX" if order == ">" else b"RIFF"
    return DeclaredAudio(
        data=magic + struct.pack(order + "I", len(body)) + body,
        num_frames=size_bytes // frame_bytes if frame_bytes else None,
    )


def _are_samples(rest: bytes, order: str, size_bytes: int) -> bool:
    """Whether what follows the declared samples within the RIFF is no chain of chunks."""
    at = size_bytes % 2 if rest[:4] not in _KNOWN_CHUNKS else 0
    while at + 8 <= len(rest):
        kind = rest[at : at + 4]
        if not rest[at:].strip(b"\0"):
            return False
        if not (kind.isascii() and kind.decode("ascii").isprintable()):
            return True
        at = _riff_chunk(rest, at, order).next
    return False


def _frame_bytes(header: bytes, order: str) -> int | None:
    """Bytes of one sample of all channels; None for codecs that pack several into a block."""
    if len(header) < 16:
        raise AudioError(f"damaged: the WAV's format chunk holds {len(header)} bytes, expected 16")
    tag, num_channels, rate_hz, _, frame_bytes, bits = struct.unpack_from(order + "HHIIHH", header)
    declared_rate(rate_hz, num_channels)
    if tag == _EXTENSIBLE:
        if len(header) < 40:
            raise AudioError(
                f"damaged: an extensible WAV's format chunk holds {len(header)} bytes, expected 40"
            )
        (tag,) = struct.unpack_from(order + "H", header, 24)
    if tag not in (_PCM, _FLOAT, _ALAW, _MULAW):
        return None
    if bits == 0 or frame_bytes != num_channels * ((bits + 7) // 8):
        raise AudioError(
            f"damaged: the WAV declares {num_channels} channels of {bits} bits in frames of "
            f"{frame_bytes} bytes"
        )
    return frame_bytes
