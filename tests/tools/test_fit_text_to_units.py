"""Training of text-to-unit models: it learns, resumes with the same bytes, and refuses."""

import json

import numpy as np
import pytest
import torch

from im2sp.pipeline import load_text_to_units
from im2sp.shards import DatasetWriter, UnitColumn
from im2sp.tools import fit_text_to_units
from im2sp.tools.fit_text_to_units import main

LETTERS = "abcd"
SIZES = ["--width", "16", "--depth", "1", "--batch-size", "16", "--learning-rate", "0.02"]
FLAGS = [*SIZES, "--device", "cpu"]


def units_of(text):
    """Two units a letter: what the model has to learn."""
    return np.array([unit for c in text if c in LETTERS for unit in (2 * ord(c) % 20, ord(c) % 7)])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Words of a few letters with their units."""
    folder = tmp_path_factory.mktemp("data") / "shards"
    rng = np.random.default_rng(0)
    columns = {"speech_units": UnitColumn((None,), 20, many=True)}
    tokenizers = {"speech_units": {"name": "test", "fingerprint": "ab" * 32}}
    with DatasetWriter(folder, columns=columns, tokenizers=tokenizers) as writer:
        for i in range(60):
            words = ["".join(rng.choice(list(LETTERS), 4)) for _ in range(2)]
            writer.write(
                key=f"{i:02d}",
                split="train" if i < 50 else "val",
                captions=[*words, "a caption that nobody reads"],
                speech_units=[units_of(word) for word in words],
            )
    return folder


def test_it_learns_how_letters_sound(shards, tmp_path, capsys):
    assert main([str(shards), "--out", str(tmp_path), "--steps", "200", *FLAGS]) == 0
    printed, logged = capsys.readouterr()
    assert "text_to_units.safetensors: unit error rate on val 0.0" in printed
    assert "fit_text_to_units: step 200, loss 0." in logged
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["num_utterances"], card["steps"]) == (100, 200)
    assert card["unit_error_rate"] < 0.1
    model = load_text_to_units(tmp_path / "text_to_units.safetensors", device="cpu")
    assert model.units("Dabc") == units_of("dabc").tolist()
    assert model.speech_fingerprint == "ab" * 32


def test_resumed_training_gives_the_same_weights(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_text_to_units, "EVERY_STEPS", 2)
    args = [str(shards), "--steps", "6", *FLAGS, "--quiet"]
    assert main([*args, "--out", str(tmp_path / "a")]) == 0
    run, steps = fit_text_to_units.loss_of, []

    def stopping(network, pairs):
        steps.append(len(steps))
        if len(steps) == 5:
            raise KeyboardInterrupt
        return run(network, pairs)

    monkeypatch.setattr(fit_text_to_units, "loss_of", stopping)
    assert main([*args, "--out", str(tmp_path / "b")]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert main([*args, "--out", str(tmp_path / "b")]) == 0
    assert len(steps) == 5 + 2
    files = [tmp_path / name / "text_to_units.safetensors" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert main([*args, "--out", str(tmp_path / "b"), "--seed", "1"]) == 1
    assert "checkpoint.pt: made with other settings" in capsys.readouterr().err


def test_what_is_refused(shards, tmp_path, capsys, monkeypatch):
    empty = tmp_path / "empty"
    with DatasetWriter(empty, columns={"x": "int"}) as writer:
        writer.write(key="a", captions=["a"], x=1)
    assert main([str(empty), "--out", str(tmp_path / "a")]) == 1
    assert "empty: no utterance with a caption; expected a dataset of" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main([str(shards), "--out", str(tmp_path / "a"), "--depth", "0"]) == 2
    assert "--depth is 0; expected at least 1" in capsys.readouterr().err
    nan = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr(fit_text_to_units, "loss_of", lambda *args: nan)
    assert main([str(shards), "--out", str(tmp_path / "a"), *FLAGS]) == 1
    assert "loss is nan at step 0; lower --learning-rate" in capsys.readouterr().err
