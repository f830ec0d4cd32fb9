"""Language models: the decoder without an image, by the same loop."""

import dataclasses

import pytest
import torch

from im2sp.shards import ShardLoader
from im2sp.trainer import generate, load_model
from im2sp.trainer.checkpoint import named_checkpoint
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.export import export_model
from im2sp.trainer.loop import train
from support.training import make_config, make_samples, make_shards, weights_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Every second sample has no image."""
    samples = [
        dataclasses.replace(sample, image_units=None) if number % 2 else sample
        for number, sample in enumerate(make_samples({"train": 8, "val": 3}))
    ]
    return make_shards(tmp_path_factory.mktemp("data") / "shards", samples=samples)


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert train(make_config(shards, out, without_image=True)).skipped == {}
    return out


def test_3_steps_and_3_more_are_6_steps(shards, run, tmp_path):
    for steps in (3, 6):
        train(make_config(shards, tmp_path, without_image=True, steps=steps, schedule_steps=6))
    whole = tmp_path / "whole"
    train(make_config(shards, whole, without_image=True, schedule_steps=6))
    assert weights_of(tmp_path, 6) == weights_of(whole, 6)
    assert set(named_checkpoint(run).state["fingerprints"]) == {"speech"}


def test_it_has_no_encoder_and_sees_past_units_only(run, make_model):
    names = load_model(run, device="cpu").state_dict()
    assert all(name.startswith("decoder.") for name in names)
    model = make_model(has_image=False)
    tokens = torch.tensor([[1, 5, 6, 7, 8], [1, 5, 6, 9, 4]])
    images = torch.zeros(2, dtype=torch.int64)
    logits = model(images, tokens)
    torch.testing.assert_close(logits[0, :3], logits[1, :3])
    assert (logits[0, 3] - logits[1, 3]).abs().max() > 0.01
    one = model(images[:1], tokens[:1, :2])
    torch.testing.assert_close(one, logits[:1, :2])
    own = torch.arange(2)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )
    torch.testing.assert_close(model.loss(images, tokens, own), expected)


def test_text_and_bfloat16(shards, tmp_path):
    settings = {"target": "text", "text_pieces": 30, "precision": "bf16", "without_image": True}
    assert train(make_config(shards, tmp_path, **settings)).scores["loss"] > 0


def test_a_new_run_from_its_weights(shards, run, tmp_path):
    settings = {"without_image": True, "init_from": str(run), "learning_rate": 1e-12, "steps": 1}
    train(make_config(shards, tmp_path / "a", **settings))
    old, new = (load_model(path, device="cpu").state_dict() for path in (run, tmp_path / "a"))
    torch.testing.assert_close(old, new)
    with pytest.raises(ValueError, match="is a language model without images; --without-image"):
        train(make_config(shards, tmp_path / "b", init_from=str(run)))
    train(make_config(shards, tmp_path / "c", steps=1))
    with pytest.raises(ValueError, match="is a captioner; --without-image must be the same"):
        train(make_config(shards, tmp_path / "d", **settings | {"init_from": str(tmp_path / "c")}))


def test_it_describes_no_images(run, tmp_path):
    model = load_model(run, device="cpu")
    with pytest.raises(ValueError, match="the model is a language model without images"):
        generate(model, torch.zeros(1, 28, 28, dtype=torch.int64))
    with pytest.raises(ValueError, match="it is a language model, so it generates no descript"):
        export_model(named_checkpoint(run), tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"target": "words"}, "target words"),
        ({"other_view": ("x",)}, "other-view"),
        ({"encoder_from": "x"}, "encoder-from"),
        ({"teacher": ("x",)}, "teacher"),
        ({"freeze": "image"}, "freeze"),
        ({"crop_area": 0.5}, "crop-area"),
        ({"code_noise": 0.5}, "code-noise"),
        ({"best_by": "bleu"}, "best-by bleu"),
    ],
)
def test_settings_of_images_are_refused(settings, flag):
    with pytest.raises(ValueError, match=f"--{flag} needs images and does not go with --without"):
        TrainConfig(shards="s", out="o", without_image=True, **settings)


def test_a_position_of_an_earlier_version(shards):
    """It lacks the setting `needs_image`."""
    loader = ShardLoader(shards, batch_size=2, split="val")
    state = loader.state_dict()
    del state["settings"]["needs_image"]
    loader.load_state_dict(state)
    other = ShardLoader(shards, batch_size=2, split="val", needs_image=False)
    state["dataset_sha256"] = other.dataset.manifest.sha256
    with pytest.raises(ValueError, match="needs_image was True and is False now"):
        other.load_state_dict(state)
