"""Synthetic dataset of `bench/loader.py`: 100,000 samples, deterministic.

Image units are uniform; in `write_images` they are drawn from the tables of `compact`. Speech units
are a Markov chain with few likely successors of each unit, so that the fitted codes are about as
long as those of real speech. Captions are random words.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.pipeline.job.columns import image_tables
from im2sp.shards import (
    DEFAULT_COLUMNS,
    MANIFEST_NAME,
    DatasetWriter,
    Layout,
    Manifest,
    Sample,
    UnitColumn,
    encode_batch,
    fit_durations_codec,
    fit_speech_codec,
    write_shard,
)
from im2sp.shards.coding import grid_kernels
from im2sp.shards.coding.grid_tables import GridTables
from im2sp.shards.columns.units import Coding

_RANDOM_BYTES = 24 * 784 // 8  # the longest value
NUM_UNITS = 200
UTTERANCES_AN_IMAGE = 5
BATCH_ROWS = 256
SHARD_ROWS = 8192
_TEXT = (
    "a the two dog dogs man woman child children plays runs jumps sits stands with in on near of "
    "water grass snow street red blue white black brown shirt ball bike beach rocks field and is"
)
_WORDS = _TEXT.split()


def make_samples(num_samples: int, seed: int = 0) -> Iterator[list[Sample]]:
    """Yield lists of 256 samples: image, 5 utterances of about 110 units, durations, captions."""
    followers = np.random.default_rng(0).integers(1, NUM_UNITS, (NUM_UNITS, 16))
    rng = np.random.default_rng([seed, 1])
    for start in range(0, num_samples, BATCH_ROWS):
        num = min(BATCH_ROWS, num_samples - start)
        images = rng.integers(0, 8192, (num, 28, 28), np.uint16)
        num_utterances = num * UTTERANCES_AN_IMAGE
        lengths = np.clip(rng.normal(110, 25, num_utterances), 30, 220).astype(np.int64)
        units = _chains(rng, followers, num_utterances, int(lengths.max()))
        runs = np.minimum(rng.geometric(0.5, units.shape), 60).astype(np.uint16)
        words = rng.integers(0, len(_WORDS), (num_utterances, 10))
        samples: list[Sample] = []
        for row in range(num):
            mine = range(row * UTTERANCES_AN_IMAGE, (row + 1) * UTTERANCES_AN_IMAGE)
            samples.append(
                Sample(
                    key=f"images/{start + row:08d}.jpg",
                    split="train",
                    image_units=images[row],
                    speech_units=[units[u, : lengths[u]] for u in mine],
                    durations=[runs[u, : lengths[u]] for u in mine],
                    captions=[" ".join(_WORDS[w] for w in words[u]) for u in mine],
                )
            )
        yield samples


def _chains(
    rng: np.random.Generator, followers: NDArray[np.int64], num: int, length: int
) -> NDArray[np.uint16]:
    """(num, length) units without repeats of neighbours."""
    units = np.empty((num, length), np.int64)
    units[:, 0] = rng.integers(0, NUM_UNITS, num)
    choices = np.minimum(rng.geometric(0.25, (num, length)) - 1, 15)
    for k in range(1, length):
        before = units[:, k - 1]
        units[:, k] = (before + followers[before, choices[:, k]]) % NUM_UNITS
    return units.astype(np.uint16)


def fitted_columns(seed: int = 0) -> dict[str, Any]:
    """Columns with `huffman` tables, fitted to other samples of the same kind."""
    samples = [sample for part in make_samples(4 * BATCH_ROWS, seed + 1) for sample in part]
    units = [units for sample in samples for units in sample.speech_units]
    runs = [runs for sample in samples for runs in sample.durations or []]
    return DEFAULT_COLUMNS | {
        "speech_units": fit_speech_codec(units, NUM_UNITS),
        "durations": fit_durations_codec(runs),
    }


def sampled_grids(num: int, tables: GridTables) -> NDArray[np.uint16]:
    """(num, 28, 28) units as likely as the tables say: what random bits decode to."""
    data = np.random.default_rng(0).integers(0, 256, num * _RANDOM_BYTES, np.uint8)
    grids, ends = np.empty((num, 28, 28), np.uint16), np.empty(num, np.int64)
    offsets = np.arange(num + 1) * _RANDOM_BYTES
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    grid_kernels.decode(padded, offsets, 28, 28, *tables.for_kernel, grids.reshape(-1), ends)
    return grids


def write_images(dataset_dir: Path, num_samples: int, coding: Coding) -> None:
    """Write a dataset of version 2: images as `sampled_grids`, packed speech, no durations."""
    tables = image_tables("compact")
    prefix = "image_units."
    grids = sampled_grids(
        num_samples, GridTables(**{k.removeprefix(prefix): v for k, v in tables.items()})
    )
    columns = {
        "image_units": UnitColumn((28, 28), 8192, coding=coding),
        "speech_units": UnitColumn((None,), NUM_UNITS, many=True),
    }
    used = tables if coding == "coded" else None
    with DatasetWriter(dataset_dir, columns=columns, tables=used) as writer:
        samples = (sample for part in make_samples(num_samples) for sample in part)
        for grid, sample in zip(grids, samples, strict=True):
            writer.write(
                key=sample.key,
                split=sample.split,
                captions=sample.captions,
                image_units=grid,
                speech_units=sample.speech_units,
            )


def write_dataset(
    dataset_dir: Path, num_samples: int, columns: dict[str, Any], layout: Layout | None = None
) -> None:
    """Write the dataset, unless a complete one of this size exists."""
    layout = layout or Layout()
    if (dataset_dir / MANIFEST_NAME).exists():
        found = Manifest.read(dataset_dir)
        if (found.num_samples, found.layout, found.columns) == (num_samples, layout, columns):
            return
        raise ValueError(f"{dataset_dir}: has another dataset; give another --dir or remove it")
    dataset_dir.mkdir(parents=True, exist_ok=True)
    shards = []
    batches = (encode_batch(samples, columns) for samples in make_samples(num_samples))
    for start in range(0, num_samples, SHARD_ROWS):
        num_batches = -(-min(SHARD_ROWS, num_samples - start) // BATCH_ROWS)
        part = (next(batches) for _ in range(num_batches))
        path = dataset_dir / f"{len(shards):05d}{layout.suffix}"
        shards.append(write_shard(path, part, layout))
    Manifest(
        num_samples=num_samples,
        splits={"train": num_samples},
        layout=layout,
        columns=columns,
        shards=tuple(shards),
    ).write(dataset_dir)
