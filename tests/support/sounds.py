"""Short generated clips for tests of decoding."""

import io
import struct
from pathlib import Path

import numpy as np
import soundfile

from im2sp.pipeline.decoding.audio import ByteRange, read_audio
from im2sp.pipeline.decoding.media import AudioError

NUM_SAMPLES = 480


def tone(num_samples: int = NUM_SAMPLES, num_channels: int = 1, rate_hz: int = 16_000):
    """int16 [T, C]: a tone with noise, different in each channel."""
    rng = np.random.default_rng(num_samples)
    seconds = np.arange(num_samples)[:, None] / rate_hz
    waves = 9000 * np.sin(2 * np.pi * (440 + 110 * np.arange(num_channels)) * seconds)
    return (waves + rng.integers(-900, 900, waves.shape)).astype(np.int16)


def encoded(file_format: str, subtype: str | None = None, samples=None, rate_hz=16_000, **options):
    buffer = io.BytesIO()
    samples = tone() if samples is None else samples
    soundfile.write(buffer, samples, rate_hz, format=file_format, subtype=subtype, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes, declared: int | None = None) -> bytes:
    size_bytes = len(body) if declared is None else declared
    return struct.pack("<4sI", kind, size_bytes) + body + b"\0" * (len(body) % 2)


def wav_format(tag=1, num_channels=1, rate_hz=16_000, bits=16, extra=b"") -> bytes:
    frame_bytes = num_channels * ((bits + 7) // 8)
    fields = (tag, num_channels, rate_hz, rate_hz * frame_bytes, frame_bytes, bits)
    return chunk(b"fmt ", struct.pack("<HHIIHH", *fields) + extra)


def wav(*chunks: bytes, magic: bytes = b"RIFF", declared: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    size_bytes = len(body) if declared is None else declared
    return magic + struct.pack("<I", size_bytes) + body


def waveform_of(data: bytes, **options) -> np.ndarray:
    waveform = read_audio(data, name="x", **options)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    return waveform


def refusal_of(source: Path | bytes | ByteRange, name: str = "x", **options) -> str:
    """Error message for a clip, "" if it is read."""
    try:
        read_audio(source, name=name, **options)
    except AudioError as error:
        return str(error)
    return ""
