"""The tokenize job: a source of pictures to a dataset of shards.

Inputs are worked off in chunks of 256. Worker processes decode, this process encodes, and each
finished chunk is kept in the job folder (`job_state`); a shard is written once all its chunks are
there, and the manifest last. What a chunk holds depends on the source and the settings alone, so
neither interruptions nor the number of workers change a byte of the result.
"""

import errno
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from im2sp.pipeline.decode_pool import IMAGES_PER_TASK, Decoded, DecodePool
from im2sp.pipeline.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job_state import (
    JobError,
    JobState,
    Tally,
    differences,
    remove_stale_files,
    shard_files,
)
from im2sp.pipeline.source_items import SourceItem, SourceListing
from im2sp.pipeline.sources import list_source
from im2sp.pipeline.views import VIEWS
from im2sp.shards import (
    CODEBOOK_NAME,
    DEFAULT_COLUMNS,
    MANIFEST_NAME,
    REJECTS_NAME,
    Layout,
    Manifest,
    Sample,
    ShardError,
    encode_batch,
    write_codebook,
)
from im2sp.shards.files import atomic_file

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer import ImageTokenizer

CHUNK_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What to tokenize and how; everything that decides the content of the dataset."""

    source: Path
    """Folder, tar, Karpathy file or manifest."""
    dataset_dir: Path
    """Folder to write into; other files in it are left alone."""
    image_root: Path | None = None
    """Where the image paths of a Karpathy file or manifest begin."""
    view: str = "squash-224"
    """How a picture becomes a square; a name of `VIEWS`."""
    layout: Layout = Layout()
    """How samples lie in the shards."""
    samples_per_shard: int = 16384
    """Inputs that go into one shard file, rounded up to a multiple of 256."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest picture that is decoded."""
    num_workers: int = 2
    """Processes that decode."""
    overwrite: bool = False
    """Remove the dataset or unfinished job that is there and start anew."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.view not in VIEWS:
            raise ValueError(f"view {self.view!r}; expected one of {', '.join(VIEWS)}")
        for name in ("samples_per_shard", "max_pixels", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")

    @property
    def chunks_per_shard(self) -> int:
        """Chunks of `CHUNK_SIZE` inputs that make one shard."""
        return -(-self.samples_per_shard // CHUNK_SIZE)


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job did, for the summary."""

    manifest: Manifest
    """The manifest of the finished dataset."""
    listing: SourceListing
    """What the source held."""
    num_encoded: int
    """Pictures encoded by this run; fewer than the dataset has where it went on with a job."""
    encode_s: float
    """Seconds from the first decoded picture to the last encoded one."""


def run_job(config: JobConfig, tokenizer: "ImageTokenizer") -> JobResult:
    """Tokenize a source into `config.dataset_dir`, or go on where an interrupted run was.

    Raises:
        SourceError: The source cannot be used.
        JobError: Something else is in the way at `dataset_dir`, or its disk is full.
    """
    listing = list_source(config.source, image_root=config.image_root)
    _check_grid(config, tokenizer)
    job = _describe(config, listing, tokenizer)
    state = JobState(config.dataset_dir)
    try:
        with state.lock():
            done = _prepare(config, state, job)
            if done is not None:
                state.remove()
                return JobResult(manifest=done, listing=listing, num_encoded=0, encode_s=0.0)
            return _Run(config, tokenizer, listing, state, job).run()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise JobError(
            f"{config.dataset_dir}: no space left on the disk; what is done is kept: free some "
            "space and run the same command again to go on"
        ) from None


class _Run:
    """One run of a job, new or continued."""

    def __init__(
        self,
        config: JobConfig,
        tokenizer: "ImageTokenizer",
        listing: SourceListing,
        state: JobState,
        job: dict[str, Any],
    ) -> None:
        self.config, self.tokenizer, self.state, self.job = config, tokenizer, state, job
        self.listing, self.items = listing, listing.items
        num_chunks = -(-len(self.items) // CHUNK_SIZE)
        self.shards = [
            range(first, min(first + config.chunks_per_shard, num_chunks))
            for first in range(0, num_chunks, config.chunks_per_shard)
        ]
        self.num_encoded = 0
        self.num_refused = 0

    def run(self) -> JobResult:
        """Do what is left to do, then publish."""
        todo = [
            chunk
            for shard, chunks in enumerate(self.shards)
            if not self.state.has_shard(shard)
            for chunk in chunks
            if not self.state.has_chunk(chunk)
        ]
        with self._pool() as pool, self._bar(todo) as bar:
            tasks = pool.decode(task for chunk in todo for task in self._tasks(chunk))
            begin_s = time.monotonic()
            for shard, chunks in enumerate(self.shards):
                if self.state.has_shard(shard):
                    self.state.drop_chunks(chunks)
                    continue
                for chunk in chunks:
                    if not self.state.has_chunk(chunk):
                        self._encode_chunk(chunk, tasks, bar)
                self.state.finish_shard(shard, chunks, self.config.layout)
            encode_s = time.monotonic() - begin_s
        manifest = self._publish()
        return JobResult(
            manifest=manifest,
            listing=self.listing,
            num_encoded=self.num_encoded,
            encode_s=encode_s,
        )

    def _pool(self) -> DecodePool:
        return DecodePool(
            num_workers=self.config.num_workers,
            view=self.config.view,
            max_pixels=self.config.max_pixels,
        )

    def _bar(self, todo: list[int]) -> "tqdm[Any]":
        left = sum(len(self._items(chunk)) for chunk in todo)
        return tqdm(
            total=len(self.items),
            initial=len(self.items) - left,
            desc="tokenize",
            unit=" images",
            disable=self.config.quiet,
            file=sys.stderr,
        )

    def _items(self, chunk: int) -> list[SourceItem]:
        return self.items[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]

    def _tasks(self, chunk: int) -> Iterator[list[SourceItem]]:
        items = self._items(chunk)
        for start in range(0, len(items), IMAGES_PER_TASK):
            yield items[start : start + IMAGES_PER_TASK]

    def _encode_chunk(self, chunk: int, tasks: Iterator[list[Decoded]], bar: "tqdm[Any]") -> None:
        """Encode the inputs of one chunk and keep them in the job folder."""
        samples: list[Sample] = []
        tally = Tally()
        for items in self._tasks(chunk):
            samples += self._encode_task(items, next(tasks), tally)
            bar.set_postfix(refused=self.num_refused + len(tally.rejects), refresh=False)
            bar.update(len(items))
        self.num_refused += len(tally.rejects)
        self.state.write_chunk(chunk, encode_batch(samples), tally)

    def _encode_task(
        self, items: list[SourceItem], decoded: list[Decoded], tally: Tally
    ) -> list[Sample]:
        good: list[tuple[SourceItem, np.ndarray]] = []
        for item, result in zip(items, decoded, strict=True):
            if result.pixels is None:
                tally.rejects.append({"file": item.name, "reason": result.reason})
                continue
            good.append((item, result.pixels))
            tally.num_images += 1
            tally.image_file_bytes += result.size_bytes
        self.num_encoded += len(good)
        if not good:
            return []
        units = self._encode(np.stack([pixels for _, pixels in good]))
        return [
            Sample(key=item.key, split=item.split, image_units=unit, captions=list(item.captions))
            for (item, _), unit in zip(good, units, strict=True)
        ]

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] -> uint16 [B, 28, 28]."""
        import torch

        planes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        units = self.tokenizer.encode(planes.float() / 255)
        return VIEWS[self.config.view].crop_units(units).numpy().astype(np.uint16)

    def _publish(self) -> Manifest:
        """Write what belongs to the dataset as a whole, the manifest last."""
        tally = Tally()
        shards = []
        for index in range(len(self.shards)):
            shard, counts = self.state.read_shard(index)
            tally.add(counts)
            shards += [] if shard is None else [shard]
        dataset_dir = self.config.dataset_dir
        rejects = "".join(json.dumps(row) + "\n" for row in tally.rejects).encode()
        with atomic_file(dataset_dir / REJECTS_NAME) as file:
            file.write(rejects)
        codebook_sha256 = write_codebook(dataset_dir, self.tokenizer.codebook.numpy())
        splits: dict[str, int] = {}
        for shard in shards:
            for name, count in shard.splits.items():
                splits[name] = splits.get(name, 0) + count
        manifest = Manifest(
            num_samples=tally.num_images,
            splits=splits,
            layout=self.config.layout,
            columns=DEFAULT_COLUMNS,
            shards=shards,
            image_tokenizer={
                **self.job["image_tokenizer"],
                "codebook_file": CODEBOOK_NAME,
                "codebook_sha256": codebook_sha256,
            },
            raw={"num_images": tally.num_images, "image_file_bytes": tally.image_file_bytes},
            num_rejects=len(tally.rejects),
            rejects_sha256=hashlib.sha256(rejects).hexdigest(),
            settings=self.job["settings"],
        )
        manifest.write(dataset_dir)
        self.state.remove()
        return manifest


def _describe(
    config: JobConfig, listing: SourceListing, tokenizer: "ImageTokenizer"
) -> dict[str, Any]:
    """All that decides the bytes of the dataset; no clock, host name or path of this machine."""
    return {
        "image_tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "precision": tokenizer.precision,
            "view": config.view,
        },
        "layout": {
            "kind": config.layout.kind,
            "samples_per_member": config.layout.samples_per_member,
        },
        "settings": {
            "source": listing.describe(),
            "device": tokenizer.device.type,
            "max_pixels": config.max_pixels,
            "samples_per_shard": config.chunks_per_shard * CHUNK_SIZE,
        },
    }


def _prepare(config: JobConfig, state: JobState, job: dict[str, Any]) -> Manifest | None:
    """Make the folder ready; the manifest if the very dataset is there already.

    Raises:
        JobError: Something else is there.
    """
    dataset_dir = config.dataset_dir
    manifest_path = dataset_dir / MANIFEST_NAME
    if config.overwrite:
        state.clear()
        remove_stale_files(dataset_dir, [MANIFEST_NAME, REJECTS_NAME, CODEBOOK_NAME])
    elif manifest_path.exists():
        manifest = _read_manifest(dataset_dir)
        _check_same(dataset_dir, _job_of(manifest), job, "a finished dataset")
        return manifest
    elif state.exists:
        _check_same(dataset_dir, state.read_job(), job, "an unfinished job")
        return None
    elif shard_files(dataset_dir):
        name = shard_files(dataset_dir)[0].name
        raise JobError(
            f"{dataset_dir}: holds {name} but no {MANIFEST_NAME} that lists it; choose another "
            "--out, or --overwrite to remove it"
        )
    state.begin(job)
    return None


def _read_manifest(dataset_dir: Path) -> Manifest:
    try:
        return Manifest.read(dataset_dir)
    except ShardError as error:
        raise JobError(f"{error}; or start anew with --overwrite") from None


def _job_of(manifest: Manifest) -> dict[str, Any]:
    """The description of the job that made a dataset."""
    tokenizer = dict(manifest.image_tokenizer or {})
    for name in ("codebook_file", "codebook_sha256"):
        tokenizer.pop(name, None)
    layout = manifest.layout
    return {
        "image_tokenizer": tokenizer,
        "layout": {"kind": layout.kind, "samples_per_member": layout.samples_per_member},
        "settings": dict(manifest.settings),
    }


def _check_same(dataset_dir: Path, before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    found = differences(before, now)
    if found:
        raise JobError(
            f"{dataset_dir}: holds {what} of other settings ({'; '.join(found)}); choose another "
            "--out, or --overwrite to start anew"
        )


def _check_grid(config: JobConfig, tokenizer: "ImageTokenizer") -> None:
    """The view must give 28x28 units with this tokenizer's patches."""
    patch_px = tokenizer.patch_size_px
    if patch_px != 8:
        raise JobError(
            f"image tokenizer {tokenizer.name}: one unit covers {patch_px}x{patch_px} pixels; "
            f"shards hold 28x28 units of views such as {config.view}, which need 8x8"
        )
    if tokenizer.num_codes > 8192:
        raise JobError(
            f"image tokenizer {tokenizer.name}: has {tokenizer.num_codes} codes; shards hold ids "
            "of 13 bits, at most 8192"
        )
