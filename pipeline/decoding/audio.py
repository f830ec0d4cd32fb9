"""Safe audio decoding: a clip of any supported format to mono at 16 kHz, or one clear error.

The rules, in the order in which they are applied:

1. The format is detected from the content; the file name is ignored.
2. A file that declares more data than it holds is cut, and is refused (`wav`, `flac`, `ogg`, `mp3`,
   `audio_checks`): otherwise half a clip would be stored with a complete caption. A placeholder
   length, which writers to a pipe leave, declares nothing.
3. The declared length is checked from the header, before decoding; if the header has none, it is
   checked after each block.
4. The number of decoded samples must be the declared one, and so must the MD5 if there is one.
5. Integers are scaled to fractions of full scale; float samples are kept as they are, even above 1.
   Values that are not finite are refused.
6. Mono is the mean of the channels. Any other rate is resampled to 16 kHz.
7. Fewer than 400 samples at 16 kHz make no speech unit and are refused.

The level is not normalised: units depend on it.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from itertools import islice

import numpy as np
import soundfile
import soxr

from im2sp.pipeline.decoding.audio_checks import (
    DeclaredAudio,
    check_aiff,
    check_nist,
    declared_rate,
    without_id3,
)
from im2sp.pipeline.decoding.flac import check_flac
from im2sp.pipeline.decoding.media import (
    DEFAULT_MAX_SECONDS,
    AudioError,
    ByteRange,
    Location,
    MediaError,
    read_bytes,
    refusal,
    seems_to_be,
)
from im2sp.pipeline.decoding.mp3 import check_mp3, is_mp3_frame
from im2sp.pipeline.decoding.ogg import check_ogg
from im2sp.pipeline.decoding.wav import check_wav
from im2sp.shards.errors import shown

__all__ = [
    "ByteRange",
    "DEFAULT_MAX_SECONDS",
    "MIN_SAMPLES",
    "SAMPLE_RATE_HZ",
    "AudioError",
    "read_audio",
]

SAMPLE_RATE_HZ = 16_000
"""Rate of every waveform that `read_audio` returns."""

MIN_SAMPLES = 400
"""Shortest clip that is accepted: the samples of one speech unit."""

RESAMPLING_QUALITY = "HQ"
"""soxr's quality setting, its default: 20 bits of precision, flat to 0.91 of the Nyquist rate.

From 44.1 kHz, `VHQ` (28 bits) takes a sixth longer and differs by 1e-4 of full scale at 7.3 kHz,
and by at most 3e-5 up to 6 kHz.
"""

_MIN_RATE_HZ, _MAX_RATE_HZ = 100, 1_000_000
_MAX_VALUES_PER_S = 600_000
"""Limit of samples of all channels per second of `max_seconds`: an hour of six channels at 96 kHz
is read; an hour of eight channels at 655 kHz, which a megabyte of FLAC can declare, is refused."""
_BLOCK_VALUES = 2**16
"""Samples of all channels that are decoded at once: 256 KiB, which fit in the cache."""
_HEAD_BYTES = 64


@dataclass(frozen=True)
class AudioFormat:
    """Audio format: its name, its signature, and the check that a file is complete."""

    name: str
    """Name in messages."""

    matches: Callable[[bytes], bool]
    """Test of the first (up to 64) bytes of a file."""

    check: Callable[[bytes], DeclaredAudio]
    """Check that raises `AudioError` for a cut or damaged file."""

    start: bytes | None = None
    """Regular expression of a file's first bytes, enough of them not to occur in samples by chance;
    None if files of this format that were joined are read to the last."""

    def refuse_joined(self, data: bytes) -> None:
        """Refuse files of this format that were joined: a decoder reads only the first of them."""
        found = re.finditer(self.start, data, re.DOTALL) if self.start else iter(())
        if (second := next(islice(found, 1, None), None)) is not None:
            raise AudioError(
                f"holds a second {self.name} file at byte {second.start():,}, which no decoder "
                "reads; one clip a file is read"
            )


def _begins(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _is_wav(head: bytes) -> bool:
    return head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def _is_aiff(head: bytes) -> bool:
    return head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")


FORMATS = (
    AudioFormat("WAV", _is_wav, check_wav, rb"R(?:IFF|F64).{4}WAVE"),
    AudioFormat("FLAC", _begins(b"fLaC"), check_flac, rb"fLaC[\x00\x80]\x00\x00\x22"),
    AudioFormat("Ogg", _begins(b"OggS"), check_ogg, rb"OggS\x00\x02\x00{8}"),
    AudioFormat("AIFF", _is_aiff, check_aiff, rb"FORM.{4}AIF[FC]"),
    AudioFormat("NIST", _begins(b"NIST_1A\n"), check_nist, rb"NIST_1A\n"),
    AudioFormat("MP3", is_mp3_frame, check_mp3),
)
"""Supported formats, in the order in which they are tried.

libsndfile decodes more, but AU, CAF, Wave64 and the formats of old synthesizers, trackers and
matrices are left out on purpose: no data set stores spoken captions in them, and each would need a
separate check, without which a cut file would be accepted as complete.
"""


def find_audio_format(data: bytes) -> AudioFormat:
    """Return the format of a clip's content; an ID3 tag before it is skipped.

    Raises:
        AudioError: The format is not supported; the message names what it seems to be.
    """
    if not data:
        raise AudioError("the file is empty (0 bytes)")
    head = without_id3(data)[:_HEAD_BYTES] if data[:3] == b"ID3" else data[:_HEAD_BYTES]
    for audio_format in FORMATS:
        if audio_format.matches(head):
            return audio_format
    if data[:3] == b"ID3":
        raise AudioError("damaged: nothing that is read follows the ID3 tag")
    raise AudioError(f"not audio that is read: {seems_to_be(data)}")


def read_audio(
    source: Location | bytes, *, name: str, max_seconds: float = DEFAULT_MAX_SECONDS
) -> np.ndarray:
    """Read one complete clip as mono at 16 kHz.

    Args:
        source: Location of a file, or the bytes of one.
        name: Name of the clip in messages.
        max_seconds: Limit of the clip's length.

    Returns:
        float32 [T], T >= 400, full scale of integer formats at 1.

    Raises:
        AudioError: The clip is missing, damaged, cut, too long, too short or not audio. The message
            starts with `name`. No other exception is raised, whatever the content.
    """
    try:
        data = read_bytes(source)
        audio_format = find_audio_format(data)
        declared = audio_format.check(data)
        audio_format.refuse_joined(data)
        waveform = _decode(declared, audio_format.name, max_seconds)
    except MediaError as error:
        raise AudioError(refusal(name, error)) from None
    except soundfile.LibsndfileError as error:
        # soundfile's text names a BytesIO object; libsndfile's part of it is enough.
        detail = " ".join(error.error_string.split()).removeprefix("Error : ")
        raise AudioError(
            f"{shown(name)}: cut or damaged: libsndfile cannot decode it ({detail})"
        ) from None
    except Exception as error:  # per-item boundary: any error of a decoder is one refusal
        raise AudioError(refusal(name, error)) from error

    if len(waveform) < MIN_SAMPLES:
        raise AudioError(
            f"{shown(name)}: too short: {len(waveform):,} samples at 16 kHz, one speech unit needs "
            f"{MIN_SAMPLES}"
        )
    return waveform


class _MemoryFile(BytesIO):
    """File in memory that ignores seeks to before its start, which damaged headers cause."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


class _SoundStream(soundfile.SoundFile):
    """A clip that is read from start to end without seeking.

    soundfile seeks after each read if it can. A seek changes the decoded MP3: the frame at the new
    position lacks data that earlier frames hold for it.
    """

    def seekable(self) -> bool:
        return False


def _decode(declared: DeclaredAudio, format_name: str, max_seconds: float) -> np.ndarray:
    """Decode all samples to mono at 16 kHz, block by block."""
    with _SoundStream(_MemoryFile(declared.data)) as file:
        max_frames = _max_frames(file.samplerate, file.channels, max_seconds)
        num_frames = file.frames if declared.num_frames is None else declared.num_frames
        if declared.is_open:
            num_frames = int(max_frames) + 1  # upper limit; a longer clip is refused
        elif num_frames <= 0:
            raise AudioError(f"the {format_name} declares no samples")
        else:
            _check_length(num_frames, max_frames, file, max_seconds)
        to_16_khz = _Resampler(file.samplerate)
        digest = hashlib.md5(usedforsecurity=False) if declared.md5 is not None else None
        num_block_frames = max(1, _BLOCK_VALUES // file.channels)
        parts: list[np.ndarray] = []
        num_decoded, is_last = 0, False
        while not is_last:
            num_wanted = min(num_frames - num_decoded, num_block_frames)
            block = _read_block(file, num_wanted, declared.md5_bits, digest)
            if len(block) < num_wanted and not declared.is_open:
                raise AudioError(
                    f"cut or damaged: the {format_name} declares {num_frames:,} samples, "
                    f"{num_decoded + len(block):,} can be decoded"
                )
            mono = _mixed(block, num_decoded)
            num_decoded += len(block)
            if declared.is_open:
                _check_length(num_decoded, max_frames, file, max_seconds)
            is_last = num_decoded == num_frames or len(block) < num_wanted
            parts.append(to_16_khz(mono, is_last=is_last))
    if digest is not None and digest.digest() != declared.md5:
        raise AudioError(
            f"damaged: the samples do not have the MD5 that the {format_name} declares"
        )
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _max_frames(rate_hz: int, num_channels: int, max_seconds: float) -> float:
    """Limit of the samples of one channel that are decoded."""
    declared_rate(rate_hz, num_channels)
    if not _MIN_RATE_HZ <= rate_hz <= _MAX_RATE_HZ:
        raise AudioError(
            f"declares {rate_hz:,} Hz; rates from {_MIN_RATE_HZ} to {_MAX_RATE_HZ:,} Hz are read"
        )
    return min(max_seconds * min(rate_hz, _MAX_VALUES_PER_S / num_channels), 2**62)


def _check_length(
    num_frames: int, max_frames: float, file: soundfile.SoundFile, max_seconds: float
) -> None:
    rate_hz = file.samplerate
    if num_frames > max_seconds * rate_hz:
        raise AudioError(
            f"declares {num_frames / rate_hz:,.1f} s, over the limit of {max_seconds:,g} s"
        )
    if num_frames > max_frames:
        raise AudioError(
            f"holds {num_frames:,} samples of {file.channels} channels at {rate_hz:,} Hz; with "
            f"a limit of {max_seconds:,g} s, at most {max_seconds * _MAX_VALUES_PER_S:,.0f} values "
            "are decoded: mix it down or cut it"
        )


def _read_block(
    file: soundfile.SoundFile, num_frames: int, bits: int, digest: "hashlib._Hash | None"
) -> np.ndarray:
    """Read float32 [frames, channels]; updates `digest` with FLAC's integers."""
    if digest is None:
        return file.read(num_frames, dtype="float32", always_2d=True)
    if bits == 16:
        values = np.asarray(file.read(num_frames, dtype="int16", always_2d=True), np.int16)
        digest.update(values.astype("<i2", copy=False).tobytes())
        return values * np.float32(2.0**-15)
    values = np.asarray(file.read(num_frames, dtype="int32", always_2d=True), np.int32)
    num_bytes = (bits + 7) // 8
    integers = np.ascontiguousarray(values >> (32 - bits), "<i4")
    digest.update(integers.view(np.uint8).reshape(-1, 4)[:, :num_bytes].tobytes())
    return values.astype(np.float32) * np.float32(2.0**-31)


def _mixed(block: np.ndarray, first: int) -> np.ndarray:
    """Mean over channels, float32 [T, C] -> [T]; `first` is the index of the first sample."""
    mono = block[:, 0]
    if block.shape[1] > 1:
        # Channel by channel: many times faster than `mean` over such a short axis.
        total = mono.astype(np.float64)
        for channel in range(1, block.shape[1]):
            total += block[:, channel]
        mono = (total / block.shape[1]).astype(np.float32)
    is_finite = np.isfinite(mono)
    if not is_finite.all():
        raise AudioError(f"sample {first + int(is_finite.argmin()):,} is not finite")
    return mono


class _Resampler:
    """Streaming resampler of float32 [n] to 16 kHz; its output equals that of a single call."""

    def __init__(self, rate_hz: int) -> None:
        self._stream = None
        if rate_hz != SAMPLE_RATE_HZ:
            self._stream = soxr.ResampleStream(
                rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality=RESAMPLING_QUALITY
            )

    def __call__(self, mono: np.ndarray, *, is_last: bool) -> np.ndarray:
        if self._stream is None:
            return mono
        resampled = self._stream.resample_chunk(mono, last=is_last)
        if not np.isfinite(resampled).all():
            raise AudioError("samples are not finite after resampling")
        return resampled
