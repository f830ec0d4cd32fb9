"""An input that changed under its name is noticed, whatever its job had done of it."""

import fcntl
import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline.job.config import JobConfig, JobError
from im2sp.pipeline.job.run import run_job
from im2sp.shards import ShardDataset
from support.sources import png_bytes


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(600):
        (folder / f"{number:03d}.png").write_bytes(png_bytes(number % 200))
        os.utime(folder / f"{number:03d}.png", (1000, 1000))
    return folder


def replace(path, content, mtime):
    path.write_bytes(content)
    os.utime(path, (mtime, mtime))


def config_of(source, out, **settings):
    return JobConfig(
        source=source, dataset_dir=out, samples_per_shard=256, num_workers=1, quiet=True, **settings
    )


class Stop(Exception):
    pass


def interrupted(source, out, tokenizer, num_calls):
    """Run the job until the tokenizer has been called so often."""
    calls = []
    encode = tokenizer.encode_uint8

    def stop(images):
        calls.append(len(images))
        if len(calls) > num_calls:
            raise Stop
        return encode(images)

    tokenizer.encode_uint8 = stop
    with pytest.raises(Stop):
        run_job(config_of(source, out), tokenizer)
    del tokenizer.encode_uint8


def test_a_replaced_input_of_a_finished_dataset_is_named(tmp_path, source, fake_tokenizer):
    config = config_of(source, tmp_path / "out")
    run_job(config, fake_tokenizer)
    assert run_job(config, fake_tokenizer).was_finished
    assert len(png_bytes(5)) == len(png_bytes(7))
    (source / "005.png").write_bytes(png_bytes(7))
    with pytest.raises(JobError, match=r"1 input of .* changed since .*first: 005\.png.*--overwri"):
        run_job(config, fake_tokenizer)
    run_job(config_of(source, tmp_path / "out", overwrite=True), fake_tokenizer)
    assert run_job(config, fake_tokenizer).was_finished
    replace(source / "006.png", png_bytes(6) + b"\0", 900)
    with pytest.raises(JobError, match="1 input of .* changed since .*bytes instead of"):
        run_job(config, fake_tokenizer)


def test_a_mended_input_of_a_finished_dataset_is_named(tmp_path, source, fake_tokenizer):
    whole = (source / "001.png").read_bytes()
    replace(source / "001.png", whole[:40], 1000)
    config = config_of(source, tmp_path / "out")
    assert run_job(config, fake_tokenizer).manifest.num_rejects == 1
    (source / "001.png").write_bytes(whole)
    with pytest.raises(JobError, match=r"first: 001\.png"):
        run_job(config, fake_tokenizer)


@pytest.mark.parametrize(("changed", "num_calls"), [(0, 1), (0, 8), (300, 4), (599, 8)])
def test_an_unfinished_job_encodes_changed_inputs_again(
    tmp_path, source, fake_tokenizer, files_of, changed, num_calls
):
    interrupted(source, tmp_path / "out", fake_tokenizer, num_calls)
    replace(source / f"{changed:03d}.png", png_bytes(255), 2000)
    # What a kill between two writes leaves.
    for name in ("chunk-000009.arrow.tmp", "shard-00009.json.im2sp-0123abcd.tmp"):
        (tmp_path / "out/.im2sp-job" / name).touch()
    run_job(config_of(source, tmp_path / "out"), fake_tokenizer)
    run_job(config_of(source, tmp_path / "new"), fake_tokenizer)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "new")


def test_a_replaced_tar_is_noticed(tmp_path, source, fake_tokenizer):
    tar = tmp_path / "x.tar"

    def pack(value):
        (tmp_path / "a.png").write_bytes(png_bytes(value))
        with tarfile.open(tar, "w") as archive:
            archive.add(tmp_path / "a.png", "a.png")

    pack(3)
    os.utime(tar, (1000, 1000))
    run_job(config_of(tar, tmp_path / "out"), fake_tokenizer)
    pack(4)
    with pytest.raises(JobError, match="1 input of .* changed"):
        run_job(config_of(tar, tmp_path / "out"), fake_tokenizer)


def write_table(path, source, changed=None):
    """Parquet file with the content of the images of a folder."""
    contents = [file.read_bytes() for file in sorted(source.iterdir())]
    contents[changed or 0] = png_bytes(77) if changed else contents[0]
    rows = [{"bytes": content, "path": None} for content in contents]
    pq.write_table(pa.table({"image": rows}), path, row_group_size=100)
    return path


def test_images_in_a_table_are_encoded_as_those_in_files(tmp_path, source, fake_tokenizer):
    table = write_table(tmp_path / "x.parquet", source)
    os.utime(table, (1000, 1000))
    made = run_job(config_of(table, tmp_path / "out"), fake_tokenizer).manifest
    of_files = run_job(config_of(source, tmp_path / "files"), fake_tokenizer).manifest
    assert made.raw == of_files.raw
    tables, files = ShardDataset(tmp_path / "out"), ShardDataset(tmp_path / "files")
    for one, other in zip(tables, files, strict=True):
        np.testing.assert_array_equal(one.image_units, other.image_units)
    assert run_job(config_of(table, tmp_path / "out"), fake_tokenizer).was_finished
    write_table(table, source, changed=5)
    with pytest.raises(JobError, match="600 inputs of .* changed since"):
        run_job(config_of(table, tmp_path / "out"), fake_tokenizer)


def test_an_unfinished_job_over_a_changed_table_starts_again(
    tmp_path, source, fake_tokenizer, files_of
):
    table = write_table(tmp_path / "x.parquet", source)
    interrupted(table, tmp_path / "out", fake_tokenizer, 4)
    write_table(table, source, changed=3)
    run_job(config_of(table, tmp_path / "out"), fake_tokenizer)
    run_job(config_of(table, tmp_path / "new"), fake_tokenizer)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "new")


def test_without_flock_a_file_is_the_lock(tmp_path, source, fake_tokenizer, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    out = tmp_path / "out"
    interrupted(source, out, fake_tokenizer, 2)
    held = out / ".im2sp-job/lock.held"
    assert not held.exists()
    held.write_text(f"elsewhere {os.getpid()}")
    with pytest.raises(JobError, match="another im2sp-tokenize is writing here"):
        run_job(config_of(source, out), fake_tokenizer)
    import socket

    held.write_text(f"{socket.gethostname()} 999999999")
    assert run_job(config_of(source, out), fake_tokenizer).manifest.num_samples == 600
