import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Layout,
    Manifest,
    Sample,
    encode_batch,
    write_codebook,
    write_shard,
)

settings.register_profile("shards", derandomize=True, deadline=None, database=None)
settings.load_profile("shards")

TINY_COLUMNS: dict[str, Any] = {
    "image_units": {"codec": "packed", "bits": 13, "count": 16, "shape": [4, 4]},
    "speech_units": {"codec": "packed", "bits": 8},
    "durations": {"codec": "varint", "minimum": 1},
}
LAYOUTS = {
    "arrow": Layout(),
    "packed": Layout(kind="webdataset", samples_per_member=3),
    "plain": Layout(kind="webdataset", samples_per_member=1),
}


def _make_samples(num: int, seed: int = 0, shape: tuple[int, ...] = (28, 28)) -> list[Sample]:
    """Samples in which each optional part is absent somewhere."""
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for i in range(num):
        speech = [
            rng.integers(0, 200, rng.integers(0, 9)).astype(np.uint16) for _ in range((i + 1) % 3)
        ]
        durations = [rng.integers(1, 400, units.size).astype(np.uint16) for units in speech]
        samples.append(
            Sample(
                key=f"dir.{i % 7}/image {i}.é",
                split=("train", "val", "")[i % 3],
                image_units=None if i % 5 == 3 else rng.integers(0, 8192, shape).astype(np.uint16),
                speech_units=speech,
                durations=None if i % 4 == 2 else durations,
                captions=[f"caption {j} of {i}: ünï" for j in range((i + 2) % 3)],
            )
        )
    return samples


def _assert_same(found: Sample, expected: Sample) -> None:
    assert (found.key, found.split, found.captions) == (
        expected.key,
        expected.split,
        expected.captions,
    )
    assert (found.image_units is None) == (expected.image_units is None)
    if found.image_units is not None:
        assert found.image_units.dtype == np.uint16
        np.testing.assert_array_equal(found.image_units, expected.image_units)
    assert (found.durations is None) == (expected.durations is None)
    for ours, theirs in (
        (found.speech_units, expected.speech_units),
        (found.durations or [], expected.durations or []),
    ):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == np.uint16
            np.testing.assert_array_equal(one, other)


def _write_dataset(
    dataset_dir: Path,
    samples: Sequence[Sample],
    layout: str = "arrow",
    *,
    batch_rows: int = 4,
    shard_rows: int = 10,
    columns: Any = DEFAULT_COLUMNS,
    with_extras: bool = False,
) -> Manifest:
    dataset_dir.mkdir(exist_ok=True)
    shards = []
    for start in range(0, len(samples), shard_rows):
        part = samples[start : start + shard_rows]
        batches = [
            encode_batch(part[i : i + batch_rows], columns) for i in range(0, len(part), batch_rows)
        ]
        name = f"{len(shards):05d}{LAYOUTS[layout].suffix}"
        shards.append(write_shard(dataset_dir / name, batches, LAYOUTS[layout]))
    splits: dict[str, int] = {}
    for sample in samples:
        splits[sample.split] = splits.get(sample.split, 0) + 1
    extras: dict[str, Any] = {}
    if with_extras:
        sha256 = write_codebook(dataset_dir, np.arange(8192 * 2).reshape(8192, 2))
        rejects = b'{"file":"a.jpg","reason":"cut"}\n'
        (dataset_dir / "rejects.jsonl").write_bytes(rejects)
        extras = {
            "image_tokenizer": {
                "name": "compact",
                "fingerprint": "0" * 64,
                "codebook_file": "codebook.safetensors",
                "codebook_sha256": sha256,
            },
            "num_rejects": 1,
            "rejects_sha256": hashlib.sha256(rejects).hexdigest(),
        }
    manifest = Manifest(
        num_samples=len(samples),
        splits=splits,
        layout=LAYOUTS[layout],
        columns=columns,
        shards=tuple(shards),
        raw={"num_images": len(samples), "image_file_bytes": 10_000 * len(samples)},
        settings={"view": "squash-224"},
        **extras,
    )
    manifest.write(dataset_dir)
    return manifest


def _forge(dataset_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change dataset.json and update its checksum."""
    path = dataset_dir / "dataset.json"
    content = json.loads(path.read_text())
    del content["manifest_sha256"]
    change(content)
    text = '{"manifest_sha256":"' + "0" * 64 + '",' + json.dumps(content)[1:]
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(text.replace("0" * 64, sha256, 1))


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., list[Sample]]:
    return _make_samples


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Sample, Sample], None]:
    return _assert_same


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Manifest]:
    return _write_dataset


@pytest.fixture(scope="session")
def forge() -> Callable[..., None]:
    return _forge


@pytest.fixture(scope="session")
def tiny_columns() -> dict[str, Any]:
    return TINY_COLUMNS


@pytest.fixture(scope="session")
def layouts() -> dict[str, Layout]:
    return LAYOUTS
