"""The whole chain as a user runs it, offline, with what is bundled: pictures to scores."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from im2sp.pipeline.cli import main as tokenize
from im2sp.shards import ShardDataset
from im2sp.tools.evaluate import main as evaluate
from im2sp.tools.speak import main as speak
from im2sp.trainer.cli import main as train

IMAGES = Path(__file__).parents[1] / "docs/demo-images"
QUIET = ["--device", "cpu", "--quiet"]


def run(command, *args):
    """Exit status of a command line, which leaves by it or returns it."""
    try:
        return command([str(arg) for arg in args])
    except SystemExit as left:
        return left.code


@pytest.fixture
def pairs(tmp_path):
    """Six pictures with a caption each, and a second of sound."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    rows, rng = [], np.random.default_rng(0)
    times_s = np.arange(16_000) / 16_000
    for number, path in enumerate(sorted(IMAGES.glob("*.jpg"))[:6]):
        shutil.copy(path, folder)
        pitch = np.cumsum(100 + 80 * np.sin(times_s * (3 + number)))
        sound = 0.2 * np.sign(np.sin(2 * np.pi * pitch / 16_000)) * rng.uniform(0.5, 1, 16_000)
        soundfile.write(folder / f"{path.stem}.wav", sound, 16_000)
        split = "val" if number > 3 else "train"
        caption = f"a picture of {path.stem.replace('-', ' ')}"
        row = {"key": path.stem, "image": path.name, "audio": path.with_suffix(".wav").name}
        rows.append(json.dumps({**row, "caption": caption, "split": split}))
    (folder / "list.jsonl").write_text("\n".join(rows))
    return folder


def test_pictures_and_sound_to_shards_to_speech_to_scores(pairs, tmp_path):
    pytest.importorskip("pocketsphinx")
    shards, trained = tmp_path / "shards", tmp_path / "run"
    list_of_pairs = pairs / "list.jsonl"
    assert run(tokenize, list_of_pairs, "--out", shards, "--num-workers", 1, *QUIET) == 0
    assert len(ShardDataset(shards, "val")) == 2
    settings = ["--preset", "tiny", "--batch-size", 2, "--steps", 50, "--checkpoint-every", 50]
    settings += ["--unit-pieces", 220, "--learning-rate", 3e-3, "--no-tensorboard"]
    assert run(train, "--shards", shards, "--out", trained, *settings, *QUIET) == 0
    picture, few = IMAGES / "koi-pond.jpg", ["--max-tokens", 30]
    spoken = tmp_path / "spoken"
    assert run(speak, picture, "--run", trained, "--out", spoken, *few, *QUIET) == 0
    (row,) = map(json.loads, (spoken / "spoken.jsonl").read_text().splitlines())
    samples, rate_hz = soundfile.read(spoken / row["wav"])
    assert rate_hz == 16_000
    assert len(samples) >= 320 * len(row["units"]) > 0
    scores = tmp_path / "scored" / "scores.json"
    what = ["--run", trained, "--shards", shards, "--split", "val", "--out", tmp_path / "scored"]
    options = ["--resamples", 20, *few]
    assert run(evaluate, *what, *options, *QUIET) in (0, None)
    found = json.loads(scores.read_text())
    assert found["captions"]["num_items"] == 2
    assert found["units"]["unit_error_rate"] >= 0
    assert {"Bleu_4", "CIDEr", "ROUGE_L"} <= found["captions"].keys()
