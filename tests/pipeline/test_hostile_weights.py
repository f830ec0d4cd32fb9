"""Names, shapes and settings of huge networks are refused before one is built."""

import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from im2sp import pipeline
from im2sp.pipeline import load_image_tokenizer, load_speech_tokenizer, load_vocoder
from im2sp.shards.weights.pickles import WeightsError

FOLDER = Path(pipeline.__file__).parent
CASES = {
    "image_tokenizer": (load_image_tokenizer, "encoder.transformer.layers.{}.0.norm.weight"),
    "speech_tokenizer": (load_speech_tokenizer, "encoder.transformer.layers.{}.layer_norm.weight"),
    "vocoder": (load_vocoder, "resblocks.{}.convs1.0.weight"),
}


def compact(kind):
    with safe_open(FOLDER / kind / "compact.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("distance", [3000, 10**6, 10**9])
@pytest.mark.parametrize("kind", CASES)
def test_a_distant_layer(tmp_path, kind, distance):
    load, name = CASES[kind]
    tensors, metadata = compact(kind)
    path = tmp_path / "weights.safetensors"
    save_file(tensors | {name.format(distance): torch.zeros(1)}, path, metadata)
    start = time.process_time()
    # Names that a loader does not look for are ignored.
    expected = pytest.raises(WeightsError, match="one of them numbered")
    with expected if kind == "image_tokenizer" else nullcontext():
        load(str(path), device="cpu")
    assert time.process_time() - start < 5


MANY = 2_000_000
LAYERS = "encoder.transformer.layers"
HALVES = torch.zeros(MANY, 1, dtype=torch.float16)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {f"{LAYERS}.0.1.fn.net.0.weight": HALVES},
            r"net\.\d\.\w+ is .* of shape .*, expected numbers of shape \[.*2000000",
        ),
        ({"quantizer.embedding.weight": HALVES}, r"of shape \[2000000, 1\]|post_quant|pre_quant"),
        (
            {"encoder.to_patch_embedding.0.weight": HALVES[:, :, None, None]},
            "positions of 224 x 224 patches and width 2000",
        ),
        ({"post_quant.weight": torch.zeros(10**9, 0)}, "lacks post_quant.weight of a ViT-VQGAN"),
        (
            {f"{LAYERS}.{i}.0.norm.weight": torch.zeros(4) for i in range(3000)},
            "encoder has 3000 layers of 3[0-9]{3} tensors",
        ),
    ],
)
def test_an_image_tokenizer_of_huge_shapes(tmp_path, tensors, message):
    own, metadata = compact("image_tokenizer")
    path = tmp_path / "weights.safetensors"
    save_file(own | tensors, path, metadata)
    with pytest.raises(WeightsError, match=message):
        load_image_tokenizer(str(path), device="cpu")


@pytest.mark.parametrize(
    ("size_px", "message"),
    [
        (10**9, "images of 1000000000 pixels, expected 1 to 65536"),
        (0, "images of 0 pixels"),
        (60_000, "positions of 7500 x 7500 patches and width"),
    ],
)
def test_positions_of_huge_images(tmp_path, size_px, message):
    tensors, metadata = compact("image_tokenizer")
    metadata["im2sp"] = json.dumps(json.loads(metadata["im2sp"]) | {"train_image_size_px": size_px})
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match=message):
        load_image_tokenizer(str(path), device="cpu")


def test_a_speech_tokenizer_of_huge_depth(tmp_path):
    tensors, metadata = compact("speech_tokenizer")
    notes = json.loads(metadata["im2sp"])
    notes["hubert"]["layer"] = 10**9
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, {"im2sp": json.dumps(notes)})
    with pytest.raises(WeightsError, match="1000000000 layers of [0-9]+ tensors"):
        load_speech_tokenizer(str(path), device="cpu")


def long_kernel(tensors):
    name = "resblocks.0.convs1.0.weight"
    return {name: torch.zeros(*tensors[name].shape[:2], 1003)}


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"dilations": [[1] * 500_000] * 3}, None, "dilated convolutions, and [0-9]+ tensors"),
        ({"dilations": [[10**6] * 500_000]}, None, r"names no settings of a unit vocoder"),
        ({}, long_kernel, "a kernel of 1003, expected an odd one of at most 1000"),
    ],
)
def test_a_vocoder_of_huge_settings(tmp_path, settings, change, message):
    tensors, metadata = compact("vocoder")
    notes = json.loads(metadata["im2sp"])
    notes["vocoder"] |= settings
    tensors |= change(tensors) if change else {}
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path, {"im2sp": json.dumps(notes, separators=(",", ":"))})
    with pytest.raises(WeightsError, match=message) as caught:
        load_vocoder(str(path), device="cpu")
    assert len(str(caught.value)) < 500
