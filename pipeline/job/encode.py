"""Encoding of decoded images and clips to samples of units.

Inputs are encoded in groups, large enough to keep the cores or the GPU busy and small enough to fit
in memory and to show progress. Long clips are encoded in pieces of 100 s, into which the tokenizer
would split them anyway.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from im2sp.pipeline.decoding.audio import MIN_SAMPLES, SAMPLE_RATE_HZ
from im2sp.pipeline.decoding.views import VIEWS
from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job.decode_pool import Decoded, Medium, media_of
from im2sp.pipeline.job.inputs import OpenChunk
from im2sp.pipeline.job.state import Tally
from im2sp.pipeline.sources.items import SourceItem, Utterance, texts_of
from im2sp.shards import Sample, ShardError, deduplicate
from im2sp.shards.schema import Schema, batch_of_rows

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer

GPU_BATCH_INPUTS = 64
"""Inputs encoded at once on a GPU; while it encodes their images, the next ones are taken."""
MIN_CPU_BATCH_INPUTS, MAX_CPU_BATCH_INPUTS = 16, 64
"""The same on a CPU, where a slow tokenizer gets smaller groups to keep the progress visible."""
FIRST_GROUP_SAMPLES = 100 * SAMPLE_RATE_HZ
"""Samples of audio encoded at once on a CPU; doubled while groups are quick."""
MAX_GROUP_SAMPLES = 800 * SAMPLE_RATE_HZ
"""Upper limit on a CPU, and the value on a GPU: 51 MB."""
_MAX_CALL_SAMPLES = MAX_GROUP_SAMPLES + 100 * SAMPLE_RATE_HZ
_QUICK_S = 0.5


@dataclass(frozen=True, kw_only=True)
class _EncodedClip:
    """A clip of one input after encoding."""

    utterance: Utterance
    result: Decoded
    num_samples: int = 0
    units: np.ndarray | None = None
    durations: np.ndarray | None = None


@dataclass(kw_only=True)
class _Draft:
    """One input whose media were decoded."""

    item: SourceItem
    refusal: str = ""
    image_file_bytes: int = 0
    image_units: np.ndarray | None = None
    clips: list[_EncodedClip] = field(default_factory=list)


@dataclass(kw_only=True)
class _Group:
    """Inputs that are encoded together."""

    drafts: list[_Draft] = field(default_factory=list)
    images: list[tuple[_Draft, np.ndarray]] = field(default_factory=list)
    clips: list[tuple[_Draft, int, np.ndarray]] = field(default_factory=list)
    num_samples: int = 0


class MediaEncoder:
    """Encoder of inputs, with the tokenizers that their source needs.

    Its output depends only on the inputs, not on how they are grouped.

    Attributes:
        num_images: Images encoded so far.
        num_utterances: Clips encoded so far.
        num_samples: Samples of audio at 16 kHz encoded so far.
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
        # On a GPU units may depend on their group, so its size must not depend on timing there.
        self._is_cpu = all(one.device.type == "cpu" for one in tokenizers)
        self._batch_inputs = MIN_CPU_BATCH_INPUTS if self._is_cpu else GPU_BATCH_INPUTS
        self._group_samples = FIRST_GROUP_SAMPLES if self._is_cpu else MAX_GROUP_SAMPLES
        self.num_images = self.num_utterances = self.num_samples = 0
        self._images = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def encode(
        self,
        items: Sequence[SourceItem],
        decoded: Iterator[Decoded],
        tally: Tally,
        on_progress: Callable[[int], object],
    ) -> list[Sample]:
        """Return samples of the inputs that are not refused.

        Args:
            items: The inputs.
            decoded: Iterator over their decoded media, in the order of `media_of`; only these are
                consumed.
            tally: Counts and rejects are added to it.
            on_progress: Called with the number of inputs in each group that is done.
        """
        samples: list[Sample] = []
        start = 0
        waiting: list[_Group] = []  # those whose images a GPU encodes
        while start < len(items):
            begin_s = time.monotonic()
            group = self._take(items[start : start + self._batch_inputs], decoded)
            start += len(group.drafts)
            self._encode_clips(group)
            self._start_images(group)
            waiting.append(group)
            is_last = start == len(items)
            if self._is_cpu or is_last:
                self._wait_for_images()
            while len(waiting) > (0 if self._is_cpu or is_last else 1):
                drafts = waiting.pop(0).drafts
                finished = (_finish(draft, tally) for draft in drafts)
                samples += [sample for sample in finished if sample is not None]
                on_progress(len(drafts))
            # Larger groups keep the cores busy; on a CPU units do not depend on their group.
            if self._is_cpu and time.monotonic() - begin_s < _QUICK_S:
                self._batch_inputs = min(2 * self._batch_inputs, MAX_CPU_BATCH_INPUTS)
                self._group_samples = min(2 * self._group_samples, MAX_GROUP_SAMPLES)
        return samples

    def _take(self, items: Sequence[SourceItem], decoded: Iterator[Decoded]) -> _Group:
        """Return the next group: at least one input."""
        group = _Group()
        for item in items:
            if group.drafts and group.num_samples >= self._group_samples:
                break
            draft = _Draft(item=item)
            group.drafts.append(draft)
            for medium in media_of(item):
                # Not bound to a name, which would keep it alive while the next one is decoded.
                self._take_medium(group, draft, medium, next(decoded))
        return group

    def _take_medium(self, group: _Group, draft: _Draft, medium: Medium, result: Decoded) -> None:
        if draft.refusal:
            return  # its clips are dropped too
        if not isinstance(medium, Utterance):
            if result.pixels is None:
                draft.refusal = result.reason
                return
            draft.image_file_bytes = result.size_bytes
            group.images.append((draft, result.pixels))
            return
        place, waveform = len(draft.clips), result.waveform
        num_samples = 0 if waveform is None else len(waveform)
        kept = replace(result, waveform=None)
        draft.clips.append(_EncodedClip(utterance=medium, result=kept, num_samples=num_samples))
        if waveform is not None:
            group.clips.append((draft, place, waveform))
            group.num_samples += num_samples
            if group.num_samples >= MAX_GROUP_SAMPLES:
                self._encode_clips(group)

    def _start_images(self, group: _Group) -> None:
        """Encode the images of the group, on a GPU in a thread, after those of the last group."""
        self._wait_for_images()
        if self._is_cpu:
            self._encode_images(group)
        else:
            self._running = self._images.submit(self._encode_images, group)

    def _wait_for_images(self) -> None:
        """Wait until nothing runs in the thread; the precision of a GPU is set per process."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _encode_images(self, group: _Group) -> None:
        if not group.images:
            return
        units = self._image_units([pixels for _, pixels in group.images])
        for (draft, _), image_units in zip(group.images, units, strict=True):
            draft.image_units = image_units
        self.num_images += len(group.images)

    def _image_units(self, pixels: list[np.ndarray]) -> np.ndarray:
        """uint8 [S, S, 3] each -> uint16 [B, 28, 28]."""
        assert self._image_tokenizer is not None
        units = self._image_tokenizer.encode_uint8(np.stack(pixels))
        return self._view.crop_units(units).numpy().astype(np.uint16)

    def _encode_clips(self, group: _Group) -> None:
        """Encode the clips of the group, and release them."""
        if not group.clips:
            return
        self._wait_for_images()
        frames = self._frame_units([waveform for _, _, waveform in group.clips])
        for (draft, place, _), frame_units in zip(group.clips, frames, strict=True):
            clip = draft.clips[place]
            try:
                units, durations = deduplicate(frame_units)
                draft.clips[place] = replace(clip, units=units, durations=durations)
            except ShardError as error:  # a unit repeated for longer than a duration can hold
                result = replace(clip.result, reason=str(error))
                draft.clips[place] = replace(clip, result=result)
            self.num_utterances += 1
            self.num_samples += clip.num_samples
        group.clips.clear()
        group.num_samples = 0

    def _frame_units(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        """Units per frame, repeats kept: float32 [T] each -> uint16 [frames] each."""
        from im2sp.pipeline.speech_tokenizer.tokenizer import CHUNK_SAMPLES

        assert self._speech_tokenizer is not None
        pieces = [
            (index, waveform[start : start + CHUNK_SAMPLES])
            for index, waveform in enumerate(waveforms)
            for start in range(0, len(waveform) - MIN_SAMPLES + 1, CHUNK_SAMPLES)
        ]
        found: list[list[np.ndarray]] = [[] for _ in waveforms]
        for part in _parts(pieces):
            units = self._speech_tokenizer.encode_batch([piece for _, piece in part])
            for (index, _), frame_units in zip(part, units, strict=True):
                found[index].append(frame_units)
        return [np.concatenate(parts) for parts in found]


def _parts(pieces: list[tuple[int, np.ndarray]]) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Batches of pieces for the tokenizer: one batch, unless there are long clips."""
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


def batch_of_samples(samples: Sequence[Sample], schema: Schema) -> pa.RecordBatch:
    """Return the record batch of a chunk's samples."""
    rows = [
        schema.encode_row({name: sample[name] for name in schema.arrow.names}) for sample in samples
    ]
    return batch_of_rows(rows, schema.arrow)


def encode_chunk(
    encoder: MediaEncoder,
    chunk: OpenChunk,
    decoded: Iterator[Decoded],
    schema: Schema,
    on_progress: Callable[[int], object],
) -> pa.RecordBatch:
    """Return the samples of a chunk; its tally is completed.

    Args:
        encoder: The encoder.
        chunk: The inputs.
        decoded: As for `MediaEncoder.encode`.
        schema: Schema of the chunks.
        on_progress: As for `MediaEncoder.encode`.
    """
    # Packed in between, as the samples of a container are many.
    size, items = job_config.CHUNK_SIZE, chunk.items
    batches = [
        batch_of_samples(
            encoder.encode(items[start : start + size], decoded, chunk.tally, on_progress), schema
        )
        for start in range(0, max(len(items), 1), size)
    ]
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _finish(draft: _Draft, tally: Tally) -> Sample | None:
    """Return the sample of an input, None if it is refused; adds to the counts."""
    item = draft.item
    if draft.refusal:
        tally.rejects.append({"file": item.name, "reason": draft.refusal})
        return None
    accepted = [clip for clip in draft.clips if not clip.result.reason]
    refused = [clip for clip in draft.clips if clip.result.reason]
    tally.rejects += [
        {"file": clip.utterance.name, "reason": clip.result.reason} for clip in refused
    ]
    if draft.image_units is not None:
        tally.num_images += 1
        tally.image_file_bytes += draft.image_file_bytes
    elif not accepted:
        return None
    for clip in accepted:
        tally.num_utterances += 1
        tally.audio_samples += clip.num_samples
        tally.audio_file_bytes += clip.result.size_bytes
    return Sample(
        key=item.key,
        split=item.split,
        image_units=draft.image_units,
        speech_units=[clip.units for clip in accepted if clip.units is not None],
        durations=[clip.durations for clip in accepted if clip.durations is not None]
        if accepted
        else None,
        captions=captions_of(
            item,
            [clip.utterance for clip in accepted],
            [clip.utterance for clip in refused],
        ),
    )


def captions_of(
    item: SourceItem, accepted: Sequence[Utterance], refused: Sequence[Utterance]
) -> list[str]:
    """Captions of a sample: one per stored clip, in their order, then those without speech.

    A clip without a transcript has "", so that captions and clips stay aligned; if there is no text
    at all, there are no captions.
    """
    rest = [*texts_of(refused), *item.captions]
    if not rest and not texts_of(accepted):
        return []
    return [utterance.text or "" for utterance in accepted] + rest
