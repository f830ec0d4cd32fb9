"""Jobs that are killed, run out of disk, or find something in their output folder."""

import errno
import json
import os
import random
import shutil
import tarfile
from pathlib import Path

import pytest

from im2sp.pipeline.job.run import JobConfig, run_job
from im2sp.pipeline.job.state import JobError
from im2sp.pipeline.sources import SourceError
from im2sp.pipeline.summary import summary
from im2sp.shards import files, verify_dataset
from support.kills import PLACES, Died, Killed, stop_at, was_killed

PACKED = {"layout": "webdataset", "samples_per_member": 3}
PLAIN = {"layout": "webdataset", "samples_per_member": 1}


def run(source, out, tokenizer, **settings):
    settings = {"num_workers": 1, "quiet": True, "samples_per_shard": 8} | settings
    return run_job(JobConfig(source=source, dataset_dir=out, **settings), tokenizer)


def check_sound(out):
    assert [str(problem) for problem in verify_dataset(out)] == []
    assert not (out / ".im2sp-job").exists()
    assert not list(out.glob("*.tmp"))


# Interruptions ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", [{}, PLAIN], ids=["arrow", "plain"])
def test_a_job_killed_anywhere_ends_with_the_same_bytes(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of, place, layout
):
    run(twenty, tmp_path / "whole", fake_tokenizer, **layout)
    expected = files_of(tmp_path / "whole")
    for num_stops in range(200):
        out = tmp_path / f"out{num_stops}"
        if not was_killed(
            monkeypatch,
            PLACES[place],
            num_stops,
            lambda out=out: run(twenty, out, fake_tokenizer, **layout),
        ):
            break
        run(twenty, out, fake_tokenizer, **layout)
        assert files_of(out) == expected, num_stops
        shutil.rmtree(out)
    assert num_stops >= (1 if "dropping" in place else 6)


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")
def test_an_overwrite_killed_anywhere_ends_with_the_same_bytes(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of
):
    settings = {"view": "center-224", "overwrite": True}
    run(twenty, tmp_path / "whole", fake_tokenizer, **settings)
    expected = files_of(tmp_path / "whole")
    run(twenty, tmp_path / "former", fake_tokenizer, samples_per_shard=4)
    for place in ("before os.replace", "after removing"):
        for stop in range(30):
            out = tmp_path / f"{place} {stop}"
            shutil.copytree(tmp_path / "former", out)
            if not was_killed(
                monkeypatch,
                PLACES[place],
                stop,
                lambda out=out: run(twenty, out, fake_tokenizer, **settings),
            ):
                break
            # The same command, and without --overwrite where the former dataset is gone.
            settings["overwrite"] = (out / "dataset.json").exists() or stop % 2 == 0
            run(twenty, out, fake_tokenizer, **settings)
            assert files_of(out) == expected, (place, stop)
            settings["overwrite"] = True
        assert stop >= 6


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")
@pytest.mark.parametrize("place", ["before os.replace", "before removing"])
def test_a_process_that_dies_anywhere_leaves_a_job_that_can_be_resumed(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of, place
):
    run(twenty, tmp_path / "whole", fake_tokenizer)
    expected = files_of(tmp_path / "whole")
    for stop in range(99):
        out = tmp_path / f"out{stop}"
        child = os.fork()
        if child == 0:
            stop_at(monkeypatch, PLACES[place], stop, Died)
            try:
                run(twenty, out, fake_tokenizer)
            finally:
                os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
        run(twenty, out, fake_tokenizer)
        assert files_of(out) == expected, stop
        shutil.rmtree(out)
    assert stop >= 12


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")
@pytest.mark.parametrize("place", ["after os.replace", "before removing", "after removing"])
def test_a_job_killed_while_it_drops_what_changed_ends_with_the_same_bytes(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of, place
):
    begun = tmp_path / "begun"
    undo = stop_at(monkeypatch, (fake_tokenizer, "encode_uint8", False), 4, Killed())
    with pytest.raises(Killed):
        run(twenty, begun, fake_tokenizer)
    undo()
    assert (begun / "00000.arrow").exists()
    shutil.copy(twenty / "005.png", twenty / "000.png")
    run(twenty, tmp_path / "whole", fake_tokenizer)
    expected = files_of(tmp_path / "whole")
    for stop in range(60):
        out = tmp_path / f"out{stop}"
        shutil.copytree(begun, out)
        if not was_killed(
            monkeypatch, PLACES[place], stop, lambda out=out: run(twenty, out, fake_tokenizer)
        ):
            break
        run(twenty, out, fake_tokenizer)
        assert files_of(out) == expected, stop
        shutil.rmtree(out)
    assert stop >= 6


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")
def test_a_job_killed_again_and_again_gets_there(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of
):
    run(twenty, tmp_path / "whole", fake_tokenizer)
    encode, generator = fake_tokenizer.encode_uint8, random.Random(4)
    for _ in range(100):
        undo = stop_at(
            monkeypatch, (fake_tokenizer, "encode_uint8", False), generator.randrange(4), Killed()
        )
        try:
            run(twenty, tmp_path / "out", fake_tokenizer)
            break
        except Killed:
            undo()
    fake_tokenizer.encode_uint8 = encode
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("small_chunks")
def test_the_number_of_workers_does_not_change_a_byte(
    twenty, fake_tokenizer, tmp_path, files_of, monkeypatch
):
    run(twenty, tmp_path / "one", fake_tokenizer, num_workers=1)
    undo = stop_at(monkeypatch, (os, "replace", True), 4, Killed())
    with pytest.raises(Killed):
        run(twenty, tmp_path / "three", fake_tokenizer, num_workers=3)
    undo()
    run(twenty, tmp_path / "three", fake_tokenizer, num_workers=2)
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


# Full disks ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")
@pytest.mark.parametrize("name", ["fsync", "replace", "open", "mkdir"])
def test_a_disk_full_at_any_step_is_reported_and_resumed(
    twenty, fake_tokenizer, tmp_path, monkeypatch, files_of, name
):
    run(twenty, tmp_path / "whole", fake_tokenizer)
    expected = files_of(tmp_path / "whole")
    full = OSError(errno.ENOSPC, "No space left on device")
    num_stops = 0
    for stop in range(60):
        out = tmp_path / f"out{stop}"
        undo = stop_at(monkeypatch, (os, name, False), stop, full)
        message = ""
        try:
            run(twenty, out, fake_tokenizer)
        except JobError as error:
            message = str(error)
        undo()
        if not message:
            break
        num_stops += 1
        start = f"{out}: no space left on the disk; free some; finished work is kept"
        assert message.startswith(start)
        assert not list(out.glob("*.tmp"))
        run(twenty, out, fake_tokenizer)
        assert files_of(out) == expected, stop
    assert num_stops >= (1 if name == "mkdir" else 6)


@pytest.mark.usefixtures("inline_pool", "small_chunks")
def test_a_disk_that_really_is_full(twenty, fake_tokenizer, tmp_path, files_of, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    out = tmp_path / "out"

    def open_full(path, mode):
        if not isinstance(path, int) and Path(path).name.startswith("00001.arrow"):
            path, mode = "/dev/full", "wb"
        return open(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(files, "open", open_full, raising=False)
        with pytest.raises(JobError, match="no space left"):
            run(twenty, out, fake_tokenizer)
    run(twenty, out, fake_tokenizer)
    run(twenty, tmp_path / "whole", fake_tokenizer)
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("inline_pool")
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_error_is_reported(twenty, fake_tokenizer, tmp_path, monkeypatch, code):
    error = OSError(code, os.strerror(code), "out/.im2sp-job")
    stop_at(monkeypatch, (os, "mkdir", False), 0, error)
    with pytest.raises(
        JobError, match=rf"^out/.im2sp-job: {os.strerror(code)}; choose another --out"
    ):
        run(twenty, tmp_path / "out", fake_tokenizer)
    assert not (tmp_path / "out").exists()


# What is there already ----------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool")
def test_a_finished_dataset_is_left_alone(twenty, fake_tokenizer, tmp_path, files_of):
    out = tmp_path / "out"
    run(twenty, out, fake_tokenizer)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result = run(twenty, out, fake_tokenizer)
    assert result.was_finished
    assert (result.num_encoded, result.manifest.num_samples) == (0, 20)
    assert "already done with the same settings" in summary(twenty, out, result)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


CHANGES = {
    "view": ({"view": "center-224"}, "--view: squash-224 there, center-224 now"),
    "layout": (PACKED, "--layout: arrow there, webdataset now; --samples-per-member"),
    "shard": ({"samples_per_shard": 300}, "--samples-per-shard: 256 there, 512 now"),
    "pixels": ({"max_pixels": 999}, "--max-pixels: 89478485 there, 999 now"),
}


@pytest.mark.usefixtures("inline_pool")
@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("change", [*CHANGES, "tokenizer", "source"])
def test_changed_settings_are_refused_and_nothing_is_touched(
    twenty, make_fake_tokenizer, tmp_path, files_of, monkeypatch, change, is_finished
):
    out, tokenizer = tmp_path / "out", make_fake_tokenizer()
    undo = stop_at(monkeypatch, (os, "replace", True), 1 if not is_finished else -1, Killed())
    try:
        run(twenty, out, tokenizer)
    except Killed:
        assert not is_finished
    undo()
    settings, message = CHANGES.get(change, ({}, ""))
    if change == "tokenizer":
        tokenizer, message = make_fake_tokenizer(1), "fingerprint of the image tokenizer: "
    if change == "source":
        shutil.copy(twenty / "000.png", twenty / "new.png")
        message = "inputs in the source: 22 there, 23 now"
    before = files_of(out)
    with pytest.raises(JobError) as caught:
        run(twenty, out, tokenizer, **settings)
    what = "a finished dataset" if is_finished else "an unfinished job"
    assert f"{out}: holds {what} with other settings (" in str(caught.value)
    assert message in str(caught.value)
    assert "start over with --overwrite" in str(caught.value)
    assert files_of(out) == before
    run(twenty, out, tokenizer, overwrite=True, **settings)
    check_sound(out)


@pytest.mark.usefixtures("inline_pool")
def test_an_unfinished_job_of_version_0_1_is_refused_and_can_be_replaced(
    twenty, fake_tokenizer, tmp_path, files_of, monkeypatch
):
    out = tmp_path / "out"
    undo = stop_at(monkeypatch, (os, "replace", True), 4, Killed())
    with pytest.raises(Killed):
        run(twenty, out, fake_tokenizer)
    undo()
    path = out / ".im2sp-job/job.json"
    job = json.loads(path.read_bytes())
    del job["format_version"]
    path.write_text(json.dumps(job))
    (out / "00000.arrow").write_bytes(b"its first shard")
    before = files_of(out)
    with pytest.raises(
        JobError, match=r"unfinished job .*\(version of the format: none there, 2 now\); choose"
    ):
        run(twenty, out, fake_tokenizer)
    assert files_of(out) == before
    run(twenty, out, fake_tokenizer, overwrite=True)
    check_sound(out)


@pytest.mark.usefixtures("inline_pool")
def test_other_files_in_the_folder_stay(twenty, fake_tokenizer, tmp_path, files_of):
    out = tmp_path / "shards"
    (out / "sub").mkdir(parents=True)
    others = ["README.md", "__init__.py", "dataset.py", "sub/00000.arrow", "sub/dataset.json"]
    for name in others:
        (out / name).write_text(name)
    (out / "00000.tar").write_bytes(b"someone else's")
    before = files_of(out)
    run(twenty, out, fake_tokenizer)
    run(twenty, out, fake_tokenizer, overwrite=True, view="center-224")
    after = files_of(out)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "00000.arrow", "codebook.safetensors", "dataset.json", "rejects.jsonl",
    }  # fmt: skip
    check_sound(out)


@pytest.mark.usefixtures("inline_pool")
def test_a_tar_in_the_output_folder_is_never_taken_for_a_shard(
    twenty, fake_tokenizer, tmp_path, files_of
):
    out = tmp_path / "out"
    out.mkdir()
    with tarfile.open(out / "00000.tar", "w") as tar:
        tar.add(twenty, arcname="p")
    before = files_of(out)
    for overwrite in (False, True):
        with pytest.raises(JobError, match="holds 00000.tar, which the job would replace"):
            run(out / "00000.tar", out, fake_tokenizer, **PACKED, overwrite=overwrite)
    assert files_of(out) == before


@pytest.mark.usefixtures("inline_pool")
def test_what_cannot_work_touches_nothing(draw, make_fake_tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="holds no images"):
        run(tmp_path / "empty", tmp_path / "out", make_fake_tokenizer())
    draw(tmp_path / "p", 1)
    for name, value, message in [
        ("patch_size_px", 16, "one unit covers 16x16"),
        ("num_codes", 70_000, "70000 codes"),
    ]:
        tokenizer = make_fake_tokenizer()
        setattr(tokenizer, name, value)
        with pytest.raises(JobError, match=message):
            run(tmp_path / "p", tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("inline_pool")
def test_the_tokenizer_is_loaded_after_the_source_is_listed(fake_tokenizer, draw, tmp_path):
    def load():
        raise AssertionError("loaded")

    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        run(tmp_path / "empty", tmp_path / "out", load)
    run(draw(tmp_path / "p", 1), tmp_path / "out", lambda: fake_tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"view": "x"}, "--view is x; expected one of squash-224"),
        ({"view_seed": 1}, "--view-seed applies to --view random-224, not to squash-224"),
        ({"view": "random-224", "view_seed": 0}, "--view-seed is 0; expected 1 to 999,999,999"),
        ({"samples_per_shard": 0}, "--samples-per-shard is 0"),
        ({"max_pixels": -1}, "--max-pixels is -1"),
        ({"num_workers": 0}, "--num-workers is 0"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        JobConfig(source=tmp_path, dataset_dir=tmp_path, **settings)
