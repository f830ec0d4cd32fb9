"""Datasets in `golden/` stay readable and are still written byte for byte.

They change only with a new format version. `python tests/shards/test_golden.py` writes them.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import (
    Layout,
    Manifest,
    Sample,
    ShardDataset,
    encode_batch,
    fit_durations_codec,
    fit_speech_codec,
    verify_dataset,
    write_codebook,
    write_shard,
)

GOLDEN_DIR = Path(__file__).parent / "golden"
COLUMNS: dict[str, Any] = {
    "image_units": {"codec": "packed", "bits": 13, "count": 16, "shape": [4, 4]},
    "speech_units": {"codec": "packed", "bits": 8},
    "durations": {"codec": "varint", "minimum": 1},
}
FITTED_COLUMNS: dict[str, Any] = COLUMNS | {
    "speech_units": fit_speech_codec([np.array([71, 12, 199, 12, 199]), np.array([71, 12])], 200),
    "durations": fit_durations_codec([np.array([1, 2, 1, 1, 2, 1, 3, 3])]),
}
GOLDEN_LAYOUTS = {
    "arrow": Layout(),
    "packed": Layout(kind="webdataset", samples_per_member=2),
    "plain": Layout(kind="webdataset", samples_per_member=1),
    "huffman": Layout(),
}


def golden_samples() -> list[Sample]:
    """Generated samples; `golden/content.json` has the same content as plain numbers."""
    content = json.loads((GOLDEN_DIR / "content.json").read_text())
    return [
        Sample(
            key=row["key"],
            split=row["split"],
            image_units=None
            if row["image_units"] is None
            else np.array(row["image_units"], np.uint16).reshape(4, 4),
            speech_units=[np.array(units, np.uint16) for units in row["speech_units"]],
            durations=None
            if row["durations"] is None
            else [np.array(runs, np.uint16) for runs in row["durations"]],
            captions=row["captions"],
        )
        for row in content
    ]


def write_golden(dataset_dir: Path, layout: Layout) -> None:
    """Write the golden dataset `name`."""
    dataset_dir.mkdir()
    columns = FITTED_COLUMNS if dataset_dir.name == "huffman" else COLUMNS
    samples = golden_samples()
    batches = [encode_batch(samples[:3], columns), encode_batch(samples[3:], columns)]
    shard = write_shard(dataset_dir / f"00000{layout.suffix}", batches, layout)
    sha256 = write_codebook(dataset_dir, np.arange(12).reshape(6, 2) / 8)
    Manifest(
        num_samples=len(samples),
        splits=shard.splits,
        layout=layout,
        columns=columns,
        image_tokenizer={
            "name": "made-up",
            "fingerprint": "0" * 64,
            "view": "squash-224",
            "precision": "fp32",
            "codebook_file": "codebook.safetensors",
            "codebook_sha256": sha256,
        },
        raw={"num_images": 3, "image_file_bytes": 30000},
        settings={"view": "squash-224"},
        shards=(shard,),
    ).write(dataset_dir)


@pytest.fixture(params=list(GOLDEN_LAYOUTS))
def golden(request: pytest.FixtureRequest) -> str:
    return request.param


def test_reading(golden: str, assert_same: Callable[[Sample, Sample], None]) -> None:
    dataset = ShardDataset(GOLDEN_DIR / golden)
    for found, expected in zip(dataset, golden_samples(), strict=True):
        assert_same(found, expected)
    assert dataset.codebook().tolist() == (np.arange(12).reshape(6, 2) / 8).tolist()


def test_writing(golden: str, tmp_path: Path) -> None:
    write_golden(tmp_path / golden, GOLDEN_LAYOUTS[golden])
    expected = {path.name: path.read_bytes() for path in (GOLDEN_DIR / golden).iterdir()}
    found = {path.name: path.read_bytes() for path in (tmp_path / golden).iterdir()}
    assert found == expected


def test_verifying_names_units_outside_the_codebook(golden: str) -> None:
    """The codebook has six rows on purpose; everything else is sound."""
    found = [problem.found for problem in verify_dataset(GOLDEN_DIR / golden)]
    rows = ["row 0", "row 0" if golden == "packed" else "row 2", "row 0"]
    units = [15, 8191, 8190]
    assert found == [
        f"{row}: image_units: unit {unit}, the codebook has 6 rows"
        for row, unit in zip(rows, units, strict=True)
    ]


if __name__ == "__main__":
    for name, made_layout in GOLDEN_LAYOUTS.items():
        shutil.rmtree(GOLDEN_DIR / name, ignore_errors=True)
        write_golden(GOLDEN_DIR / name, made_layout)
    sys.stdout.write(f"wrote {GOLDEN_DIR}\n")
