import json
import os

import pytest

from im2sp.pipeline.job.output import check_output, differences, own_files, prepare_output
from im2sp.pipeline.job.state import JobError, JobState
from im2sp.shards import DEFAULT_COLUMNS, Layout, Manifest, Sample, encode_batch, write_shard

TOKENIZER = {"name": "t", "fingerprint": "ab" * 32, "precision": "fp32", "view": "squash-224"}
JOB = {
    "format_version": 2,
    "image_tokenizer": TOKENIZER,
    "layout": {"kind": "arrow", "samples_per_member": 256},
    "settings": {"image_codec": "plain", "source": {"num_items": 3, "sha256": "c" * 64}},
}


@pytest.fixture
def state(tmp_path):
    return JobState(tmp_path)


def write_dataset(folder, num_shards=1):
    shards = [
        write_shard(folder / f"{i:05d}.arrow", [encode_batch([Sample(key=f"k{i}")])], Layout())
        for i in range(num_shards)
    ]
    manifest = Manifest(
        num_samples=num_shards,
        splits={"": num_shards},
        layout=Layout(),
        columns=DEFAULT_COLUMNS,
        shards=shards,
        image_tokenizer=TOKENIZER,
        settings=JOB["settings"],
    )
    manifest.write(folder)
    for name in ("rejects.jsonl", "codebook.safetensors"):
        (folder / name).write_text("")
    return manifest


def unfinished(state, job=JOB):
    with state.lock():
        state.begin(job, [])


def test_an_empty_or_foreign_folder_is_free(state, tmp_path, files_of):
    assert check_output(state, JOB, overwrite=False) is None
    (tmp_path / "train.py").write_text("x")
    (tmp_path / "00000.tar").write_text("of another layout")
    (tmp_path / "1.arrow").write_text("not the name of a shard")
    before = files_of(tmp_path)
    assert check_output(state, JOB, overwrite=True) is None
    assert own_files(tmp_path, state) == []
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["00000.arrow", "12345678.arrow", "rejects.jsonl",
                                  "codebook.safetensors"])  # fmt: skip
def test_a_file_that_is_not_ours_is_never_replaced(state, tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")
    with pytest.raises(JobError, match=rf"holds {name}, which the job would replace"):
        check_output(state, JOB, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ["", "{}", '{"dataset": "flickr8k"}', "\0\1"])
def test_a_dataset_json_of_others_is_never_replaced(state, tmp_path, text, overwrite):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(JobError, match=r"dataset.json.* (not written by im2sp|job would replace)"):
        check_output(state, JOB, overwrite=overwrite)


def test_the_very_dataset_is_found(state, tmp_path):
    manifest = write_dataset(tmp_path)
    found = check_output(state, JOB, overwrite=False)
    assert found is not None
    assert found.text == manifest.text
    assert check_output(state, JOB, overwrite=True) is None


def test_another_dataset_is_refused(state, tmp_path):
    write_dataset(tmp_path)
    job = {**JOB, "image_tokenizer": {**TOKENIZER, "view": "center-224", "fingerprint": "ff" * 32}}
    with pytest.raises(
        JobError,
        match=r"finished dataset with other settings \(fingerprint of the image tokenizer: "
        r"abababababab.. there, ffffffffffff.. now; --view: squash-224 there, center-224 now\)",
    ):
        check_output(state, job, overwrite=False)


def test_another_unfinished_job_is_refused(state, files_of, tmp_path):
    unfinished(state)
    before = files_of(tmp_path)
    assert check_output(state, JOB, overwrite=False) is None
    source = {"num_items": 4, "sha256": "d" * 64}
    job = {**JOB, "settings": {"image_codec": "plain", "source": source}}
    with pytest.raises(
        JobError,
        match=r"an unfinished job with other settings \(inputs in the source: 3 there, 4 now",
    ):
        prepare_output(state, job, overwrite=False)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("size_bytes", [None, 10])
def test_a_dataset_with_a_bad_shard_is_not_done(state, tmp_path, size_bytes):
    write_dataset(tmp_path)
    (tmp_path / "00000.arrow").unlink()
    if size_bytes:
        (tmp_path / "00000.arrow").write_bytes(bytes(size_bytes))
    with pytest.raises(JobError, match=r"00000.arrow: (missing|10 bytes), .*--overwrite"):
        check_output(state, JOB, overwrite=False)


def test_a_damaged_manifest_is_reported_and_can_be_overwritten(state, tmp_path):
    write_dataset(tmp_path, num_shards=2)
    path = tmp_path / "dataset.json"
    path.write_bytes(path.read_bytes().replace(b'"num_samples":2', b'"num_samples":7'))
    with pytest.raises(JobError, match=r"checksum .*--overwrite"):
        check_output(state, JOB, overwrite=False)
    (tmp_path / "notes.arrow").write_text("mine")
    with state.lock():
        assert prepare_output(state, JOB, overwrite=True) is None
    assert sorted(os.listdir(tmp_path)) == [".im2sp-job", "notes.arrow"]


def test_overwrite_removes_what_the_dataset_lists_and_nothing_else(state, tmp_path):
    write_dataset(tmp_path, num_shards=3)
    others = ["00000.tar", "dataset.py", "00000.arrow.bak"]
    for name in others:
        (tmp_path / name).write_text("mine")
    own = own_files(tmp_path, state)
    assert own[0] == "dataset.json"
    assert set(own[1:]) == {
        "00000.arrow", "00001.arrow", "00002.arrow", "rejects.jsonl", "codebook.safetensors",
    }  # fmt: skip
    with state.lock():
        prepare_output(state, JOB, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == sorted([".im2sp-job", *others])


def test_overwrite_removes_what_an_unfinished_job_wrote(state, tmp_path):
    unfinished(state)
    temporary = "00001.arrow.im2sp-0123abcd.tmp"
    for name in ("00000.arrow", temporary, "rejects.jsonl", "00000.tar"):
        (tmp_path / name).write_text("x")
    with state.lock():
        prepare_output(state, JOB, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == [".im2sp-job", "00000.tar"]


def test_an_interrupted_overwrite_is_finished_by_any_later_run(state, tmp_path):
    (tmp_path / "00001.arrow").write_text("stale")
    state.dir.mkdir()
    (state.dir / "stale.json").write_text(json.dumps(["dataset.json", "00001.arrow"]))
    with state.lock():
        assert prepare_output(state, JOB, overwrite=False) is None
    assert os.listdir(tmp_path) == [".im2sp-job"]


def test_differences_name_flags_and_shorten_checksums():
    before = {"layout": {"kind": "arrow"}, "settings": {"x": 1}}
    now = {"layout": {"kind": "webdataset"}, "settings": {"x": 1, "new": "a" * 64}}
    assert differences(before, now) == [
        "--layout: arrow there, webdataset now",
        "settings.new: none there, aaaaaaaaaaaa.. now",
    ]
    assert differences(now, now) == []
