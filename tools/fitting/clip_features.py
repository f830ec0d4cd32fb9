"""The frames of all clips of a source: their features, and their phones where labels are given.

Clips are read one after another and encoded a few at a time, each on a core of its own, never
padded; a clip that cannot be read is a row of `rejects` and the next one follows.
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
from im2sp.pipeline.speech_tokenizer.encoder import FIRST_FRAME_SAMPLES, FRAME_SAMPLES, num_frames
from im2sp.pipeline.speech_tokenizer.tokenizer import CHUNK_SAMPLES, RATE_HZ
from im2sp.tools.evaluation.unit_quality import NO_PHONE, PhoneLabels

# What is encoded together, and so the most features that wait: 10,000 frames and a chunk's.
GROUP_SAMPLES = 3_200_000


@dataclass(frozen=True, kw_only=True)
class Clips:
    """The spoken clips of a source."""

    kind: str
    """Of the source; see `SourceListing`."""
    split: str | None
    """The split that was taken; None for all."""
    sha256: str
    """Of the listing: changes when the source's names do."""
    utterances: list[Utterance]
    """The clips, in the order of the source."""
    rejects: list[dict[str, str]]
    """`{"file", "reason"}` of sound that belongs nowhere, as two files of one name."""

    @classmethod
    def of(
        cls, source: Path, *, audio_root: Path | None = None, split: str | None = None
    ) -> "Clips":
        """List them; a picture that cannot be used does not matter.

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
    """Reads clips to features.

    Attributes:
        rejects: `{"file", "reason"}` of what could not be used so far, clips and labels.
        num_clips: Clips that were read.
        num_labelled: Those of them with phones.
        num_samples: Their samples at 16 kHz.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        *,
        labels: PhoneLabels | None = None,
        max_audio_s: float = DEFAULT_MAX_SECONDS,
        quiet: bool = True,
    ) -> None:
        """Take (1, S) float32 samples at 16 kHz to (1, T, D) float32 features by `encode`."""
        self.rejects: list[dict[str, str]] = []
        self.num_clips = self.num_labelled = self.num_samples = 0
        self._encode = encode
        self._labels = labels
        self._max_audio_s = max_audio_s
        self._quiet = quiet
        self._threads = SingleCorePool()

    def read(
        self, utterances: Iterable[Utterance]
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Features (T, D) and numbers of phones (T,) of each clip, in order.

        Clips over 1,600,000 samples come as chunks of that length, as they are tokenized. A frame
        has the phone at the middle of its 400 samples; NO_PHONE where none is known.
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
        pieces = torch.from_numpy(clip).split(CHUNK_SAMPLES)
        phones = self._phones(name, [num_frames(len(piece)) for piece in pieces])
        return [
            _Chunk(name=name, number=number, samples=piece, phones=piece_phones)
            for number, (piece, piece_phones) in enumerate(zip(pieces, phones, strict=True))
            if len(piece_phones)
        ]

    def _phones(self, name: str, frames: list[int]) -> list[NDArray[np.int64]]:
        """(T,) numbers of phones of each chunk."""
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
    """(count,) the middle of each frame's 400 samples, in seconds from the chunk's begin."""
    return (np.arange(count) * FRAME_SAMPLES + FIRST_FRAME_SAMPLES / 2) / RATE_HZ
