"""Plan of a tokenize job: all that its runs, on one machine or on many, have in common."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job.columns import (
    columns_of_job,
    image_coding,
    image_tables,
    schema_of,
    speech_coding,
)
from im2sp.pipeline.job.config import JobConfig, JobError, check_image_tokenizer, describe_job
from im2sp.pipeline.job.state import EncodedChunk, JobState
from im2sp.pipeline.sources import list_source
from im2sp.pipeline.sources.items import SourceItem, SourceListing, has_images, has_speech, narrowed

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer


Loaders = tuple[
    "ImageTokenizer | Callable[[], ImageTokenizer] | None",
    "SpeechTokenizer | Callable[[], SpeechTokenizer] | None",
]
"""The tokenizers of images and of speech, or functions that load them."""


@dataclass(frozen=True, kw_only=True)
class Tokenizers:
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

    @property
    def environment(self) -> dict[str, str]:
        """Version of torch and kind of device, with which units may differ in a few places."""
        device = next(one.device for one in (self.image, self.speech) if one is not None)
        if device.type == "cuda":
            name = torch.cuda.get_device_name(device)
        else:
            name = f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
        return {"torch": torch.__version__, "device": name}


class Plan:
    """Inputs of a job, their chunks and shards, and the columns that are written.

    Attributes:
        config: Settings of the job.
        listing: Inputs of the source.
        tokenizers: The loaded tokenizers.
        job: Description of the job, by which runs are compared.
        job_id: Number of the job in names of its chunks; without the environment.
        shards: Chunks of each shard; at least one shard.
        columns: Columns of the shards.
        chunk_schema: Schema of the chunks, which hold plain codes.
    """

    def __init__(self, config: JobConfig, listing: SourceListing, tokenizers: Tokenizers) -> None:
        self.config, self.listing, self.tokenizers = config, listing, tokenizers
        image, speech, plain = tokenizers.image, tokenizers.speech, job_config.PLAIN
        self.job = describe_job(config, listing, image, speech, tokenizers.codings)
        self.job_id = hashlib.sha256(json.dumps(self.job, sort_keys=True).encode()).hexdigest()[:8]
        self.job["environment"] = tokenizers.environment
        num_chunks = -(-len(listing.items) // job_config.CHUNK_SIZE)
        size = config.chunks_per_shard
        self.shards = [
            range(first, min(first + size, num_chunks))
            for first in range(0, max(num_chunks, 1), size)
        ]
        self.columns = columns_of_job(image, speech, *tokenizers.codings)
        self.chunk_schema = schema_of(columns_of_job(image, speech, plain, plain))

    def items(self, chunk: int) -> list[SourceItem]:
        """Return the inputs of a chunk."""
        size = job_config.CHUNK_SIZE
        return self.listing.items[chunk * size : (chunk + 1) * size]

    def left(self, state: JobState) -> list[int]:
        """Return the chunks that are not done, in ascending order."""
        done = state.finished_chunks()
        return [
            chunk
            for shard, chunks in enumerate(self.shards)
            if not state.has_shard(shard, len(self.shards))
            for chunk in chunks
            if chunk not in done
        ]


class Cluster(AbstractContextManager[Any], Protocol):
    """Processes that encode chunks; a context manager, which ends them on exit."""

    def encode(self, chunks: list[int], /) -> Iterator[EncodedChunk]:
        """Encode chunks; iterate over those that are done, in any order."""
        ...


def list_inputs(config: JobConfig) -> SourceListing:
    """List the inputs of a job.

    Raises:
        SourceError: The source cannot be used.
    """
    listing = list_source(
        config.sources,
        image_root=config.image_root,
        audio_root=config.audio_root,
        columns=config.column_names(),
    )
    return narrowed(listing, config.only, config.sources_name)


def load_tokenizers(
    config: JobConfig,
    items: list[SourceItem],
    image_tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]",
    speech_tokenizer: "SpeechTokenizer | Callable[[], SpeechTokenizer] | None",
) -> Tokenizers:
    """Load the tokenizers that the items need.

    Raises:
        JobError: They do not fit the job, or there is none for speech.
    """
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
    return Tokenizers(image=image, speech=speech, image_coding=coding_of_images, coding=coding)
