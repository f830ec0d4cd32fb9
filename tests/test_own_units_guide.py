"""docs/your-own-units.md: its programs run as they are, and its trainings learn something."""

import shlex
from pathlib import Path

import pytest

from im2sp.trainer.cli import main
from im2sp.trainer.metrics import read_metrics
from im2sp.trainer.weights import load_model
from support.guides import blocks

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/your-own-units.md").read_text("utf-8")


def test_the_programs_run_and_the_models_learn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, line, text in blocks(GUIDE, "python", "sh"):
        if language == "python":
            exec(compile(text, f"your-own-units.md:{line}", "exec"), {})  # as a user does
            continue
        program, *arguments = shlex.split(text.replace("\\\n", " "))
        assert program == "im2sp-train"
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--quiet", "--device", "cpu", "--no-tensorboard"])
        assert left.value.code == 0
    runs = sorted((tmp_path / "build").glob("*-run"))
    assert [run.name for run in runs] == ["bits-run", "grid-run", "own-run", "sound-run"]
    for run in runs:
        losses = [row["loss"] for row in read_metrics(run) if "loss" in row]
        assert losses[-1] < 0.8 * losses[0], run.name
        assert "steps = 50" in (run / "config.toml").read_text()
    assert {run.name: load_model(run).config.grid for run in runs} == {
        "bits-run": 16, "grid-run": 16, "own-run": (32,), "sound-run": 16
    }  # fmt: skip
