"""Plan of a tokenize job: all that its runs, on one machine or on many, have in common."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa
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
from im2sp.pipeline.job.inputs import ContainerInputs, Inputs, ListedInputs
from im2sp.pipeline.job.state import JobState, Tally
from im2sp.pipeline.sources import (
    CONTAINER_SUFFIXES,
    SourceOptions,
    check_options,
    list_all,
    resolve_sources,
)
from im2sp.pipeline.sources.items import SourceError, narrowed
from im2sp.pipeline.sources.several import find_containers, shown_source
from im2sp.shards.errors import counted, log
from im2sp.shards.stores import is_url

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer


MIN_CONTAINERS = 32
"""From this many on, containers are listed where they are encoded (`JobConfig.per_container`)."""

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
        inputs: Inputs of the source.
        tokenizers: The loaded tokenizers.
        job: Description of the job, by which runs are compared.
        job_id: Number of the job in names of its chunks; without the environment.
        columns: Columns of the shards.
        chunk_schema: Schema of the chunks, which hold plain codes.
    """

    def __init__(self, config: JobConfig, inputs: Inputs, tokenizers: Tokenizers) -> None:
        self.config, self.inputs, self.tokenizers = config, inputs, tokenizers
        image, speech, plain = tokenizers.image, tokenizers.speech, job_config.PLAIN
        self.job = describe_job(config, inputs.describe(), image, speech, tokenizers.codings)
        self.job_id = hashlib.sha256(json.dumps(self.job, sort_keys=True).encode()).hexdigest()[:8]
        self.job["environment"] = tokenizers.environment
        self.columns = columns_of_job(image, speech, *tokenizers.codings)
        self.chunk_schema = schema_of(columns_of_job(image, speech, plain, plain))

    @property
    def shards(self) -> list[range]:
        """Chunks of each shard; at least one shard."""
        return self.inputs.shards

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


class EncodedChunk(NamedTuple):
    """A chunk as the process that has encoded it hands it over."""

    number: int
    batch: pa.RecordBatch
    """Its samples."""
    tally: Tally
    """Its counts."""
    environment: dict[str, str]
    """Versions and device that have encoded it."""


class Cluster(AbstractContextManager[Any], Protocol):
    """Processes that encode chunks; a context manager, which ends them on exit."""

    def encode(self, chunks: list[int], /) -> Iterator[EncodedChunk]:
        """Encode chunks; iterate over those that are done, in any order."""
        ...


def list_inputs(config: JobConfig) -> Inputs:
    """List the inputs of a job, or its containers.

    Raises:
        SourceError: The source cannot be used.
    """
    resolved = resolve_sources(config.sources)
    options = SourceOptions(
        image_root=config.image_root, audio_root=config.audio_root, columns=config.column_names()
    )
    if not _is_per_container(config, resolved.paths):
        listing = list_all(resolved, options)
        return ListedInputs(narrowed(listing, config.only, config.sources_name), config)
    paths = [path for path in resolved.paths if path is not None]
    for path in paths:
        check_options(path, options, is_folder=False)
    inputs = ContainerInputs(find_containers(paths), resolved.ignored, config)
    if not config.quiet:
        held = {"images": inputs.has_images, "speech": inputs.has_speech}
        log(
            f"{counted(len(paths), 'container')}, listed one by one (--per-container); the first, "
            f"{inputs.first}, decides what is encoded: {' and '.join(k for k in held if held[k])}"
        )
    return inputs


def _is_per_container(config: JobConfig, sources: Sequence[str | None]) -> bool:
    """True if each source is a container that is listed where it is encoded.

    By default from 32 containers on, or if one is in a store, and where nothing needs all inputs.

    Args:
        config: Settings of the job.
        sources: Paths and URLs of the resolved sources.

    Raises:
        SourceError: The settings ask for it, but a source is no container, or an option needs all
            inputs.
    """
    if config.per_container == "no":
        return False
    problem = None
    if config.image_root is not None or config.audio_root is not None:
        problem = "--image-root and --audio-root need all inputs at once"
    for path in sources:
        if path is None or not _is_container(path):
            problem = f"{path or 'an image or a clip'} is no tar and no Parquet or Arrow file"
            break
    if config.per_container == "yes" and problem:
        raise SourceError(f"{config.sources_name}: --per-container yes: {problem}; leave it out")
    is_default = len(sources) >= MIN_CONTAINERS or any(is_url(path or "") for path in sources)
    return problem is None and (is_default or config.per_container == "yes")


def _is_container(path: str) -> bool:
    if not shown_source(path).lower().endswith(CONTAINER_SUFFIXES):
        return False
    return is_url(path) or not os.path.isdir(path)


def load_tokenizers(
    config: JobConfig,
    inputs: Inputs,
    image_tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]",
    speech_tokenizer: "SpeechTokenizer | Callable[[], SpeechTokenizer] | None",
) -> Tokenizers:
    """Load the tokenizers that the inputs need.

    Raises:
        JobError: They do not fit the job, or there is none for speech.
    """
    image = speech = coding = coding_of_images = None
    if inputs.has_images:
        image = image_tokenizer() if callable(image_tokenizer) else image_tokenizer
        check_image_tokenizer(config, image)
        coding_of_images = image_coding(
            config.image_codec, config.shard_layout, image, inputs.num_images
        )
    if inputs.has_speech:
        speech = speech_tokenizer() if callable(speech_tokenizer) else speech_tokenizer
        if speech is None:
            raise JobError(f"{config.sources_name}: holds speech, which needs a speech tokenizer")
        coding = speech_coding(config.speech_codec, config.shard_layout, speech.num_units)
    return Tokenizers(image=image, speech=speech, image_coding=coding_of_images, coding=coding)
