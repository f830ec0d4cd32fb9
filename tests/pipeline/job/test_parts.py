"""Jobs in parts: in any order, at once, killed, and with other settings or machines."""

import fcntl
import json
import os
import re
import shutil
from dataclasses import replace
from functools import partial

import pytest

from im2sp.pipeline.job.plan import Tokenizers
from im2sp.pipeline.job.publish import Publisher
from im2sp.pipeline.job.run import JobConfig, run_job, run_part
from im2sp.pipeline.job.state import JobError, JobState
from im2sp.pipeline.summary import part_json, part_summary
from im2sp.shards import Manifest
from support.kills import PLACES, Died, Killed, stop_at, was_killed

pytestmark = pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")


@pytest.fixture
def tokenizers(fake_tokenizer, fake_speech):
    return fake_tokenizer, fake_speech


@pytest.fixture
def config(spoken, tmp_path):
    """Of a job with 4 chunks in 4 shards; the first has no speech, so it waits for the tables."""
    for path in spoken.glob("003_*"):
        path.unlink()
    return JobConfig(
        source=spoken, dataset_dir=tmp_path / "out", num_workers=1, quiet=True, samples_per_shard=4
    )


@pytest.fixture
def expected(config, tokenizers, tmp_path, files_of):
    """Files of the same job without parts."""
    manifest = run_job(replace(config, dataset_dir=tmp_path / "whole"), *tokenizers).manifest
    assert (len(manifest.shards), manifest.num_rejects) == (4, 3)
    assert manifest.columns["durations"]["codec"] == "huffman"
    return files_of(tmp_path / "whole")


def forked(function):
    """Process that runs a function; its exit status is 0 if that returns."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return child


def status_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Same bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_parts", [1, 2, 3, 9])
def test_parts_in_any_order_end_with_the_same_bytes(
    config, tokenizers, expected, files_of, num_parts
):
    for index in reversed(range(num_parts)):
        result = run_part(config, (index, num_parts), *tokenizers)
        names = set(files_of(config.dataset_dir))
        assert not [name for name in names if not name.startswith(".im2sp-job/")]
    assert result.num_left == 0
    assert len([name for name in names if name.endswith(".json") and "chunk-" in name]) == 4
    assert run_job(config, *tokenizers).num_encoded == 0
    assert files_of(config.dataset_dir) == expected


def test_parts_at_once_end_with_the_same_bytes(config, tokenizers, expected, files_of):
    parts = [forked(lambda i=i: run_part(config, (i, 4), *tokenizers)) for i in range(4)]
    assert [status_of(child) for child in parts] == [0] * 4
    assert run_job(config, *tokenizers).num_encoded == 0
    assert files_of(config.dataset_dir) == expected


def test_the_run_that_publishes_encodes_a_missing_part(config, tokenizers, expected, files_of):
    result = run_part(config, (1, 3), *tokenizers)
    assert (result.num_inputs, result.num_left) == (4, 10)
    summary = part_summary("s", "1/3", result)
    assert "part 1/3  4 inputs of s; encoded" in summary
    assert "left      10 inputs of other parts; run the same command without --part" in summary
    assert json.loads(part_json(config.dataset_dir, "1/3", result))["num_left"] == 10
    assert run_job(config, *tokenizers).num_encoded > 0
    assert files_of(config.dataset_dir) == expected


def test_an_interrupted_run_is_resumed_in_parts(
    config, tokenizers, expected, files_of, monkeypatch
):
    undo = stop_at(monkeypatch, PLACES["after os.replace"], 9, Killed())
    with pytest.raises(Killed):
        run_job(config, *tokenizers)
    undo()
    for index in range(2):
        run_part(config, (index, 2), *tokenizers)
    assert run_job(config, *tokenizers).num_encoded == 0
    assert files_of(config.dataset_dir) == expected


@pytest.mark.parametrize("place", [*PLACES, "before linking", "after linking"])
def test_a_part_killed_anywhere_and_run_again(
    config, tokenizers, expected, files_of, monkeypatch, place
):
    links = {"before linking": (os, "link", False), "after linking": (os, "link", True)}
    for stop in range(60):
        is_killed = was_killed(
            monkeypatch,
            (PLACES | links)[place],
            stop,
            lambda: run_part(config, (1, 2), *tokenizers),
        )
        if stop % 2:
            run_part(config, (1, 2), *tokenizers)
        run_part(config, (0, 2), *tokenizers)
        run_job(config, *tokenizers)
        assert files_of(config.dataset_dir) == expected, stop
        shutil.rmtree(config.dataset_dir)
        if not is_killed:
            break
    assert stop >= (0 if "dropping" in place else 2)


def test_a_part_that_dies_anywhere_and_is_run_again(
    config, tokenizers, expected, files_of, monkeypatch
):
    for stop in range(0, 60, 2):
        child = os.fork()
        if child == 0:
            stop_at(monkeypatch, PLACES["before os.replace"], stop, Died)
            try:
                run_part(config, (0, 2), *tokenizers)
            finally:
                os._exit(0)
        is_killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        for index in range(2):
            run_part(config, (index, 2), *tokenizers)
        assert run_job(config, *tokenizers).num_encoded == 0
        assert files_of(config.dataset_dir) == expected, stop
        shutil.rmtree(config.dataset_dir)
        if not is_killed:
            break
    assert stop >= 4


def test_a_finished_dataset_is_left_alone(config, tokenizers, expected, files_of):
    run_job(config, *tokenizers)
    result = run_part(config, (0, 2), *tokenizers)
    assert result.was_finished
    assert part_summary("s", "0/2", result).startswith("part 0/2  s: already done")
    assert files_of(config.dataset_dir) == expected


# Refusals -----------------------------------------------------------------------------------------


def test_two_processes_never_work_on_one_part(config, tokenizers):
    state = JobState(config.dataset_dir)
    with state.lock_part(1, 2):
        with pytest.raises(JobError, match="another im2sp-tokenize is at work on --part 1/2; wait"):
            run_part(config, (1, 2), *tokenizers)
        run_part(config, (0, 2), *tokenizers)
        with pytest.raises(JobError, match="another im2sp-tokenize is writing here; wait"):
            run_job(config, *tokenizers)
    with state.lock(), pytest.raises(JobError, match="another im2sp-tokenize is writing here"):
        run_part(config, (1, 2), *tokenizers)
    run_part(config, (1, 2), *tokenizers)
    assert not list(state.dir.glob("part-*"))


def test_without_flock_files_are_the_locks(config, tokenizers, expected, files_of, monkeypatch):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    state = JobState(config.dataset_dir)
    with state.lock_part(1, 2):
        with pytest.raises(JobError, match=r"at work on --part 1/2; .*part-1-of-2.lock.held$"):
            run_part(config, (1, 2), *tokenizers)
        run_part(config, (0, 2), *tokenizers)
        with pytest.raises(JobError, match=r"part-1-of-2.lock.held: a part of the job is at work"):
            run_job(config, *tokenizers)
    with state.lock(), pytest.raises(JobError, match="another im2sp-tokenize is writing here"):
        run_part(config, (1, 2), *tokenizers)
    run_job(config, *tokenizers)
    assert files_of(config.dataset_dir) == expected


CHANGES = {
    "view": ({"view": "center-224"}, "--view: squash-224 there, center-224 now"),
    "codec": ({"speech_codec": "plain"}, "--speech-codec: huffman there, plain now"),
    "images": ({"only": "audio"}, "image tokenizer: fake there, none now"),
}


@pytest.mark.parametrize("change", [*CHANGES, "tokenizer", "source"])
def test_parts_with_other_settings_are_refused(
    config, tokenizers, make_fake_speech, files_of, change
):
    run_part(config, (0, 2), *tokenizers)
    image, speech = tokenizers
    settings, message = CHANGES.get(change, ({}, ""))
    if change == "tokenizer":
        speech, message = make_fake_speech(1), "fingerprint of the speech tokenizer: "
    if change == "source":
        shutil.copy(config.source / "000.png", config.source / "new.png")
        message = "inputs in the source: 14 there, 15 now"
    before = files_of(config.dataset_dir)
    with pytest.raises(JobError, match="an unfinished job with other settings") as caught:
        run_part(replace(config, **settings), (1, 2), image, speech)
    assert message in str(caught.value)
    assert files_of(config.dataset_dir) == before


def test_of_two_first_parts_with_other_settings_one_is_refused(config, tokenizers, monkeypatch):
    other = replace(config, view="center-224")
    join, calls = JobState.join, iter([True])

    def late(*args):
        if next(calls, False):
            run_part(other, (0, 2), *tokenizers)
        join(*args)

    monkeypatch.setattr(JobState, "join", late)
    with pytest.raises(JobError, match=r"--view: center-224 there, squash-224 now"):
        run_part(config, (1, 2), *tokenizers)
    run_part(other, (1, 2), *tokenizers)
    assert run_job(other, *tokenizers).num_encoded == 0


def test_a_part_with_a_changed_input_is_refused(config, tokenizers, files_of, tmp_path):
    run_part(config, (0, 2), *tokenizers)
    os.utime(config.source / "001.png", ns=(1, 1))
    with pytest.raises(
        JobError,
        match=r"1 input changed since the job began \(the first: 001.png\); copies of a source "
        r"need the same modification times \(cp -p\); else run the command without --part",
    ):
        run_part(config, (1, 2), *tokenizers)
    run_job(config, *tokenizers)
    run_job(replace(config, dataset_dir=tmp_path / "new"), *tokenizers)
    assert files_of(config.dataset_dir) == files_of(tmp_path / "new")


def test_an_interrupted_overwrite_is_not_resumed_by_a_part(config, tokenizers):
    state = JobState(config.dataset_dir)
    state.dir.mkdir(parents=True)
    (config.dataset_dir / "00001.arrow").write_text("stale")
    (state.dir / "stale.json").write_text(json.dumps(["dataset.json", "00001.arrow"]))
    with pytest.raises(JobError, match="an --overwrite was interrupted here; give --overwrite"):
        run_part(config, (0, 2), *tokenizers)
    assert (config.dataset_dir / "00001.arrow").exists()


# Environments -------------------------------------------------------------------------------------


def test_another_version_or_device_is_refused_unless_allowed(
    config, tokenizers, monkeypatch, capsys
):
    environments = [{"torch": "2.12.1", "device": "NVIDIA A100"}, {"torch": "2.13.0"}]
    environments[1]["device"] = "NVIDIA H100"
    named = [property(lambda _, one=one: one) for one in environments]
    monkeypatch.setattr(Tokenizers, "environment", named[0])
    run_part(config, (0, 2), *tokenizers)
    monkeypatch.setattr(Tokenizers, "environment", named[1])
    message = (
        "the unfinished job was begun with another device: NVIDIA A100 there, NVIDIA H100 now; "
        "torch: 2.12.1 there, 2.13.0 now; units may differ in a few places: use the same, or give "
        "--allow-mixed"
    )
    with pytest.raises(JobError, match=message):
        run_part(config, (1, 2), *tokenizers)
    with pytest.raises(JobError, match=message):
        run_job(config, *tokenizers)
    mixed = replace(config, allow_mixed=True, quiet=False)
    run_part(mixed, (1, 2), *tokenizers)
    records = sorted(JobState(config.dataset_dir).dir.glob("chunk-*.json"))
    found = [json.loads(path.read_bytes())["environment"] for path in records]
    assert found == environments * 2
    assert run_job(mixed, *tokenizers).num_encoded == 0
    assert (
        "chunks were encoded in several environments: 2 with 2.12.1, NVIDIA A100; "
        "2 with 2.13.0, NVIDIA H100"
    ) in capsys.readouterr().err
    manifest = run_job(config, *tokenizers).manifest
    assert manifest.settings["environments"] == {"2.12.1, NVIDIA A100": 2, "2.13.0, NVIDIA H100": 2}


def test_environments_of_finished_shards_are_kept(config, tokenizers, monkeypatch):
    for number, stop in enumerate([2, 1, 99]):
        environment = property(lambda _, number=number: {"torch": str(number), "device": "cpu"})
        monkeypatch.setattr(Tokenizers, "environment", environment)
        mixed = replace(config, allow_mixed=True)
        place = (Publisher, "advance", True)
        run = partial(run_job, mixed, *tokenizers)
        was_stopped = was_killed(monkeypatch, place, stop, run)
        assert was_stopped == (stop < 99)
    found = Manifest.read(config.dataset_dir).settings["environments"]
    assert found == {"0, cpu": 2, "1, cpu": 1, "2, cpu": 1}


def test_chunks_of_another_job_are_not_seen(config, tokenizers, expected, files_of):
    run_part(replace(config, view="center-224"), (0, 2), *tokenizers)
    state = JobState(config.dataset_dir)
    late = {path: path.read_bytes() for path in state.dir.glob("chunk-*")}
    shutil.rmtree(state.dir)
    run_part(config, (1, 2), *tokenizers)
    for path, data in late.items():  # of a process that outlived its job
        path.write_bytes(data)
    assert run_job(config, *tokenizers).num_encoded > 0
    assert files_of(config.dataset_dir) == expected


def test_the_environment_names_version_and_instructions(fake_tokenizer):
    loaded = Tokenizers(image=fake_tokenizer, speech=None, image_coding="plain", coding=None)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", loaded.environment["torch"])
    assert re.fullmatch(r"cpu \w+", loaded.environment["device"])
