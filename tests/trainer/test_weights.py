import json
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import GitForCausalLM

from im2sp.shards.weights.pickles import WeightsError
from im2sp.tools.engines.git_reference import UnitsEncoder, git_config, git_from, git_state_dict
from im2sp.trainer import generate, load_model, weights
from im2sp.trainer.model_config import StackConfig
from im2sp.trainer.vocabulary import Vocabulary
from im2sp.trainer.weights import load_codebook, save_model, use_encoder
from support.published import original_state_dict, timm_state_dict

WIDE = StackConfig(width=128, depth=2, heads=2, mlp_width=48)
GIT = Vocabulary(kind="text", num_ids=120, layout="git")
ORIGINAL = Vocabulary(kind="speech", num_ids=110, layout="original")


def load(path, *arguments, **options):
    return load_model(path, *arguments, device="cpu", **options)


@pytest.fixture(scope="module")
def git(make_model, tmp_path_factory):
    """A model of ours in GIT's vocabulary, and the folder in which transformers saved its GIT."""
    model = make_model(encoder=WIDE, decoder=WIDE, vocabulary=GIT)
    folder = tmp_path_factory.mktemp("git")
    reference = GitForCausalLM(git_config(model))
    reference.load_state_dict(git_state_dict(model), strict=False)
    reference.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def seit(make_model, tmp_path_factory):
    """A model of ours, and its encoder in the form of SeiT's trained-vit.ckpt."""
    model = make_model(seed=7, encoder=WIDE, decoder=WIDE, vocabulary=GIT)
    path = tmp_path_factory.mktemp("seit") / "trained-vit.ckpt"
    torch.save({"model": timm_state_dict(model), "epoch": 99}, path)
    return model, path


@pytest.fixture(scope="module")
def original(make_model, tmp_path_factory):
    """A model of ours in the paper's vocabulary, its checkpoint and its codebook file."""
    model = make_model(encoder=WIDE, decoder=WIDE, vocabulary=ORIGINAL)
    folder = tmp_path_factory.mktemp("original")
    torch.save({"state_dict": original_state_dict(model)}, folder / "Best.ckpt")
    torch.save(model.encoder.codebook, folder / "codebook.ckpt")
    return model, folder / "Best.ckpt", folder / "codebook.ckpt"


# Our own form -------------------------------------------------------------------------------------


def test_save_and_load(make_model, make_batch, tmp_path):
    model = make_model(normalise_codebook=True)
    path = save_model(tmp_path, model)
    data = path.read_bytes()
    for name in (tmp_path, path, str(path)):
        found = load(name)
        assert found.config == model.config
        assert not found.training
        for key, tensor in model.state_dict().items():
            assert torch.equal(found.state_dict()[key], tensor), key
    image_units, tokens, _ = make_batch(model, num_texts=3)
    assert torch.equal(found(image_units, tokens), model(image_units, tokens))
    assert save_model(tmp_path, found).read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["model.safetensors"]


def test_the_newest_checkpoint_of_a_run_is_loaded(make_model, tmp_path):
    for step in (20, 100, 120):
        (tmp_path / f"step-{step:06d}").mkdir()
    for step in (20, 100):
        save_model(tmp_path / f"step-{step:06d}", make_model(seed=step))
    expected = make_model(seed=100).decoder.output_bias
    assert torch.equal(load(tmp_path).decoder.output_bias, expected)


def test_another_codebook_can_be_given(make_model, tmp_path):
    path = save_model(tmp_path, make_model())
    codebook = torch.randn(50, 8)
    assert torch.equal(load(path, codebook).encoder.codebook, codebook)
    with pytest.raises(WeightsError, match=r"codebook has shape \[50, 9\], expected \[50, 8\]"):
        load(path, torch.randn(50, 9))


def test_a_loaded_model_can_be_trained(make_model, make_batch, tmp_path):
    model = load(save_model(tmp_path, make_model())).train()
    model.loss(*make_batch(model)).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(load(tmp_path).decoder.output_bias, make_model().decoder.output_bias)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "im2sp model 9"}, "form 'im2sp model 9', expected 'im2sp model 1'"),
        ({"config": {}}, "not a model configuration: 'vocabulary'; expected a model of im2sp"),
        ({"config": None}, "expected a model of im2sp"),
    ],
)
def test_headers_that_are_not_ours_are_refused(make_model, tmp_path, change, message):
    path = save_model(tmp_path, make_model())
    header = {"form": weights.FORM, "config": {}} | change
    save_file(load_file(path), path, {"im2sp": json.dumps(header)})
    with pytest.raises(WeightsError, match=message):
        load(path)


def test_a_file_of_ours_that_lacks_a_tensor(make_model, tmp_path):
    model = make_model()
    path = save_model(tmp_path, model)
    tensors = load_file(path)
    del tensors["projection.bias"]
    metadata = weights.read_tensors(path)[1]
    save_file(tensors, path, metadata)
    with pytest.raises(WeightsError, match=r"lacks 'projection.bias'; expected a whole model"):
        load(path)


# GIT ----------------------------------------------------------------------------------------------


def check_against_git(model, folder, make_batch):
    """Logits of a loaded model and of the folder's GIT, given the model's image states."""
    reference = GitForCausalLM.from_pretrained(folder).eval()
    reference.git.image_encoder = UnitsEncoder(model)
    projection = reference.git.visual_projection.visual_projection
    projection[0].load_state_dict(model.projection.state_dict())
    projection[1].load_state_dict(model.projection_norm.state_dict())
    image_units, tokens, _ = make_batch(model, num_texts=3)
    expected = reference(input_ids=tokens, pixel_values=image_units[:, None]).logits[:, 197:]
    torch.testing.assert_close(model(image_units, tokens), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_gives_the_decoder(git, seit, make_batch, tmp_path, form):
    model, folder = git
    if form == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), tmp_path / form)
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        folder = tmp_path
    found = load(folder, model.encoder.codebook, encoder=seit[1])
    assert found.config == model.config
    check_against_git(found, git[1], make_batch)
    expected = seit[0].encoder.state_dict() | {"codebook": model.encoder.codebook}
    for name, tensor in found.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_git_alone_gets_a_new_encoder_of_the_papers_size(git, monkeypatch):
    monkeypatch.setitem(weights.PRESETS, "base", (WIDE, WIDE))
    found = load(git[1], torch.randn(391, 32))
    assert found.config.encoder == WIDE
    assert (found.config.num_codes, found.config.code_width) == (391, 32)
    assert found.config.vocabulary == GIT


def test_the_encoder_of_published_weights_for_a_model_of_ours(seit, make_model):
    target = make_model(seed=3, encoder=WIDE, decoder=WIDE, vocabulary=GIT)
    decoder = {name: tensor.clone() for name, tensor in target.decoder.state_dict().items()}
    codebook = target.encoder.codebook.clone()
    use_encoder(target, seit[1])
    expected = seit[0].encoder.state_dict() | {"codebook": codebook}
    for name, tensor in target.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    for name, tensor in target.decoder.state_dict().items():
        assert torch.equal(tensor, decoder[name]), name
    with pytest.raises(WeightsError, match=r"has StackConfig\(width=128.*another preset"):
        use_encoder(make_model(), seit[1])
    with pytest.raises(
        WeightsError, match=r"positions has shape \[1, 197, 128\], expected \[1, 50"
    ):
        use_encoder(make_model(encoder=WIDE, grid=14), seit[1])


HUGE = torch.zeros(1, 1_024_000, dtype=torch.float16)


def change_git(folder, target, settings=(), tensors=(), without=()):
    kept = load_file(folder / "model.safetensors") | dict(tensors)
    save_file({k: v for k, v in kept.items() if k not in without}, target / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | dict(settings)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"hidden_act": "relu"}}, "hidden_act is 'relu', expected 'gelu'"),
        (
            {"settings": {"position_embedding_type": "relative_key"}},
            "position_embedding_type is 'relative_key', expected 'absolute'",
        ),
        ({"settings": {"model_type": "blip"}}, "model_type is 'blip', expected 'git'"),
        ({"settings": {"bos_token_id": 7}}, "bos_token_id is 7, expected 101"),
        ({"tensors": {"output.weight": torch.ones(120, 128)}}, "differs from its word embedding"),
        ({"without": {"output.bias"}}, "lacks the tensor 'output.bias'"),
        (
            {"tensors": {"git.encoder.layer.4.x": torch.ones(1)}},
            "has 3 layers, one of them numbered 4",
        ),
        (
            {"tensors": {"git.encoder.layer.0.intermediate.dense.weight": HUGE}},
            r"norm.weight has shape \[128\], expected \[1024000\]",
        ),
    ],
)
def test_gits_that_this_model_is_not_are_refused(git, tmp_path, changes, message):
    with pytest.raises(WeightsError, match=message):
        load(change_git(git[1], tmp_path, **changes), torch.zeros(50, 8))


# SeiT ---------------------------------------------------------------------------------------------


def timm_forward(tensors, codes, heads):
    """Plain reference ViT on timm's tensors; (B, C, 28, 28) -> (B, 197, D)."""

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].t() + tensors[f"{name}.bias"]

    def norm(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        x = (x - mean) / (variance + 1e-6).sqrt()
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    stem = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    x = F.conv2d(codes, *stem, stride=2, padding=1).flatten(2).transpose(1, 2)
    x = torch.cat((tensors["cls_token"].expand(len(x), -1, -1), x), 1) + tensors["pos_embed"]
    for index in range(sum(name.endswith("attn.qkv.bias") for name in tensors)):
        name = f"blocks.{index}"
        parts = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(1, 2).flatten(2), f"{name}.attn.proj")
        hidden = linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")
        x = x + linear(F.gelu(hidden), f"{name}.mlp.fc2")
    return x


def test_seits_encoder_computes_what_timm_computes(seit, make_model, make_batch):
    model = make_model(encoder=WIDE, decoder=WIDE)
    use_encoder(model, seit[1])
    image_units, _, _ = make_batch(model)
    codes = model.encoder.codebook[image_units].permute(0, 3, 1, 2)
    expected = timm_forward(timm_state_dict(seit[0]), codes, WIDE.heads)
    torch.testing.assert_close(model.encoder(image_units), expected, rtol=1e-4, atol=1e-4)


def test_seits_file_is_not_a_model(seit, git):
    with pytest.raises(WeightsError, match="SeiT's encoder alone; pass it as encoder="):
        load(seit[1], torch.zeros(50, 8))
    with pytest.raises(WeightsError, match="expected SeiT's weights"):
        load(git[1], torch.zeros(50, 8), encoder=git[1])


# The paper's own ----------------------------------------------------------------------------------


def test_the_papers_checkpoint(original, make_batch):
    model, path, codebook = original
    found = load(path, codebook)
    assert found.config == model.config
    image_units, tokens, _ = make_batch(model, num_texts=3)
    expected = git_from(model)(input_ids=tokens, pixel_values=image_units[:, None])
    logits = found(image_units, tokens)
    torch.testing.assert_close(logits, expected.logits[:, 197:], rtol=1e-4, atol=1e-4)
    assert generate(found, image_units, max_tokens=6) == generate(model, image_units, max_tokens=6)


class Call:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def test_a_checkpoint_that_calls_something_is_refused_and_not_run(original, tmp_path):
    path, mark = tmp_path / "x.ckpt", tmp_path / "mark"
    torch.save({"state_dict": original_state_dict(original[0]), "x": Call(mark)}, path)
    with pytest.raises(WeightsError, match=r"holds a call of posix.system|holds posix.system"):
        load(path, original[2])
    assert not mark.exists()


def test_a_model_of_ours_gives_encoder_and_projection(make_model, make_batch, git, tmp_path):
    encoder = StackConfig(width=64, depth=1, heads=1, mlp_width=64)
    image_side = make_model(
        seed=5, encoder=encoder, conv_stem=True, stem_stride=4, num_codes=60, max_positions=7
    )
    other = make_model()
    for folder, model in (("encoder", image_side), ("decoder", other)):
        (tmp_path / folder).mkdir()
        save_model(tmp_path / folder, model)
    found = load(tmp_path / "decoder", encoder=tmp_path / "encoder")
    assert (found.config.decoder, found.config.max_positions) == (other.config.decoder, 40)
    assert (found.config.encoder, found.config.conv_stem) == (encoder, True)
    assert found.config.num_codes == 60
    image_units, tokens, _ = make_batch(image_side)
    states = image_side.projection_norm(image_side.projection(image_side.encoder(image_units)))
    expected = other.decoder(tokens[:3], other.decoder.prefix(states), None)
    expected = other.decoder.logits(expected)
    torch.testing.assert_close(found(image_units, tokens[:3]), expected)
    with pytest.raises(
        WeightsError, match="has a decoder of width 128, expected 32, the output width"
    ):
        load(git[1], torch.zeros(60, 8), encoder=tmp_path / "encoder")


def test_missing_and_superfluous_parts_are_refused(original, git, seit, make_model, tmp_path):
    with pytest.raises(WeightsError, match="holds no codebook; pass codebook="):
        load(original[1])
    with pytest.raises(WeightsError, match="holds an encoder; omit encoder="):
        load(original[1], original[2], encoder=seit[1])
    with pytest.raises(WeightsError, match="holds an encoder; omit encoder="):
        load(save_model(tmp_path, make_model()), encoder=seit[1])
    with pytest.raises(WeightsError, match=r"expected one tensor \[codes, width\]"):
        load_codebook(torch.zeros(3))
    with pytest.raises(WeightsError, match=r"expected one tensor \[codes, width\]"):
        load_codebook(seit[1])
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="1 tensors such as 'a', expected a model of im2sp"):
        load(tmp_path / "a.safetensors", torch.zeros(3, 2))
    with pytest.raises(WeightsError, match="this folder lacks model.safetensors"):
        load(git[1].parent)
    with pytest.raises(WeightsError, match="there is no such file"):
        load(tmp_path / "none")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(WeightsError, match="expected a model's weights"):
        load(tmp_path / "none.safetensors")


def test_narrow_published_weights_have_an_unknown_number_of_heads(make_model, tmp_path):
    torch.save(timm_state_dict(make_model()), tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match="is 48 wide, expected a multiple of 64"):
        use_encoder(make_model(), tmp_path / "x.ckpt")


def test_the_bundled_captioner():
    model = load_model("compact", device="cpu")
    assert model.config.vocabulary.kind == "speech"
    assert model.config.vocabulary.num_units == 200
    assert model.config.num_states == 50
    assert model.encoder.get_buffer("codebook").shape == (8192, 32)
    assert sum(p.numel() for p in model.parameters()) < 16e6
