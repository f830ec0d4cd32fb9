"""Expected batches of a loader, from a plain loop over `ShardDataset`."""

from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Sample,
    ShardDataset,
    ShardLoader,
    fit_speech_codec,
)

COLUMNS: dict[str, dict[str, Any]] = {
    "packed": DEFAULT_COLUMNS,
    "packed-10": DEFAULT_COLUMNS | {"speech_units": {"codec": "packed", "bits": 10}},
    "packed-16": DEFAULT_COLUMNS | {"speech_units": {"codec": "packed", "bits": 16}},
    "varint": DEFAULT_COLUMNS | {"speech_units": {"codec": "varint"}},
    "huffman": DEFAULT_COLUMNS | {"speech_units": fit_speech_codec([np.arange(200)] * 2, 200)},
}


def train_samples(num: int, seed: int = 0) -> list[Sample]:
    """Samples of one split that have an image, 1 to 3 utterances and a caption for each."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(num):
        speech = [
            rng.integers(0, 200, rng.integers(1, 40)).astype(np.uint16) for _ in range(1 + i % 3)
        ]
        samples.append(
            Sample(
                key=f"image {i}", split="train", speech_units=speech,
                image_units=rng.integers(0, 8192, (28, 28)).astype(np.uint16),
                captions=[f"{j}: " + "wörd " * int(rng.integers(0, 9)) for j in range(1 + i % 3)],
            )
        )  # fmt: skip
    return samples


def loader_of(path: Path | ShardDataset, batch_size: int = 8, **options: Any) -> ShardLoader:
    return ShardLoader(path, batch_size=batch_size, num_threads=0, **options)


def expected_content(
    dataset: ShardDataset, target: str, low: int = 1, high: int = 1 << 30
) -> dict[str, tuple[Any, ...]]:
    """`batch_content` of each sample that is not skipped, by key."""
    stored = dataset.schema.units["image_units"]
    expected = {}
    for sample in dataset:
        items = [item for item in items_of(sample, target) if low <= len(item) <= high]
        if sample.image_units is not None and (items or target == "images"):
            image = stored.encode(sample.image_units)
            expected[sample.key] = (sample.key, image, items)
    return expected


def items_of(sample: Sample, target: str) -> list[Any]:
    """Utterances or captions of a sample."""
    if target == "speech":
        return [units.tolist() for units in sample.speech_units]
    return sample.captions if target == "text" else []
