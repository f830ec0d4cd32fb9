"""The tokenize job: from a source of images and audio to a dataset of shards.

Inputs are processed in chunks of 256. Worker processes decode, this process encodes (`encode`),
and each finished chunk is stored in the job folder (`state`). A shard is written once all its
chunks are done, and the manifest last. The content of a chunk depends only on the source and the
settings, so neither interruptions nor the number of workers change a byte of the result.

Each shard is a part of the dataset (`DatasetWriter`), and the parts are joined at the end. Chunks
store units in plain codes. Shards use tables fitted to the first shard's worth of speech (and of
images, unless the tokenizer has tables), so shards before the first one with speech are written
after it.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from im2sp.pipeline.decoding.audio import SAMPLE_RATE_HZ
from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job.columns import (
    columns_of_job,
    image_coding,
    image_tables,
    schema_of,
    speech_coding,
    tables_of,
)
from im2sp.pipeline.job.config import JobConfig, JobError, check_image_tokenizer, describe_job
from im2sp.pipeline.job.decode_pool import IMAGES_PER_TASK, Decoded, DecodePool, media_of
from im2sp.pipeline.job.encode import MediaEncoder
from im2sp.pipeline.job.identity import (
    changed_since,
    identities,
    read_identities,
    write_identities,
)
from im2sp.pipeline.job.output import check_output, disk_errors, prepare_output
from im2sp.pipeline.job.state import JobState, Tally
from im2sp.pipeline.sources import list_source
from im2sp.pipeline.sources.items import SourceItem, SourceListing, has_images, has_speech, narrowed
from im2sp.shards import (
    MANIFEST_NAME,
    DatasetWriter,
    Manifest,
    ShardError,
    UnitColumn,
    join_parts,
)
from im2sp.shards.errors import counted, log
from im2sp.shards.schema import batch_of_rows

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer

__all__ = ["JobConfig", "JobResult", "run_job"]


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """Result of a job, for the summary."""

    manifest: Manifest
    """Manifest of the finished dataset."""
    listing: SourceListing
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
class _Tokenizers:
    """Tokenizers that the source needs; None for a kind of media that it does not hold."""

    image: "ImageTokenizer | None"
    speech: "SpeechTokenizer | None"
    image_coding: str | None
    """Coding of image units, `huffman` or `plain`; None if there are no images."""
    coding: str | None
    """Coding of speech, `huffman` or `plain`; None if there is no speech."""

    @property
    def codings(self) -> tuple[str | None, str | None]:
        """Coding of images and of speech."""
        return self.image_coding, self.coding

    @property
    def fits_images(self) -> bool:
        """Coding tables are fitted to the images."""
        if self.image is None or self.image_coding != job_config.FITTED:
            return False
        return not image_tables(self.image.name)


def run_job(
    config: JobConfig,
    image_tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]",
    speech_tokenizer: "SpeechTokenizer | Callable[[], SpeechTokenizer] | None" = None,
) -> JobResult:
    """Tokenize a source into `config.dataset_dir`, or resume an interrupted run.

    Args:
        config: Settings of the job.
        image_tokenizer: The image tokenizer, or a function that loads it; it is called after the
            source is listed, while the decoding processes start, and only if there are images.
        speech_tokenizer: The same for speech; not needed for a source without clips.

    Raises:
        SourceError: The source cannot be used.
        JobError: `dataset_dir` holds other files that would be replaced, or cannot be written; or
            the tokenizers do not fit.
    """
    listing = list_source(
        config.sources,
        image_root=config.image_root,
        audio_root=config.audio_root,
        columns=config.column_names(),
    )
    listing = narrowed(listing, config.only, config.sources_name)
    state = JobState(config.dataset_dir)
    num_tasks = -(-sum(len(media_of(item)) for item in listing.items) // IMAGES_PER_TASK)
    with DecodePool(
        num_workers=min(config.num_workers, num_tasks),
        view=config.view_name,
        max_pixels=config.max_pixels,
        max_audio_s=config.max_audio_s,
        timeout_s=config.decode_timeout_s,
    ) as pool:
        if config.overwrite or not (config.dataset_dir / MANIFEST_NAME).exists():
            pool.start()
        loaded = _load(config, listing.items, image_tokenizer, speech_tokenizer)
        job = describe_job(config, listing, loaded.image, loaded.speech, loaded.codings)
        with disk_errors(config.dataset_dir):
            finished = check_output(state, job, overwrite=config.overwrite)
            if finished is None or state.dir.exists():
                with state.lock():
                    finished = prepare_output(state, job, overwrite=config.overwrite)
                    if finished is None:
                        _drop_changed(config, state, listing.items, fits_images=loaded.fits_images)
                        return _Run(config, loaded, listing, state, job).run(pool)
            _check_unchanged(config, listing.items, finished)
    return JobResult(manifest=finished, listing=listing, was_finished=True)


def _drop_changed(
    config: JobConfig, state: JobState, items: list[SourceItem], *, fits_images: bool
) -> None:
    """Forget what an unfinished job made of inputs that have changed since; keep the digests."""
    digests = identities(items)
    before = read_identities(state.dir, len(items))
    if before is None:
        state.forget(None, _shards(config, len(items)))
    elif len(changed := np.flatnonzero(before != digests)):
        if not config.quiet:
            log(
                f"{counted(len(changed), 'input')} changed since the job began (the first: "
                f"{items[changed[0]].name}); encoding again"
            )
        is_fitted = any(items[index].utterances or fits_images for index in changed)
        chunks = sorted({int(index) // job_config.CHUNK_SIZE for index in changed})
        # Tables are fitted to speech: with other speech every shard may change.
        state.forget(None if is_fitted else chunks, _shards(config, len(items)))
    write_identities(state.dir, digests)


def _shards(config: JobConfig, num_items: int) -> list[range]:
    """Chunks of each shard; at least one shard."""
    num_chunks = -(-num_items // job_config.CHUNK_SIZE)
    size = config.chunks_per_shard
    return [
        range(first, min(first + size, num_chunks)) for first in range(0, max(num_chunks, 1), size)
    ]


def _check_unchanged(config: JobConfig, items: list[SourceItem], finished: Manifest) -> None:
    """Raise `JobError` if inputs have changed since the finished dataset was made."""
    path = config.dataset_dir / MANIFEST_NAME
    changed = changed_since(items, path, finished.raw, finished.num_rejects)
    if changed:
        raise JobError(
            f"{config.dataset_dir}: {counted(len(changed), 'input')} of {config.sources_name} "
            f"changed since this dataset was made (the first: {changed[0]}); give --overwrite to "
            "encode all again, or choose another --out"
        )


def _load(
    config: JobConfig,
    items: list[SourceItem],
    image_tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]",
    speech_tokenizer: "SpeechTokenizer | Callable[[], SpeechTokenizer] | None",
) -> _Tokenizers:
    """Load the tokenizers that the items need."""
    image = speech = coding = coding_of_images = None
    if has_images(items):
        image = image_tokenizer() if callable(image_tokenizer) else image_tokenizer
        check_image_tokenizer(config, image)
        num_images = sum(item.image is not None for item in items)
        coding_of_images = image_coding(config.image_codec, config.shard_layout, image, num_images)
    if has_speech(items):
        speech = speech_tokenizer() if callable(speech_tokenizer) else speech_tokenizer
        if speech is None:
            raise JobError(f"{config.sources_name}: holds speech, which needs a speech tokenizer")
        coding = speech_coding(config.speech_codec, config.shard_layout, speech.num_units)
    return _Tokenizers(image=image, speech=speech, image_coding=coding_of_images, coding=coding)


class _Run:
    """One run of a job, new or resumed."""

    def __init__(
        self,
        config: JobConfig,
        loaded: _Tokenizers,
        listing: SourceListing,
        state: JobState,
        job: dict[str, Any],
    ) -> None:
        self.config, self.loaded, self.state, self.job = config, loaded, state, job
        self.listing, self.items = listing, listing.items
        self.shards = _shards(config, len(self.items))
        self.encoder = MediaEncoder(loaded.image, loaded.speech, config.view_name)
        self.columns = columns_of_job(loaded.image, loaded.speech, *loaded.codings)
        plain = job_config.PLAIN
        self.chunk_schema = schema_of(columns_of_job(loaded.image, loaded.speech, plain, plain))
        self.tables: dict[str, Any] = state.read_tables() or {}
        if loaded.image is not None and loaded.image_coding == job_config.FITTED:
            self.tables |= image_tables(loaded.image.name)
        self.num_refused = 0

    def run(self, pool: DecodePool) -> JobResult:
        """Do the remaining work, then write the manifest."""
        todo = [
            chunk
            for shard, chunks in enumerate(self.shards)
            if not self.state.has_shard(shard, len(self.shards))
            for chunk in chunks
            if not self.state.has_chunk(chunk)
        ]
        waiting: list[int] = []
        with self._bar(todo) as bar:
            media = (
                medium for chunk in todo for item in self._items(chunk) for medium in media_of(item)
            )
            decoded = self._clocked(pool.decode(media), bar)
            self._begin_s = time.monotonic()
            for shard, chunks in enumerate(self.shards):
                if self.state.has_shard(shard, len(self.shards)):
                    self.state.drop_chunks(chunks)
                    continue
                for chunk in chunks:
                    if not self.state.has_chunk(chunk):
                        self._encode_chunk(chunk, decoded, bar)
                waiting.append(shard)
                if self._find_tables(chunks):
                    self._finish(waiting)
            # Without an accepted clip or image there is nothing to fit tables to.
            self.tables |= tables_of(self._unfitted(), [], self.chunk_schema)
            self._finish(waiting)
            encode_s = time.monotonic() - self._begin_s
        return JobResult(
            manifest=self._publish(),
            listing=self.listing,
            num_encoded=self.encoder.num_images,
            num_utterances=self.encoder.num_utterances,
            audio_s=self.encoder.num_samples / SAMPLE_RATE_HZ,
            encode_s=encode_s,
        )

    def _clocked(self, decoded: Iterator[Decoded], bar: "tqdm[Any]") -> Iterator[Decoded]:
        """Start the timers when the first medium arrives, so that start-up is not counted."""
        first = list(itertools.islice(decoded, 1))
        bar.unpause()
        self._begin_s = time.monotonic()
        while first:
            yield first.pop()  # not bound to a name, which would keep a clip alive
        yield from decoded

    def _find_tables(self, chunks: range) -> bool:
        """Fit coding tables to the first speech and images; True if all are known."""
        if unfitted := self._unfitted():
            tally = self.state.count(chunks)
            num = {"image_units": tally.num_images}
            ready = {k: v for k, v in unfitted.items() if num.get(k, tally.num_utterances)}
            if ready:
                batches = self.state.read_batches(chunks)
                self.tables |= tables_of(ready, batches, self.chunk_schema)
                self.state.write_tables(self.tables)
        return not self._unfitted()

    def _unfitted(self) -> dict[str, UnitColumn]:
        """Coded columns whose tables are not known yet."""
        known = {name.partition(".")[0] for name in self.tables}
        return {
            name: column
            for name, column in self.columns.items()
            if column.coding == "coded" and name not in known
        }

    def _finish(self, shards: list[int]) -> None:
        """Write shards whose chunks are complete, and empty the list."""
        has_speech = self.loaded.speech is not None
        for shard in shards:
            chunks, writer = self.shards[shard], self._writer(shard)
            self.state.finish_shard(writer, chunks, self.chunk_schema, has_speech=has_speech)
        shards.clear()

    def _writer(self, shard: int) -> DatasetWriter:
        """Writer of a shard, as a part of the dataset."""
        image, layout = self.loaded.image, self.config.shard_layout
        records = {
            "image_units": self.job.get("image_tokenizer"),
            "speech_units": self.job.get("speech_tokenizer"),
        }
        return DatasetWriter(
            self.config.dataset_dir,
            columns=self.columns,
            layout=layout.kind,
            samples_per_member=layout.samples_per_member,
            samples_per_shard=self.config.chunks_per_shard * job_config.CHUNK_SIZE,
            tokenizers={name: record for name, record in records.items() if record is not None},
            codebooks={} if image is None else {"image_units": image.codebook.numpy()},
            tables=self.tables,
            settings=self.job["settings"],
            part=(shard, len(self.shards)),
        )

    def _bar(self, todo: list[int]) -> "tqdm[Any]":
        left = sum(len(self._items(chunk)) for chunk in todo)
        return tqdm(
            total=len(self.items),
            initial=len(self.items) - left,
            desc="tokenize",
            unit=" images" if self.loaded.speech is None else " inputs",
            disable=self.config.quiet,
            file=sys.stderr,
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def _items(self, chunk: int) -> list[SourceItem]:
        size = job_config.CHUNK_SIZE
        return self.items[chunk * size : (chunk + 1) * size]

    def _encode_chunk(self, chunk: int, decoded: Iterator[Decoded], bar: "tqdm[Any]") -> None:
        """Encode the inputs of one chunk and store them in the job folder."""
        tally = Tally()
        encoder = self.encoder

        def show(num_inputs: int) -> None:
            figures: dict[str, str] = {}
            if self.loaded.speech is not None:
                hours = encoder.num_samples / SAMPLE_RATE_HZ / 3600
                figures["images"] = f"{encoder.num_images:,}"
                figures["utterances"] = f"{encoder.num_utterances:,}"
                figures["audio"] = f"{hours:.2f} h"
            figures["refused"] = f"{self.num_refused + len(tally.rejects):,}"
            bar.set_postfix(figures, refresh=False)
            bar.update(num_inputs)

        samples = encoder.encode(self._items(chunk), decoded, tally, show)
        self.num_refused += len(tally.rejects)
        schema = self.chunk_schema
        rows = [
            schema.encode_row({name: sample[name] for name in schema.arrow.names})
            for sample in samples
        ]
        self.state.write_chunk(chunk, batch_of_rows(rows, schema.arrow), tally)

    def _publish(self) -> Manifest:
        """Join the shards; the manifest is written last."""
        try:
            manifest = join_parts(self.config.dataset_dir)
        except ShardError as error:
            raise JobError(f"{error}; or start over with --overwrite") from None
        self.state.remove()
        return manifest
