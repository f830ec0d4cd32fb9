import json
import os
import signal
import subprocess
import sys
import typing
from pathlib import Path

import numpy as np
import pytest

from im2sp.pipeline import cli, load_image_tokenizer
from im2sp.pipeline.decoding.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.decoding.views import VIEWS
from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job import run as job
from im2sp.shards import ShardDataset, verify_dataset

# Runs the command with small chunks; the first argument is code to run before.
PROGRAM = """
import os, signal, sys
if __name__ == "__main__":
    from im2sp.pipeline.job import config as job_config
    from im2sp.pipeline.cli import main
    job_config.CHUNK_SIZE = 8
    exec(sys.argv.pop(1))
    main()
"""
# Tells the parent that a chunk is done, then waits for a signal.
WAIT_AFTER_3RD_FILE = """
calls, replace = iter(range(99)), os.replace
def wait(*args):
    replace(*args)
    if next(calls) == 3:
        print("third", flush=True)
        signal.pause()
os.replace = wait
"""


@pytest.fixture(scope="module")
def pictures(draw, tmp_path_factory):
    return draw(tmp_path_factory.mktemp("cli") / "p", 40, broken=[2, 33])


@pytest.fixture
def start(tmp_path, tiny_checkpoint):
    """start(code, *args) -> a process of its own that runs `PROGRAM`."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(code, *args):
        program = [sys.executable, tmp_path / "program.py", code, *args]
        return subprocess.Popen(
            [*map(str, program), "--image-tokenizer", str(tiny_checkpoint)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip

    return run


def descendants(pid):
    """Processes started by a process, and by those."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        children = [int(child) for child in task.read_text().split()]
        found += children + [below for child in children for below in descendants(child)]
    return found if path.parent.exists() else []


def check_gone(pids):
    """Wait (the test's time limit is pytest's) until none of these processes runs."""
    for pid in pids:
        handle = None
        try:
            handle = os.pidfd_open(pid)
            ready, _, _ = __import__("select").select([handle], [], [], 10)
            assert ready, f"process {pid} still runs"
        except ProcessLookupError:
            pass
        finally:
            if handle is not None:
                os.close(handle)


# What it prints -----------------------------------------------------------------------------------


def test_a_run_says_what_it_uses_shows_a_bar_and_sums_up(tokenize, pictures, tmp_path):
    code, out, err = tokenize(pictures, "--out", tmp_path / "out")
    assert code == 0
    assert out.startswith("read      40 inputs of ")
    assert out.count("\n") == 4
    reading, loading, first = err.splitlines()[:3]
    assert reading == f"reading {pictures} ..."
    assert loading.startswith("loading the image tokenizer ")
    assert loading.endswith("tiny.safetensors ...")
    assert first.startswith("image tokenizer tiny.safetensors: fp32 on cpu, fingerprint ")
    assert "view squash-224" in first
    assert "40/40" in err
    assert "refused=2" in err
    assert verify_dataset(tmp_path / "out") == []


def test_quiet_prints_nothing_and_json_one_object(tokenize, pictures, tmp_path):
    assert tokenize(pictures, "--out", tmp_path / "out", "--quiet") == (0, "", "")
    code, out, err = tokenize(pictures, "--out", tmp_path / "out", "--quiet", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    content = json.loads(out)
    assert (content["num_inputs"], content["num_refused"], content["was_finished"]) == (40, 2, True)
    code, out, err = tokenize(pictures, "--out", tmp_path / "new", "--json")
    assert json.loads(out)["num_encoded"] == 38
    assert "40/40" in err


def test_max_rejects_fails_a_run_that_is_done(tokenize, pictures, tmp_path):
    code, out, err = tokenize(pictures, "--out", tmp_path / "out", "--quiet", "--max-rejects", 1)
    assert (code, out) == (1, "")
    assert err == (
        "im2sp-tokenize: 2 inputs refused, --max-rejects allows 1; see "
        f"{tmp_path / 'out/rejects.jsonl'}\n"
    )
    assert len(ShardDataset(tmp_path / "out")) == 38
    assert tokenize(pictures, "--out", tmp_path / "out", "--quiet", "--max-rejects", 2)[0] == 0


def test_broken_images_print_nothing_of_their_decoders(
    shared_data, tiny_checkpoint, tmp_path, capfd
):
    args = [shared_data / "broken", "--out", tmp_path / "out", "--only", "images", "--quiet"]
    with pytest.raises(SystemExit, match="^0$"):
        cli.main([*map(str, args), "--image-tokenizer", str(tiny_checkpoint)])
    assert capfd.readouterr() == ("", "")


def test_a_finished_dataset_is_reported(tokenize, pictures, tmp_path, monkeypatch):
    tokenize(pictures, "--out", tmp_path / "out")
    monkeypatch.setattr(job.DecodePool, "start", None)  # nothing is decoded
    code, out, _ = tokenize(pictures, "--out", tmp_path / "out")
    assert code == 0
    assert "already done with the same settings, nothing to do" in out
    code, out, err = tokenize(pictures, "--out", tmp_path / "out", "--view", "center-224")
    assert (code, out) == (1, "")
    assert "(--view: squash-224 there, center-224 now); choose another --out" in err


# Wrong usage and failures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--samples-per-member", "257", "--layout", "webdataset"], "--samples-per-member is 257"),
        (["--samples-per-member", "0", "--layout", "webdataset"], "--samples-per-member is 0"),
        (["--samples-per-member", "1"], "applies to --layout webdataset"),
        (["--samples-per-shard", "0"], "--samples-per-shard is 0"),
        (["--max-pixels", "-5"], "--max-pixels is -5"),
        (["--max-rejects", "-1"], "--max-rejects is -1"),
        (["--image-root", "nowhere"], "nowhere: no such file"),
        (["--codebook", "nowhere.ckpt"], "nowhere.ckpt: no such file"),
        (["--device", "abacus"], "--device abacus: "),
        (["--unknown"], "--unknown"),
        (["--view", "round"], "round"),
        (["--precision", "fp8"], "fp8"),
        (["--max-pixels", "many"], "many"),
    ],
)
def test_wrong_usage_is_2(tokenize, pictures, tmp_path, args, message):
    code, out, err = tokenize(pictures, "--out", tmp_path / "out", *args)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_missing_paths_are_2(tokenize, pictures, tmp_path):
    assert tokenize(tmp_path / "none", "--out", tmp_path / "out")[0] == 2
    assert tokenize(pictures)[0] == 2
    (tmp_path / "file").write_text("mine")
    code, _, err = tokenize(pictures, "--out", tmp_path / "file")
    assert (code, err) == (2, f"im2sp-tokenize: --out {tmp_path / 'file'}: not a folder\n")
    assert (tmp_path / "file").read_text() == "mine"


def test_out_has_to_be_a_folder(tokenize, pictures, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    for place, what in ((tmp_path / "out", "a link to nothing"), (Path(__file__), "not a folder")):
        code, out, err = tokenize(pictures, "--out", place)
        assert (code, out, err) == (2, "", f"im2sp-tokenize: --out {place}: {what}\n")


def check_one_line(shown, message):
    code, out, err = shown
    assert (code, out) == (1, "")
    *progress, error = err.splitlines()
    assert all(line.endswith(" ...") for line in progress)
    assert error.startswith("im2sp-tokenize: ")
    assert message in error


def test_failures_are_one_line(tokenize, pictures, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    check_one_line(tokenize(tmp_path / "empty", "--out", tmp_path / "out"), "holds no images")
    (tmp_path / "x.txt").write_text("")
    check_one_line(
        tokenize(tmp_path / "x.txt", "--out", tmp_path / "out"), "unknown kind of source"
    )
    (tmp_path / "file").write_text("mine")
    quiet = ["--out", tmp_path / "file/out", "--quiet"]
    check_one_line(tokenize(pictures, *quiet), "Not a directory; choose another --out")
    for error, message in [
        (MemoryError(), "no memory left"),
        (PermissionError(13, "Permission denied", "p/x"), "p/x: Permission denied"),
        (ChildProcessError("cannot\nstart"), "cannot start"),
        (type("OutOfMemoryError", (RuntimeError,), {})("16 GiB"), "no memory left on the device"),
    ]:

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(job, "run_job", fail)
        check_one_line(tokenize(pictures, "--out", tmp_path / "out"), message)


def test_a_mistake_of_ours_is_not_hidden(pictures, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("ours")

    monkeypatch.setattr(job, "run_job", fail)
    with pytest.raises(RuntimeError, match="ours"):
        cli.main([str(pictures), "--out", str(tmp_path / "out")])


def test_flags_agree_with_the_job():
    fields = typing.get_type_hints(cli.TokenizeConfig)
    assert typing.get_args(fields["view"]) == (*VIEWS, "random-224")
    config = cli.TokenizeConfig(source=Path("a"), dataset_dir=Path("b"))
    assert config.max_pixels == DEFAULT_MAX_PIXELS
    assert 1 <= config.num_workers <= 16


def test_help_documents_every_flag(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for name in cli.TokenizeConfig.__dataclass_fields__:
        flag = "out" if name == "dataset_dir" else name.replace("_", "-")
        assert name == "source" or f"--{flag} " in text
    assert "Folder with images" in text
    assert "Exit code" in text


def test_the_repository_may_hold_the_dataset(tokenize, pictures, tmp_path, monkeypatch, files_of):
    """`--out shards/` at a repository's root, where `shards/` also holds sources."""
    root = Path(__file__).resolve().parents[2]
    for path in (root / "shards").glob("*.py"):
        copy = tmp_path / "shards" / path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / ".gitignore").write_bytes((root / ".gitignore").read_bytes())
    before = files_of(tmp_path)
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "add", "-A"], check=True)
    for extra in ([], ["--layout", "webdataset", "--overwrite"]):
        assert tokenize(pictures, "--out", "shards/", "--quiet", *extra) == (0, "", "")
        assert before.items() <= files_of(tmp_path).items()
    status = subprocess.run(["git", "status", "-s"], capture_output=True, text=True, check=True)
    assert [line for line in status.stdout.splitlines() if not line.startswith("A ")] == []
    assert len(ShardDataset("shards/")) == 38


# Signals and kills --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(pictures, tiny_checkpoint, tmp_path_factory, files_of):
    """Files of an uninterrupted run with chunks of 8."""
    out = tmp_path_factory.mktemp("whole") / "out"
    config = job.JobConfig(source=pictures, dataset_dir=out, samples_per_shard=16, quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_config, "CHUNK_SIZE", 8)
        job.run_job(config, load_image_tokenizer(tiny_checkpoint))
    return files_of(out)


SETTINGS = ["--samples-per-shard", "16", "--quiet"]


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_signal_ends_it_without_orphans(
    start, pictures, tmp_path, tokenize, monkeypatch, files_of, whole, number, status, word
):
    args = [pictures, "--out", tmp_path / "out", *SETTINGS]
    process = start(WAIT_AFTER_3RD_FILE, *args, "--num-workers", "3")
    assert process.stdout.readline() == "third\n"
    workers = descendants(process.pid)
    assert len(workers) >= 3
    monkeypatch.setattr(job_config, "CHUNK_SIZE", 8)
    if number == signal.SIGTERM:
        for extra in ([], ["--overwrite"]):
            check_one_line(tokenize(*args, *extra), "another im2sp-tokenize is writing here")
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == status
    line = f"im2sp-tokenize: {word}; run the same command again to resume\n"
    if word:
        assert err == line
    else:  # Python's resource tracker removes the locks of the killed process, and logs that
        assert "resource_tracker" in err
        assert "Traceback" not in err
    check_gone(workers)
    assert tokenize(*args) == (0, "", "")
    assert files_of(tmp_path / "out") == whole


def test_the_command_reads_back_what_the_tokenizer_gives(tokenize, pictures, tmp_path,
                                                         tiny_checkpoint):  # fmt: skip
    import torch
    from PIL import Image

    tokenize(pictures, "--out", tmp_path / "out", "--quiet", "--layout", "webdataset")
    tokenizer = load_image_tokenizer(tiny_checkpoint)
    sample = ShardDataset(tmp_path / "out")[5]
    with Image.open(pictures / f"{sample.key}.png") as image:
        pixels = np.array(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    assert (tokenizer.encode(planes)[0].numpy() == sample.image_units).all()


def test_several_sources_are_one_dataset(tokenize, pictures, draw, tmp_path):
    draw(tmp_path / "more", 3, broken=[1])
    single = pictures / "007.png"
    out = ["--out", tmp_path / "out", "--quiet"]
    assert tokenize(tmp_path / "mo[r]e", single, pictures, *out) == (0, "", "")
    dataset = ShardDataset(tmp_path / "out")
    assert [sample.key for sample in dataset][:4] == ["more/000", "more/002", "007", "p/000"]
    assert len(dataset) == 2 + 1 + 38
    assert '{"file": "more/001.png", ' in (tmp_path / "out/rejects.jsonl").read_text()
    code, shown, _ = tokenize(tmp_path / "more", single, pictures, *out[:2])
    assert code == 0
    assert shown.startswith(f"read      44 inputs of {tmp_path / 'more'} and 2 more sources (folde")
    for sources, message in [
        ([pictures, pictures], f"{pictures}: this source is given twice; give it once"),
        ([], "no source; name a folder, a .tar, a source list, an image or a clip"),
    ]:
        assert tokenize(*sources, *out) == (2, "", f"im2sp-tokenize: {message}\n")
