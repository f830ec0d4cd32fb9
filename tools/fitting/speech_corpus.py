"""Training speech: a memory-mapped corpus of synthesized captions and recordings, and distortions.

A corpus is a folder: `samples.int16` (all clips, concatenated), `labels.uint8` (phone of each
frame) and `clips.json` (position and origin of each clip). The same captions, seed and flite give
the same corpus. `disturb` adds reverberation, filters, second voices and noise to batches of clips.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soxr
import torch
from torch import Tensor
from tqdm import tqdm

from im2sp.shards.files import atomic_file, read_json
from im2sp.tools.engines.flite import RATE_HZ, VOICES, FliteError, Spoken, speak

UNLABELLED = 255
"""Label of frames of recordings, whose phones are unknown."""
# The voices' own mean pitches are between 105 and 170 Hz.
PITCH_RANGE_HZ = (85.0, 240.0)
STRETCH_RANGE = (0.8, 1.25)
# Faster playback raises the pitch and shortens the vocal tract.
SPEED_RANGE = (0.85, 1.2)
REVERB_SHARE = 0.3
TONE_SHARE = 0.4
VOICE_SHARE = 0.15
NOISE_SHARE = 0.75
NOISE_RANGE_DB = (8.0, 32.0)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Position and origin of a clip in its corpus."""

    name: str
    """Number of the caption and voice, or name of the recording."""
    start: int
    """First sample."""
    num_samples: int
    """Samples at 16 kHz."""
    first_frame: int
    """Index of its first frame in `labels.uint8`."""
    num_frames: int
    """Frames of 20 ms: one unit each."""
    is_recording: bool
    """True for a recording, whose phones are unknown."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """Voice settings of a synthesized caption."""

    voice: str
    stretch: float = 1.0
    pitch_hz: float | None = None
    speed: float = 1.0


def read_captions(path: Path, split: str) -> list[str]:
    """Captions of a split of a Karpathy file, in its order.

    Raises:
        ValueError: It is not such a file, or has no caption of this split.
    """
    try:
        images = read_json(path)["images"]
        captions = [
            sentence["raw"]
            for image in images
            if image["split"] == split
            for sentence in image["sentences"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a Karpathy file with captions ({error!r})") from None
    if not captions:
        raise ValueError(f"{path}: holds no captions of the split {split!r}")
    return captions


def draw_manner(generator: np.random.Generator) -> Manner:
    """Draw a voice, tempo, pitch and speed."""
    voice = VOICES[int(generator.integers(len(VOICES)))]
    stretch, speed = (
        float(np.exp(generator.uniform(*np.log(bounds)))) for bounds in (STRETCH_RANGE, SPEED_RANGE)
    )
    pitch_hz = float(np.exp(generator.uniform(*np.log(PITCH_RANGE_HZ))))
    is_own_speed = generator.random() < 0.4
    return Manner(
        voice=voice,
        stretch=round(stretch, 3),
        pitch_hz=round(pitch_hz, 1) if generator.random() < 0.7 else None,
        speed=1.0 if is_own_speed else round(speed, 3),
    )


def speak_in_manner(text: str, manner: Manner) -> tuple[np.ndarray, np.ndarray]:
    """Synthesize a caption: samples (S,) int16 and phones (T,) uint8."""
    spoken = speak(text, manner.voice, stretch=manner.stretch, pitch_hz=manner.pitch_hz)
    if manner.speed != 1.0:
        samples = soxr.resample(spoken.samples, RATE_HZ, RATE_HZ / manner.speed)
        phones = [(end_s / manner.speed, phone) for end_s, phone in spoken.phones]
        spoken = Spoken(samples=samples, phones=phones)
    return spoken.samples, spoken.labels()


def make_corpus(
    folder: Path,
    captions: Sequence[str],
    manners: Sequence[Manner],
    recordings: Iterable[tuple[str, np.ndarray]] = (),
    *,
    num_threads: int = 2,
    quiet: bool = False,
) -> "Corpus":
    """Synthesize captions, each in its manner, add recordings, and write the corpus.

    Args:
        folder: Output folder, created if missing.
        captions: Texts; those without speech from flite are skipped.
        manners: One per caption.
        recordings: Names and (S,) float32 waveforms at 16 kHz.
        num_threads: Parallel flite processes.
        quiet: No progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips: list[Clip] = []
    samples_end = frames_end = 0
    labels: list[np.ndarray] = []
    with atomic_file(folder / "samples.int16") as file:
        clips_of_all = _spoken(captions, manners, num_threads, quiet)
        for name, samples, phones in itertools.chain(clips_of_all, _recorded(recordings)):
            if not len(phones):
                continue
            file.write(samples.astype("<i2").tobytes())
            labels.append(phones)
            clips.append(
                Clip(
                    name=name,
                    start=samples_end,
                    num_samples=len(samples),
                    first_frame=frames_end,
                    num_frames=len(phones),
                    is_recording=bool(phones[0] == UNLABELLED),
                )
            )
            samples_end += len(samples)
            frames_end += len(phones)
    with atomic_file(folder / "labels.uint8") as file:
        file.write(np.concatenate(labels).tobytes())
    with atomic_file(folder / "clips.json") as file:
        file.write(json.dumps([asdict(clip) for clip in clips]).encode())
    return Corpus(folder)


def _spoken(
    captions: Sequence[str], manners: Sequence[Manner], num_threads: int, quiet: bool
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    def one(number: int) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            return speak_in_manner(captions[number], manners[number])
        except FliteError:
            if number == 0:  # the failure is not specific to this caption
                raise
            return None

    with ThreadPoolExecutor(num_threads) as threads:
        results = threads.map(one, range(len(captions)))
        bar = tqdm(results, total=len(captions), desc="speak", unit=" captions", disable=quiet)
        for number, result in enumerate(bar):
            if result is not None:
                yield f"{number} {manners[number].voice}", *result


def _recorded(
    recordings: Iterable[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name, waveform in recordings:
        samples = np.clip(np.round(waveform * 32767), -32768, 32767).astype(np.int16)
        yield name, samples, np.full(max(0, (len(samples) - 400) // 320 + 1), UNLABELLED, np.uint8)


class Corpus:
    """A corpus on disk, opened for reading.

    Attributes:
        clips: All clips in order.
        hours: Duration of the audio.
    """

    def __init__(self, folder: Path) -> None:
        self.clips = [Clip(**clip) for clip in json.loads((folder / "clips.json").read_bytes())]
        self._samples = np.memmap(folder / "samples.int16", "<i2", "r")
        self._labels = np.memmap(folder / "labels.uint8", np.uint8, "r")
        self.hours = len(self._samples) / RATE_HZ / 3600

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)

    def waveform(self, number: int) -> np.ndarray:
        """(S,) float32 samples of a clip, in [-1, 1)."""
        clip = self.clips[number]
        part = self._samples[clip.start : clip.start + clip.num_samples]
        return part.astype(np.float32) / 32768

    def labels(self, number: int) -> np.ndarray:
        """(T,) uint8: indices in `flite.PHONES`, or `UNLABELLED`."""
        clip = self.clips[number]
        return np.array(self._labels[clip.first_frame : clip.first_frame + clip.num_frames])


def disturb(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Simulate recording conditions of clips, (B, S) float32 -> (B, S) float32.

    Random subsets get reverberation, a filter, a quieter second voice for a part of the clip (from
    another clip of the batch), and coloured noise; a few clips are unchanged.
    """
    num_samples = clips.shape[1]
    responses = _reverberations(len(clips), generator)
    # FFTs of these sizes are fast.
    size = -(-(num_samples + responses.shape[1]) // 4096) * 4096
    spectra = torch.fft.rfft(clips, size) * torch.fft.rfft(responses, size)
    spectra = spectra * _tones(len(clips), spectra.shape[1], generator)
    distorted = torch.fft.irfft(spectra, size)[:, :num_samples]
    distorted = distorted + _voices(distorted, generator)
    return distorted + _noises(distorted, generator)


def add_noise(clip: Tensor, snr_db: float, generator: torch.Generator) -> Tensor:
    """(S,) -> (S,): white noise `snr_db` below the clip's mean power."""
    noise = torch.randn(clip.shape, generator=generator)
    return clip + noise * _rms(clip) * 10 ** (-snr_db / 20)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _chosen(count: int, share: float, generator: torch.Generator) -> Tensor:
    """(B, 1) float32: 1 for a random share of the clips, else 0."""
    return (torch.rand(count, 1, generator=generator) < share).float()


def _rms(clips: Tensor) -> Tensor:
    return clips.square().mean(-1, keepdim=True).clamp(min=1e-8).sqrt()


def _tones(count: int, num_bins: int, generator: torch.Generator) -> Tensor:
    """(B, F) gains: a smooth curve of up to about 8 dB over the frequencies."""
    knots = _uniform((count, 1, 8), -8.0, 8.0, generator)
    curve_db = torch.nn.functional.interpolate(knots, num_bins, mode="linear", align_corners=True)
    return 10 ** (_chosen(count, TONE_SHARE, generator) * curve_db[:, 0] / 20)


def _reverberations(count: int, generator: torch.Generator) -> Tensor:
    """(B, 0.4 s) impulse responses: direct sound and decaying noise."""
    num_samples = int(0.4 * RATE_HZ)
    times_s = torch.arange(num_samples) / RATE_HZ
    fall_s = _uniform((count, 1), 0.1, 0.5, generator)
    tails = torch.randn(count, num_samples, generator=generator) * 10 ** (-3 * times_s / fall_s)
    tails[:, : RATE_HZ // 500] = 0
    level = _uniform((count, 1), 0.1, 0.7, generator)
    tails = tails / tails.square().sum(1, keepdim=True).sqrt() * level
    tails = tails * _chosen(count, REVERB_SHARE, generator)
    tails[:, 0] = 1.0
    return tails


def _voices(clips: Tensor, generator: torch.Generator) -> Tensor:
    """The next clip of the batch, 5 to 20 dB quieter, for up to half of the duration."""
    num_samples = clips.shape[1]
    level = 10 ** (-_uniform((len(clips), 1), 5.0, 20.0, generator) / 20)
    others = clips.roll(1, 0)
    start = _uniform((len(clips), 1), 0.0, 1.0, generator) * num_samples
    length = _uniform((len(clips), 1), 0.1, 0.5, generator) * num_samples
    place = torch.arange(num_samples)
    is_distorted = (place >= start) & (place < start + length)
    gain = level * _rms(clips) / _rms(others) * _chosen(len(clips), VOICE_SHARE, generator)
    return others * gain * is_distorted


def _noises(clips: Tensor, generator: torch.Generator) -> Tensor:
    """Noise between white and brown, 8 to 32 dB below the speech."""
    num_samples = clips.shape[1]
    size = -(-num_samples // 4096) * 4096
    spectra = torch.fft.rfft(torch.randn(len(clips), size, generator=generator))
    slope = _uniform((len(clips), 1), 0.0, 1.0, generator) * _chosen(len(clips), 0.6, generator)
    bins = torch.arange(spectra.shape[1]).clamp(min=size * 50 // RATE_HZ)
    noise = torch.fft.irfft(spectra * torch.exp(-slope * bins.log()), size)[:, :num_samples]
    snr_db = _uniform((len(clips), 1), *NOISE_RANGE_DB, generator)
    level = _chosen(len(clips), NOISE_SHARE, generator) * 10 ** (-snr_db / 20)
    return noise / _rms(noise) * _rms(clips) * level
