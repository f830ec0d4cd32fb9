import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import im2sp.pipeline
from im2sp.pipeline import load_vocoder
from im2sp.pipeline.vocoder import generator as vocoder_generator
from im2sp.pipeline.vocoder import vocoder
from im2sp.pipeline.vocoder import weights as vocoder_weights
from im2sp.pipeline.vocoder.generator import is_supported, phase_weights
from im2sp.pipeline.vocoder.weights import load_weights, vocoder_bytes
from im2sp.shards.weights.pickles import WeightsError
from support.vocoder import (
    SIZES,
    make_config,
    plain_durations,
    plain_samples,
    plain_speech,
    random_generator,
    save_published,
)

KINDS = {
    "pairs": {},
    "single": {"resblock": "2", "resblock_dilation_sizes": [[1, 3], [1, 3], [1, 3]]},
    "small": {
        "resblock_kernel_sizes": [3, 7],
        "resblock_dilation_sizes": [[1, 3], [1, 3]],
        "upsample_rates": [10, 8, 4],
        "upsample_kernel_sizes": [20, 16, 8],
        "upsample_initial_channel": 32,
    },
    "voices": {"num_speakers": 3},
}
TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=KINDS)
def published(request, tmp_path_factory):
    """Settings, tensors and folder of one random vocoder of each kind."""
    config = make_config(**KINDS[request.param])
    state = random_generator(config)
    folder = save_published(tmp_path_factory.mktemp("vocoder") / request.param, config, state)
    return config, state, folder


@pytest.fixture(scope="module")
def tiny():
    config = make_config(**KINDS["small"])
    return config, random_generator(config)


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return save_published(tmp_path_factory.mktemp("vocoder") / "tiny", *tiny)


@pytest.fixture(scope="module")
def tiny_vocoder(folder):
    return load_vocoder(folder, device="cpu")


def some_units(count, seed=0, num=20):
    return np.random.default_rng(seed).integers(0, num, count)


def test_speech_is_that_of_the_plain_synthesizer(published):
    config, state, folder = published
    speaker = 2 if "num_speakers" in config else None
    found = load_vocoder(folder, device="cpu")
    for seed, count in enumerate((1, 2, 33)):
        units = some_units(count, seed)
        np.testing.assert_array_equal(
            found.predict_durations([units])[0], plain_durations(state, units).numpy()
        )
        expected = plain_speech(config, state, units, speaker).numpy()
        samples = found.synthesize(units, speaker=speaker)
        assert samples.dtype == np.float32
        assert len(samples) % 320 == 0
        np.testing.assert_allclose(samples, expected, atol=TOLERANCE)
        assert expected.std() > 0.05


def test_durations_that_are_given(published):
    config, state, folder = published
    speaker = 0 if "num_speakers" in config else None
    found = load_vocoder(folder, device="cpu")
    units, durations = some_units(9), [1, 3, 1, 2, 7, 1, 1, 1, 4]
    expected = plain_samples(config, state, np.repeat(units, durations), speaker)
    samples = found.synthesize(units, durations, speaker)
    assert len(samples) == 21 * 320
    np.testing.assert_allclose(samples, expected, atol=TOLERANCE)
    spread = found.synthesize(np.repeat(units, durations), np.ones(21, np.int32), speaker)
    np.testing.assert_array_equal(spread, samples)


def test_durations_are_rounded_half_to_even_and_at_least_one(tiny, tmp_path):
    config, state = tiny
    for frames, expected in ((0.2, 1), (0.5, 1), (1.5, 2), (2.5, 2), (3.5, 4)):
        fixed = dict(state)
        fixed["dur_predictor.proj.weight"] = torch.zeros(1, 24)
        fixed["dur_predictor.proj.bias"] = torch.tensor([frames + 1.0]).double().log().float()
        told = torch.exp(fixed["dur_predictor.proj.bias"]) - 1
        found = load_vocoder(save_published(tmp_path / str(frames), config, fixed), device="cpu")
        durations = found.predict_durations([[3, 4, 5]])[0]
        assert durations.tolist() == [max(1, int(torch.round(told)))] * 3
        if float(told) == frames:
            assert durations[0] == expected


def test_without_onednn_the_speech_is_the_same(published, monkeypatch):
    config, state, folder = published
    monkeypatch.setattr(vocoder_generator, "is_supported", lambda dtype: False)
    speaker = 1 if "num_speakers" in config else None
    samples = load_vocoder(folder, device="cpu").synthesize(some_units(20), speaker=speaker)
    expected = plain_speech(config, state, some_units(20), speaker)
    np.testing.assert_allclose(samples, expected, atol=TOLERANCE)


@pytest.mark.parametrize("packs", [True, False])
def test_bf16_differs_by_rounding_only(published, monkeypatch, packs):
    config, state, folder = published
    if not packs:
        monkeypatch.setattr(vocoder_generator, "is_supported", lambda dtype: False)
    elif not is_supported(torch.bfloat16):
        pytest.skip("this machine's oneDNN has no bfloat16")
    found = load_vocoder(folder, device="cpu", precision="bf16")
    speaker = 1 if "num_speakers" in config else None
    expected = plain_speech(config, state, some_units(30), speaker).numpy()
    error = found.synthesize(some_units(30), speaker=speaker) - expected
    assert 10 * np.log10(expected.var() / np.square(error).mean()) > 30


@pytest.mark.parametrize(("rate", "kernel"), [(5, 11), (4, 8), (2, 4), (2, 2), (3, 9), (10, 20)])
def test_a_transposed_convolution_is_a_plain_one(rate, kernel):
    random = torch.Generator().manual_seed(kernel)
    weight, bias = torch.randn(6, 4, kernel, generator=random), torch.randn(4, generator=random)
    x = torch.randn(2, 6, 9, generator=random)
    padding = (kernel - rate) // 2
    expected = torch.nn.functional.conv_transpose1d(x, weight, bias, rate, padding)
    plain, plain_bias = phase_weights(weight, bias, rate)
    phases = torch.nn.functional.conv1d(x, plain, plain_bias, padding=plain.shape[2] // 2)
    found = phases.view(2, rate, 4, 9).permute(0, 2, 3, 1).flatten(2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# One clip, whatever is around it ------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_clips_do_not_depend_on_the_batch(published, threads):
    config, state, folder = published
    found = load_vocoder(folder, device="cpu")
    clips = [some_units(count, seed) for seed, count in enumerate((12, 1, 30, 12, 7))]
    speakers = [2, 0, 1, 1, 2] if "num_speakers" in config else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = found.synthesize_batch(clips, speaker=speakers)
    finally:
        torch.set_num_threads(before)
    for row, (clip, samples) in enumerate(zip(clips, together, strict=True)):
        speaker = speakers[row] if speakers else None
        expected = plain_speech(config, state, clip, speaker)
        np.testing.assert_allclose(samples, expected, atol=TOLERANCE)
        np.testing.assert_allclose(samples, found.synthesize(clip, None, speaker), atol=1e-6)


@pytest.mark.parametrize("packs", [True, False])
def test_a_gpus_batches_zero_the_padding_after_a_clips_end(published, monkeypatch, packs):
    config, state, folder = published
    if not packs:
        monkeypatch.setattr(vocoder_generator, "is_supported", lambda dtype: False)
    found = load_vocoder(folder, device="cpu")
    monkeypatch.setattr(found, "_batch_frames", lambda: 400)
    sizes = []
    monkeypatch.setattr(
        found, "_generator", _Watched(found._generator, lambda units: sizes.append(units.shape))
    )
    clips = [some_units(count, seed) for seed, count in enumerate((12, 1, 30, 12, 7))]
    speakers = [2, 0, 1, 1, 2] if "num_speakers" in config else None
    together = found.synthesize_batch(clips, speaker=speakers)
    assert max(rows for rows, _ in sizes) > 1
    for row, (clip, samples) in enumerate(zip(clips, together, strict=True)):
        expected = plain_speech(config, state, clip, speakers[row] if speakers else None)
        np.testing.assert_allclose(samples, expected, atol=TOLERANCE)


class _Watched:
    """A generator that records its calls."""

    def __init__(self, generator, tell):
        self.generator, self.tell = generator, tell

    def __getattr__(self, name):
        return getattr(self.generator, name)

    def __call__(self, units, voices, lengths):
        self.tell(units)
        return self.generator(units, voices, lengths)


def test_long_clips_are_made_in_pieces_without_a_trace(published, monkeypatch):
    config, state, folder = published
    monkeypatch.setattr(vocoder, "PIECE_FRAMES", 16)
    found = load_vocoder(folder, device="cpu")
    speaker = 1 if "num_speakers" in config else None
    units = some_units(70, 4)
    samples = found.synthesize(units, np.ones(70, np.int64), speaker)
    expected = plain_samples(config, state, units, speaker)
    np.testing.assert_allclose(samples, expected, atol=TOLERANCE)


def test_a_sample_depends_on_no_more_than_the_frames_around(published):
    config, state, folder = published
    around = load_vocoder(folder, device="cpu")._generator.frames_around
    speaker = 1 if "num_speakers" in config else None
    units = some_units(2 * around + 21, 5)
    other = units.copy()
    other[10] = (other[10] + 1) % 20
    difference = plain_samples(config, state, units, speaker)
    difference -= plain_samples(config, state, other, speaker)
    changed = np.flatnonzero(difference.abs().numpy() > 0)
    assert 320 * 10 - 1 <= changed.max() < 320 * (11 + around)
    assert around <= 25


def test_nothing_to_say(tiny_vocoder):
    assert tiny_vocoder.synthesize_batch([]) == []
    assert tiny_vocoder.synthesize([]).shape == (0,)
    found = tiny_vocoder.synthesize_batch([[], [1, 2]])
    assert [len(samples) > 0 for samples in found] == [False, True]
    assert tiny_vocoder.synthesize(np.zeros(0, np.uint16), []).dtype == np.float32


def test_units_of_any_integer_kind(tiny_vocoder):
    units = some_units(12)
    expected = tiny_vocoder.synthesize(units)
    for same in (units.astype(np.uint16), units.tolist(), torch.from_numpy(units)):
        np.testing.assert_array_equal(tiny_vocoder.synthesize(same), expected)


# Forms of the file --------------------------------------------------------------------------------


def test_every_form_holds_the_same_vocoder(tiny, folder, tiny_vocoder, tmp_path):
    config, state = tiny
    expected = tiny_vocoder.fingerprint
    assert tiny_vocoder.name == "tiny"
    assert load_vocoder(folder / "g_00400000", device="cpu").fingerprint == expected
    newer = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in state.items()
    }
    path = save_published(tmp_path / "newer", config, newer)
    assert load_vocoder(path, device="cpu").fingerprint == expected
    folded = load_weights(folder).tensors
    path = save_published(tmp_path / "folded", config, folded)
    assert load_vocoder(path, device="cpu").fingerprint == expected
    save_file(folded, path / "g_00500000")  # the form goes by content
    assert load_vocoder(path, device="cpu").fingerprint == expected
    own = tmp_path / "own.safetensors"
    own.write_bytes(vocoder_bytes(load_weights(folder), torch.float32, {"recipe": {"a": 1}}))
    assert load_vocoder(own, device="cpu").fingerprint == expected
    assert load_vocoder(own, device="cpu").name == "own.safetensors"
    assert load_vocoder(own, device="cpu").speech_fingerprint is None


def test_an_im2sp_file_records_the_speech_tokenizer(folder, tmp_path):
    own, again = tmp_path / "own.safetensors", tmp_path / "again.safetensors"
    notes = {"speech_tokenizer": {"name": "compact", "fingerprint": "c" * 64}}
    own.write_bytes(vocoder_bytes(load_weights(folder), notes=notes))
    assert load_vocoder(own, device="cpu").speech_fingerprint == "c" * 64
    again.write_bytes(vocoder_bytes(load_weights(own)))
    assert load_weights(again).speech_fingerprint == "c" * 64


def test_half_precision_halves_our_own_file(tiny, folder, tmp_path):
    whole, half = (vocoder_bytes(load_weights(folder), t) for t in (torch.float32, torch.float16))
    assert len(half) < 0.6 * len(whole)
    (tmp_path / "v.safetensors").write_bytes(half)
    found = load_vocoder(tmp_path / "v.safetensors", device="cpu")
    units = some_units(20)
    durations = plain_durations(tiny[1], units)
    expected = plain_samples(*tiny, np.repeat(units, durations)).numpy()
    assert np.abs(found.synthesize(units, durations) - expected).max() < 0.02


def test_of_a_folder_the_most_steps_count(tiny, tmp_path, tiny_vocoder):
    config, state = tiny
    path = save_published(tmp_path / "v", config, random_generator(config, 7), 90_000)
    other = load_vocoder(path, device="cpu").fingerprint
    save_published(path, config, state, 400_000)
    (path / "do_00400000").write_bytes(b"optimizers")
    assert load_vocoder(path, device="cpu").fingerprint == tiny_vocoder.fingerprint != other


def test_more_dilations_than_the_original_reads(tmp_path):
    extra = [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    config = make_config(resblock="2", resblock_dilation_sizes=[[1, 3]] * 3)
    state = random_generator(config)
    path = save_published(tmp_path / "v", {**config, "resblock_dilation_sizes": extra}, state)
    samples = load_vocoder(path, device="cpu").synthesize(some_units(5))
    np.testing.assert_allclose(samples, plain_speech(config, state, some_units(5)), atol=TOLERANCE)


def test_a_vocoder_without_durations(tmp_path):
    config = make_config(**KINDS["small"], durations=False)
    state = random_generator(config)
    found = load_vocoder(save_published(tmp_path / "v", config, state), device="cpu")
    assert not found.has_durations
    units = some_units(6)
    samples = found.synthesize(units, np.ones(6, np.int64))
    np.testing.assert_allclose(samples, plain_samples(config, state, units), atol=TOLERANCE)
    with pytest.raises(ValueError, match="v has no duration predictor; pass `durations`"):
        found.synthesize(units)
    with pytest.raises(ValueError, match="has no duration predictor"):
        found.predict_durations([units])


def test_the_fingerprint_differs_for_other_audio(tiny, folder, tiny_vocoder, tmp_path):
    config, state = tiny
    other_rates = {**config, "resblock_dilation_sizes": [[1, 3], [1, 2]]}
    found = {
        tiny_vocoder.fingerprint,
        load_vocoder(folder, device="cpu", precision="bf16").fingerprint,
        load_vocoder(save_published(tmp_path / "a", other_rates, state)).fingerprint,
        load_vocoder(
            save_published(tmp_path / "b", config, random_generator(config, 3))
        ).fingerprint,
    }
    assert len(found) == 4


def test_the_package_offers_it():
    assert im2sp.pipeline.load_vocoder is load_vocoder
    assert im2sp.pipeline.Vocoder is vocoder.Vocoder
    assert {"Vocoder", "load_vocoder"} <= set(im2sp.pipeline.__all__)


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([1, 2, 20], "clip 0: unit 20 at 2, expected numbers from 0 to 19"),
        ([-1], "clip 0: unit -1 at 0"),
        ([0.5], r"clip 0: units are float64 of shape \[1\], expected whole numbers"),
        ([[1, 2]], r"units are int64 of shape \[1, 2\]"),
        (np.zeros((2, 0), np.int64), r"of shape \[2, 0\]"),
        (7, r"units are int64 of shape \[\]"),
    ],
)
def test_units_that_are_refused(tiny_vocoder, units, message):
    with pytest.raises(ValueError, match=message):
        tiny_vocoder.synthesize(units)


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        ([1, 1], "clip 0: 2 durations for 3 units"),
        ([1, 0, 1], "clip 0: a duration of 0 frames, expected 1 or more"),
        ([1.0, 1.0, 2.0], "clip 0: durations are float64"),
    ],
)
def test_durations_that_are_refused(tiny_vocoder, durations, message):
    with pytest.raises(ValueError, match=message):
        tiny_vocoder.synthesize([1, 2, 3], durations)
    with pytest.raises(ValueError, match="durations of 1 clips for 2 clips of units"):
        tiny_vocoder.synthesize_batch([[1], [2]], [[1]])


def test_voices_that_are_refused(tiny_vocoder, tmp_path):
    with pytest.raises(ValueError, match="speaker is 1, but tiny has one voice only"):
        tiny_vocoder.synthesize([1], speaker=1)
    config = make_config(num_speakers=3)
    path = save_published(tmp_path / "v", config, random_generator(config))
    found = load_vocoder(path, device="cpu")
    assert found.num_speakers == 3
    for speaker in (None, 3, -1, 1.0, True):
        with pytest.raises(ValueError, match="expected a number from 0 to 2"):
            found.synthesize([1], speaker=speaker)
    with pytest.raises(ValueError, match="1 speakers for 2 clips"):
        found.synthesize_batch([[1], [2]], speaker=[0])


def test_no_such_precision_and_no_such_file(folder, tmp_path):
    with pytest.raises(ValueError, match="precision 'fp16', expected one of fp32, tf32, bf16"):
        load_vocoder(folder, precision="fp16")
    with pytest.raises(WeightsError, match="there is no such file; expected compact"):
        load_vocoder(tmp_path / "nowhere")


def test_the_bundled_one_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(vocoder_weights.BUNDLED, "compact", tmp_path / "compact_v.safetensors")
    with pytest.raises(WeightsError, match="compact_v.safetensors is missing from the installed"):
        load_vocoder()


def test_a_folder_without_a_generator(tmp_path):
    with pytest.raises(WeightsError, match="holds no generator; expected a file such as g_0"):
        load_vocoder(tmp_path)


def test_a_file_of_something_else(tmp_path):
    torch.save({"generator": {"a": torch.ones(2)}}, tmp_path / "g_00000001")
    with pytest.raises(WeightsError, match="g_00000001: holds a dict without tensors, expected"):
        load_vocoder(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "a generator without its config.json"),
        ("{", "config.json: not JSON"),
        ("[1]", "config.json: a list, expected a JSON object"),
        ({"sampling_rate": 22050}, "sampling_rate is 22050, expected 16000"),
        ({"resblock": None}, "lacks 'resblock'"),
        ({"upsample_rates": [5, 4, 4, 2]}, "160 samples per unit, expected 320"),
        ({"upsample_rates": [5, 4, 4, 2, 2.0]}, "expected whole numbers from 1 to 1000"),
        ({"upsample_rates": 7}, "not iterable"),
        ({"resblock_dilation_sizes": []}, "dilations are .*, expected one or more per block"),
        ({"resblock_dilation_sizes": [[0]]}, "expected whole numbers from 1 to 1000"),
        ({"resblock_dilation_sizes": [3]}, "config.json: 'int' object"),
        ({"upsample_rates": [4, 5, 4, 2, 2]}, "a kernel of 11 for a rate of 4; expected one"),
        ({"upsample_rates": [320]}, "a kernel of 11 for a rate of 320"),
        ({"resblock": "2"}, "lacks resblocks.0.convs.0.weight of a unit vocoder"),
        ({"resblock_dilation_sizes": [[1, 3, 5]] * 4}, "lacks resblocks.15.convs1.0.weight"),
        ({"resblock_dilation_sizes": [[1, 3]] * 2}, r"resblocks.2.convs1.0.weight is .* \[32, 32"),
    ],
)
def test_settings_that_are_refused(tmp_path, config, message):
    path = save_published(tmp_path / "v", make_config(), random_generator(make_config()))
    if config is None:
        (path / "config.json").unlink()
    elif isinstance(config, str):
        (path / "config.json").write_text(config)
    else:
        changed = {k: v for k, v in {**SIZES, **config}.items() if v is not None}
        (path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(WeightsError, match=message):
        load_vocoder(path)


def without(name):
    return lambda state: state.pop(name)


def with_tensor(name, tensor):
    return lambda state: state.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("dict.weight"), "lacks dict.weight of a unit vocoder"),
        (without("ups.1.bias"), "lacks ups.1.bias"),
        (without("ups.1.weight_g"), "lacks ups.1.weight_g"),
        (without("resblocks.2.convs2.1.weight_v"), "lacks resblocks.2.convs2.1.weight_v"),
        (without("dur_predictor.ln1.weight"), "lacks dur_predictor.ln1.weight"),
        (with_tensor("ups.1.weight_g", torch.ones(5, 1, 1)), "not a unit vocoder of the published"),
        (
            lambda state: state.update(
                {"ups.1.weight_g": torch.ones(10**6, 1), "ups.1.weight_v": torch.ones(1, 10**6)}
            ),
            r"ups.1.weight_g has shape \[1000000, 1\]",
        ),
        (with_tensor("ups.1.bias", torch.ones(5)), r"ups.1.bias is .* \[5\], expected numbers"),
        (with_tensor("ups.1.bias", torch.full((16,), torch.nan)), "not finite"),
        (with_tensor("dict.weight", torch.ones(3)), "not a unit vocoder of the published form"),
        (with_tensor("dict.weight", torch.ones(20, 9)), "conv_pre takes 16 channels, units and"),
        (
            with_tensor("dur_predictor.conv1.0.weight", torch.ones(24, 16, 5)),
            r"\[24, 16, 5\], expected numbers of shape \[24, 16, 3\]",
        ),
    ],
)
def test_tensors_that_are_refused(tmp_path, change, message):
    state = random_generator(make_config())
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_vocoder(save_published(tmp_path / "v", make_config(), state))


def test_voices_from_another_network_are_refused(tmp_path):
    config = make_config(num_speakers=3)
    state = {**random_generator(config), "spkr.bias": torch.zeros(16)}
    with pytest.raises(WeightsError, match="its voice is a vector from another network"):
        load_vocoder(save_published(tmp_path / "v", config, state))


def test_an_even_kernel_is_refused(tmp_path):
    config = make_config(resblock_kernel_sizes=[3, 7, 10])
    with pytest.raises(WeightsError, match="resblocks.2 has a kernel of 10, expected an odd one"):
        load_vocoder(save_published(tmp_path / "v", config, random_generator(config)))


@pytest.mark.parametrize("text", ["{", '{"vocoder": 3}', '{"hubert": {}}', '{"vocoder": {}}'])
def test_our_own_form_with_other_metadata(folder, tmp_path, text):
    tensors = load_weights(folder).tensors
    save_file(tensors, tmp_path / "v.safetensors", {"im2sp": text})
    with pytest.raises(WeightsError, match="'im2sp' names no settings of a unit vocoder"):
        load_vocoder(tmp_path / "v.safetensors")
