"""Units to speech: a unit HiFi-GAN and its duration predictor.

As in facebookresearch/speech-resynthesis and fairseq's CodeHiFiGAN: 16 kHz, 320 samples per frame.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2sp.pipeline.core_threads import SingleCorePool
from im2sp.pipeline.tensors import DTYPES, Precision, check_precision, float32_products
from im2sp.pipeline.vocoder.generator import UnitGenerator
from im2sp.pipeline.vocoder.weights import (
    BUNDLED,
    FRAME_SAMPLES,
    RATE_HZ,
    VocoderWeights,
    fingerprint,
    load_weights,
)

# Longer clips are generated in pieces, which bounds the memory; pieces overlap by the receptive
# field, so that they join without a seam.
PIECE_FRAMES = 1000
# Frames generated at once on a GPU.
GPU_BATCH_FRAMES = 8000


class Vocoder:
    """Converts units to speech.

    Attributes:
        name: Name that it was loaded by; for a path, only the last part.
        fingerprint: sha256 of the weights and settings; see `weights.fingerprint`.
        precision: "fp32", "tf32" (on a GPU) or "bf16", of the generator. Durations are always
            float32.
        speech_fingerprint: Fingerprint of the speech tokenizer whose units it was trained on; None
            if its file does not record it, as in published ones.
        num_units: Size of the vocabulary; units are in [0, num_units).
        num_speakers: Number of voices to choose from; 0 if there is only one.
        has_durations: True if it has a duration predictor.
        rate_hz: Sample rate, 16000.
    """

    def __init__(
        self,
        weights: VocoderWeights,
        *,
        name: str,
        precision: Precision = "fp32",
        device: str | torch.device | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        check_precision(precision, self.device)
        self.name = name
        self.precision = precision
        self.fingerprint = fingerprint(weights, precision)
        self.speech_fingerprint = weights.speech_fingerprint
        self.num_units = weights.num_units
        self.num_speakers = weights.num_speakers
        self.has_durations = weights.has_durations
        self.rate_hz = RATE_HZ
        self._generator = UnitGenerator(weights, DTYPES[precision], self.device)
        self._threads = SingleCorePool()

    def check_units(self, num_units: int | None, fingerprint: str | None, whose: str) -> None:
        """Refuse units of another speech tokenizer.

        Args:
            num_units: Number of units in the vocabulary; None if unknown.
            fingerprint: Fingerprint of the speech tokenizer that made them; None if unknown.
            whose: Source of the units, for the message.

        Raises:
            ValueError: The vocoder was made for another vocabulary size or another tokenizer.
        """
        if num_units is not None and num_units != self.num_units:
            raise ValueError(
                f"vocoder {self.name}: made for {self.num_units} units, {whose} has {num_units};"
                " name the vocoder of those units with --vocoder"
            )
        own = self.speech_fingerprint
        if own is not None and fingerprint is not None and own != fingerprint:
            raise ValueError(
                f"vocoder {self.name}: made for units of the speech tokenizer {own[:12]}..,"
                f" {whose} has those of {fingerprint[:12]}..; name the vocoder of those units with"
                " --vocoder"
            )

    def synthesize(
        self,
        units: Sequence[int] | np.ndarray | Tensor,
        durations: Sequence[int] | np.ndarray | Tensor | None = None,
        speaker: int | None = None,
    ) -> np.ndarray:
        """Synthesize one clip, (T,) float32; see `synthesize_batch`."""
        rows = None if durations is None else [durations]
        return self.synthesize_batch([units], rows, speaker)[0]

    @torch.no_grad()
    def synthesize_batch(
        self,
        units: Sequence[Sequence[int] | np.ndarray | Tensor],
        durations: Sequence[Sequence[int] | np.ndarray | Tensor] | None = None,
        speaker: int | Sequence[int] | None = None,
    ) -> list[np.ndarray]:
        """Synthesize clips of any lengths.

        A clip does not depend on the others, except for rounding: on a CPU each clip is generated
        separately, on one core; on a GPU clips form batches, and the padding after a shorter clip
        is zeroed before every convolution.

        Args:
            units: Units of each clip, (N,) integers in [0, num_units).
            durations: For each clip the frames of 320 samples that each unit lasts, (N,) integers
                of at least 1; ones for units whose repeats were kept. None to predict them, for
                units whose repeats were collapsed.
            speaker: Voice, in [0, num_speakers), for all or for each; required if the vocoder has
                several.

        Returns:
            (T,) float32 each in [-1, 1] at 16 kHz: 320 samples per frame. Empty for no units.

        Raises:
            ValueError: Units, durations or voices of wrong type, number or range; the message names
                the clip.
        """
        clips = [_checked_units(one, self.num_units, row) for row, one in enumerate(units)]
        voices = self._checked_speakers(speaker, len(clips))
        frames = self._durations(clips) if durations is None else _checked(durations, clips)
        spread = [clip.repeat_interleave(count) for clip, count in zip(clips, frames, strict=True)]
        pieces = [
            (row, start)
            for row, clip in enumerate(spread)
            for start in range(0, len(clip), PIECE_FRAMES)
        ]
        around = self._generator.frames_around
        cuts = [spread[row][max(0, s - around) : s + PIECE_FRAMES + around] for row, s in pieces]
        rows = torch.tensor([voices[row] for row, _ in pieces], dtype=torch.int64)
        made = self._make(cuts, rows)
        samples: list[list[np.ndarray]] = [[] for _ in clips]
        for (row, start), piece in zip(pieces, made, strict=True):
            first = (start - max(0, start - around)) * FRAME_SAMPLES
            samples[row].append(piece[first : first + PIECE_FRAMES * FRAME_SAMPLES])
        nothing = np.zeros(0, np.float32)
        return [np.concatenate([nothing, *parts]) for parts in samples]

    @torch.no_grad()
    def predict_durations(
        self, units: Sequence[Sequence[int] | np.ndarray | Tensor]
    ) -> list[np.ndarray]:
        """Predict the frames that each unit lasts, (N,) int64 per clip, for collapsed repeats.

        Raises:
            ValueError: The vocoder has no duration predictor, or a unit is out of range.
        """
        clips = [_checked_units(one, self.num_units, row) for row, one in enumerate(units)]
        return [count.numpy() for count in self._durations(clips)]

    def _durations(self, clips: list[Tensor]) -> list[Tensor]:
        predictor = self._generator.durations
        if predictor is None:
            raise ValueError(
                f"{self.name} has no duration predictor; pass `durations`, ones for units"
                " whose repeats were kept"
            )

        def predict(batch: list[int]) -> list[Tensor]:
            if not any(len(clips[row]) for row in batch):
                return [clips[row] for row in batch]
            lengths = torch.tensor([len(clips[row]) for row in batch], device=self.device)
            padded = torch.nn.utils.rnn.pad_sequence([clips[row] for row in batch], True)
            embedded = self._generator.units[padded.to(self.device)]
            with float32_products("fp32", self.device):
                found = predictor(embedded, lengths).cpu()
            return [count[: len(clips[row])] for row, count in zip(batch, found, strict=True)]

        return self._in_batches(predict, clips)

    def _make(self, clips: list[Tensor], voices: Tensor) -> list[np.ndarray]:
        """Generate samples of clips of units, one unit per frame, at least one frame each."""

        def made(batch: list[int]) -> list[np.ndarray]:
            lengths = torch.tensor([len(clips[row]) for row in batch], device=self.device)
            padded = torch.nn.utils.rnn.pad_sequence([clips[row] for row in batch], True)
            chosen = voices[batch].to(self.device) if self.num_speakers else None
            with float32_products(self.precision, self.device):
                samples = self._generator(padded.to(self.device), chosen, lengths).cpu().numpy()
            return [
                one[: len(clips[row]) * FRAME_SAMPLES]
                for row, one in zip(batch, samples, strict=True)
            ]

        return self._in_batches(made, clips)

    def _in_batches(self, function: Any, clips: list[Tensor]) -> list[Any]:
        """Apply `function` to batches of rows: single rows on a CPU, similar lengths on a GPU."""
        batches: list[list[int]] = []
        limit = self._batch_frames()
        for row in sorted(range(len(clips)), key=lambda row: -len(clips[row])):
            if batches and len(clips[batches[-1][0]]) * (len(batches[-1]) + 1) <= limit:
                batches[-1].append(row)
            else:
                batches.append([row])
        results: list[Any] = [None] * len(clips)
        for batch, found in zip(batches, self._threads.map(function, batches), strict=True):
            for row, result in zip(batch, found, strict=True):
                results[row] = result
        return results

    def _batch_frames(self) -> int:
        return 0 if self.device.type == "cpu" else GPU_BATCH_FRAMES

    def _checked_speakers(self, speaker: int | Sequence[int] | None, count: int) -> list[int]:
        if not self.num_speakers:
            if speaker is not None:
                raise ValueError(f"speaker is {speaker!r}, but {self.name} has one voice only")
            return [0] * count
        speakers = list(speaker) if isinstance(speaker, Sequence) else [speaker] * count
        if len(speakers) != count:
            raise ValueError(f"{len(speakers)} speakers for {count} clips")
        for one in speakers:
            if type(one) is not int or not 0 <= one < self.num_speakers:
                raise ValueError(
                    f"speaker is {one!r}, expected a number from 0 to {self.num_speakers - 1}"
                )
        return [int(one) for one in speakers if one is not None]


def _numbers(values: Any, what: str, row: int) -> Tensor:
    """Convert a list, array or tensor to (N,) int64 on the CPU."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.shape == (0,):
        return torch.zeros(0, dtype=torch.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"clip {row}: {what} are {array.dtype} of shape {list(array.shape)}, expected whole"
            " numbers of shape [units]"
        )
    return torch.from_numpy(array.astype(np.int64))


def _checked_units(units: Any, num_units: int, row: int) -> Tensor:
    clip = _numbers(units, "units", row)
    is_out = (clip < 0) | (clip >= num_units)
    if is_out.any():
        place = int(is_out.nonzero()[0, 0])
        raise ValueError(
            f"clip {row}: unit {int(clip[place])} at {place}, expected numbers from 0 to"
            f" {num_units - 1}"
        )
    return clip


def _checked(durations: Sequence[Any], clips: list[Tensor]) -> list[Tensor]:
    if len(durations) != len(clips):
        raise ValueError(f"durations of {len(durations)} clips for {len(clips)} clips of units")
    counts = [_numbers(one, "durations", row) for row, one in enumerate(durations)]
    for row, (count, clip) in enumerate(zip(counts, clips, strict=True)):
        if len(count) != len(clip):
            raise ValueError(f"clip {row}: {len(count)} durations for {len(clip)} units")
        if len(count) and int(count.min()) < 1:
            raise ValueError(
                f"clip {row}: a duration of {int(count.min())} frames, expected 1 or more"
            )
    return counts


def load_vocoder(
    name_or_path: str | Path = "compact",
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
) -> Vocoder:
    """Load a unit vocoder; nothing in its files is executed.

    Args:
        name_or_path: "compact" (bundled), a folder with `config.json` and generators `g_*` as
            speech-resynthesis or fairseq publish them (the one with the most steps is used), one
            such generator with `config.json` in the same folder, or an im2sp file.
        device: None for CUDA if available, else the CPU.
        precision: Arithmetic of the generator.

    Raises:
        WeightsError: (a ValueError) the files are missing or not those of a unit vocoder; one line.
    """
    check_precision(precision)
    weights = load_weights(name_or_path)
    is_file = str(name_or_path) not in BUNDLED
    name = Path(name_or_path).expanduser().resolve().name if is_file else str(name_or_path)
    return Vocoder(weights, name=name, precision=precision, device=device)
