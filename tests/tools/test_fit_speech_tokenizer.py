import json

import numpy as np
import pytest
import soundfile as sf

from im2sp.pipeline import load_speech_tokenizer
from im2sp.tools import fit_speech_tokenizer
from im2sp.tools.fit_speech_tokenizer import main, read_captions
from support.speech import install_flite

SMALL = [
    *("--width", "64", "--num-layers", "2", "--conv-width", "16", "--position-kernel", "16"),
    *("--batch-size", "2", "--crop-frames", "20", "--layer", "2", "--num-units", "6"),
    *("--num-captions", "6", "--device", "cpu"),
]


@pytest.fixture
def captions(tmp_path, monkeypatch):
    install_flite(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(fit_speech_tokenizer, "NUM_VAL_CAPTIONS", 2)
    monkeypatch.setattr(fit_speech_tokenizer, "NUM_MFCC_CLUSTERS", 5)
    texts = ["a dog runs", "two cats", "one man sleeps", "water", "green and red", "boats", "no"]
    images = [
        {"filename": "a.jpg", "split": split, "sentences": [{"raw": text} for text in part]}
        for split, part in (("train", texts), ("val", texts[:3]))
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return path


def test_from_captions_to_a_tokenizer(captions, tmp_path, capsys):
    voices = tmp_path / "voices"
    voices.mkdir()
    sf.write(voices / "a.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 16_000)
    (voices / "b.wav").write_bytes(b"no sound")
    out = tmp_path / "out"
    command = ["--captions", str(captions), "--recordings", str(voices), "--out", str(out), *SMALL]
    command += ["--minutes", "0.01", "0.01"]
    assert main(command) == 0
    assert "skipped: b.wav" in capsys.readouterr().err
    path = out / "speech_tokenizer.safetensors"
    tokenizer = load_speech_tokenizer(path, device="cpu")
    assert (tokenizer.num_units, tokenizer.layer) == (6, 2)
    assert len(tokenizer.encode(np.zeros(4000, np.float32), 16_000)) == 12
    card = json.loads((out / "card.json").read_text())
    assert (card["num_train_clips"], card["num_val_clips"]) == (7, 8)
    assert 0 <= card["val"]["pnmi"] <= 1
    assert 0 <= card["val"]["survival"] <= 1
    # All of it is there, so a second run only measures again.
    stages = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert main(command) == 0
    assert stages == {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    assert json.loads((out / "card.json").read_text())["val"] == card["val"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "not a Karpathy file with captions"),
        ('{"images": [1]}', "not a Karpathy file with captions"),
        ('{"images": []}', "holds no captions of the split 'train'"),
    ],
)
def test_files_without_captions(tmp_path, capsys, content, message):
    path = tmp_path / "dataset.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(path, "train")
    assert main(["--captions", str(path), "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err


def test_sizes_that_cannot_be(tmp_path, capsys):
    for flags in (["--width", "65"], ["--layer", "0"], ["--layer", "7"]):
        assert main(["--captions", "x.json", "--out", str(tmp_path), *flags]) == 2
        assert "--width must be a multiple of 64" in capsys.readouterr().err
