"""The tokenize job: from a source of images and audio to a dataset of shards.

Inputs are processed in chunks of 256. Worker processes decode, this process encodes (`encode`),
and each finished chunk is stored in the job folder (`state`). A shard is written once all its
chunks are done (`publish`), and the manifest last. The content of a chunk depends only on the
source and the settings, so neither interruptions nor the number of workers change a byte of the
result.

The job folder is all that runs of a job share. `run_part` encodes a share of the chunks, beside
other parts on other machines; `run_job` encodes those that are left and writes the dataset. Each
shard is a part of the dataset (`DatasetWriter`), and the parts are joined at the end.
"""

import itertools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from im2sp.pipeline.decoding.audio import SAMPLE_RATE_HZ
from im2sp.pipeline.job.config import JobConfig
from im2sp.pipeline.job.decode_pool import IMAGES_PER_TASK, Decoded, DecodePool, media_of
from im2sp.pipeline.job.encode import MediaEncoder, encode_chunk
from im2sp.pipeline.job.identity import check_same_inputs, check_unchanged, drop_changed
from im2sp.pipeline.job.inputs import Inputs, OpenChunk
from im2sp.pipeline.job.output import join_output, output_errors
from im2sp.pipeline.job.places import FolderOutput, StoreOutput
from im2sp.pipeline.job.plan import Cluster, Loaders, Plan, list_inputs, load_tokenizers
from im2sp.pipeline.job.publish import Publisher
from im2sp.pipeline.job.state import JobState
from im2sp.shards import Manifest

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer

__all__ = ["JobConfig", "JobResult", "PartResult", "run_job", "run_part"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Work of one run, for the summary."""

    inputs: Inputs
    """Inputs of the source."""
    num_encoded: int = 0
    """Images encoded by this run; fewer than in the dataset if the run resumed a job."""
    num_utterances: int = 0
    """Clips encoded by this run."""
    audio_s: float = 0.0
    """Seconds of audio in these clips."""
    encode_s: float = 0.0
    """Seconds from the first decoded input to the last shard."""
    was_finished: bool = False
    """True if the same dataset was already complete, so that nothing was done."""


@dataclass(frozen=True, kw_only=True)
class JobResult(RunResult):
    """Result of a job."""

    manifest: Manifest
    """Manifest of the finished dataset."""


@dataclass(frozen=True, kw_only=True)
class PartResult(RunResult):
    """Result of one part of a job."""

    num_inputs: int = 0
    """Inputs of this part, all of which are done; containers where they are listed one by one."""
    num_refused: int = 0
    """Inputs and clips that this run refused."""
    num_left: int = 0
    """Inputs (or containers) of other parts that are not done."""


def run_job(
    config: JobConfig,
    image_tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]",
    speech_tokenizer: "SpeechTokenizer | Callable[[], SpeechTokenizer] | None" = None,
    *,
    cluster: "Callable[[Plan, Loaders], Cluster] | None" = None,
) -> JobResult:
    """Tokenize a source into `config.dataset_dir`, or resume an interrupted run or one of parts.

    Args:
        config: Settings of the job.
        image_tokenizer: The image tokenizer, or a function that loads it; it is called after the
            source is listed, while the decoding processes start, and only if there are images.
        speech_tokenizer: The same for speech; not needed for a source without clips.
        cluster: Other processes that encode, such as `RayCluster`; None for this one.

    Raises:
        SourceError: The source cannot be used.
        JobError: `dataset_dir` holds other files that would be replaced, or cannot be written; or
            the tokenizers do not fit.
    """
    output = _output_of(config)
    with _planned(config, output, image_tokenizer, speech_tokenizer, cluster is None) as planned:
        plan, pool = planned
        state = JobState(config.local_dir, plan.job_id)
        finished = output.check(state, plan.job)
        if finished is None or state.dir.exists():
            with state.lock():
                finished = output.prepare(state, plan.job)
                if finished is None:
                    drop_changed(plan, state)
                    todo = plan.left(state)
                    publisher = Publisher(plan, state, output, todo)
                    if cluster is not None:
                        loaders = image_tokenizer, speech_tokenizer
                        workers = cluster(plan, loaders) if todo else nullcontext()
                        return _run_on_cluster(plan, state, publisher, workers, todo)
                    return _run_all(plan, state, publisher, pool, todo)
        check_unchanged(plan, finished, output.written_ns())
    return JobResult(manifest=finished, inputs=plan.inputs, was_finished=True)


def run_part(
    config: JobConfig,
    part: tuple[int, int],
    image_tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]",
    speech_tokenizer: "SpeechTokenizer | Callable[[], SpeechTokenizer] | None" = None,
) -> PartResult:
    """Encode the chunks of one part of a job; no shard and no manifest is written.

    Parts run in any order, at any time, and at once on machines that share the folder.

    Args:
        config: Settings of the job, the same for all parts; `overwrite` must be False.
        part: Number of the part, from 0, and number of parts. Part i has chunks i, i + N ..
        image_tokenizer: As for `run_job`.
        speech_tokenizer: As for `run_job`.

    Raises:
        SourceError: As for `run_job`.
        JobError: As for `run_job`; or another process works on this part or writes the dataset, or
            the source has changed since the job began.
    """
    assert not config.overwrite, "other parts may have begun"
    index, num_parts = part
    output = _output_of(config)
    with _planned(config, output, image_tokenizer, speech_tokenizer) as (plan, pool):
        state = JobState(config.local_dir, plan.job_id)
        finished = output.check(state, plan.job)
        if finished is None:
            with state.lock_part(index, num_parts):
                digests = plan.inputs.identities()
                finished = join_output(state, plan.job, digests, allow_mixed=config.allow_mixed)
                if finished is None:
                    check_same_inputs(plan, state, digests)
                    return _run_part(plan, state, pool, part)
    return PartResult(inputs=plan.inputs, was_finished=True)


def _output_of(config: JobConfig) -> FolderOutput:
    return FolderOutput(config) if config.url is None else StoreOutput(config)


@contextmanager
def _planned(
    config: JobConfig,
    output: FolderOutput,
    image_tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]",
    speech_tokenizer: "SpeechTokenizer | Callable[[], SpeechTokenizer] | None",
    is_local: bool = True,
) -> Iterator[tuple[Plan, DecodePool]]:
    """Plan of the job, and processes that decode, which start while the tokenizers are loaded."""
    inputs = list_inputs(config)
    num_tasks = -(-inputs.num_media // IMAGES_PER_TASK)
    with DecodePool(
        num_workers=min(config.num_workers, num_tasks),
        view=config.view_name,
        max_pixels=config.max_pixels,
        max_audio_s=config.max_audio_s,
        timeout_s=config.decode_timeout_s,
    ) as pool:
        with output_errors(config.local_dir):
            is_new = not output.exists() or config.overwrite
        if is_new and is_local:
            pool.start()
        loaded = load_tokenizers(config, inputs, image_tokenizer, speech_tokenizer)
        plan = Plan(config, inputs, loaded)
        with output_errors(config.local_dir):
            yield plan, pool


def _run_all(
    plan: Plan, state: JobState, publisher: Publisher, pool: DecodePool, todo: list[int]
) -> JobResult:
    """Encode what is left, and write the dataset."""
    local = _LocalRun(plan, state)
    with local.bar(*_progress(plan, todo)):
        publisher.advance()
        for chunk in local.encode(todo, pool):
            publisher.advance(chunk)
        publisher.finish()
        figures = local.figures()
    return JobResult(manifest=publisher.join(), inputs=plan.inputs, **figures)


def _progress(plan: Plan, todo: list[int]) -> tuple[int, int]:
    """Number of inputs, and of those that are done; estimates where they are not listed."""
    num_inputs = plan.inputs.expected(range(plan.shards[-1].stop))
    return num_inputs, num_inputs - plan.inputs.expected(todo)


def _run_on_cluster(
    plan: Plan,
    state: JobState,
    publisher: Publisher,
    cluster: AbstractContextManager[Cluster | None],
    todo: list[int],
) -> JobResult:
    """Encode what is left on a cluster, and write the dataset."""
    publisher.advance()
    counts: Counter[str] = Counter()
    with cluster as workers, _bar(plan, *_progress(plan, todo)) as bar:
        begin_s = time.monotonic()
        for done in workers.encode(todo) if workers is not None else ():
            state.write_chunk(*done)
            publisher.advance(done.number)
            counts.update(done.tally.raw(has_speech=True), refused=len(done.tally.rejects))
            bar.set_postfix({"refused": f"{counts['refused']:,}"}, refresh=False)
            bar.update(plan.inputs.expected([done.number]))
        publisher.finish()
    return JobResult(
        manifest=publisher.join(),
        inputs=plan.inputs,
        num_encoded=counts["num_images"],
        num_utterances=counts["num_utterances"],
        audio_s=counts["audio_samples"] / SAMPLE_RATE_HZ,
        encode_s=time.monotonic() - begin_s,
    )


def _run_part(plan: Plan, state: JobState, pool: DecodePool, part: tuple[int, int]) -> PartResult:
    """Encode what is left of one part."""
    index, num_parts = part
    own = range(index, plan.shards[-1].stop, num_parts)
    left = plan.left(state)
    todo = [chunk for chunk in left if chunk in own]
    local = _LocalRun(plan, state)
    num_expected = plan.inputs.expected(own)
    with local.bar(num_expected, num_expected - plan.inputs.expected(todo)):
        for _ in local.encode(todo, pool):
            pass
        figures = local.figures()
    left = plan.left(state)
    return PartResult(
        inputs=plan.inputs,
        num_inputs=plan.inputs.count(own),
        num_refused=local.num_refused,
        num_left=plan.inputs.count(left),
        **figures,
    )


# Encoding -----------------------------------------------------------------------------------------


def _bar(plan: Plan, total: int, initial: int) -> "tqdm[Any]":
    return tqdm(
        total=total,
        initial=initial,
        desc="tokenize",
        unit=" images" if plan.tokenizers.speech is None else " inputs",
        disable=plan.config.quiet,
        file=sys.stderr,
        mininterval=0.5,
        dynamic_ncols=True,
    )


class _LocalRun:
    """Encoding of chunks by this process and those that decode for it.

    Attributes:
        num_refused: Inputs and clips refused so far.
    """

    def __init__(self, plan: Plan, state: JobState) -> None:
        self._plan, self._state = plan, state
        tokenizers = plan.tokenizers
        self._encoder = MediaEncoder(tokenizers.image, tokenizers.speech, plan.config.view_name)
        self._begin_s = time.monotonic()
        self.num_refused = 0

    def bar(self, total: int, initial: int) -> "tqdm[Any]":
        """Return the progress bar, a context manager, for `total` inputs, some of them done."""
        self._bar = _bar(self._plan, total, initial)
        return self._bar

    def encode(self, chunks: list[int], pool: DecodePool) -> Iterator[int]:
        """Store chunks in the job folder; iterate over those that are done."""
        with _OpenChunks(self._plan.inputs, chunks) as opened:
            media = (
                medium
                for chunk in chunks
                for item in opened.get(chunk).items
                for medium in media_of(item)
            )
            decoded = self._clocked(pool.decode(media))
            for chunk in chunks:
                self._encode_chunk(chunk, opened.get(chunk), decoded)
                opened.close(chunk)
                yield chunk

    def figures(self) -> dict[str, Any]:
        """Counts of this run and its time, for `RunResult`."""
        return {
            "num_encoded": self._encoder.num_images,
            "num_utterances": self._encoder.num_utterances,
            "audio_s": self._encoder.num_samples / SAMPLE_RATE_HZ,
            "encode_s": time.monotonic() - self._begin_s,
        }

    def _clocked(self, decoded: Iterator[Decoded]) -> Iterator[Decoded]:
        """Start the timers when the first medium arrives, so that start-up is not counted."""
        first = list(itertools.islice(decoded, 1))
        self._bar.unpause()
        self._begin_s = time.monotonic()
        while first:
            yield first.pop()  # not bound to a name, which would keep a clip alive
        yield from decoded

    def _encode_chunk(self, number: int, chunk: OpenChunk, decoded: Iterator[Decoded]) -> None:
        """Encode the inputs of one chunk and store them in the job folder."""
        plan, encoder, tally = self._plan, self._encoder, chunk.tally
        self._bar.total += len(chunk.items) - plan.inputs.expected([number])

        def show(num_inputs: int) -> None:
            figures: dict[str, str] = {}
            if plan.tokenizers.speech is not None:
                hours = encoder.num_samples / SAMPLE_RATE_HZ / 3600
                figures["images"] = f"{encoder.num_images:,}"
                figures["utterances"] = f"{encoder.num_utterances:,}"
                figures["audio"] = f"{hours:.2f} h"
            figures["refused"] = f"{self.num_refused + len(tally.rejects):,}"
            self._bar.set_postfix(figures, refresh=False)
            self._bar.update(num_inputs)

        batch = encode_chunk(encoder, chunk, decoded, plan.chunk_schema, show)
        self.num_refused += len(tally.rejects)
        self._state.write_chunk(number, batch, tally, plan.job["environment"])


class _OpenChunks:
    """Chunks that are decoded or encoded; a context manager, which closes them on exit.

    The next chunk is opened meanwhile: a container that is copied from a store does not delay the
    encoder.

    Args:
        inputs: Inputs of the job.
        order: Chunks in the order in which they are needed.
    """

    def __init__(self, inputs: Inputs, order: Sequence[int]) -> None:
        self._inputs = inputs
        self._next = dict(itertools.pairwise(order))
        self._open: dict[int, Future[tuple[ExitStack, OpenChunk]]] = {}
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> "_OpenChunks":
        return self

    def __exit__(self, *_: object) -> None:
        for chunk in list(self._open):
            with suppress(Exception):  # that of a chunk which was not used
                self.close(chunk)
        self._thread.shutdown()

    def get(self, chunk: int) -> OpenChunk:
        """Return a chunk, opened if it is not open yet."""
        for number in (chunk, self._next.get(chunk)):
            if number is not None and number not in self._open:
                self._open[number] = self._thread.submit(self._opened, number)
        return self._open[chunk].result()[1]

    def close(self, chunk: int) -> None:
        """Close a chunk that is done."""
        self._open.pop(chunk).result()[0].close()

    def _opened(self, chunk: int) -> tuple[ExitStack, OpenChunk]:
        stack = ExitStack()
        return stack, stack.enter_context(self._inputs.chunk(chunk).opened())
