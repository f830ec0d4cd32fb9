"""Datasets in `golden/` stay readable and are still written byte for byte: version 1 and 2.

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
    DatasetWriter,
    Layout,
    Manifest,
    Sample,
    ShardDataset,
    UnitColumn,
    encode_batch,
    fit_durations_codec,
    fit_speech_codec,
    verify_dataset,
    write_codebook,
    write_shard,
)
from support.columns import assert_same_row
from support.grid import TINY

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


VERSION_2_COLUMNS: dict[str, UnitColumn | str] = {
    "image_units": UnitColumn((2, 3), 30),
    "audio_units": UnitColumn((2, None), 2048),
    "speech_units": UnitColumn((None,), 20, many=True, coding="coded"),
    "durations": UnitColumn((None,), 65536, many=True, coding="varint"),
    "wide": UnitColumn((None, None), 1 << 32, many=True),
    "runs": UnitColumn((None,), 2000, coding="coded"),
    "url": "string",
    "is_free": "bool",
    "number": "int",
    "score": "float",
    "data": "bytes",
    "tags": "list of string",
}
VERSION_2_LAYOUTS: dict[str, dict[str, Any]] = {
    "2-arrow": {"layout": "arrow"},
    "2-packed": {"layout": "webdataset", "samples_per_member": 2},
    "2-plain": {"layout": "webdataset", "samples_per_member": 1},
}


def version_2_rows() -> list[dict[str, Any]]:
    rows = json.loads((GOLDEN_DIR / "content-2.json").read_text())
    return [row | {"data": None if row["data"] is None else row["data"].encode()} for row in rows]


def write_version_2(dataset_dir: Path) -> None:
    with DatasetWriter(
        dataset_dir,
        columns=VERSION_2_COLUMNS,
        samples_per_shard=3,
        tokenizers={"image_units": {"name": "made-up"}, "wide": {"fingerprint": "0" * 64}},
        codebooks={"image_units": np.arange(60).reshape(30, 2) / 8},
        settings={"made": "up"},
        **VERSION_2_LAYOUTS[dataset_dir.name],
    ) as writer:
        for row in version_2_rows():
            writer.write(**row)
        writer.reject("x.jpg", "cut")
        writer.add_raw(num_images=3)


GRIDS = [[[0, 1, 2], [3, 2, 1]], None, [[2, 1, 0], [1, 3, 2]]]


def write_grids(dataset_dir: Path) -> None:
    tables = {f"image_units.{name}": table for name, table in TINY.items()}
    columns = {"image_units": UnitColumn((2, 3), 4, coding="coded")}
    with DatasetWriter(dataset_dir, columns=columns, tables=tables) as writer:
        for i, grid in enumerate(GRIDS):
            writer.write(key=str(i), image_units=grid)
    (dataset_dir / "README.md").unlink()


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


@pytest.mark.parametrize("name", VERSION_2_LAYOUTS)
def test_version_2(name: str, tmp_path: Path) -> None:
    dataset = ShardDataset(GOLDEN_DIR / name)
    assert dataset.columns == VERSION_2_COLUMNS
    for found, row in zip(dataset, version_2_rows(), strict=True):
        assert_same_row(found, row, VERSION_2_COLUMNS)
    assert verify_dataset(GOLDEN_DIR / name) == []
    write_version_2(tmp_path / name)
    expected = {path.name: path.read_bytes() for path in (GOLDEN_DIR / name).iterdir()}
    (tmp_path / name / "README.md").unlink()
    assert {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} == expected


def test_coded_grids(tmp_path: Path) -> None:
    found = [sample.image_units for sample in ShardDataset(GOLDEN_DIR / "2-grids")]
    assert [None if grid is None else grid.tolist() for grid in found] == GRIDS
    assert verify_dataset(GOLDEN_DIR / "2-grids") == []
    write_grids(tmp_path / "x")
    expected = {path.name: path.read_bytes() for path in (GOLDEN_DIR / "2-grids").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == expected
    assert b"\xe4\x15\x8a\x2c" in expected["00000.arrow"]


if __name__ == "__main__":
    shutil.rmtree(GOLDEN_DIR / "2-grids", ignore_errors=True)
    write_grids(GOLDEN_DIR / "2-grids")
    for name in VERSION_2_LAYOUTS:
        shutil.rmtree(GOLDEN_DIR / name, ignore_errors=True)
        write_version_2(GOLDEN_DIR / name)
        (GOLDEN_DIR / name / "README.md").unlink()
    for name, made_layout in GOLDEN_LAYOUTS.items():
        shutil.rmtree(GOLDEN_DIR / name, ignore_errors=True)
        write_golden(GOLDEN_DIR / name, made_layout)
    sys.stdout.write(f"wrote {GOLDEN_DIR}\n")
