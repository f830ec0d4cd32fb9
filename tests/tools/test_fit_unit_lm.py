"""Training of a unit language model."""

import json

import pytest

from im2sp.tools.engines.speech_lm import load_speech_lm
from im2sp.tools.fit_unit_lm import main
from support.training import make_shards


def test_it_trains_resumes_and_prints(tmp_path, capsys):
    shards, out = make_shards(tmp_path / "shards"), tmp_path / "lm"
    command = [str(shards), "--out", str(out), "--preset", "tiny", "--batch-size", "2"]
    command += ["--steps", "4", "--checkpoint-every", "2", "--device", "cpu"]
    assert main([*command, "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["out"] == str(out)
    assert -4 < found["val_log_likelihood"] < 0
    assert load_speech_lm(out, "cpu").log_likelihood([1, 2]) < 0
    assert main(command) == 0
    captured = capsys.readouterr()
    assert f"{out}: step {found['step']}, log-likelihood on val: -" in captured.out
    assert "resuming from" in captured.err


@pytest.mark.parametrize("splits", [{"train": 4}])
def test_no_validation_split(tmp_path, capsys, splits):
    shards = make_shards(tmp_path / "shards", splits)
    command = [str(shards), "--out", str(tmp_path / "lm"), "--preset", "tiny", "--steps", "1"]
    assert main([*command, "--batch-size", "2", "--device", "cpu"]) == 0
    assert "log-likelihood on val: no validation split" in capsys.readouterr().out
