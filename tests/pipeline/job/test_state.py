import json
import os

import numpy as np
import pytest

from im2sp.pipeline.job.state import JobError, JobState, Tally
from im2sp.shards import DatasetWriter, UnitColumn
from im2sp.shards.schema import Schema, batch_of_rows, entries_of
from im2sp.shards.writing.parts import part_path, read_part

JOB = {"layout": {"kind": "arrow", "samples_per_member": 256}, "settings": {"max_pixels": 7}}
ENVIRONMENT = {"torch": "2.9", "device": "cpu AVX2"}
JOB["environment"] = ENVIRONMENT


@pytest.fixture
def state(tmp_path):
    (tmp_path / ".im2sp-job").mkdir()
    made = JobState(tmp_path)
    made.begin(JOB, [])
    return made


COLUMNS = {"image_units": UnitColumn((28, 28), 8192)}
SCHEMA = Schema(2, entries_of(COLUMNS))
UNITS = np.arange(784, dtype=np.uint16).reshape(28, 28)


def batch_of(*keys):
    rows = [
        SCHEMA.encode_row({"key": key, "split": "", "captions": [], "image_units": UNITS})
        for key in keys
    ]
    return batch_of_rows(rows, SCHEMA.arrow)


def finish(state, num_chunks, index=0):
    writer = DatasetWriter(state.dataset_dir, columns=COLUMNS, part=(index, 2))
    state.finish_shard(writer, range(num_chunks), SCHEMA, has_speech=False)


def tally_of(num_images, *names):
    rejects = [{"file": name, "reason": "why\n\u00e9"} for name in names]
    return Tally(rejects=rejects, num_images=num_images, image_file_bytes=10 * num_images)


def test_the_job_is_kept(state):
    state.remove()
    assert not state.exists
    state.dir.mkdir()
    state.begin(JOB, [])
    assert state.exists
    assert state.read_job() == JOB
    assert state.layout_suffix() == ".arrow"


def test_chunks_become_a_shard_with_their_counts(state, tmp_path):
    state.write_chunk(0, batch_of("a", "b"), tally_of(2, "x.jpg"), ENVIRONMENT)
    state.write_chunk(1, batch_of(), tally_of(0, "y.jpg", "z.jpg"), ENVIRONMENT)
    state.write_chunk(2, batch_of("c"), tally_of(1), ENVIRONMENT)
    assert state.finished_chunks() == {0, 1, 2}
    finish(state, 3)
    assert state.finished_chunks() == set()
    assert state.has_shard(0, 2)
    part = read_part(part_path(tmp_path, 0, 2))
    (shard,) = part.shards
    assert (shard.file, shard.num_samples, len(shard.batches)) == ("00000.arrow", 3, 1)
    tally = tally_of(3, "x.jpg", "y.jpg", "z.jpg")
    assert (part.rejects, part.raw) == (tally.rejects, tally.raw(has_speech=False))
    assert (tmp_path / "00000.arrow").stat().st_size == shard.size_bytes


def test_a_shard_of_refused_inputs_alone_has_no_file(state, tmp_path):
    state.write_chunk(0, batch_of(), tally_of(0, "x.jpg"), ENVIRONMENT)
    finish(state, 1)
    part = read_part(part_path(tmp_path, 0, 2))
    assert (part.shards, part.rejects) == ([], tally_of(0, "x.jpg").rejects)
    assert sorted(os.listdir(tmp_path)) == [".im2sp-job", ".im2sp-parts"]


@pytest.mark.parametrize("size", [0, 1, 500, -1])
def test_a_damaged_chunk_is_named(state, size):
    state.write_chunk(0, batch_of("a"), tally_of(1), ENVIRONMENT)
    path = state.dir / "chunk-000000.arrow"
    path.write_bytes(path.read_bytes()[:size] if size >= 0 else b"garbage" * 100)
    with pytest.raises(JobError, match=r"chunk-000000.arrow: .* damaged .*--overwrite"):
        finish(state, 1)


def test_a_chunk_is_read_once_to_make_a_shard(state, monkeypatch):
    state.write_chunk(0, batch_of("a", "b"), tally_of(2), ENVIRONMENT)
    state.write_chunk(1, batch_of("c"), tally_of(1), ENVIRONMENT)
    names = []

    def read_regular(path):
        names.append(path.name)
        return path.read_bytes()

    monkeypatch.setattr("im2sp.pipeline.job.state.read_regular", read_regular)
    finish(state, 2)
    arrows = [name for name in names if name.endswith(".arrow")]
    assert arrows == ["chunk-000000.arrow", "chunk-000001.arrow"]


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"num_samples": 1}'])
def test_a_damaged_record_of_a_chunk_is_named(state, text):
    state.write_chunk(0, batch_of("a"), tally_of(1), ENVIRONMENT)
    (state.dir / "chunk-000000.json").write_text(text)
    with pytest.raises(JobError, match=r"chunk-000000.json: .* damaged .*--overwrite"):
        finish(state, 1)


def test_a_flipped_bit_in_a_chunk_is_found(state):
    state.write_chunk(0, batch_of("a"), tally_of(1), ENVIRONMENT)
    path = state.dir / "chunk-000000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(JobError, match=r"chunk-000000.arrow: .* damaged \(its checksum"):
        finish(state, 1)


def test_a_chunk_without_its_record_is_not_there(state):
    state.write_chunk(0, batch_of("a"), tally_of(1), ENVIRONMENT)
    (state.dir / "chunk-000000.json").unlink()
    assert state.finished_chunks() == set()


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\0"])
def test_a_damaged_job_is_named(state, text):
    (state.dir / "job.json").write_text(text)
    assert state.layout_suffix() is None
    with pytest.raises(JobError, match=r"job.json: .* damaged .*--overwrite"):
        state.read_job()


def test_beginning_drops_what_was_there(state, tmp_path):
    state.begin(JOB, [])
    state.write_chunk(0, batch_of("a"), tally_of(1), ENVIRONMENT)
    state.write_chunk(1, batch_of("b"), tally_of(1), ENVIRONMENT)
    finish(state, 1)
    (tmp_path / "notes.txt").write_text("mine")
    state.begin({**JOB, "more": 1}, ["00000.arrow", "gone.arrow"])
    assert state.read_job() == {**JOB, "more": 1}
    assert not state.has_shard(0, 2)
    assert state.finished_chunks() == set()
    assert sorted(os.listdir(tmp_path)) == [".im2sp-job", "notes.txt"]
    assert os.listdir(state.dir) == ["job.json"]


def test_beginning_is_safe_at_every_step(state, tmp_path, monkeypatch):
    """After a kill there is the former job or the list of what to drop, never a mixture."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    unlink = type(tmp_path).unlink
    for stop in range(20):
        state.begin(JOB, [])
        state.write_chunk(0, batch_of("a"), tally_of(1), ENVIRONMENT)
        for name in ("dataset.json", "00000.arrow"):
            (tmp_path / name).write_text("x")
        calls = iter(range(20))

        def fail(path, missing_ok=False, calls=calls, stop=stop):
            if next(calls) == stop:
                raise KeyboardInterrupt
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(type(tmp_path), "unlink", fail)
        try:
            state.begin({**JOB, "new": 1}, ["dataset.json", "00000.arrow"])
        except KeyboardInterrupt:
            is_done = False
        else:
            is_done = True
        monkeypatch.setattr(type(tmp_path), "unlink", unlink)
        if is_done:
            break
        if state.exists:
            assert state.read_job() == JOB
            assert state.finished_chunks() == {0}
            assert (tmp_path / "dataset.json").exists()
        else:
            assert state.read_stale() == ["dataset.json", "00000.arrow"]
    assert stop >= 4


def test_only_plain_names_are_taken_for_stale(state):
    names = ["a.arrow", "../b", "/etc/c", "d/e", ".."]
    (state.dir / "stale.json").write_text(json.dumps(names))
    assert state.read_stale() == ["a.arrow"]


def test_two_jobs_never_hold_one_folder(tmp_path):
    one, other = JobState(tmp_path / "out"), JobState(tmp_path / "out")
    with one.lock():
        with pytest.raises(JobError, match="another im2sp-tokenize is writing here"), other.lock():
            pass
        assert one.dir.is_dir()
        one.begin(JOB, [])
    with other.lock():
        assert other.read_job() == JOB
    assert other.exists


def test_a_lock_without_a_job_leaves_nothing(tmp_path):
    state = JobState(tmp_path)
    with state.lock():
        pass
    with pytest.raises(KeyError), state.lock():
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_lock_on_a_folder_that_was_dropped_meanwhile_is_none(tmp_path, monkeypatch):
    state = JobState(tmp_path)
    flock = __import__("fcntl").flock

    def drop_first(file, how):
        flock(file, how)
        os.unlink(state.dir / "lock")

    monkeypatch.setattr("fcntl.flock", drop_first)
    with pytest.raises(JobError, match="another im2sp-tokenize"), state.lock():
        pass
