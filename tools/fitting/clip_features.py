"""Features of all frames of a source's clips, with phones if labels are given.

Clips are read in order and encoded in small groups, each clip on its own core and unpadded. A clip
that cannot be read becomes a row of `rejects`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from im2sp.pipeline.core_threads import SingleCorePool
from im2sp.pipeline.decoding.audio import DEFAULT_MAX_SECONDS, read_audio
from im2sp.pipeline.decoding.media import AudioError
from im2sp.pipeline.sources import list_source
from im2sp.pipeline.sources.items import SourceError, Utterance, kind_of_name
from im2sp.pipeline.speech_tokenizer.encoder import (
    FIRST_FRAME_SAMPLES,
    FRAME_SAMPLES,
    normalized,
    num_frames,
)
from im2sp.pipeline.speech_tokenizer.tokenizer import CHUNK_SAMPLES, RATE_HZ
from im2sp.tools.evaluation.unit_quality import NO_PHONE, PhoneLabels

# Samples encoded together; bounds the features in memory to 10,000 frames and one chunk.
GROUP_SAMPLES = 3_200_000


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Speech clips of a source."""

    kind: str
    """Kind of the source; see `SourceListing`."""
    split: str | None
    """Selected split; None for all."""
    sha256: str
    """Hash of the listing; changes with the names in the source."""
    utterances: list[Utterance]
    """Clips in the order of the source."""
    rejects: list[dict[str, str]]
    """`{"file", "reason"}` of unusable audio, such as two files with one name."""

    @classmethod
    def of(
        cls, source: Path, *, audio_root: Path | None = None, split: str | None = None
    ) -> "Clips":
        """List the clips of a source, ignoring unusable images.

        Raises:
            SourceError: As `list_source`, or no clips (of that split).
        """
        listing = list_source(source, audio_root=audio_root)
        items = [item for item in listing.items if split in (None, item.split)]
        utterances = [utterance for item in items for utterance in item.utterances]
        rejects = [
            {"file": item.name, "reason": item.error}
            for item in items
            if item.error and not item.utterances and kind_of_name(item.name) != "image"
        ]
        if not utterances:
            where = "" if split is None else f" in split {split!r}"
            raise SourceError(
                f"{source}: holds no speech{where} among {len(listing.items)} inputs; expected"
                " files such as .wav or .flac"
            )
        return cls(
            kind=listing.kind,
            split=split,
            sha256=str(listing.describe()["sha256"]),
            utterances=utterances,
            rejects=rejects,
        )


class FeatureReader:
    """Reader from clips to features.

    Attributes:
        rejects: `{"file", "reason"}` of unusable clips and labels so far.
        num_clips: Clips read so far.
        num_labelled: Clips read so far that have phones.
        num_samples: Samples read so far, at 16 kHz.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        *,
        labels: PhoneLabels | None = None,
        max_audio_s: float = DEFAULT_MAX_SECONDS,
        quiet: bool = True,
        waveform_eps: float | None = None,
    ) -> None:
        """Take `encode`: (1, S) float32 samples at 16 kHz -> (1, T, D) float32 features.

        Whole clips are normalised first if `waveform_eps` is given; see `HubertSettings`.
        """
        self.rejects: list[dict[str, str]] = []
        self.num_clips = self.num_labelled = self.num_samples = 0
        self._encode = encode
        self._labels = labels
        self._max_audio_s = max_audio_s
        self._quiet = quiet
        self._waveform_eps = waveform_eps
        self._threads = SingleCorePool()

    def read(
        self, utterances: Iterable[Utterance]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield features (T, D) and phone numbers (T,) of each clip, in order.

        Clips over 1,600,000 samples are split into chunks of that length, as in tokenizing. A
        frame's phone is the one at the middle of its 400 samples, or NO_PHONE.
        """
        group: list[_Chunk] = []
        for utterance in tqdm(utterances, desc="features", unit=" clips", disable=self._quiet):
            group += self._chunks(utterance)
            if sum(len(chunk.samples) for chunk in group) >= GROUP_SAMPLES:
                yield from self._encoded(group)
                group = []
        yield from self._encoded(group)

    def _chunks(self, utterance: Utterance) -> list["_Chunk"]:
        name = utterance.name
        try:
            if utterance.error is not None or utterance.audio is None:
                raise AudioError(utterance.error or "no audio")
            clip = read_audio(utterance.audio, name=name, max_seconds=self._max_audio_s)
        except AudioError as error:
            self._reject(name, str(error).removeprefix(f"{name}: "))
            return []
        samples = normalized(torch.from_numpy(clip), self._waveform_eps)
        pieces = samples.split(CHUNK_SAMPLES)
        phones = self._phones(name, [num_frames(len(piece)) for piece in pieces])
        return [
            _Chunk(name=name, number=number, samples=piece, phones=piece_phones)
            for number, (piece, piece_phones) in enumerate(zip(pieces, phones, strict=True))
            if len(piece_phones)
        ]

    def _phones(self, name: str, frames: list[int]) -> list[NDArray[np.int64]]:
        """(T,) phone numbers of each chunk."""
        if self._labels is None or not self._labels.has(name):
            return [np.full(count, NO_PHONE, np.int64) for count in frames]
        try:
            found = [
                self._labels.of_frames(name, frame_times_s(count) + i * CHUNK_SAMPLES / RATE_HZ)
                for i, count in enumerate(frames)
            ]
        except (ValueError, OSError) as error:
            self._reject(name, f"its labels are not used: {error}")
            return [np.full(count, NO_PHONE, np.int64) for count in frames]
        self.num_labelled += 1
        return found

    def _encoded(
        self, group: list["_Chunk"]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        samples = [chunk.samples[None] for chunk in group]
        for chunk, features in zip(group, self._threads.map(self._encode, samples), strict=True):
            rows = features[0].cpu().numpy()
            if not np.isfinite(rows).all():
                start_s = chunk.number * CHUNK_SAMPLES // RATE_HZ
                self._reject(chunk.name, f"its features from {start_s} s on are not finite")
                continue
            self.num_clips += chunk.number == 0
            self.num_samples += len(chunk.samples)
            yield rows, chunk.phones

    def _reject(self, name: str, reason: str) -> None:
        self.rejects.append({"file": name, "reason": reason})


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    name: str
    number: int
    samples: Tensor
    phones: NDArray[np.int64]


def frame_times_s(count: int) -> NDArray[np.float64]:
    """(count,) middle of each frame's 400 samples, in seconds from the start of the chunk."""
    return (np.arange(count) * FRAME_SAMPLES + FIRST_FRAME_SAMPLES / 2) / RATE_HZ
