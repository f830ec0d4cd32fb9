"""What a loader must give, by a plain loop over `ShardDataset`, and the test of its resuming."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards import (
    DEFAULT_COLUMNS,
    LoaderBatch,
    Sample,
    ShardDataset,
    ShardLoader,
    fit_speech_codec,
)

Content = list[tuple[Any, ...]]

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


def content_of(batch: LoaderBatch) -> Content:
    """A batch as plain values: for each image its key, packed row and items."""
    images, owner = batch.images_packed.numpy(), batch.owner.tolist()
    lengths = batch.lengths.tolist()
    items: list[list[Any]] = [[] for _ in images]
    if batch.ids.numel():
        rows = batch.ids.numpy()
        assert (rows[np.arange(rows.shape[1]) >= np.array(lengths)[:, None]] == -1).all()
        assert rows.shape[1] == max(lengths)
        for row, length, image in zip(rows, lengths, owner, strict=True):
            items[image].append(row[:length].tolist())
    elif owner:
        for text, length, image in zip(batch.captions, lengths, owner, strict=True):
            assert len(text) == length
            items[image].append(text)
    assert owner == sorted(owner)
    return [
        (key, image.tobytes(), mine)
        for key, image, mine in zip(batch.keys, images, items, strict=True)
    ]


def expected_content(
    dataset: ShardDataset, target: str, low: int = 1, high: int = 1 << 30
) -> dict[str, tuple[Any, ...]]:
    """What `content_of` says of each sample that is not left out, by key."""
    codec = dataset.codecs.image_units
    expected = {}
    for sample in dataset:
        items = [item for item in items_of(sample, target) if low <= len(item) <= high]
        if sample.image_units is not None and (items or target == "images"):
            image = codec.encode(sample.image_units.reshape(-1))
            expected[sample.key] = (sample.key, image, items)
    return expected


def items_of(sample: Sample, target: str) -> list[Any]:
    """Utterances or captions of a sample."""
    if target == "speech":
        return [units.tolist() for units in sample.speech_units]
    return sample.captions if target == "text" else []


def record(loader: ShardLoader) -> tuple[list[dict[str, Any]], list[Content]]:
    """The loader's state before each batch and after the last, and the batches."""
    states, batches = [loader.state_dict()], []
    for batch in loader:
        batches.append(content_of(batch))
        states.append(loader.state_dict())
    return states, batches


def check_resume(make: Callable[[], ShardLoader]) -> list[Content]:
    """Resume a fresh loader at every step; the rest must be what it was. Returns all batches."""
    states, batches = record(make())
    for i, state in enumerate(states):
        loader = make()
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert [content_of(batch) for batch in loader] == batches[i:]
    return batches
