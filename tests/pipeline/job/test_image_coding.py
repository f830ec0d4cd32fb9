"""The coding of image units: when the tables pay, whose they are, and the same bytes every time."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from im2sp.pipeline.job import columns as job_columns
from im2sp.pipeline.job.columns import image_coding, image_tables
from im2sp.pipeline.job.run import JobConfig, run_job
from im2sp.pipeline.job.state import JobError
from im2sp.shards import DatasetWriter, Layout, Manifest, ShardDataset, UnitColumn, verify_dataset
from im2sp.shards.coding.grid_tables import TABLE_NAMES
from support.kills import PLACES, Killed, stop_at, was_killed

COMPACT = SimpleNamespace(name="compact", num_codes=8192)


def run(source, out, tokenizer, **settings):
    settings = {"num_workers": 1, "quiet": True, "samples_per_shard": 8} | settings
    return run_job(JobConfig(source=source, dataset_dir=out, **settings), tokenizer)


@pytest.fixture
def few_suffice(monkeypatch):
    """Tables are fitted to any number of images."""
    monkeypatch.setattr(job_columns, "_MIN_FITTED_IMAGES", 1)


@pytest.mark.parametrize(
    ("codec", "layout", "tokenizer", "num_images", "expected"),
    [
        ("huffman", {}, COMPACT, 12, "plain"),
        ("huffman", {}, COMPACT, 928, "plain"),
        ("huffman", {}, COMPACT, 929, "huffman"),
        ("plain", {}, COMPACT, 10**6, "plain"),
        ("huffman", {"kind": "webdataset"}, COMPACT, 1000, "huffman"),
        ("huffman", {"kind": "webdataset", "samples_per_member": 1}, COMPACT, 1000, "plain"),
        ("huffman", {}, SimpleNamespace(name="x", num_codes=8192), 1999, "plain"),
        ("huffman", {}, SimpleNamespace(name="x", num_codes=8192), 2000, "huffman"),
        ("huffman", {}, SimpleNamespace(name="x", num_codes=16385), 10**6, "plain"),
    ],
)
def test_tables_are_used_where_they_pay(codec, layout, tokenizer, num_images, expected):
    assert image_coding(codec, Layout(**layout), tokenizer, num_images) == expected


def test_the_tables_of_the_bundled_tokenizer_code_any_grid(tmp_path):
    tables = image_tables("compact")
    assert sorted(tables) == sorted(f"image_units.{name}" for name in TABLE_NAMES)
    grids = np.random.default_rng(0).integers(0, 8192, (5, 28, 28))
    columns = {"image_units": UnitColumn((28, 28), 8192, coding="coded")}
    with DatasetWriter(tmp_path / "set", columns=columns, tables=tables) as writer:
        for i, grid in enumerate(grids):
            writer.write(key=str(i), image_units=grid)
    found = [sample.image_units for sample in ShardDataset(tmp_path / "set")]
    assert np.array_equal(found, grids)


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync", "few_suffice")
@pytest.mark.parametrize("place", ["before os.replace", "after removing"])
def test_a_job_with_coded_images_killed_anywhere_ends_with_the_same_bytes(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of, place
):
    run(twenty, tmp_path / "whole", fake_tokenizer)
    expected = files_of(tmp_path / "whole")
    for stop in range(99):
        out = tmp_path / f"out{stop}"
        if not was_killed(
            monkeypatch, PLACES[place], stop, lambda out=out: run(twenty, out, fake_tokenizer)
        ):
            break
        run(twenty, out, fake_tokenizer)
        assert files_of(out) == expected, stop
        shutil.rmtree(out)
    assert stop >= 6
    assert verify_dataset(out) == []
    assert Manifest.read(out).columns["image_units"]["codec"] == "grid-huffman"
    run(twenty, tmp_path / "plain", fake_tokenizer, image_codec="plain")
    coded, plain = ShardDataset(out), ShardDataset(tmp_path / "plain")
    for one, other in zip(coded, plain, strict=True):
        assert np.array_equal(one.image_units, other.image_units)
    message = "--image-codec: huffman there, plain now"
    with pytest.raises(JobError, match=message):
        run(twenty, out, fake_tokenizer, image_codec="plain")


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync", "few_suffice")
def test_tables_are_fitted_again_to_changed_images(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of
):
    out = tmp_path / "out"
    undo = stop_at(monkeypatch, (fake_tokenizer, "encode_uint8", False), 4, Killed())
    with pytest.raises(Killed):
        run(twenty, out, fake_tokenizer)
    undo()
    assert (out / "00000.arrow").exists()
    shutil.copy(twenty / "005.png", twenty / "000.png")
    os.utime(twenty / "000.png", (1000, 1000))
    run(twenty, out, fake_tokenizer)
    run(twenty, tmp_path / "new", fake_tokenizer)
    assert files_of(out) == files_of(tmp_path / "new")


@pytest.mark.usefixtures("inline_pool")
def test_a_dataset_that_does_not_record_the_coding_has_plain_images(
    twenty, fake_tokenizer, tmp_path
):
    out = tmp_path / "out"
    run(twenty, out, fake_tokenizer)
    manifest = Manifest.read(out)
    settings = {k: v for k, v in manifest.settings.items() if k != "image_codec"}
    assert manifest.settings["image_codec"] == "plain"
    object.__setattr__(manifest, "settings", settings)
    manifest.write(out)
    assert run(twenty, out, fake_tokenizer).was_finished
