"""Units to speech: a unit HiFi-GAN, and its predictor of how long each unit lasts.

As facebookresearch/speech-resynthesis and fairseq's CodeHiFiGAN do it: 16 kHz, 320 samples a frame.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2sp.pipeline.core_threads import SingleCorePool
from im2sp.pipeline.tensors import DTYPES, Precision, check_precision
from im2sp.pipeline.vocoder.generator import UnitGenerator
from im2sp.pipeline.vocoder.weights import (
    BUNDLED,
    FRAME_SAMPLES,
    RATE_HZ,
    VocoderWeights,
    fingerprint,
    load_weights,
)

# Longer clips are made piece by piece, which bounds their memory; pieces overlap by as much as a
# sample depends on, so that they join without a trace.
PIECE_FRAMES = 1000
# Frames made at once on a GPU.
GPU_BATCH_FRAMES = 8000


class Vocoder:
    """Turns units into speech.

    Attributes:
        name: What it was loaded by; for a path, the last part alone.
        fingerprint: sha256 of the weights and settings; see `vocoder_weights.fingerprint`.
        precision: "fp32" or "bf16", of the generator. Durations are float32 in both.
        speech_fingerprint: Of the speech tokenizer whose units it was trained on; None if its
            file does not tell, as published ones do not.
        num_units: Units lie in [0, num_units).
        num_speakers: Voices to choose from; 0 if there is one only.
        has_durations: Whether it tells how long each unit lasts.
        rate_hz: 16000, of the samples.
    """

    def __init__(
        self,
        weights: VocoderWeights,
        *,
        name: str,
        precision: Precision = "fp32",
        device: str | torch.device | None = None,
    ) -> None:
        check_precision(precision)
        self.name = name
        self.precision = precision
        self.fingerprint = fingerprint(weights, precision)
        self.speech_fingerprint = weights.speech_fingerprint
        self.num_units = weights.num_units
        self.num_speakers = weights.num_speakers
        self.has_durations = weights.has_durations
        self.rate_hz = RATE_HZ
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._generator = UnitGenerator(weights, DTYPES[precision], self.device)
        self._threads = SingleCorePool()

    def check_units(self, num_units: int | None, fingerprint: str | None, whose: str) -> None:
        """Refuse units of another speech tokenizer.

        Args:
            num_units: How many units there are; None if it is not known.
            fingerprint: Of the speech tokenizer that made them; None if it is not known.
            whose: Whose units they are, for the message.

        Raises:
            ValueError: The vocoder is for another number of units, or for another tokenizer's.
        """
        if num_units is not None and num_units != self.num_units:
            raise ValueError(
                f"vocoder {self.name}: speaks {self.num_units} units, {whose} has {num_units};"
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
        """One clip, (T,) float32; see `synthesize_batch`."""
        rows = None if durations is None else [durations]
        return self.synthesize_batch([units], rows, speaker)[0]

    @torch.no_grad()
    def synthesize_batch(
        self,
        units: Sequence[Sequence[int] | np.ndarray | Tensor],
        durations: Sequence[Sequence[int] | np.ndarray | Tensor] | None = None,
        speaker: int | Sequence[int] | None = None,
    ) -> list[np.ndarray]:
        """Speech of clips of any lengths.

        A clip does not depend on the others, but for rounding: on a CPU each is made by itself, on
        a core of its own; on a GPU they go side by side, and what lies behind the end of a shorter
        one is zeroed before every convolution, as if nothing were there.

        Args:
            units: Of each clip its units, (N,) whole numbers in [0, num_units).
            durations: Of each clip the frames of 320 samples that each unit lasts, (N,) whole
                numbers of 1 or more; ones for units whose repeats were kept. None to let the
                vocoder tell them, for units whose repeats were collapsed.
            speaker: Which voice, in [0, num_speakers), for all or for each; needed where the
                vocoder has several.

        Returns:
            (T,) float32 each in [-1, 1] at 16 kHz: 320 samples a frame. No units, no samples.

        Raises:
            ValueError: Units, durations or voices of another kind, number or range; names the clip
                where there are several.
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
        """(N,) int64 of each clip: the frames that each of its units lasts, repeats collapsed.

        Raises:
            ValueError: The vocoder has no duration predictor, or the units are none of its own.
        """
        clips = [_checked_units(one, self.num_units, row) for row, one in enumerate(units)]
        return [count.numpy() for count in self._durations(clips)]

    def _durations(self, clips: list[Tensor]) -> list[Tensor]:
        predictor = self._generator.durations
        if predictor is None:
            raise ValueError(
                f"{self.name} does not tell how long units last; pass `durations`, ones for units"
                " whose repeats were kept"
            )

        def told(batch: list[int]) -> list[Tensor]:
            if not any(len(clips[row]) for row in batch):
                return [clips[row] for row in batch]
            lengths = torch.tensor([len(clips[row]) for row in batch], device=self.device)
            padded = torch.nn.utils.rnn.pad_sequence([clips[row] for row in batch], True)
            embedded = self._generator.units[padded.to(self.device)]
            found = predictor(embedded, lengths).cpu()
            return [count[: len(clips[row])] for row, count in zip(batch, found, strict=True)]

        return self._in_batches(told, clips)

    def _make(self, clips: list[Tensor], voices: Tensor) -> list[np.ndarray]:
        """Samples of clips of units, one unit a frame, each of one frame or more."""

        def made(batch: list[int]) -> list[np.ndarray]:
            lengths = torch.tensor([len(clips[row]) for row in batch], device=self.device)
            padded = torch.nn.utils.rnn.pad_sequence([clips[row] for row in batch], True)
            chosen = voices[batch].to(self.device) if self.num_speakers else None
            samples = self._generator(padded.to(self.device), chosen, lengths).cpu().numpy()
            return [
                one[: len(clips[row]) * FRAME_SAMPLES]
                for row, one in zip(batch, samples, strict=True)
            ]

        return self._in_batches(made, clips)

    def _in_batches(self, function: Any, clips: list[Tensor]) -> list[Any]:
        """`function` of lists of rows: single ones on a CPU, on a GPU those of like lengths."""
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
    """(N,) int64 on the CPU of a list, array or tensor."""
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
            speech-resynthesis or fairseq ship them (the one of the most steps is taken), one such
            generator with `config.json` beside it, or our own file.
        device: None for CUDA if available, else the CPU.
        precision: Arithmetic of the generator.

    Raises:
        WeightsError: (a ValueError) no such files, or not those of a unit vocoder; one line.
    """
    check_precision(precision)
    weights = load_weights(name_or_path)
    is_file = str(name_or_path) not in BUNDLED
    name = Path(name_or_path).expanduser().resolve().name if is_file else str(name_or_path)
    return Vocoder(weights, name=name, precision=precision, device=device)
