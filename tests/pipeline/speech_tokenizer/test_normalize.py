"""Settings beside HuBERT weights that change the units: applied or refused."""

import numpy as np
import pytest
import torch
import transformers

from im2sp.pipeline.speech_tokenizer import tokenizer as hubert_units
from im2sp.pipeline.speech_tokenizer.tokenizer import load_speech_tokenizer
from im2sp.pipeline.speech_tokenizer.weights import load_hubert, speech_tokenizer_bytes
from im2sp.shards.weights.pickles import WeightsError
from support.hubert import (
    LARGE,
    clip,
    features_of,
    make_centroids,
    make_hubert,
    save_fairseq,
    save_folder,
    units_of,
)


@pytest.fixture(scope="module")
def base():
    return make_hubert()


@pytest.fixture(scope="module")
def centroids(base):
    return make_centroids(base)


def saved_with(folder, model, **settings):
    """The model's folder with what transformers' own feature extractor saves, and the latter."""
    save_folder(model, folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(**settings)
    extractor.save_pretrained(folder)
    return folder, extractor


def test_a_waveform_is_normalized_as_transformers_does(tmp_path):
    large = make_hubert(**LARGE)
    wave = clip(50_000, 4, loudness=0.02) + np.float32(0.1)
    folder, extractor = saved_with(tmp_path / "m", large, do_normalize=True)
    prepared = extractor(wave, sampling_rate=16_000)["input_values"][0]
    centroids = features_of(large, prepared)[::7].clone()
    expected = units_of(large, centroids, prepared)
    tokenizer = load_speech_tokenizer(folder, centroids, device="cpu")
    np.testing.assert_array_equal(tokenizer.encode(wave, 16_000), expected)
    np.testing.assert_array_equal(tokenizer.encode(wave * 8, 16_000), expected)
    plain = load_speech_tokenizer(save_folder(large, tmp_path / "p"), centroids, device="cpu")
    assert (plain.encode(wave, 16_000) != expected).mean() > 0.3
    assert plain.fingerprint != tokenizer.fingerprint
    off, _ = saved_with(tmp_path / "off", large, do_normalize=False)
    off = load_speech_tokenizer(off, centroids, device="cpu")
    assert (off.fingerprint, off.waveform_eps) == (plain.fingerprint, None)
    # As the processors of newer versions save it.
    inner = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(f'{{"feature_extractor": {inner}}}')
    again = load_speech_tokenizer(folder, centroids, device="cpu")
    assert again.fingerprint == tokenizer.fingerprint


def test_a_whole_clip_is_normalized_before_it_is_cut(tmp_path, monkeypatch):
    large = make_hubert(**LARGE)
    folder, _ = saved_with(tmp_path / "m", large, do_normalize=True)
    wave = np.concatenate([clip(4000, 1, loudness=0.01), clip(4000, 2, loudness=0.3)])
    prepared = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
    centroids = features_of(large, prepared)[::3].clone()
    tokenizer = load_speech_tokenizer(folder, centroids, device="cpu")
    monkeypatch.setattr(hubert_units, "CHUNK_SAMPLES", 4000)
    parts = [units_of(large, centroids, part) for part in (prepared[:4000], prepared[4000:])]
    np.testing.assert_array_equal(tokenizer.encode(wave, 16_000), np.concatenate(parts))


def test_a_base_model_is_the_same_with_its_preprocessor(base, centroids, tmp_path):
    tokenizer = load_speech_tokenizer(save_folder(base, tmp_path / "p"), centroids, device="cpu")
    folder, _ = saved_with(tmp_path / "m", base, do_normalize=True)
    found = load_speech_tokenizer(folder, centroids, device="cpu")
    assert (found.fingerprint, found.waveform_eps) == (tokenizer.fingerprint, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampling_rate": 8000},
            "preprocessor_config.json: sampling_rate is 8000, expected 16000",
        ),
        ({"feature_size": 2}, "feature_size is 2, expected 1"),
        ({"do_normalize": "yes"}, "do_normalize is 'yes', expected true or false"),
    ],
)
def test_preprocessors_that_are_refused(base, centroids, tmp_path, settings, message):
    folder, _ = saved_with(tmp_path / "m", base, **settings)
    with pytest.raises(WeightsError, match=message):
        load_speech_tokenizer(folder, centroids, device="cpu")


@pytest.mark.parametrize("records", ["cfg", "args"])
def test_a_fairseq_task_that_normalizes(tmp_path, records):
    large = make_hubert(**LARGE)
    path = save_fairseq(large, tmp_path / "m.pt", records, normalize=True)
    wave = clip(30_000, 5, loudness=0.003)
    prepared = torch.nn.functional.layer_norm(torch.from_numpy(wave), wave.shape)
    centroids = features_of(large, prepared)[::5].clone()
    tokenizer = load_speech_tokenizer(path, centroids, device="cpu")
    expected = units_of(large, centroids, prepared)
    np.testing.assert_array_equal(tokenizer.encode(wave, 16_000), expected)
    data = speech_tokenizer_bytes(load_hubert(path), torch.float32)
    (tmp_path / "own.safetensors").write_bytes(data)
    own = load_speech_tokenizer(tmp_path / "own.safetensors", centroids, device="cpu")
    assert own.fingerprint == tokenizer.fingerprint


def doubled():
    """A list that holds the list before it twice, forty times over."""
    nested = []
    for _ in range(40):
        nested = [nested, nested]
    return nested


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 8000}, "sample_rate is 8000, expected 16000"),
        (
            {"conv_feature_layers": "[(16,10,5)] + [(16,3,2)]*4 + [(16,2,2), (16, 2, 4)]"},
            "conv_feature_layers is .*, expected strides of",
        ),
        ({"sample_rate": doubled()}, r"sample_rate is \[\[\[.{0,1000}, expected 16000"),
    ],
)
def test_fairseq_records_that_are_refused(base, centroids, tmp_path, settings, message):
    layers = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
    path = save_fairseq(base, tmp_path / "m.pt", conv_feature_layers=layers)
    load_speech_tokenizer(path, centroids, device="cpu")
    path = save_fairseq(base, tmp_path / "m.pt", **settings)
    with pytest.raises(WeightsError, match=message):
        load_speech_tokenizer(path, centroids, device="cpu")
