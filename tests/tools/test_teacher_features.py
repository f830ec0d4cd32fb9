import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from im2sp.pipeline.decoding.views import VIEWS
from im2sp.tools import teacher_features
from im2sp.tools.engines.teachers import load_teacher
from im2sp.tools.teacher_features import main
from im2sp.trainer.teacher import Features
from support.teachers import make_teacher

IMAGES = Path(__file__).parents[2] / "docs/demo-images"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    pytest.importorskip("transformers")
    return make_teacher(tmp_path_factory.mktemp("teacher") / "tiny")


def call(*args):
    return main([*map(str, args), "--device", "cpu"])


def test_features_of_a_folder(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(teacher_features, "PART_SIZE", 5)
    images = tmp_path / "images"
    shutil.copytree(IMAGES, images)
    (images / "bad.jpg").write_bytes(b"no image")
    flags = ["--teacher", teacher, "--view", "random-224", "--view-seed", 3]
    assert call(images, "--out", tmp_path / "out", *flags) == 0
    assert "features of 12 images, 1 refused" in capsys.readouterr().out
    features = Features(tmp_path / "out")
    assert features.record["view"] == "random-224-3"
    path = images / "koi-pond.jpg"
    pixels = VIEWS["random-224-3"].apply(Image.open(path).convert("RGB"))
    pooled, places = load_teacher(str(teacher), "cpu").features(torch.from_numpy(pixels[None]))
    found = features.take("koi-pond")
    torch.testing.assert_close(found[0].float(), pooled[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found[1].float(), places[0], atol=2e-3, rtol=2e-3)
    # A part that is missing is written again, the others are kept.
    parts = sorted((tmp_path / "out").glob("*.safetensors"))
    before = [part.read_bytes() for part in parts]
    parts[1].unlink()
    monkeypatch.setattr(teacher_features, "_BATCH_SIZE", 2)
    assert call(images, "--out", tmp_path / "out", *flags, "--quiet") == 0
    assert [part.read_bytes() for part in parts][::2] == before[::2]
    assert Features(tmp_path / "out").take("koi-pond")[0].tolist() == found[0].tolist()
    assert call(images, "--out", tmp_path / "out", "--teacher", teacher) == 1
    assert "'view': 'random-224-3'} of other images; give another --out" in capsys.readouterr().err


def test_images_of_a_split(teacher, tmp_path, capsys):
    source = IMAGES.parent / "demo-captions.jsonl"
    args = [source, "--image-root", IMAGES, "--teacher", teacher, "--quiet"]
    assert call(*args, "--out", tmp_path / "a", "--split", "val") == 0
    num_val = sum('"val"' in line for line in source.read_text().splitlines())
    assert 0 < num_val < 12
    assert len(Features(tmp_path / "a")._rows) == num_val
    assert call(*args, "--out", tmp_path / "b", "--split", "dev") == 1
    assert "demo-captions.jsonl: no image of split 'dev'" in capsys.readouterr().err


def test_wrong_usage(tmp_path, capsys):
    assert call(IMAGES, "--out", tmp_path, "--view-seed", 0) == 2
    assert "--view-seed is 0; expected at least 1" in capsys.readouterr().err


def test_images_of_which_none_can_be_read(teacher, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert call(tmp_path, "--out", tmp_path / "out", "--teacher", teacher) == 1
    assert "bad.jpg and 0 more: no image can be read" in capsys.readouterr().err
