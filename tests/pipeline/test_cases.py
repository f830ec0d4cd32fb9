"""im2sp-tokenize, and the commands that take other files, on each troublesome file of the data."""

import json
from pathlib import Path

import pytest

from im2sp.pipeline import cli
from im2sp.shards.cli import main as verify
from im2sp.tools.evaluate import main as evaluate
from im2sp.tools.info import main as info
from im2sp.trainer.cli import main as train

DATA = Path(__file__).parents[2].parent / "shared/data"
IMAGES = Path(__file__).parents[2] / "docs/demo-images"
BROKEN = DATA / "broken/manifest.json"
ENTRIES = json.loads(BROKEN.read_text()) if BROKEN.is_file() else []
FILES = sorted({(one.get("archive") or one["file"], one["kind"]) for one in ENTRIES})


@pytest.fixture
def run(capsys):
    """run(command, *args) -> exit code, stdout, stderr; stderr is at most one line."""

    def call(command, *args):
        try:
            code = command([str(arg) for arg in args])
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        assert err.count("\n") <= 1, err
        assert code == 0 or out or err
        return code, out, err

    return call


@pytest.fixture
def tokenize(run, fake_tokenizer, fake_speech, inline_pool, no_fsync, monkeypatch, tmp_path):
    """tokenize(*args) -> exit code, stdout, stderr; with tokenizers that cost nothing."""
    monkeypatch.setattr(cli, "_load_image_tokenizer", lambda _: fake_tokenizer)
    monkeypatch.setattr(cli, "_load_speech_tokenizer", lambda _: fake_speech)
    return lambda *args: run(cli.main, *args, "--out", tmp_path / "out", "--json", "--quiet")


def rejects(folder):
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_broken_inputs(name, kind, tokenize, tmp_path):
    entries = [one for one in ENTRIES if name in (one.get("archive"), one["file"])]
    expected = {one["expect"] for one in entries}
    code, out, err = tokenize(DATA / "broken" / name)
    found = json.loads(out)
    if expected == {"ok"}:
        assert (code, found["num_refused"]) == (0, 0)
        assert found["num_samples"] == len(entries)
    elif expected == {"reject"}:
        assert (code, found["num_samples"]) == (1, 0)
        assert "was refused; see " in err
        assert all(one["reason"] for one in rejects(tmp_path / "out"))
    else:
        assert code in (0, 1)
    assert set(tmp_path.iterdir()) == {tmp_path / "out"}


CASES = {
    "concat_id3.mp3": {"num_samples": 1, "audio_encoded_s": 2.078},
    "no_eos.opus": {"num_samples": 1, "audio_encoded_s": 1.0},
    "plain.wav": {"num_samples": 1, "audio_encoded_s": 1.0},
    "stream_x7fffffff.wav": {"num_samples": 1, "audio_encoded_s": 1.0},
    "mjpeg_no_dht.jpg": {"num_samples": 1},
    "no_trailer.gif": {"num_samples": 1},
    "ztxt_1_5MB.png": {"num_samples": 1},
    "captions_train2017.json": {"num_samples": 6, "splits": {"train": 6}},
    "hf.parquet": {"num_samples": 5},
    "pd.jsonl": {"num_samples": 5, "num_refused": 0},
    "space.csv": {"splits": {"train": 4, "val": 1}, "num_refused": 1},
    "validation.jsonl": {"splits": {"train": 9, "val": 3}},
    "quote.csv": {"num_samples": 3, "num_refused": 1},
    "lj": {"num_samples": 1, "num_ignored": 2},
    "bom.toml": "unknown kind of source: .toml",
    "cap.json": "found keys ['candidates', 'references']",
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name, tokenize, shared_data):
    path = shared_data / "cases" / name
    is_list = path.suffix in (".json", ".jsonl", ".csv")
    code, out, err = tokenize(path, *(["--image-root", IMAGES] if is_list else []))
    expected = CASES[name]
    if isinstance(expected, str):
        assert (code, out) == (1, "")
        assert expected in err
    else:
        assert code == 0
        assert expected.items() <= json.loads(out).items()


COMMANDS = {
    "im2sp-verify": (verify, "--quiet"),
    "im2sp-info": (info,),
    "im2sp-train": (train, "--quiet", "--out", "run", "--shards"),
    "im2sp-train --config": (train, "--out", "run", "--config"),
    "im2sp-evaluate": (evaluate, "--captions"),
    "im2sp-evaluate --scores": (evaluate, "--scores"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_other_commands(name, run, shared_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, *flags = COMMANDS[name]
    for case in CASES:
        if name == "im2sp-evaluate" and case == "cap.json":
            continue  # it is one
        code, out, err = run(command, *flags, shared_data / "cases" / case)
        assert code in (1, 2), case
        assert "o_cap: no such file" in err or f"cases/{case}" in out + err
