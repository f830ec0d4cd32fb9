"""Units that a GPU makes in float32 are those of the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from im2sp.pipeline import load_image_tokenizer, load_speech_tokenizer

pytestmark = pytest.mark.cuda
IMAGES = Path(__file__).resolve().parents[2] / "docs/demo-images"


def test_image_units_are_those_of_the_cpu():
    images = [
        np.asarray(Image.open(path).convert("RGB").resize((224, 224)))
        for path in sorted(IMAGES.glob("*.jpg"))
    ]
    found = [
        load_image_tokenizer("compact", device=device).encode_uint8(np.stack(images))
        for device in ("cuda", "cpu")
    ]
    assert torch.equal(*found)


def test_speech_units_are_those_of_the_cpu():
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, 0.1, size).astype(np.float32) for size in (16000, 16000, 9000)]
    on_gpu, on_cpu = (
        load_speech_tokenizer("compact", device=device).encode_batch(clips)
        for device in ("cuda", "cpu")
    )
    for one, other in zip(on_gpu, on_cpu, strict=True):
        assert one.tolist() == other.tolist()
