"""Unit language models: our own, and fairseq's against a plain implementation of it."""

import argparse
import math

import pytest
import torch
from torch import nn

from im2sp.tools.engines.speech_lm import load_speech_lm
from im2sp.trainer import load_model
from im2sp.trainer.loop import train
from support.training import make_config, make_shards

UNITS = [3, 0, 7, 3, 5, 2, 9]


class Layer(nn.Module):
    """A pre-norm decoder layer with fairseq's names; attention written out."""

    def __init__(self, width, inner):
        super().__init__()
        self.self_attn = nn.Module()
        for part in ("q", "k", "v", "out"):
            setattr(self.self_attn, f"{part}_proj", nn.Linear(width, width))
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x, heads):
        normed, attention = self.self_attn_layer_norm(x), self.self_attn
        q, k, v = (getattr(attention, f"{part}_proj")(normed) for part in "qkv")
        size, found = x.shape[1] // heads, torch.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(x)):
                scores = (k[: t + 1, part] @ q[t, part]) / math.sqrt(size)
                found[t, part] = scores.softmax(0) @ v[: t + 1, part]
        x = x + attention.out_proj(found)
        return x + self.fc2(torch.relu(self.fc1(self.final_layer_norm(x))))


class Reference(nn.Module):
    """fairseq's transformer_lm for one utterance."""

    def __init__(self, size, width=16, inner=24, depth=2):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.embed_tokens = nn.Embedding(size, width)
        self.decoder.layers = nn.ModuleList(Layer(width, inner) for _ in range(depth))
        self.decoder.layer_norm = nn.LayerNorm(width)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, tokens, heads):
        width = self.decoder.embed_tokens.embedding_dim
        x = math.sqrt(width) * self.decoder.embed_tokens(tokens)
        half = width // 2
        for t in range(len(tokens)):
            for i in range(half):
                angle = (t + 2) * math.exp(-i * math.log(10000) / (half - 1))
                x[t, i] += math.sin(angle)
                x[t, half + i] += math.cos(angle)
        for layer in self.decoder.layers:
            x = layer(x, heads)
        return self.decoder.layer_norm(x) @ self.decoder.embed_tokens.weight.T


SYMBOLS = [4, 1, 3, 0, 2, 9, 8, 7, 6, 5]


def save(folder, model, **changes):
    """A folder as GSLM publishes it; the settings as `args`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    state["decoder.version"] = torch.tensor([3.0])
    state["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"]
    settings = {"decoder_attention_heads": 4, "activation_fn": "relu", "no_scale_embedding": False}
    content = {"args": argparse.Namespace(**settings), "model": state, "extra_state": {"epoch": 1}}
    for key, value in changes.items():
        (settings if key in settings else state)[key] = value
    content["args"] = argparse.Namespace(**settings)
    content["model"] = {name: value for name, value in state.items() if value is not None}
    torch.save(content, folder / "checkpoint_best.pt")
    lines = [f"{symbol} {100 - n}" for n, symbol in enumerate(SYMBOLS)] + ["madeupword0000 0"] * 2
    (folder / "dict.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return Reference(16)


def test_fairseq_equals_the_reference(reference, tmp_path):
    folder = save(tmp_path / "hubert200_lm", reference)
    model = load_speech_lm(folder, "cpu")
    tokens = torch.tensor([4 + SYMBOLS.index(unit) for unit in UNITS])
    with torch.no_grad():
        logits = reference(torch.cat((torch.tensor([2]), tokens[:-1])), heads=4)
    expected = logits.log_softmax(1)[torch.arange(len(tokens)), tokens].mean().item()
    assert model.log_likelihood(UNITS) == pytest.approx(expected, abs=1e-5)
    assert model.name == "hubert200_lm"
    again = load_speech_lm(folder / "checkpoint_best.pt", "cpu")
    assert again.fingerprint == model.fingerprint
    assert again.log_likelihood(UNITS) == model.log_likelihood(UNITS)
    # Older files do not repeat the shared matrix.
    bare = save(tmp_path / "bare", reference, **{"decoder.output_projection.weight": None})
    assert load_speech_lm(bare, "cpu").log_likelihood(UNITS) == model.log_likelihood(UNITS)


def test_unknown_units(reference, tmp_path):
    model = load_speech_lm(save(tmp_path, reference), "cpu")
    with pytest.raises(ValueError, match=r"unit 10 is not in its dict\.txt; expected units of"):
        model.log_likelihood([1, 10])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder.embed_tokens.weight": None}, r"lacks 'decoder\.embed_tokens\.weight'"),
        ({"decoder.embed_tokens.weight": torch.zeros(9, 16)}, "12 lines, expected 5 for an embed"),
        ({"decoder.layers.1.fc2.bias": None}, r"layers\.1\.fc2\.bias is missing, expected \(16,\)"),
        ({"decoder.layer_norm.bias": torch.zeros(3)}, r"layer_norm\.bias is \(3,\), expected \(16"),
        ({"decoder.layers.3.fc1.bias": torch.zeros(24)}, r"has layers \[0, 1, 3\], expected 0, 1"),
        ({"decoder.project_in_dim.weight": torch.zeros(1)}, "'decoder.project_in_dim.weight', wh"),
        ({"decoder_attention_heads": 3}, "3 heads for a width of 16"),
        ({"activation_fn": "swish"}, "activation_fn is 'swish', expected relu or gelu"),
    ],
)
def test_other_forms_are_refused(reference, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_speech_lm(save(tmp_path, reference, **changes), "cpu")


def test_a_folder_without_weights(reference, tmp_path):
    (save(tmp_path, reference) / "checkpoint_best.pt").unlink()
    with pytest.raises(ValueError, match=r"has dict\.txt, but neither checkpoint_best\.pt nor"):
        load_speech_lm(tmp_path, "cpu")
    save(tmp_path, reference)
    (tmp_path / "dict.txt").write_bytes(b"\xff 1\n")
    with pytest.raises(ValueError, match=r"dict\.txt: not UTF-8 text, expected lines of `UNIT"):
        load_speech_lm(tmp_path, "cpu")


def test_our_own(tmp_path):
    shards = make_shards(tmp_path / "shards")
    train(make_config(shards, tmp_path / "lm", without_image=True))
    model = load_speech_lm(tmp_path / "lm", "cpu")
    assert (model.name, model.speech_fingerprint) == ("lm", "b" * 64)
    network = load_model(tmp_path / "lm", device="cpu")

    def summed(units):
        tokens = torch.tensor([network.config.vocabulary.encode(units)[:-1]])
        with torch.no_grad():
            log_probs = network(torch.zeros(1), tokens)[0].log_softmax(1)
        return sum(log_probs[t, tokens[0, t + 1]].item() for t in range(len(units)))

    assert model.log_likelihood(UNITS) == pytest.approx(summed(UNITS) / len(UNITS), abs=1e-5)
    long = [n % 20 for n in range(1030)]
    expected = (summed(long[:1023]) + summed(long[1023:])) / 1030
    assert model.log_likelihood(long) == pytest.approx(expected, abs=1e-4)
    train(make_config(shards, tmp_path / "captioner", steps=1))
    with pytest.raises(ValueError, match="captioner: not a language model of single speech units"):
        load_speech_lm(tmp_path / "captioner", "cpu")
