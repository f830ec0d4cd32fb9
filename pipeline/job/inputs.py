"""Inputs of a job by chunks: those of one listing, or containers that are listed one by one.

`ListedInputs` holds all inputs; a chunk is 256 of them. `ContainerInputs` holds the names of tars
or tables; a chunk is one of them, and its inputs are listed where it is encoded, so that memory and
time of planning depend on the number of containers alone.

Keys and names of containers are those of several sources (`several`). What needs all inputs of
a source is decided otherwise:

| | one listing | containers |
| --- | --- | --- |
| columns | the media of all inputs | those of the first container with a usable input |
| shards | by number of inputs | one a container, or several small ones, by their sizes |
| a source that cannot be listed | ends the job | is one row of `rejects.jsonl` |
"""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job.config import JobConfig, JobError, Only
from im2sp.pipeline.job.decode_pool import media_of
from im2sp.pipeline.job.identity import changed_since, digests_of, identities
from im2sp.pipeline.job.state import Tally
from im2sp.pipeline.sources import SourceOptions, list_local, local_copy
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    SourceListing,
    Utterance,
    has_images,
    has_speech,
    narrowed_items,
    reject_long_lists,
)
from im2sp.pipeline.sources.several import Container, shown_source, with_prefix
from im2sp.shards.errors import counted
from im2sp.shards.stores import is_url
from im2sp.shards.writing.parts import MAX_PARTS


@dataclass(frozen=True, kw_only=True)
class OpenChunk:
    """Inputs of a chunk, while it is encoded."""

    items: Sequence[SourceItem]
    """The inputs, in order."""
    tally: Tally = field(default_factory=Tally)
    """Counts that are known before anything is decoded."""
    notes: tuple[str, ...] = ()
    """Unused parts, a sentence each."""


@dataclass(frozen=True, kw_only=True)
class ListedChunk:
    """A chunk of listed inputs."""

    items: Sequence[SourceItem]
    """The inputs, in order."""

    @property
    def name(self) -> str:
        """Name in messages: that of the first input."""
        return self.items[0].name

    @property
    def seen_file(self) -> Path | None:
        """A file of the inputs that exists on this machine; None if there is none."""
        for medium in itertools.chain.from_iterable(map(media_of, self.items)):
            place = medium.audio if isinstance(medium, Utterance) else medium.image
            path = getattr(place, "path", place)
            if isinstance(path, Path) and path.exists():
                return path
        return None

    @contextmanager
    def opened(self) -> Generator[OpenChunk]:
        """The inputs, while the block runs."""
        yield OpenChunk(items=self.items)


class ListedInputs:
    """Inputs of one listing.

    Attributes:
        kind: Kind of the source, for the summary.
        notes: Unused parts of the source, a sentence each.
        ignored: Counts of files that are not candidates, by suffix.
        unit: Noun for what `count` counts.
        shards: Chunks of each shard; at least one shard.
        has_images: An image tokenizer is needed.
        has_speech: A speech tokenizer is needed.
        num_images: Images of the inputs.
        samples_per_shard: Samples in one shard.
    """

    unit = "input"

    def __init__(self, listing: SourceListing, config: JobConfig) -> None:
        self._listing, self.items = listing, listing.items
        self.kind, self.notes, self.ignored = listing.kind, listing.notes, listing.ignored
        self.has_images, self.has_speech = has_images(self.items), has_speech(self.items)
        self.num_images = sum(item.image is not None for item in self.items)
        size = config.chunks_per_shard
        self.samples_per_shard = size * job_config.CHUNK_SIZE
        num_chunks = -(-len(self.items) // job_config.CHUNK_SIZE)
        self.shards = [
            range(first, min(first + size, num_chunks))
            for first in range(0, max(num_chunks, 1), size)
        ]

    @cached_property
    def num_media(self) -> int:
        """Images and clips to decode."""
        return sum(len(media_of(item)) for item in self.items)

    @property
    def has_texts(self) -> bool:
        """An input has a caption or a split."""
        return any(item.captions or item.split for item in self.items)

    def describe(self) -> dict[str, Any]:
        """Description of the source, by which jobs are compared."""
        return dict(self._listing.describe())

    def chunk(self, number: int) -> ListedChunk:
        """Return a chunk."""
        size = job_config.CHUNK_SIZE
        return ListedChunk(items=self.items[number * size : (number + 1) * size])

    def count(self, chunks: Iterable[int]) -> int:
        """Inputs of some chunks."""
        return sum(len(self.chunk(chunk).items) for chunk in chunks)

    expected = count

    def identities(self) -> NDArray[np.uint64]:
        """Digest of each input, (n,) uint64; see `identity`."""
        return identities(self.items)

    def name(self, index: int) -> str:
        """Name of an input whose digest has this index."""
        return self.items[index].name

    def chunks_of(self, changed: Iterable[int]) -> list[int]:
        """Chunks that hold the inputs of these digests."""
        return sorted({int(index) // job_config.CHUNK_SIZE for index in changed})

    def have_speech(self, changed: Iterable[int]) -> bool:
        """True if one of the inputs of these digests has speech."""
        return any(self.items[index].utterances for index in changed)

    def changed_since(self, written_ns: int, raw: Mapping[str, int], num_rejects: int) -> list[str]:
        """Names of the inputs that were modified since a manifest was written; see `identity`."""
        return changed_since(self.items, written_ns, raw, num_rejects)


@dataclass(frozen=True, kw_only=True)
class ContainerChunk:
    """A container as a chunk; only this is sent to the process that encodes it."""

    container: Container
    options: SourceOptions
    only: Only | None
    missing: dict[str, str] = field(default_factory=dict[str, str])
    """Why inputs with a kind of media (`image`, `speech`) are refused, if they are."""

    @property
    def name(self) -> str:
        """Name in messages."""
        return self.container.name

    @property
    def seen_file(self) -> Path | None:
        """The file, unless it is in a store."""
        return None if is_url(self.container.path) else Path(self.container.path)

    @contextmanager
    def opened(self) -> Generator[OpenChunk]:
        """List the container; a copy of one in a store exists while the block runs.

        A container that cannot be listed is one input that is refused.

        Raises:
            JobError: It is not there, or the disk is full.
        """
        with ExitStack() as stack:
            try:
                listing = self._listed(stack)
            except SourceError as error:
                listing = SourceListing(kind="", items=[self._refused(error)], ignored={})
            items = listing.items if self.only is None else narrowed_items(listing.items, self.only)
            tally = Tally(num_inputs=len(items), num_ignored=sum(listing.ignored.values()))
            items = [self._checked(item) for item in items] if self.missing else items
            yield OpenChunk(items=items, tally=tally, notes=listing.notes)

    def _listed(self, stack: ExitStack) -> SourceListing:
        container = self.container
        if is_url(container.path):
            try:
                copy = stack.enter_context(local_copy(container.path))
            except OSError as error:
                raise JobError(
                    f"{tempfile.gettempdir()}: {error.strerror} for a copy of {self.name}; free "
                    "some or set TMPDIR, then run the same command again to resume"
                ) from None
            try:
                listing = list_local(copy, self.options, container.path)
            except SourceError as error:
                raise SourceError(str(error).removeprefix(f"{copy}: ")) from None
        else:
            if not os.path.exists(container.path):
                raise JobError(
                    f"{container.path}: missing on {os.uname().nodename}; the source needs the "
                    "same path on every machine, and to stay there until the job is done"
                )
            listing = list_local(Path(container.path), self.options)
        reject_long_lists(listing.items)
        if not container.prefix:
            return listing
        return with_prefix(listing, container.path, container.prefix)

    def _refused(self, error: SourceError) -> SourceItem:
        reason = str(error).removeprefix(f"{shown_source(self.container.path)}: ")
        key = self.container.prefix or self.name
        return SourceItem(key=key, image=None, name=self.name, error=reason)

    def _checked(self, item: SourceItem) -> SourceItem:
        """The input, with media of which the dataset has no column refused."""
        if item.error is not None:
            return item
        if item.image is not None and "image" in self.missing:
            return replace(item, image=None, utterances=(), error=self.missing["image"])
        if item.utterances and "speech" in self.missing:
            reason = self.missing["speech"]
            clips = [replace(u, audio=None, error=u.error or reason) for u in item.utterances]
            return replace(item, utterances=tuple(clips))
        return item


class ContainerInputs:
    """Inputs of many containers, each of which is one chunk; attributes as of `ListedInputs`.

    Attributes:
        first: Name of the container that decides the columns.

    Args:
        containers: The containers, in order.
        ignored: Counts of the files beside them, by suffix.
        config: Settings of the job.

    Raises:
        SourceError: No container has a usable input.
    """

    unit = "container"
    has_texts = True
    samples_per_shard = 1 << 40
    num_images = None
    items = None

    def __init__(
        self, containers: Sequence[Container], ignored: dict[str, int], config: JobConfig
    ) -> None:
        self._containers, self.ignored = containers, ignored
        self._only: Only | None = config.only
        self._options = SourceOptions(columns=config.column_names())
        self._missing: dict[str, str] = {}
        kinds = dict.fromkeys(os.path.splitext(one.name)[1][1:].lower() for one in containers)
        self._kind = "+".join(kinds)
        self.kind = f"{self._kind}, {counted(len(containers), 'container')}"
        size_bytes, num_inputs = self._find_columns(config)
        self._sizes = np.fromiter((one.size_bytes for one in containers), np.int64)
        share = self._sizes / size_bytes if size_bytes and self._sizes.all() else 1.0
        counts = np.maximum(num_inputs * share, 1).round().astype(np.int64)
        self._expected = np.broadcast_to(counts, self._sizes.shape)
        self.shards = _grouped(self._expected, config.chunks_per_shard * job_config.CHUNK_SIZE)

    def _find_columns(self, config: JobConfig) -> tuple[int, int]:
        """Find the first usable container, which decides; its size in bytes and its inputs."""
        refused: list[SourceItem] = []
        for number, container in enumerate(self._containers):
            with self.chunk(number).opened() as chunk:
                usable = [item for item in chunk.items if item.error is None]
                refused += chunk.items[:1] if not refused else ()
            if any(item.image or item.utterances for item in usable):
                self.notes = chunk.notes
                self.has_images, self.has_speech = has_images(usable), has_speech(usable)
                held = {"image": self.has_images, "speech": self.has_speech}
                self._missing = {
                    kind: f"{kind}, but the first container ({container.name}) has none and so "
                    f"the dataset has no column for it; name a container with {kind} first, or "
                    f"leave it out with --only {'audio' if kind == 'image' else 'images'}"
                    for kind, is_there in held.items()
                    if not is_there
                }
                self.first = container.name
                return container.size_bytes, len(chunk.items)
        detail = "".join(f" (the first: {one.name}: {one.error})" for one in refused)
        raise SourceError(
            f"{config.sources_name}: no input of its {len(self._containers):,} containers can be "
            f"used{detail}"
        )

    @property
    def num_media(self) -> int:
        """Images and clips to decode, by estimate."""
        return self.expected(range(len(self._containers)))

    def describe(self) -> dict[str, Any]:
        """Description of the source: names, sizes and shards of the containers."""
        digest = hashlib.sha256()
        for shard, chunks in enumerate(self.shards):
            for chunk in chunks:
                container = self._containers[chunk]
                row = [container.prefix, container.name, container.size_bytes, shard]
                digest.update(json.dumps(row).encode() + b"\n")
        num, chosen = len(self._containers), {"only": self._only, "columns": self._options.columns}
        found = {"kind": self._kind, "num_containers": num, "sha256": digest.hexdigest()}
        return found | {name: value for name, value in chosen.items() if value}

    def chunk(self, number: int) -> ContainerChunk:
        """Return a chunk."""
        return ContainerChunk(
            container=self._containers[number],
            options=self._options,
            only=self._only,
            missing=self._missing,
        )

    def count(self, chunks: Iterable[int]) -> int:
        """Containers among some chunks."""
        return sum(1 for _ in chunks)

    def expected(self, chunks: Iterable[int]) -> int:
        """Inputs of some chunks, estimated by their sizes."""
        return int(self._expected[list(chunks)].sum())

    def identities(self) -> NDArray[np.uint64]:
        """Digest of each container, (n,) uint64: its name, size, and modification time."""
        rows = ([one.prefix, one.name, one.size_bytes, one.version] for one in self._containers)
        return digests_of(rows, len(self._containers))

    def name(self, index: int) -> str:
        """Name of a container whose digest has this index."""
        return self._containers[index].name

    def chunks_of(self, changed: Iterable[int]) -> list[int]:
        """Chunks of the containers of these digests."""
        return list(map(int, changed))

    def have_speech(self, changed: Iterable[int]) -> bool:
        """True if one of the containers of these digests may have speech."""
        return self.has_speech and any(True for _ in changed)

    def changed_since(self, written_ns: int, raw: Mapping[str, int], num_rejects: int) -> list[str]:
        """Names of the local containers that were modified since a manifest was written."""
        return [
            one.name
            for one in self._containers
            if not is_url(one.path) and int(one.version) >= written_ns
        ]


def _grouped(counts: NDArray[np.int64], size: int) -> list[range]:
    """Chunks of each shard: consecutive ones, together at most `size` inputs, but at least one."""
    while True:
        firsts, total = [0], 0
        for number, count in enumerate(counts.tolist()):
            if total and total + count > size:
                firsts.append(number)
                total = 0
            total += count
        if len(firsts) <= MAX_PARTS:
            ends = [*firsts[1:], len(counts)]
            return [range(first, end) for first, end in zip(firsts, ends, strict=True)]
        size *= 2


Inputs = ListedInputs | ContainerInputs
Chunk = ListedChunk | ContainerChunk
