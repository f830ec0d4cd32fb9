"""Training on features of a frozen image encoder, by the same loop."""

import dataclasses
import shutil

import pytest
import torch

from im2sp.trainer import generate, load_model
from im2sp.trainer.checkpoint import named_checkpoint
from im2sp.trainer.export import export_model, read_notes
from im2sp.trainer.features import IMAGE_FEATURES, STATES, ImageFeatures, part_path, write_part
from im2sp.trainer.loop import train
from support.training import make_config, make_samples, make_shards, weights_of

RECORD = {"name": "test", "input": "pixels", "fingerprint": "e" * 64, "view": "squash-224"}
KEYS = [*(f"train{i}" for i in range(8)), *(f"val{i}" for i in range(3))]
SHAPE = (5, 12)


def save(folder, keys=KEYS, **changes):
    """A folder of features in parts of 4 images."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number, first in enumerate(range(0, len(keys), 4)):
        part = keys[first : first + 4]
        states = torch.randn(len(part), *SHAPE, generator=generator)
        path = part_path(folder, number)
        write_part(path, IMAGE_FEATURES, part, RECORD | changes, {STATES: states})
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return save(tmp_path_factory.mktemp("data") / "features")


def pixels_config(shards, out, features, **changes):
    settings = {"input": "pixels", "image_encoder": "test", "features": features}
    return make_config(shards, out, **settings | changes)


@pytest.fixture(scope="module")
def run(shards, features, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(pixels_config(shards, out, features))
    return out


def test_a_resumed_run_equals_an_uninterrupted_one(shards, features, run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    shutil.rmtree(out / "step-000006")
    # The folder of the features may have moved meanwhile.
    moved = shutil.copytree(features, tmp_path / "moved")
    train(pixels_config(shards, out, moved))
    assert weights_of(out, 6) == weights_of(run, 6)


def test_the_model_reads_the_features(run, features, shards):
    model = load_model(run, device="cpu")
    assert (model.config.features, model.config.num_states) == (SHAPE, 5)
    assert not any(name.startswith("encoder.") for name in model.state_dict())
    states = ImageFeatures(features, "test").take(["train3", "val1"])
    assert states.dtype == torch.float16
    expected = model.projection_norm(model.projection(states.float()))
    torch.testing.assert_close(model.encode(states)[1], expected)
    assert generate(model, states, max_tokens=5) == generate(model, states.float(), max_tokens=5)
    # The loss of validation is that of the features of its keys.
    state = named_checkpoint(run).state
    assert state["tokenizers"]["image"] == RECORD
    assert state["fingerprints"]["image"] == "e" * 64
    assert state["unit_columns"] == {"speech": "speech_units"}


def test_speech_of_a_run_of_text(run, shards, features, tmp_path):
    """The transfer keeps projection and decoder, and makes another embedding."""
    text, out = tmp_path / "text", tmp_path / "speech"
    train(pixels_config(shards, text, features, target="text", text_pieces=40))
    frozen = {"freeze": "image", "steps": 1, "learning_rate": 1e-9}
    train(pixels_config(shards, out, features, init_from=str(text), **frozen, preset=None))
    ours, theirs = (load_model(path, device="cpu").state_dict() for path in (out, text))
    assert torch.equal(ours["projection.weight"], theirs["projection.weight"])
    torch.testing.assert_close(
        ours["decoder.layers.0.mlp_in.weight"], theirs["decoder.layers.0.mlp_in.weight"]
    )
    assert ours["decoder.embedding.weight"].shape != theirs["decoder.embedding.weight"].shape
    other = save(tmp_path / "other", fingerprint="0" * 64)
    with pytest.raises(
        ValueError, match="its image units have the fingerprint 000000000000, those"
    ):
        train(pixels_config(shards, tmp_path / "x", other, init_from=str(text), preset=None))


def test_an_exported_run(run, tmp_path):
    export_model(named_checkpoint(run), tmp_path / "one.safetensors", "fp32")
    states = torch.zeros(1, *SHAPE)
    models = [load_model(path, device="cpu") for path in (run, tmp_path / "one.safetensors")]
    assert torch.equal(models[0].encode(states)[1], models[1].encode(states)[1])
    assert read_notes(tmp_path / "one.safetensors")["tokenizers"]["image"] == RECORD


def test_samples_without_an_image_are_skipped(tmp_path):
    samples = make_samples({"train": 8, "val": 3})
    samples[2] = dataclasses.replace(samples[2], image_units=None)
    shards = make_shards(tmp_path / "shards", samples=samples)
    features = save(tmp_path / "features", [key for key in KEYS if key != "train2"])
    skipped = train(pixels_config(shards, tmp_path / "run", features)).skipped
    assert skipped == {"samples without image": 1}


# Refusals -----------------------------------------------------------------------------------------


def test_features_that_do_not_fit(shards, run, features, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        ValueError, match=r"out/features: holds no features; expected a folder writ"
    ):
        train(pixels_config(shards, out, None))
    few = save(tmp_path / "few", KEYS[:-1])
    with pytest.raises(ValueError, match=r"few: lacks 1 of 11 images, such as val2"):
        train(pixels_config(shards, out, few))
    with pytest.raises(ValueError, match=r"features of test, expected those of --image-encoder x"):
        train(pixels_config(shards, out, features, image_encoder="x"))
    with pytest.raises(
        ValueError, match=r"its input is features of 5 x 12, that of this run image"
    ):
        train(make_config(shards, out, init_from=str(run), preset=None))
    with pytest.raises(
        ValueError, match=r"contains a run with other settings: input was pixels an"
    ):
        train(make_config(shards, run))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"input": "units", "images": ("x",)}, "--images applies to --input pixels only"),
        ({"input": "units", "image_encoder": "x"}, "--image-encoder applies to --input pixels o"),
        ({"image_encoder": None}, "--input pixels: --image-encoder is missing"),
        ({"crop_area": 0.5}, "--crop-area does not go with --input pixels, whose image encoder i"),
        ({"target": "words"}, "--target words does not go with --input pixels"),
        ({"without_image": True}, "--without-image does not go with --input pixels"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, tmp_path, **{"input": "pixels", "image_encoder": "x"} | settings)
