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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from im2sp.pipeline.decode_pool import IMAGES_PER_TASK, Decoded, DecodePool
from im2sp.pipeline.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job_output import check_output, prepare_output
from im2sp.pipeline.job_state import JobError, JobState, Tally
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
    encode_batch,
    write_codebook,
)
from im2sp.shards.files import atomic_file

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer import ImageTokenizer

CHUNK_SIZE = 256
"""Inputs whose samples are kept on disk together while the job runs."""
GPU_BATCH_IMAGES = 128
"""Inputs encoded at once on a GPU."""
MAX_CPU_BATCH_IMAGES = 64
"""The same on a CPU, where a slow tokenizer gets fewer, so that progress shows."""
_QUICK_S = 0.5


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
    """Seconds from the first task for the decoding processes to the last shard."""
    was_finished: bool = False
    """Whether the very dataset was there already, so that nothing was done."""


def run_job(
    config: JobConfig, tokenizer: "ImageTokenizer | Callable[[], ImageTokenizer]"
) -> JobResult:
    """Tokenize a source into `config.dataset_dir`, or go on where an interrupted run was.

    Args:
        config: What to do.
        tokenizer: The image tokenizer, or a function that loads it; it is called after the source
            is listed and while the decoding processes start.

    Raises:
        SourceError: The source cannot be used.
        JobError: Something else is in the way at `dataset_dir`, or it cannot be written.
    """
    listing = list_source(config.source, image_root=config.image_root)
    state = JobState(config.dataset_dir)
    num_tasks = -(-len(listing.items) // IMAGES_PER_TASK)
    with DecodePool(
        num_workers=min(config.num_workers, num_tasks),
        view=config.view,
        max_pixels=config.max_pixels,
    ) as pool:
        if config.overwrite or not (config.dataset_dir / MANIFEST_NAME).exists():
            pool.start()
        loaded = tokenizer() if callable(tokenizer) else tokenizer
        _check_grid(config, loaded)
        job = _describe(config, listing, loaded)
        with _told_errors(config.dataset_dir):
            finished = check_output(state, job, overwrite=config.overwrite)
            if finished is None or state.dir.exists():
                with state.lock():
                    finished = prepare_output(state, job, overwrite=config.overwrite)
                    if finished is None:
                        return _Run(config, loaded, listing, state, job).run(pool)
    return JobResult(
        manifest=finished, listing=listing, num_encoded=0, encode_s=0.0, was_finished=True
    )


@contextmanager
def _told_errors(dataset_dir: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # not of the disk
        again = "what is done is kept: run the same command again to go on"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{dataset_dir}: no space left on the disk; free some; {again}"
        else:
            where = error.filename or dataset_dir
            message = f"{where}: {error.strerror}; choose another --out, or mend it: {again}"
        raise JobError(message) from None


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
        is_cpu = tokenizer.device.type == "cpu"
        self.batch_images = IMAGES_PER_TASK if is_cpu else GPU_BATCH_IMAGES
        size = VIEWS[config.view].image_size_px
        most = max(self.batch_images, MAX_CPU_BATCH_IMAGES)
        self.planes = np.empty((most, 3, size, size), np.float32)
        self.num_encoded = 0
        self.num_refused = 0

    def run(self, pool: DecodePool) -> JobResult:
        """Do what is left to do, then publish."""
        todo = [
            chunk
            for shard, chunks in enumerate(self.shards)
            if not self.state.has_shard(shard)
            for chunk in chunks
            if not self.state.has_chunk(chunk)
        ]
        with self._bar(todo) as bar:
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

    def _bar(self, todo: list[int]) -> "tqdm[Any]":
        left = sum(len(self._items(chunk)) for chunk in todo)
        return tqdm(
            total=len(self.items),
            initial=len(self.items) - left,
            desc="tokenize",
            unit=" images",
            disable=self.config.quiet,
            file=sys.stderr,
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def _items(self, chunk: int) -> list[SourceItem]:
        return self.items[chunk * CHUNK_SIZE : (chunk + 1) * CHUNK_SIZE]

    def _tasks(self, chunk: int) -> list[list[SourceItem]]:
        return self._cut(self._items(chunk))

    @staticmethod
    def _cut(items: list[SourceItem]) -> list[list[SourceItem]]:
        """Into what the decoding processes get at once."""
        starts = range(0, len(items), IMAGES_PER_TASK)
        return [items[start : start + IMAGES_PER_TASK] for start in starts]

    def _encode_chunk(self, chunk: int, tasks: Iterator[list[Decoded]], bar: "tqdm[Any]") -> None:
        """Encode the inputs of one chunk and keep them in the job folder."""
        samples: list[Sample] = []
        tally = Tally()
        items = self._items(chunk)
        start = 0
        while start < len(items):
            begin_s = time.monotonic()
            batch = items[start : start + self.batch_images]
            decoded = [result for _ in self._cut(batch) for result in next(tasks)]
            samples += self._encode_batch(batch, decoded, tally)
            bar.set_postfix(refused=self.num_refused + len(tally.rejects), refresh=False)
            bar.update(len(batch))
            start += len(batch)
            # Larger batches keep the cores busy; units do not depend on their batch.
            is_quick = time.monotonic() - begin_s < _QUICK_S
            if is_quick and 2 * self.batch_images <= MAX_CPU_BATCH_IMAGES:
                self.batch_images *= 2
        self.num_refused += len(tally.rejects)
        self.state.write_chunk(chunk, encode_batch(samples), tally)

    def _encode_batch(
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
        units = self._encode([pixels for _, pixels in good])
        return [
            Sample(key=item.key, split=item.split, image_units=unit, captions=list(item.captions))
            for (item, _), unit in zip(good, units, strict=True)
        ]

    def _encode(self, pixels: list[np.ndarray]) -> np.ndarray:
        """uint8 [S, S, 3] each -> uint16 [B, 28, 28]."""
        import torch

        # One buffer for all batches: fresh memory of this size costs more than filling it.
        planes = self.planes[: len(pixels)]
        for plane, picture in zip(planes, pixels, strict=True):
            plane[:] = picture.transpose(2, 0, 1)
        np.divide(planes, np.float32(255), out=planes)
        units = self.tokenizer.encode(torch.from_numpy(planes))
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
