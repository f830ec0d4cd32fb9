"""docs/recipes/compact-*.toml and teacher-*.toml: the stages of the bundled captioners."""

import tomllib
from pathlib import Path

import pytest

from im2sp.trainer.cli import main
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.weights import load_model
from support.training import make_shards

RECIPES = Path(__file__).parents[2] / "docs/recipes"
STAGES = ["words", "text", "speech"]
# Settings that are reduced for a quick test.
SMALLER = ["--steps", "1", "--checkpoint-every", "1", "--batch-size", "2", "--warmup-steps", "0"]
SMALLER += ["--precision", "fp32", "--device", "cpu", "--no-tensorboard", "--quiet"]


def test_the_stages_follow_each_other(tmp_path):
    shards = make_shards(tmp_path / "shards", num_units=20)
    former = []
    for stage in STAGES:
        recipe = RECIPES / f"compact-{stage}.toml"
        out = tmp_path / stage
        pieces = {"text": ["--text-pieces", "30"], "speech": ["--unit-pieces", "30"]}
        command = ["--config", recipe, "--shards", shards, "--out", out, *former, *SMALLER]
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in [*command, *pieces.get(stage, [])]])
        assert left.value.code == 0
        former = ["--init-from", out]
    config = load_model(tmp_path / "speech", device="cpu").config
    assert (config.num_states, config.vocabulary.num_units) == (50, 20)


@pytest.mark.parametrize(
    "name", [*(f"compact-{s}" for s in STAGES), "teacher-words", "teacher-text"]
)
def test_the_recipe_shows_its_command(name):
    path = RECIPES / f"{name}.toml"
    text = path.read_text("utf-8")
    assert f"im2sp-train --config docs/recipes/{path.name} --shards " in text
    values = tomllib.loads(text)
    assert values["target"] == name.partition("-")[2]
    teacher = (Path("features"),) if "teacher" in name else ()
    config = TrainConfig(shards=Path("a"), out=Path("b"), teacher=teacher, **values)
    assert (config.ema > 0) == ("teacher" in name)
