"""Fuzz targets of the shards and the manifest: mutated, with all checksums made to fit."""

import hashlib
import json
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import (
    DatasetWriter,
    Manifest,
    Sample,
    ShardDataset,
    ShardError,
    ShardLoader,
    UnitColumn,
    verify_dataset,
)
from support.columns import LAYOUTS, make_rows, write_rows
from support.fuzz import edits, mutations, refusal
from support.grid import random_tables


def read_samples(folder: Path) -> None:
    for sample in ShardDataset(folder):
        for units in sample.columns.get("speech_units") or ():
            assert units.dtype in (np.uint16, np.uint32)


def read_batches(folder: Path, target: Any) -> None:
    for batch in ShardLoader(folder, batch_size=3, target=target):
        assert batch.keys


def read_all(folder: Path) -> str:
    """Read a dataset in each way; what the refusals say, one after the other."""
    messages = [
        refusal(lambda: verify_dataset(folder), ShardError),
        refusal(lambda: read_samples(folder), ShardError),
        # A loader that is left without samples is no fault of the format.
        *(refusal(partial(read_batches, folder, each), ValueError) for each in ("text", "speech")),
    ]
    return "; ".join(messages)


def test_shards(
    tmp_path: Path,
    layout: str,
    make_samples: Callable[..., list[Sample]],
    write_dataset: Callable[..., Manifest],
    forge: Callable[..., None],
) -> None:
    write_dataset(tmp_path, make_samples(9), layout, shard_rows=9)
    check_shard(tmp_path, sum(layout.encode()), forge)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_shards_of_any_columns(tmp_path: Path, kind: str, forge: Callable[..., None]) -> None:
    write_rows(tmp_path, make_rows(9), **LAYOUTS[kind])
    check_shard(tmp_path, sum(kind.encode()), forge)


def check_shard(folder: Path, seed: int, forge: Callable[..., None]) -> None:
    """Read mutated copies of the one shard of a dataset, with checksums that fit."""
    (path,) = [p for p in folder.iterdir() if p.name.startswith("00000.")]
    for data in mutations(path.read_bytes(), seed):
        path.write_bytes(data)

        def make_fit(content: dict[str, Any], data: bytes = data) -> None:
            (shard,) = content["shards"]
            shard["sha256"] = hashlib.sha256(data).hexdigest()
            shard["size_bytes"] = len(data)
            for batch in shard["batches"]:
                part = data[batch["offset"] :][: batch["size_bytes"]]
                batch["crc32"] = zlib.crc32(part)

        forge(folder, make_fit)
        assert "\n" not in read_all(folder)


@pytest.mark.parametrize("name", ["00000.arrow", "codebook.safetensors"])
def test_coded_grids(tmp_path: Path, name: str, forge: Callable[..., None]) -> None:
    tables = {f"image_units.{table}": tensor for table, tensor in random_tables(3).items()}
    columns = {"image_units": UnitColumn((3, 4), 40, coding="coded")}
    with DatasetWriter(tmp_path / "set", columns=columns, tables=tables) as writer:
        for i, grid in enumerate(np.random.default_rng(0).integers(0, 40, (9, 3, 4))):
            writer.write(key=str(i), image_units=grid)
    folder = tmp_path / "set"
    path = folder / name
    for data in mutations(path.read_bytes(), 7):
        path.write_bytes(data)

        def make_fit(content: dict[str, Any], data: bytes = data) -> None:
            sha256 = hashlib.sha256(data).hexdigest()
            if name != "00000.arrow":
                content["codebook"]["sha256"] = sha256
                return
            (shard,) = content["shards"]
            (batch,) = shard["batches"]
            shard |= {"sha256": sha256, "size_bytes": len(data)}
            batch["crc32"] = zlib.crc32(data[batch["offset"] :][: batch["size_bytes"]])

        forge(folder, make_fit)
        for message in (
            refusal(lambda: verify_dataset(folder), ShardError),
            refusal(lambda: read_samples(folder), ShardError),
            refusal(partial(read_batches, folder, "images"), ValueError),
        ):
            assert "\n" not in message


def test_the_manifest(
    tmp_path: Path,
    make_samples: Callable[..., list[Sample]],
    write_dataset: Callable[..., Manifest],
) -> None:
    write_dataset(tmp_path, make_samples(5), with_extras=True)
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text())
    del content["manifest_sha256"]
    for data in mutations(json.dumps(content).encode(), 5):
        path.write_bytes(signed(data))
        assert "\n" not in read_all(tmp_path)


def signed(data: bytes) -> bytes:
    """A manifest without its checksum, with one that fits."""
    text = b'{"manifest_sha256":"' + b"0" * 64 + b'",' + data[1:]
    return text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)


@pytest.mark.parametrize("version", [1, 2])
def test_parts_of_the_manifest(
    tmp_path: Path,
    version: int,
    make_samples: Callable[..., list[Sample]],
    write_dataset: Callable[..., Manifest],
) -> None:
    if version == 1:
        write_dataset(tmp_path, make_samples(5), with_extras=True)
    else:
        write_rows(tmp_path, make_rows(5))
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text())
    del content["manifest_sha256"]
    for edited in edits(content, version):
        path.write_bytes(signed(json.dumps(edited).encode()))
        assert "\n" not in read_all(tmp_path)
