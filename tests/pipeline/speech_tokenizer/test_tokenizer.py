import json
import sys

import huggingface_hub
import numpy as np
import pytest
import torch

import im2sp.pipeline
from im2sp.pipeline.onednn import is_supported
from im2sp.pipeline.speech_tokenizer import encoder as hubert_encoder
from im2sp.pipeline.speech_tokenizer import tokenizer as hubert_units
from im2sp.pipeline.speech_tokenizer.encoder import num_frames, window_moments
from im2sp.pipeline.speech_tokenizer.tokenizer import load_speech_tokenizer
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

NAMES = {"base": {}, "large": LARGE}


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return make_hubert(**NAMES[request.param])


@pytest.fixture(scope="module")
def base():
    return make_hubert()


@pytest.fixture(scope="module")
def centroids(base):
    return make_centroids(base)


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return save_folder(base, tmp_path_factory.mktemp("hubert") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder, centroids):
    return load_speech_tokenizer(folder, centroids, device="cpu")


def test_units_are_those_of_the_whole_model(model, tmp_path):
    centroids = make_centroids(model)
    tokenizer = load_speech_tokenizer(save_folder(model, tmp_path / "m"), centroids, device="cpu")
    seen = set()
    for seed, samples in enumerate((400, 719, 720, 5000, 31_999, 64_321)):
        wave = clip(samples, seed)
        units = tokenizer.encode(wave, 16_000)
        assert units.dtype == np.uint16
        assert len(units) == (samples - 400) // 320 + 1
        np.testing.assert_array_equal(units, units_of(model, centroids, wave))
        seen |= set(units.tolist())
    assert len(seen) > 10


@pytest.mark.parametrize("layer", [1, 8])
def test_any_layer_as_transformers_counts_them(model, tmp_path, layer):
    centroids = make_centroids(model, layer=layer)
    path = save_folder(model, tmp_path / "m")
    tokenizer = load_speech_tokenizer(path, centroids, device="cpu", layer=layer)
    wave = clip(20_000, 3)
    units = tokenizer.encode(wave, 16_000)
    np.testing.assert_array_equal(units, units_of(model, centroids, wave, layer))
    assert tokenizer.layer == layer


def test_layers_above_are_neither_kept_nor_needed(base, centroids, tmp_path, tokenizer):
    assert len(tokenizer._encoder.layers) == 6
    state = base.state_dict()
    cut = {k: v for k, v in state.items() if not k.startswith(("encoder.layers.6", "masked"))}
    path = save_folder(base, tmp_path / "m", form="bin")
    torch.save(cut, path / "pytorch_model.bin")
    found = load_speech_tokenizer(path, centroids, device="cpu")
    assert found.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("old_names", [True, False])
@pytest.mark.parametrize("prefix", ["", "hubert."])
def test_folders_of_every_form(base, centroids, tokenizer, tmp_path, form, old_names, prefix):
    path = save_folder(base, tmp_path / "m", form=form, old_names=old_names, prefix=prefix)
    found = load_speech_tokenizer(path, centroids, device="cpu")
    assert found.fingerprint == tokenizer.fingerprint
    assert found.name == "m"
    wave = clip(9000)
    np.testing.assert_array_equal(found.encode(wave, 16_000), tokenizer.encode(wave, 16_000))


@pytest.mark.parametrize("records", ["cfg", "args", "omegaconf"])
def test_fairseq_files_have_the_folders_fingerprint(model, tmp_path, records):
    centroids = make_centroids(model)
    path = save_fairseq(model, tmp_path / "hubert_base_ls960.pt", records)
    found = load_speech_tokenizer(path, centroids, device="cpu")
    expected = load_speech_tokenizer(save_folder(model, tmp_path / "m"), centroids, device="cpu")
    assert found.fingerprint == expected.fingerprint
    assert found.name == "hubert_base_ls960.pt"
    wave = clip(9000)
    np.testing.assert_array_equal(found.encode(wave, 16_000), units_of(model, centroids, wave))


def test_the_fingerprint_differs_for_other_units(folder, centroids, tokenizer):
    others = [
        load_speech_tokenizer(folder, centroids, device="cpu", precision="bf16"),
        load_speech_tokenizer(folder, centroids, device="cpu", layer=5),
        load_speech_tokenizer(folder, centroids.flip(0), device="cpu"),
    ]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 4
    again = load_speech_tokenizer(folder, centroids.numpy(), device="cpu")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.num_units == 20
    assert torch.equal(again.centroids, centroids)


def test_bf16_gives_nearly_the_same_units(folder, base, centroids):
    tokenizer = load_speech_tokenizer(folder, centroids, device="cpu", precision="bf16")
    wave = clip(100_000, 4)
    units = tokenizer.encode(wave, 16_000)
    assert np.mean(units == units_of(base, centroids, wave)) > 0.9


def test_without_onednn_the_units_are_the_same(folder, base, centroids, monkeypatch):
    monkeypatch.setattr(hubert_encoder, "is_supported", lambda dtype: False)
    tokenizer = load_speech_tokenizer(folder, centroids, device="cpu")
    wave = clip(30_000, 5)
    np.testing.assert_array_equal(tokenizer.encode(wave, 16_000), units_of(base, centroids, wave))


# One clip, whatever is around it ------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_units_do_not_depend_on_the_batch(tokenizer, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        lengths = [3000, 8000, 400, 8000, 12_345, 8000, 3001]
        waves = [clip(length, seed) for seed, length in enumerate(lengths)]
        alone = [tokenizer.encode(wave, 16_000) for wave in waves]
        for units, expected in zip(tokenizer.encode_batch(waves), alone, strict=True):
            np.testing.assert_array_equal(units, expected)
        backwards = tokenizer.encode_batch(waves[::-1])[::-1]
        for units, expected in zip(backwards, alone, strict=True):
            np.testing.assert_array_equal(units, expected)
    finally:
        torch.set_num_threads(before)
    assert tokenizer.encode_batch([]) == []


def test_a_gpus_batches_hold_one_length_only(tokenizer, base, centroids, monkeypatch):
    shapes = []

    def watched(samples):
        shapes.append(tuple(samples.shape))
        return real(samples)

    real = tokenizer._units
    monkeypatch.setattr(tokenizer, "_units", watched)
    monkeypatch.setattr(tokenizer, "_batch_samples", lambda: 20_000)
    lengths = [5000, 8000, 5000, 8000, 8000, 5001]
    waves = [clip(length, seed) for seed, length in enumerate(lengths)]
    found = tokenizer.encode_batch(waves)
    assert sorted(shapes) == [(1, 5001), (1, 8000), (2, 5000), (2, 8000)]
    for units, wave in zip(found, waves, strict=True):
        np.testing.assert_array_equal(units, units_of(base, centroids, wave))


def test_a_quiet_clip_is_not_made_louder(tokenizer, base, centroids):
    quiet = clip(20_000, 2, loudness=3e-5)
    units = tokenizer.encode(quiet, 16_000)
    np.testing.assert_array_equal(units, units_of(base, centroids, quiet))
    normalised = (quiet - quiet.mean()) / np.sqrt(quiet.var() + 1e-7)
    assert np.mean(units_of(base, centroids, normalised) != units) > 0.3


def test_silence_and_a_constant(tokenizer, base, centroids):
    for wave in (np.zeros(3000, np.float32), np.full(3000, 0.25, np.float32)):
        features = tokenizer.features(torch.from_numpy(wave)[None])[0]
        assert (features - features_of(base, wave)).abs().max() < 1e-3


def test_long_clips_are_cut_into_chunks_of_their_own(tokenizer, base, centroids, monkeypatch):
    monkeypatch.setattr(hubert_units, "CHUNK_SAMPLES", 4000)
    for samples, units in ((4000, 12), (4399, 12), (4400, 13), (12_000, 36)):
        wave = clip(samples, 6)
        parts = [wave[start : start + 4000] for start in range(0, samples, 4000)]
        whole = [units_of(base, centroids, part) for part in parts if len(part) >= 400]
        found = tokenizer.encode(wave, 16_000)
        assert len(found) == units
        np.testing.assert_array_equal(found, np.concatenate(whole))
    assert num_frames(1_600_000) == 4999


def test_blocks_of_frames_do_not_show(folder, base, centroids, monkeypatch):
    monkeypatch.setattr(hubert_encoder, "CPU_BLOCK_FRAMES", 7)
    tokenizer = load_speech_tokenizer(folder, centroids, device="cpu")
    wave = clip(17_000, 8)
    np.testing.assert_array_equal(tokenizer.encode(wave, 16_000), units_of(base, centroids, wave))


def test_window_moments_are_those_of_the_windows():
    samples = torch.randn(2, 57, generator=torch.Generator().manual_seed(0))
    mean, covariance = window_moments(samples, 10, 5)
    windows = samples.unfold(1, 10, 5).double()
    assert torch.allclose(mean, windows.mean(1))
    assert torch.allclose(covariance[1], torch.cov(windows[1].t(), correction=0))


@pytest.mark.skipif(not is_supported(torch.float32), reason="torch lacks oneDNN")
def test_loading_leaves_torchs_random_numbers_alone(folder, centroids):
    before = torch.get_rng_state()
    load_speech_tokenizer(folder, centroids, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (np.zeros(399, np.float32), "399 samples at 16000 Hz, expected at least 400"),
        (np.zeros(0, np.float32), "0 samples"),
        (np.zeros(500), "is float64, expected float32"),
        (np.zeros(500, np.int16), "is int16, expected float32"),
        ([0.0] * 500, "is list, expected float32"),
        (torch.zeros(500, dtype=torch.float64), "torch.float64, expected float32"),
        (np.zeros((2, 500), np.float32), r"shape \[2, 500\], expected \[samples\]"),
        (np.full(500, np.nan, np.float32), "not finite"),
        (np.full(500, np.inf, np.float32), "not finite"),
    ],
)
def test_waveforms_that_are_refused(tokenizer, wave, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(wave, 16_000)


def test_tensors_and_read_only_arrays_are_welcome(tokenizer):
    wave = clip(2000)
    expected = tokenizer.encode(wave, 16_000)
    wave.flags.writeable = False
    np.testing.assert_array_equal(tokenizer.encode(wave, 16_000), expected)
    np.testing.assert_array_equal(tokenizer.encode(torch.from_numpy(wave.copy()), 16_000), expected)
    twice = np.repeat(wave, 2)[::2]
    np.testing.assert_array_equal(tokenizer.encode(twice, 16_000), expected)


def test_other_rates_are_resampled(tokenizer):
    soxr = pytest.importorskip("soxr")
    wave = clip(6000)
    found = tokenizer.encode(wave, 8000)
    expected = tokenizer.encode(soxr.resample(wave, 8000, 16_000), 16_000)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="samples at 16000 Hz, expected at least 400"):
        tokenizer.encode(clip(900), 48_000)


def test_other_rates_without_soxr(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ValueError, match="8000 Hz, expected 16000; install soxr"):
        tokenizer.encode(clip(6000), 8000)


@pytest.mark.parametrize("rate", [0, -1, 16_000.0, "16000", None])
def test_rates_that_are_none(tokenizer, rate):
    with pytest.raises(ValueError, match="rate_hz is"):
        tokenizer.encode(clip(6000), rate)


def test_centroids_of_another_width(folder):
    with pytest.raises(WeightsError, match="features are 32 wide, the k-means centroids 16"):
        load_speech_tokenizer(folder, torch.ones(5, 16))


def test_no_centroids_and_an_unknown_precision(folder, centroids):
    with pytest.raises(WeightsError, match="pass their file as `kmeans`"):
        load_speech_tokenizer(folder)
    with pytest.raises(ValueError, match="precision 'fp16', expected one of fp32, tf32, bf16"):
        load_speech_tokenizer(folder, centroids, precision="fp16")


@pytest.mark.parametrize("layer", [0, 9, -1])
def test_no_such_layer(folder, centroids, layer):
    with pytest.raises(WeightsError, match=f"a model of 8 layers has no layer {layer}"):
        load_speech_tokenizer(folder, centroids, layer=layer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "wav2vec2"}, "model_type is 'wav2vec2', expected 'hubert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu', expected 'gelu'"),
        ({"conv_stride": [5, 2, 2, 2, 2, 2, 4]}, "conv_stride is"),
        ({"num_attention_heads": 5}, "width 32 for 5 heads"),
        ({"num_attention_heads": 0}, "0 heads and 8 layers"),
        ({"num_hidden_layers": "8"}, "heads and '8' layers"),
        ({"num_hidden_layers": 20}, None),
        ({"layer_norm_eps": "x"}, "layer_norm_eps 'x'"),
        ({"feat_extract_norm": "layer"}, "lacks feature_extractor.conv_layers.1.layer_norm"),
    ],
)
def test_configurations(base, centroids, tmp_path, changes, message):
    path = save_folder(base, tmp_path / "m")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    if message is None:
        load_speech_tokenizer(path, centroids)
        return
    with pytest.raises(WeightsError, match=message) as caught:
        load_speech_tokenizer(path, centroids)
    assert "\n" not in str(caught.value)


def test_broken_configurations(base, centroids, tmp_path):
    path = save_folder(base, tmp_path / "m")
    (path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: not JSON"):
        load_speech_tokenizer(path, centroids)
    (path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="a list, expected a JSON object"):
        load_speech_tokenizer(path, centroids)
    (path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"lacks config\.json, or model\.safetensors or"):
        load_speech_tokenizer(path, centroids)
    with pytest.raises(WeightsError, match=r"without their config\.json; pass the folder"):
        load_speech_tokenizer(path / "model.safetensors", centroids)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("encoder.layers.5.fc1.weight", None, "lacks encoder.layers.5.feed_forward.inter"),
        ("encoder.layers.0.fc1.weight", None, "lacks encoder.layers.0.feed_forward.inter"),
        ("encoder.layer_norm.weight", None, "lacks encoder.layer_norm.weight"),
        ("encoder.pos_conv.0.weight_v", torch.ones(3), "not the shapes of a HuBERT"),
        ("encoder.pos_conv.0.weight_g", torch.ones(3), r"shape \[3\], expected numbers of shape"),
        ("post_extract_proj.bias", torch.full((32,), torch.nan), "values that are not finite"),
        ("layer_norm.bias", torch.ones(16, dtype=torch.int64), "is torch.int64 of shape"),
        (FIRST := "feature_extractor.conv_layers.0.0.weight", None, "expected a HuBERT"),
        (FIRST, torch.ones(16, 1, 9), r"\[16, 1, 9\], expected numbers of shape \[16, 1, 10\]"),
        (FIRST, torch.tensor(1.0), "not the shapes of a HuBERT"),
    ],
)
def test_damaged_weights(base, centroids, tmp_path, name, tensor, message):
    path = save_fairseq(base, tmp_path / "x.pt")
    content = torch.load(path, weights_only=True)
    content["model"].pop(name)
    if tensor is not None:
        content["model"][name] = tensor
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message) as caught:
        load_speech_tokenizer(path, centroids)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_other_activations_of_fairseq(base, centroids, tmp_path):
    path = save_fairseq(base, tmp_path / "x.pt")
    content = torch.load(path, weights_only=True)
    content["cfg"]["model"]["activation_fn"] = "relu"
    torch.save(content, path)
    with pytest.raises(WeightsError, match="activation_fn is 'relu', expected 'gelu'"):
        load_speech_tokenizer(path, centroids)
    content["cfg"]["model"].update(activation_fn="gelu", encoder_attention_heads="4")
    torch.save(content, path)
    with pytest.raises(WeightsError, match="'4' attention heads"):
        load_speech_tokenizer(path, centroids)


def test_without_records_heads_are_64_wide(centroids, tmp_path):
    model = make_hubert(hidden_size=128, num_attention_heads=2)
    path = save_fairseq(model, tmp_path / "x.pt")
    content = torch.load(path, weights_only=True)
    torch.save({"model": content["model"]}, path)
    table = make_centroids(model)
    found = load_speech_tokenizer(path, table, device="cpu").encode(clip(9000), 16_000)
    np.testing.assert_array_equal(found, units_of(model, table, clip(9000)))


# Hub ----------------------------------------------------------------------------------------------


def test_hub_ids_fetch_the_configuration_and_the_weights(base, centroids, tmp_path, monkeypatch):
    path = save_folder(base, tmp_path / "m", form="bin")
    asked = []

    def download(repository, file, revision=None):
        asked.append((repository, file, revision))
        if not (path / file).is_file():
            raise OSError("404 not found")
        return str(path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    name = "facebook/hubert-base-ls960@main"
    assert load_speech_tokenizer(name, centroids).name == name
    files = ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert asked == [("facebook/hubert-base-ls960", file, "main") for file in files]
    save_fairseq(base, path / "hubert.pt")
    load_speech_tokenizer("someone/else/hubert.pt", centroids)
    assert asked[3:] == [("someone/else", "hubert.pt", None)]
    with pytest.raises(WeightsError, match=r"hf download someone/else gone\.pt"):
        load_speech_tokenizer("someone/else/gone.pt", centroids)


@pytest.mark.parametrize("name", ["./nothing", "nothing", "a/b/../c.pt ", "owner/model.pt"])
def test_names_of_nothing(centroids, name):
    with pytest.raises(WeightsError, match=r"no such file; expected a folder with config\.json"):
        load_speech_tokenizer(name, centroids)


def test_the_package_offers_it():
    assert im2sp.pipeline.load_speech_tokenizer is load_speech_tokenizer
    assert im2sp.pipeline.SpeechTokenizer is hubert_units.SpeechTokenizer
