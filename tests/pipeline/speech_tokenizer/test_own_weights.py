"""The im2sp form of a speech tokenizer: a safetensors file of weights, settings and centroids."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from im2sp.pipeline.speech_tokenizer import weights as hubert_weights
from im2sp.pipeline.speech_tokenizer.tokenizer import load_speech_tokenizer
from im2sp.pipeline.speech_tokenizer.weights import load_hubert, speech_tokenizer_bytes
from im2sp.shards.weights.pickles import WeightsError
from support.hubert import clip, make_centroids, make_hubert, save_folder

LAYER = 3


@pytest.fixture(scope="module")
def model():
    return make_hubert()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    folder = save_folder(model, tmp_path_factory.mktemp("hubert") / "m")
    centroids = make_centroids(model, layer=LAYER)
    return replace(load_hubert(folder, LAYER), centroids=centroids)


@pytest.fixture
def path(weights, tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(speech_tokenizer_bytes(weights, torch.float32, {"recipe": {"seed": 0}}))
    return path


def test_units_are_those_of_the_folder_and_the_centroids(model, weights, path, tmp_path):
    folder = save_folder(model, tmp_path / "m")
    expected = load_speech_tokenizer(folder, weights.centroids, layer=LAYER, device="cpu")
    tokenizer = load_speech_tokenizer(path, device="cpu")
    assert (tokenizer.layer, tokenizer.fingerprint) == (LAYER, expected.fingerprint)
    wave = clip(20_000, 3)
    units = tokenizer.encode(wave, 16_000)
    np.testing.assert_array_equal(units, expected.encode(wave, 16_000))
    assert tokenizer.name == "own.safetensors"


def test_halves_are_read_as_float32(weights, tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(speech_tokenizer_bytes(weights))
    read = load_hubert(path)
    for name, tensor in weights.tensors.items():
        torch.testing.assert_close(read.tensors[name], tensor.half().float(), rtol=0, atol=0)
    torch.testing.assert_close(read.centroids, weights.centroids, rtol=0, atol=0)


def test_the_same_weights_make_the_same_bytes(weights):
    assert speech_tokenizer_bytes(weights) == speech_tokenizer_bytes(weights)


def test_given_centroids_replace_those_in_the_file(weights, path):
    other = weights.centroids[:7] + 1
    tokenizer = load_speech_tokenizer(path, other, device="cpu")
    assert tokenizer.num_units == 7
    assert tokenizer.fingerprint != load_speech_tokenizer(path, device="cpu").fingerprint


def test_another_layer_needs_other_centroids(weights, path):
    message = f"{path}: holds no k-means centroids of layer 2; pass their file as `kmeans`"
    with pytest.raises(WeightsError, match=message):
        load_speech_tokenizer(path, layer=2)
    assert load_speech_tokenizer(path, weights.centroids, layer=2, device="cpu").layer == 2
    with pytest.raises(WeightsError, match="a model of 3 layers has no layer 4"):
        load_speech_tokenizer(path, layer=4)


@pytest.mark.parametrize(
    "note",
    [
        "not JSON",
        "[]",
        '{"hubert": {}}',
        '{"hubert": {"heads": 4, "layer": 3, "more": 1}}',
        '{"hubert": {"heads": 4, "layer": 0}}',
        '{"hubert": {"heads": 4, "layer": "3"}}',
        '{"hubert": {"heads": 4, "layer": 3, "norm_eps": "small"}}',
        '{"hubert": {"heads": 4, "layer": 3, "conv_norm": "batch"}}',
        '{"hubert": {"heads": 4, "layer": 3, "is_pre_norm": 1}}',
    ],
)
def test_notes_that_are_refused(path, note):
    path.write_bytes(save(load(path.read_bytes()), {"im2sp": note}))
    with pytest.raises(WeightsError, match="its metadata 'im2sp' names no settings of a HuBERT"):
        load_speech_tokenizer(path)


def test_weights_that_do_not_fit_the_note(path):
    tensors = load(path.read_bytes())
    note = {"hubert": {"heads": 5, "layer": 3}}
    path.write_bytes(save(tensors, {"im2sp": json.dumps(note)}))
    with pytest.raises(WeightsError, match="not the shapes of a HuBERT: width 32 for 5 heads"):
        load_speech_tokenizer(path)


def test_a_bundled_name_whose_file_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(hubert_weights.BUNDLED, "compact", tmp_path / "gone.safetensors")
    with pytest.raises(WeightsError, match=r"compact: its file gone\.safetensors is missing"):
        load_speech_tokenizer("compact")
