"""Jobs whose output is an object store: fsspec's store in memory, and S3 on loopback."""

import json
import os
import shutil
import socket
from pathlib import Path

import fsspec
import pytest

from im2sp.pipeline.job.config import JobError
from im2sp.pipeline.job.run import JobConfig, run_job, run_part
from im2sp.pipeline.summary import summary, summary_json
from im2sp.shards import stores
from im2sp.shards.stores.writing import find_bytes, list_folder, put_bytes
from support.kills import PLACES, was_killed

pytestmark = pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync", "home")

STORE = type(fsspec.filesystem("memory"))
URL = "memory://bucket/out"
MARKER = f"{URL}/.im2sp-job.json"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Cache folder of the user, and no waits between tries."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stores, "RETRY_WAITS_S", (0.0, 0.0))
    yield tmp_path / "cache" / "im2sp" / "jobs"
    STORE.store.clear()
    STORE.pseudo_dirs[:] = [""]


@pytest.fixture
def run(spoken, fake_tokenizer, fake_speech):
    """run(out, **settings) -> result of a job with 4 chunks in 4 shards and fitted tables."""
    for path in spoken.glob("003_*"):
        path.unlink()

    def run(out, part=None, **settings):
        given = {"num_workers": 1, "quiet": True, "samples_per_shard": 4} | settings
        config = JobConfig(source=spoken, dataset_dir=Path(out), **given)
        tokenizers = fake_tokenizer, fake_speech
        return run_part(config, part, *tokenizers) if part else run_job(config, *tokenizers)

    return run


@pytest.fixture
def expected(run, tmp_path, files_of):
    """Files of the same job in a folder."""
    assert len(run(tmp_path / "whole").manifest.shards) == 4
    return files_of(tmp_path / "whole")


def objects(url=URL):
    """Content of every object directly in a folder, by its name."""
    return {name: find_bytes(one.url, 2**30) for name, one in list_folder(url).items()}


def stop(run, monkeypatch, number=2):
    """Run a job that is killed before a shard is put."""
    assert was_killed(monkeypatch, (STORE, "put_file", False), number, lambda: run(URL))


# Same bytes ---------------------------------------------------------------------------------------


def test_the_objects_are_the_files_of_a_folder(run, expected, home):
    result = run(URL)
    assert objects() == expected
    assert not list(home.iterdir())
    assert f"in 4 shards to {URL}, " in summary("s", URL, result)
    assert "already done with the same settings, nothing to do" in summary("s", URL, run(URL))
    content = json.loads(summary_json(URL, result))
    sizes = {name: len(data) for name, data in objects().items()}
    codebook = sizes["codebook.safetensors"] + sizes["README.md"]
    assert content["out"] == URL
    assert content["size_bytes"] > sum(sizes.values()) - codebook


@pytest.mark.parametrize(
    "place",
    [
        *((STORE, name, is_after) for name in ("put_file", "pipe_file", "rm_file")
          for is_after in (False, True)),
        *(PLACES[name] for name in ("after os.replace", "after removing")),
    ],
    ids=lambda place: f"{'after' if place[2] else 'before'} {place[1]}",
)  # fmt: skip
def test_a_job_killed_anywhere_ends_with_the_same_bytes(run, expected, home, monkeypatch, place):
    in_store = place[0] is STORE
    for num_stops in range(0, 200, 1 if in_store else 3):  # the others: `test_resume`
        if not was_killed(monkeypatch, place, num_stops, lambda: run(URL)):
            break
        run(URL)
        assert objects() == expected, num_stops
        assert not list(home.iterdir())
        STORE.store.clear()
    assert num_stops >= (1 if place[1] == "rm_file" else 4)


def test_parts_share_a_work_folder(run, expected, tmp_path):
    work = tmp_path / "work"
    for index in range(3):
        assert run(URL, (index, 3), work_dir=work).num_left == [8, 4, 0][index]
    assert not objects()
    assert run(URL, work_dir=work).num_encoded == 0
    assert objects() == expected
    assert not work.exists()
    assert run(URL, (0, 3), work_dir=work).was_finished


# Two drivers --------------------------------------------------------------------------------------


def test_a_second_driver_is_refused_and_may_take_over(
    run, expected, tmp_path, home, monkeypatch, files_of
):
    stop(run, monkeypatch)
    before = objects()
    other = {"work_dir": tmp_path / "other"}
    message = (
        rf"^{URL}: {socket.gethostname()} began to write here at 20.*UTC \(work folder {home}/\w+\)"
        "; wait for it, or, if it has ended for good, give --take-over$"
    )
    with pytest.raises(JobError, match=message):
        run(URL, **other)
    with pytest.raises(JobError, match="began to write here"):
        run(URL, overwrite=True, **other)
    with pytest.raises(JobError, match="began to write here"):
        run(URL, (0, 2), **other)
    assert objects() == before
    assert not other["work_dir"].exists()
    with pytest.raises(JobError, match="holds an unfinished job with other settings; choose an"):
        run(URL, take_over=True, view="center-224", **other)
    assert was_killed(
        monkeypatch, (STORE, "put_file", False), 0, lambda: run(URL, take_over=True, **other)
    )
    with pytest.raises(JobError, match="began to write here at .*/other"):
        run(URL)
    run(URL, **other)
    assert objects() == expected


def test_a_driver_stops_when_its_output_was_taken_over(run, expected, tmp_path, monkeypatch):
    real, calls = STORE.put_file, []

    def put_file(self, local, remote):
        real(self, local, remote)
        calls.append(remote)
        if len(calls) == 2:
            run(URL, take_over=True, work_dir=tmp_path / "other")

    monkeypatch.setattr(STORE, "put_file", put_file)
    with pytest.raises(JobError, match=rf"^{URL}: taken over by it; this command stops"):
        run(URL)
    assert objects() == expected
    assert run(URL).was_finished


def test_a_lost_work_folder_of_this_host_needs_no_flag(run, expected, home, monkeypatch):
    stop(run, monkeypatch)
    shutil.rmtree(home)
    run(URL)
    assert objects() == expected


# What is there ------------------------------------------------------------------------------------


def test_overwrite_removes_what_the_manifest_lists(run, expected, home, monkeypatch, tmp_path):
    run(URL, samples_per_shard=100, layout="webdataset")
    assert "00000.tar" in objects()
    for name in ("notes.txt", "00007.tar", "b/00000.arrow"):
        put_bytes(f"{URL}/{name}", b"mine")
    with pytest.raises(JobError, match=rf"^{URL}: holds a finished dataset with other settings"):
        run(URL)
    place = (STORE, "rm_file", False)
    assert was_killed(monkeypatch, place, 1, lambda: run(URL, overwrite=True))
    assert "dataset.json" not in objects()
    run(URL)
    mine = {"notes.txt": b"mine", "00007.tar": b"mine"}
    assert objects() == expected | mine
    assert list(objects(f"{URL}/b")) == ["00000.arrow"]
    run(URL, overwrite=True)
    assert objects() == expected | mine
    assert not list(home.iterdir())


@pytest.mark.parametrize("name", ["00004.arrow", "dataset.json", "rejects.jsonl"])
def test_an_object_that_is_not_im2sps_is_refused(run, name, home):
    put_bytes(f"{URL}/{name}", b"mine")
    for overwrite in (False, True):
        with pytest.raises(JobError, match=rf"^{URL}: (holds|its) {name}.* im2sp"):
            run(URL, overwrite=overwrite)
    assert objects() == {name: b"mine"}
    assert not home.exists() or not list(home.iterdir())


def test_a_card_of_the_user_is_kept(run, expected):
    put_bytes(f"{URL}/README.md", b"# Mine")
    run(URL)
    assert objects() == expected | {"README.md": b"# Mine"}


def test_a_marker_that_is_not_im2sps_is_refused(run):
    put_bytes(MARKER, b"{}")
    with pytest.raises(JobError, match=r"its \.im2sp-job\.json was not written by im2sp or is dam"):
        run(URL)


def test_a_manifest_that_appears_meanwhile_is_not_replaced(run, monkeypatch):
    place = (STORE, "pipe_file", False)
    assert was_killed(monkeypatch, place, 3, lambda: run(URL))
    assert "README.md" in objects()
    put_bytes(f"{URL}/dataset.json", b"other")
    monkeypatch.setattr("im2sp.pipeline.job.places.StoreOutput.check", lambda *_: None)
    with pytest.raises(JobError, match=r"another process has written a dataset\.json meanwhile"):
        run(URL)


def test_a_finished_dataset_without_a_shard_is_refused(run):
    run(URL)
    STORE().rm_file("/bucket/out/00002.arrow")
    with pytest.raises(
        JobError, match=rf"^{URL}/00002\.arrow: missing, dataset.json lists .* bytes"
    ):
        run(URL)


def test_a_changed_input_is_noticed(run, spoken):
    run(URL)
    os.utime(spoken / "001.png", (4e9, 4e9))
    with pytest.raises(JobError, match=rf"^{URL}: 1 input of .* changed since this dataset was ma"):
        run(URL)


def test_a_store_that_refuses_is_reported_and_the_job_resumes(run, expected, home, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("AccessDenied")

    with monkeypatch.context() as patch:
        patch.setattr(STORE, "put_file", refuse)
        with pytest.raises(
            JobError,
            match=rf"^{URL}/00000\.arrow: access denied; check the credentials of the store; "
            "finished work is kept: run the same command again to resume$",
        ):
            run(URL)
    assert run(URL).num_encoded < 11
    assert objects() == expected


def test_a_store_that_refuses_the_first_put_leaves_no_work_folder(run, home, monkeypatch):
    def refuse(*_, **__):
        raise FileNotFoundError("NoSuchBucket")

    monkeypatch.setattr(STORE, "pipe_file", refuse)
    with pytest.raises(JobError, match=rf"^{MARKER}: cannot be written: no such bucket; finished"):
        run(URL)
    assert not list(home.iterdir())


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "settings", "message"),
    [
        ("out", {"work_dir": Path("w")}, "--work-dir applies to --out URL only"),
        ("out", {"take_over": True}, "--take-over applies to --out URL only"),
        ("hf:/datasets/a/b", {}, r"^hf://datasets/a/b: hf:// is not written to; expected a folder"),
    ],
)
def test_settings_that_do_not_fit_the_output_are_refused(out, settings, message):
    with pytest.raises(ValueError, match=message):
        JobConfig(source="s", dataset_dir=Path(out), **settings)


def test_the_command_writes_to_a_store(tokenize, draw, tmp_path, home, files_of):
    source = draw(tmp_path / "p", 9, broken=[2])
    status, text, errors = tokenize(source, "--out", URL)
    assert status == 0, errors
    assert f"in 1 shard to {URL}, " in text
    assert f"listed with reason in {URL}/rejects.jsonl" in text
    assert f"working in {home}" in errors
    tokenize(source, "--out", tmp_path / "whole")
    assert objects() == files_of(tmp_path / "whole")
    status, text, errors = tokenize(source, "--out", URL, "--part", "0/2")
    assert status == 2
    assert f"--part with --out {URL} needs --work-dir, a folder that all parts share" in errors
    assert not Path("memory:").exists()


# S3 -----------------------------------------------------------------------------------------------


@pytest.mark.s3
def test_a_dataset_is_written_to_s3(run, expected, bucket, home, tmp_path):
    url, path, faults = f"{bucket.url}/out", f"{bucket.url[5:]}/out", bucket.site.faults
    faults[f"PUT {path}/00001.arrow"] = [503, "drop", 403]
    with pytest.raises(
        JobError, match=rf"^{url}/00001\.arrow: access denied; check the credential"
    ):
        run(url)
    assert "dataset.json" not in objects(url)
    with pytest.raises(JobError, match="began to write here"):
        run(url, work_dir=tmp_path / "other")
    for name in ("dataset.json", "rejects.jsonl"):
        faults[f"PUT {path}/{name}"] = [503, "drop"]
    run(url)
    assert not any(faults.values())
    assert objects(url) == expected
    assert not list(home.iterdir())
    run(url, overwrite=True)
    assert objects(url) == expected
