import itertools
import json
import sys
import types

import numpy as np
import pytest
import soundfile as sf
import torch

from im2sp.pipeline import load_vocoder
from im2sp.pipeline.cli import main as tokenize
from im2sp.tools import fit_vocoder
from im2sp.tools.fit_vocoder import main
from im2sp.tools.fitting import vocoder_quality
from support.hubert import clip, make_centroids, make_hubert, save_folder
from support.speech import install_flite

SMALL = [
    *("--width", "8", "--channels", "32", "--block-kernels", "3", "--dilations", "1", "2", "3"),
    *("--batch-size", "2", "--segment-frames", "10", "--mel-windows", "512", "--device", "cpu"),
    *("--discriminator-width", "0.03", "--num-captions", "5", "--num-val", "2"),
]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command up to `--minutes`: a stand-in for flite, a tiny tokenizer, a made-up clock."""
    install_flite(tmp_path / "bin", monkeypatch)
    model = make_hubert()
    folder = save_folder(model, tmp_path / "hubert")
    np.save(tmp_path / "centroids.npy", make_centroids(model).numpy())
    texts = ["a dog runs", "two cats", "one man sleeps", "green and red boats"]
    images = [
        {"filename": "a.jpg", "split": split, "sentences": [{"raw": text} for text in part]}
        for split, part in (("train", texts), ("val", texts[:3]))
    ]
    clock = itertools.count(1000.0)  # each look at it takes a second
    ticking = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(fit_vocoder, "time", ticking)
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    tokenizer = ["--speech-tokenizer", str(folder), "--kmeans", str(tmp_path / "centroids.npy")]
    captions = ["--captions", str(tmp_path / "dataset.json"), "--out", str(tmp_path / "out")]
    return [*captions, *tokenizer, *SMALL]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def fake_recognizer():
    return lambda samples: "two cats"


def test_from_captions_to_a_vocoder(command, out, capsys, monkeypatch):
    monkeypatch.setattr(fit_vocoder, "pocketsphinx_recognizer", fake_recognizer)
    monkeypatch.setattr(fit_vocoder, "EVERY_STEPS", 1)
    monkeypatch.setattr(fit_vocoder, "CHECKPOINT_S", 0)
    command += ["--minutes", "0.3", "--adversary-from", "0.5"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "'mel':" in text
    assert "'judged':" in text
    card = json.loads((out / "card.json").read_text())
    assert (card["num_train_clips"], card["val"]["num_clips"], card["voice"]) == (4, 2, "slt")
    assert card["recipe"]["adversary_from"] == 0.5
    assert card["sizes"]["dilations"] == [1, 2, 3]
    assert card["val"]["wer_recorded"] == card["val"]["wer_told_durations"]
    ours = load_vocoder(out / "vocoder.safetensors", device="cpu")
    assert (ours.num_units, ours.has_durations) == (20, True)
    published = load_vocoder(out, device="cpu")
    units = np.arange(12)
    durations = np.full(12, 2)
    expected = published.synthesize(units, durations)
    assert expected.any()
    np.testing.assert_allclose(ours.synthesize(units, durations), expected, atol=5e-3)
    # The time is spent, so a second run only measures again.
    assert main(command) == 0
    again = json.loads((out / "card.json").read_text())
    assert (again["steps"], again["val"]) == (card["steps"], card["val"])


def test_it_goes_on_where_it_was(command, out):
    silent = ["--measure-clips", "0"]
    assert main([*command, *silent, "--minutes", "0.1"]) == 0
    steps = json.loads((out / "card.json").read_text())["steps"]
    assert main([*command, *silent, "--minutes", "0.2"]) == 0
    card = json.loads((out / "card.json").read_text())
    assert card["steps"] > steps > 0
    assert "wer_recorded" not in card["val"]
    assert card["val"]["num_clips"] == 2


def test_a_second_run_begins_with_what_the_first_one_learned(command, out, tmp_path, capsys):
    silent = [*command, "--measure-clips", "0"]
    assert main([*silent, "--minutes", "0.1"]) == 0
    first = torch.load(out / "checkpoint.pt", weights_only=True)
    more = ["--init-from", str(out / "checkpoint.pt"), "--out", str(tmp_path / "second")]
    # A rate that leaves the weights as they are, and more recipe that may change.
    assert main([*silent, *more, "--minutes", "0.1", "--rate", "1e-12", "--seed", "1"]) == 0
    second = torch.load(tmp_path / "second" / "checkpoint.pt", weights_only=True)
    assert second["step"] > first["step"] > 0
    for name, tensor in first["generator"].items():
        torch.testing.assert_close(second["generator"][name], tensor, rtol=0, atol=1e-6)
    other = ["--out", str(tmp_path / "third"), "--minutes", "0.1", "--width", "16"]
    assert main([*silent, *more[:2], *other]) == 1
    assert "its sizes are {" in capsys.readouterr().err
    no_checkpoint = ["--init-from", str(out / "vocoder.safetensors"), "--out", str(tmp_path / "4")]
    assert main([*silent, *no_checkpoint, "--minutes", "0.1"]) == 1
    assert "not a checkpoint of fit_vocoder; expected" in capsys.readouterr().err


def test_the_time_that_a_process_was_stopped_does_not_count(command, out, monkeypatch):
    times = itertools.chain([0.0, 1.0, 5000.0], itertools.count(5001.0))
    monkeypatch.setattr(fit_vocoder.time, "monotonic", lambda: next(times))
    assert main([*command, "--measure-clips", "0", "--minutes", "0.55"]) == 0
    card = json.loads((out / "card.json").read_text())
    assert card["steps"] == 4  # of 1, 30, 1 and 1 seconds
    assert card["hours"] == pytest.approx(33 / 3600, abs=1e-3)


def test_other_settings_are_no_restart(command, capsys):
    silent = ["--measure-clips", "0", "--minutes", "0.05"]
    assert main([*command, *silent]) == 0
    assert main([*command, *silent, "--rate", "0.1"]) == 1
    error = capsys.readouterr().err
    assert "fit_vocoder: " in error
    assert "checkpoint.pt: made with other settings" in error


def test_no_time_at_all(command, capsys):
    assert main([*command, "--measure-clips", "0", "--minutes", "0"]) == 1
    assert "no step finished within" in capsys.readouterr().err


def test_recordings_instead_of_captions(command, tmp_path, out):
    (tmp_path / "audio").mkdir()
    for number in range(5):
        sf.write(tmp_path / "audio" / f"{number}.wav", clip(9000, number), 16_000)
    command = ["--audio", str(tmp_path / "audio"), *command[2:]]
    assert main([*command, "--measure-clips", "0", "--minutes", "0.05"]) == 0
    card = json.loads((out / "card.json").read_text())
    assert (card["num_train_clips"], card["voice"]) == (3, None)


def test_units_of_shards_are_those_that_encoding_gives(command, tmp_path, out, capsys):
    audio, shards = tmp_path / "audio", tmp_path / "shards"
    audio.mkdir()
    for number in range(5):
        sf.write(audio / f"{number}.wav", clip(9000 + 400 * number, number), 16_000)
    tokenizer = command[4:8]
    with pytest.raises(SystemExit) as left:
        tokenize([str(audio), "--out", str(shards), *tokenizer, "--num-workers", "1", "--quiet"])
    assert left.value.code == 0
    options = [*SMALL, "--measure-clips", "0", "--minutes", "0.05", "--audio", str(audio)]
    assert main([*options, *tokenizer, "--out", str(out)]) == 0
    taken = tmp_path / "taken"
    assert main([*options, "--shards", str(shards), "--out", str(taken)]) == 0
    cards = [json.loads((folder / "card.json").read_text()) for folder in (out, taken)]
    assert cards[0]["speech_tokenizer"] == cards[1]["speech_tokenizer"]
    assert cards[0]["num_train_clips"] == cards[1]["num_train_clips"] == 3
    weights = [(folder / "vocoder.safetensors").read_bytes() for folder in (out, taken)]
    assert weights[0] == weights[1]
    capsys.readouterr()
    sf.write(audio / "0.wav", clip(30_000, 9), 16_000)
    assert main([*options, "--shards", str(shards), "--out", str(tmp_path / "x")]) == 1
    assert "0.wav: 27 units for 93 frames of audio; expected the dataset" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    sf.write(tmp_path / "other/a.wav", clip(9000, 1), 16_000)
    options[options.index(str(audio))] = str(tmp_path / "other")
    assert main([*options, "--shards", str(shards), "--out", str(tmp_path / "y")]) == 1
    assert "shards: holds no speech of " in capsys.readouterr().err


def test_shards_go_with_audio(command, tmp_path, capsys):
    assert main([*command, "--shards", str(tmp_path)]) == 2
    assert "--shards and --audio-root need --audio, not --captions" in capsys.readouterr().err


def test_tensorboard_has_losses_and_sounds(command, out, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(fit_vocoder, "EVERY_STEPS", 1)
    shown = ["--measure-clips", "0", "--minutes", "0.4", "--tensorboard"]
    assert main([*command, *shown]) == 0
    events = next((out / "tensorboard").iterdir()).read_bytes()
    for name in (b"mel", b"durations", b"clip 0/recorded"):
        assert name in events


def test_without_tensorboard_one_line(command, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main([*command, "--measure-clips", "0", "--tensorboard"]) == 1
    assert "--tensorboard needs TensorBoard: pip install tensorboard" in capsys.readouterr().err


def test_what_is_missing_is_told_before_the_work(command, out, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    monkeypatch.setattr(
        fit_vocoder, "pocketsphinx_recognizer", vocoder_quality.pocketsphinx_recognizer
    )
    assert main(command) == 1
    assert "pocketsphinx is not installed" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("which", [["--captions", "a", "--audio", "b"], []])
def test_one_source(which, capsys, tmp_path):
    assert main([*which, "--out", str(tmp_path)]) == 2
    assert "--captions" in capsys.readouterr().err


def test_the_checkpoint_reads_as_plain_tensors(command, out):
    assert main([*command, "--measure-clips", "0", "--minutes", "0.05"]) == 0
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["step"] > 0
