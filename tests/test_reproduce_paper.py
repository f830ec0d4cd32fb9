"""docs/reproduce-paper.md: its commands run, in order, on a miniature of its layout."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from im2sp.shards import ShardDataset
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.flags import with_files
from support import forked
from support.evaluation import stand_in_java
from support.guides import commands
from support.paper import (
    JAVA,
    MINIATURE,
    make_caption_programs,
    make_data,
    make_hub,
    make_recipes,
    make_weights,
)
from support.speech import install_flite

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/reproduce-paper.md").read_text("utf-8")
RECIPES = [
    ROOT / "docs/recipes" / f"{data}-{target}.toml"
    for data in ("coco", "flickr8k")
    for target in ("text", "speech")
]
PIXEL_RECIPES = [
    ROOT / "docs/recipes" / f"pixels-{name}.toml" for name in ("git", "clip", "classifier")
]


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """A folder with all that the guide starts from, in place of a clone."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    make_data(tmp_path / "data")
    make_weights(tmp_path / "weights")
    make_hub(tmp_path / "hf/hub")
    make_recipes(tmp_path / "docs/recipes", [*RECIPES, *PIXEL_RECIPES])
    make_caption_programs(tmp_path / "packages")
    install_flite(tmp_path / "bin", monkeypatch)
    stand_in_java(tmp_path / "bin", JAVA)
    yield tmp_path
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)  # some 500 MB


def run(folder, listed):
    """Status and output of commands, up to the first that fails."""
    paths = [folder / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    packages = [folder / "packages", *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        "PATH": os.pathsep.join(map(str, paths)),
        "PYTHONPATH": os.pathsep.join(map(str, packages)),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    report = folder / "report.jsonl"
    done = subprocess.run(
        [sys.executable, forked.__file__, ROOT / "pyproject.toml", report],
        cwd=folder,
        env=os.environ | variables,
        input=json.dumps(listed),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in report.read_text().splitlines()]


def test_the_commands_of_the_guide_run(miniature):
    found = list(commands(GUIDE))
    results = run(miniature, [words for _, words in found])
    for (line, words), (status, output) in zip(found, results, strict=False):
        assert status == 0, f"reproduce-paper.md:{line}:\n{words[-1]}\n{output}"
    assert len(results) == len(found) >= 30
    check_shards(miniature / "shards")
    check_runs(miniature / "runs")
    check_scores(miniature / "runs")
    assert "<audio" in (miniature / "spoken/index.html").read_text()


def check_shards(shards):
    """What was tokenized is what the guide says of it."""
    views = {"coco": "squash-256-crop", "coco-224": "squash-224", "coco-seit": "squash-256-crop"}
    for name, view in views.items():
        dataset = ShardDataset(shards / name)
        assert dataset.manifest.splits == {"train": 3, "restval": 1, "val": 2, "test": 2}
        assert dataset.manifest.image_tokenizer["view"] == view
        has_speech = [len(sample.speech_units) for sample in dataset]
        assert has_speech == [2 if name == "coco" else 0] * 8
        assert [len(sample.captions) for sample in dataset] == [2] * 8
        assert dataset.manifest.num_rejects == 0
    assert ShardDataset(shards / "coco-seit").codebook().shape == (391, 32)
    both = ShardDataset(shards / "both")
    assert both.manifest.splits == {
        "train": 5, "restval": 1, "val": 2, "test": 2, "flickr8k-val": 1, "flickr8k-test": 1
    }  # fmt: skip
    assert all(len(sample.speech_units) == 2 for sample in both)
    for name, part in (("coco", "train"), ("flickr8k", "flickr8k-test")):
        alone = ShardDataset(shards / name, part.removeprefix("flickr8k-"))[0]
        joint = ShardDataset(shards / "both", part)[0]
        assert (joint.image_units == alone.image_units).all()
        assert joint.speech_units[0].tolist() == alone.speech_units[0].tolist()


def check_runs(runs):
    """Each run ended, and stage 2 begins with what stage 1 learned."""
    for target in ("text", "speech"):
        for data in ("coco", "flickr8k", "both"):
            state = json.loads((runs / f"{data}-{target}/step-000004/state.json").read_text())
            assert "bleu" in state["scores"]
    config = tomllib.loads((runs / "coco-speech/config.toml").read_text())
    assert (config["freeze"], config["init_from"]) == ("image", "runs/coco-text")
    assert (runs / "coco-text/text.model").read_bytes()[:1] == b"{"
    pixels = ("pixels-git", "pixels-clip", "pixels-classifier")
    for name in pixels:
        state = json.loads((runs / name / "step-000004/state.json").read_text())
        assert state["tokenizers"]["image"]["input"] == "pixels"
    for name in ("coco-no-transfer", "coco-no-git", "coco-224-text", *pixels):
        assert (runs / name / "step-000004/model.safetensors").is_file()


def check_scores(runs):
    """Everything the paper's table has was scored, and by the programs that the guide names."""
    spoken = {"coco-speech/evaluate-test", "flickr8k-speech/evaluate-test", "topline", "paper"}
    spoken |= {"both-speech/evaluate-flickr8k-test", "coco-text/evaluate-test-flite"}
    for name in [*spoken, "coco-text/evaluate-test"]:
        scores = json.loads((runs / name / "scores.json").read_text())
        assert scores["captions"]["missing"] == {}
        assert {"Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE"} <= set(scores["captions"])
        if name in spoken:
            assert scores["asr"] == "facebook/wav2vec2-large-960h-lv60-self"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_are_settings_of_a_training(path, tmp_path):
    from im2sp.trainer.cli import _parse

    config = _parse([f"--config={path}", "--shards=a", f"--out={tmp_path}"])
    assert config == TrainConfig(**vars(config))
    assert (config.recipe, config.preset) == ("paper", "base")
    assert config.target == path.stem.rpartition("-")[2]
    assert config.freeze == ("none" if config.target == "text" else "image")
    assert config.steps == config.schedule_steps == (5000 if "flickr" in path.stem else 100_000)
    assert (config.batch_size, config.learning_rate, config.best_by) == (64, 5e-5, "bleu")
    assert "--recipe=paper" in with_files([f"--config={path}"])
    assert MINIATURE.keys() <= vars(config).keys()


@pytest.mark.parametrize("path", PIXEL_RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_pixels_are_settings_of_a_training(path, tmp_path):
    from im2sp.trainer.cli import _parse

    config = _parse([f"--config={path}", "--shards=a", "--images=b", f"--out={tmp_path}"])
    assert (config.recipe, config.preset, config.input) == ("paper", "base", "pixels")
    is_git = path.stem == "pixels-git"
    assert config.freeze == ("image" if is_git else "none")
    assert config.init_from == (config.image_encoder if is_git else None)
    assert f"im2sp-train --config docs/recipes/{path.name} --shards " in path.read_text("utf-8")
