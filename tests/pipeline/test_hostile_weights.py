"""One more tensor whose name is that of a distant layer makes no network of that depth."""

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


@pytest.mark.parametrize("distance", [3000, 10**6, 10**9])
@pytest.mark.parametrize("kind", CASES)
def test_a_distant_layer(tmp_path, kind, distance):
    load, name = CASES[kind]
    with safe_open(FOLDER / kind / "compact.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    path = tmp_path / "weights.safetensors"
    save_file(tensors | {name.format(distance): torch.zeros(1)}, path, metadata)
    start = time.process_time()
    # Names that a loader does not look for are ignored.
    expected = pytest.raises(WeightsError, match="one of them numbered")
    with expected if kind == "image_tokenizer" else nullcontext():
        load(str(path), device="cpu")
    assert time.process_time() - start < 5
