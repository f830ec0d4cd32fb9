"""Decoded pictures and clips to samples of units.

Inputs are encoded a group at a time: large enough to keep the cores or the GPU busy, small enough
to fit in memory and to show progress. Long clips go through in pieces of 100 s, which the tokenizer
would cut them into anyway.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from im2sp.pipeline.decoding.audio import MIN_SAMPLES, SAMPLE_RATE_HZ
from im2sp.pipeline.decoding.views import VIEWS
from im2sp.pipeline.job.decode_pool import Decoded, Medium, media_of
from im2sp.pipeline.job.state import Tally
from im2sp.pipeline.sources.items import SourceItem, Utterance, texts_of
from im2sp.shards import Sample, ShardError, deduplicate

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer

GPU_BATCH_INPUTS = 128
"""Inputs encoded at once on a GPU."""
MIN_CPU_BATCH_INPUTS, MAX_CPU_BATCH_INPUTS = 16, 64
"""The same on a CPU, where a slow tokenizer gets fewer, so that progress shows."""
FIRST_GROUP_SAMPLES = 100 * SAMPLE_RATE_HZ
"""Sound encoded at once on a CPU; doubled while that is quick."""
MAX_GROUP_SAMPLES = 800 * SAMPLE_RATE_HZ
"""The most of it, and what a GPU gets: 51 MB."""
_MAX_CALL_SAMPLES = MAX_GROUP_SAMPLES + 100 * SAMPLE_RATE_HZ
_QUICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class _Spoken:
    """An utterance of one input after encoding."""

    utterance: Utterance
    result: Decoded
    num_samples: int = 0
    units: np.ndarray | None = None
    durations: np.ndarray | None = None


@dataclass(kw_only=True)
class _Draft:
    """One input whose media were taken from the decoding processes."""

    item: SourceItem
    refusal: str = ""
    image_file_bytes: int = 0
    image_units: np.ndarray | None = None
    spoken: list[_Spoken] = field(default_factory=list)


@dataclass(kw_only=True)
class _Group:
    """What is encoded together."""

    drafts: list[_Draft] = field(default_factory=list)
    pictures: list[tuple[_Draft, np.ndarray]] = field(default_factory=list)
    clips: list[tuple[_Draft, int, np.ndarray]] = field(default_factory=list)
    num_samples: int = 0


class MediaEncoder:
    """Encodes inputs with the tokenizers that their source needs.

    What it gives depends on the inputs alone, not on how they are grouped.

    Attributes:
        num_images: Pictures encoded so far.
        num_utterances: Clips encoded so far.
        num_samples: Samples of sound at 16 kHz encoded so far.
    """

    def __init__(
        self,
        image_tokenizer: "ImageTokenizer | None",
        speech_tokenizer: "SpeechTokenizer | None",
        view: str,
    ) -> None:
        self._image_tokenizer = image_tokenizer
        self._speech_tokenizer = speech_tokenizer
        self._view = VIEWS[view]
        tokenizers = [one for one in (image_tokenizer, speech_tokenizer) if one is not None]
        # On a GPU units may depend on their group, so groups do not depend on the clock there.
        self._is_cpu = all(one.device.type == "cpu" for one in tokenizers)
        self._batch_inputs = MIN_CPU_BATCH_INPUTS if self._is_cpu else GPU_BATCH_INPUTS
        self._group_samples = FIRST_GROUP_SAMPLES if self._is_cpu else MAX_GROUP_SAMPLES
        self.num_images = self.num_utterances = self.num_samples = 0

    def encode(
        self,
        items: Sequence[SourceItem],
        decoded: Iterator[Decoded],
        tally: Tally,
        on_progress: Callable[[int], object],
    ) -> list[Sample]:
        """Samples of the inputs that are not refused.

        Args:
            items: The inputs.
            decoded: Gives what `media_of` them became, in that order; as much is taken from it.
            tally: Counts and rejects are added to it.
            on_progress: Called with a number of inputs whenever so many more are done.
        """
        samples: list[Sample] = []
        start = 0
        while start < len(items):
            begin_s = time.monotonic()
            group = self._take(items[start:], decoded)
            self._encode_pictures(group)
            self._encode_clips(group)
            samples += [
                sample for draft in group.drafts if (sample := _finish(draft, tally)) is not None
            ]
            start += len(group.drafts)
            on_progress(len(group.drafts))
            # Larger groups keep the cores busy; on a CPU units do not depend on their group.
            if self._is_cpu and time.monotonic() - begin_s < _QUICK_S:
                self._batch_inputs = min(2 * self._batch_inputs, MAX_CPU_BATCH_INPUTS)
                self._group_samples = min(2 * self._group_samples, MAX_GROUP_SAMPLES)
        return samples

    def _take(self, items: Sequence[SourceItem], decoded: Iterator[Decoded]) -> _Group:
        """The next group: at least one input."""
        group = _Group()
        for item in items[: self._batch_inputs]:
            if group.drafts and group.num_samples >= self._group_samples:
                break
            draft = _Draft(item=item)
            group.drafts.append(draft)
            for medium in media_of(item):
                # Not named here, where it would live on while the next one comes.
                self._take_medium(group, draft, medium, next(decoded))
        return group

    def _take_medium(self, group: _Group, draft: _Draft, medium: Medium, result: Decoded) -> None:
        if draft.refusal:
            return  # its clips go with it
        if not isinstance(medium, Utterance):
            if result.pixels is None:
                draft.refusal = result.reason
                return
            draft.image_file_bytes = result.size_bytes
            group.pictures.append((draft, result.pixels))
            return
        place, waveform = len(draft.spoken), result.waveform
        num_samples = 0 if waveform is None else len(waveform)
        kept = replace(result, waveform=None)
        draft.spoken.append(_Spoken(utterance=medium, result=kept, num_samples=num_samples))
        if waveform is not None:
            group.clips.append((draft, place, waveform))
            group.num_samples += num_samples
            if group.num_samples >= MAX_GROUP_SAMPLES:
                self._encode_clips(group)

    def _encode_pictures(self, group: _Group) -> None:
        if not group.pictures:
            return
        units = self._image_units([pixels for _, pixels in group.pictures])
        for (draft, _), image_units in zip(group.pictures, units, strict=True):
            draft.image_units = image_units
        self.num_images += len(group.pictures)

    def _image_units(self, pixels: list[np.ndarray]) -> np.ndarray:
        """uint8 [S, S, 3] each -> uint16 [B, 28, 28]."""
        assert self._image_tokenizer is not None
        units = self._image_tokenizer.encode_uint8(np.stack(pixels))
        return self._view.crop_units(units).numpy().astype(np.uint16)

    def _encode_clips(self, group: _Group) -> None:
        """Encode the clips that the group holds, and let go of them."""
        if not group.clips:
            return
        frames = self._frame_units([waveform for _, _, waveform in group.clips])
        for (draft, place, _), frame_units in zip(group.clips, frames, strict=True):
            spoken = draft.spoken[place]
            try:
                units, durations = deduplicate(frame_units)
                draft.spoken[place] = replace(spoken, units=units, durations=durations)
            except ShardError as error:  # one sound for longer than a duration can say
                result = replace(spoken.result, reason=str(error))
                draft.spoken[place] = replace(spoken, result=result)
            self.num_utterances += 1
            self.num_samples += spoken.num_samples
        group.clips.clear()
        group.num_samples = 0

    def _frame_units(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """float32 [T] each -> uint16 [frames] each, repeats kept."""
        from im2sp.pipeline.speech_tokenizer.tokenizer import CHUNK_SAMPLES

        assert self._speech_tokenizer is not None
        pieces = [
            (clip, waveform[start : start + CHUNK_SAMPLES])
            for clip, waveform in enumerate(waveforms)
            for start in range(0, len(waveform) - MIN_SAMPLES + 1, CHUNK_SAMPLES)
        ]
        found: list[list[np.ndarray]] = [[] for _ in waveforms]
        for part in _parts(pieces):
            units = self._speech_tokenizer.encode_batch([piece for _, piece in part])
            for (clip, _), frame_units in zip(part, units, strict=True):
                found[clip].append(frame_units)
        return [np.concatenate(parts) for parts in found]


def _parts(pieces: list[tuple[int, np.ndarray]]) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Pieces that go through the tokenizer together: all of them, but for those of long clips."""
    part: list[tuple[int, np.ndarray]] = []
    num_samples = 0
    for piece in pieces:
        if part and num_samples + len(piece[1]) > _MAX_CALL_SAMPLES:
            yield part
            part, num_samples = [], 0
        part.append(piece)
        num_samples += len(piece[1])
    if part:
        yield part


def _finish(draft: _Draft, tally: Tally) -> Sample | None:
    """The sample of an input, None if it is refused; counts it."""
    item = draft.item
    if draft.refusal:
        tally.rejects.append({"file": item.name, "reason": draft.refusal})
        return None
    accepted = [spoken for spoken in draft.spoken if not spoken.result.reason]
    refused = [spoken for spoken in draft.spoken if spoken.result.reason]
    tally.rejects += [
        {"file": spoken.utterance.name, "reason": spoken.result.reason} for spoken in refused
    ]
    if draft.image_units is not None:
        tally.num_images += 1
        tally.image_file_bytes += draft.image_file_bytes
    elif not accepted:
        return None
    for spoken in accepted:
        tally.num_utterances += 1
        tally.audio_samples += spoken.num_samples
        tally.audio_file_bytes += spoken.result.size_bytes
    return Sample(
        key=item.key,
        split=item.split,
        image_units=draft.image_units,
        speech_units=[spoken.units for spoken in accepted if spoken.units is not None],
        durations=[spoken.durations for spoken in accepted if spoken.durations is not None]
        if accepted
        else None,
        captions=captions_of(
            item,
            [spoken.utterance for spoken in accepted],
            [spoken.utterance for spoken in refused],
        ),
    )


def captions_of(
    item: SourceItem, accepted: Sequence[Utterance], refused: Sequence[Utterance]
) -> list[str]:
    """Captions of a sample: one a stored utterance, in their order, then those without speech.

    An utterance without a transcript has "", so that the others keep their place;
    where there is no text at all, there are no captions.
    """
    rest = [*texts_of(refused), *item.captions]
    if not rest and not texts_of(accepted):
        return []
    return [utterance.text or "" for utterance in accepted] + rest
