import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from im2sp.trainer.attention import attention, dropout
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import PRESETS, StackConfig, preset_config
from im2sp.trainer.vocabulary import Vocabulary

SPEECH = Vocabulary(kind="speech", num_ids=200)


def one_pass_a_text(model, image_units, tokens, owner, label_smoothing=0.0):
    """The loss without sharing: one pass for each text, with its image."""
    pad, losses, num_tokens = model.config.vocabulary.pad, [], 0
    for row, image in zip(tokens, owner, strict=True):
        length = int((row != pad).sum())
        logits = model(image_units[image, None], row[None, : length - 1])
        target = row[1:length]
        loss = F.cross_entropy(logits[0], target, reduction="sum", label_smoothing=label_smoothing)
        losses.append(loss)
        num_tokens += length - 1
    return torch.stack(losses).sum() / num_tokens


@pytest.mark.parametrize(("label_smoothing", "is_even"), [(0.0, False), (0.1, False), (0.0, True)])
def test_sharing_the_image_changes_neither_loss_nor_gradients(
    make_model, make_batch, label_smoothing, is_even
):
    model = make_model().double()
    image_units, tokens, owner = make_batch(model, num_texts=6)
    if is_even:
        owner = torch.tensor([0, 0, 1, 1, 2, 2])
    calls = (
        lambda: model.loss(image_units, tokens, None if is_even else owner, label_smoothing),
        lambda: one_pass_a_text(model, image_units, tokens, owner, label_smoothing),
    )
    found, expected = [], []
    for call, gradients in zip(calls, (found, expected), strict=True):
        loss = call()
        gradients += [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_loss_in_parts_has_the_same_value_and_gradients(
    make_model, make_batch, monkeypatch, label_smoothing
):
    model = make_model().double()
    batch = make_batch(model)

    def loss_and_gradients():
        loss = model.loss(*batch, label_smoothing)
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    whole = loss_and_gradients()
    monkeypatch.setattr("im2sp.trainer.model.MAX_LOGITS", 43 * 5 + 1)  # 5 tokens at a time
    num_rows = []
    logits = model.decoder.logits
    monkeypatch.setattr(model.decoder, "logits", lambda x: num_rows.append(len(x)) or logits(x))
    for one, other in zip(loss_and_gradients(), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    num_tokens = batch[1][:, 1:].numel()
    assert max(num_rows) == 5
    assert sum(num_rows) == 2 * num_tokens  # forward and backward


def test_shapes_and_types(make_model, make_batch):
    model = make_model()
    image_units, tokens, _ = make_batch(model, num_texts=3)
    logits = model(image_units, tokens)
    assert logits.shape == (3, tokens.shape[1], 43)
    assert logits.dtype == torch.float32
    assert model.encoder(image_units).shape == (3, 197, 48)
    prefix = model.prefix(image_units)
    assert [tuple(part.shape) for layer in prefix for part in layer] == [(3, 2, 197, 16)] * 6


def test_text_attends_to_the_image_and_to_earlier_tokens(make_model, make_batch):
    model = make_model()
    image_units, tokens, _ = make_batch(model, num_texts=3)
    logits = model(image_units, tokens)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 43
    later = model(image_units, changed)
    torch.testing.assert_close(later[:, :5], logits[:, :5])
    assert (later[:, 5:] - logits[:, 5:]).abs().max() > 1e-3
    other_image = image_units.clone()
    other_image[1, 27, 27] = (other_image[1, 27, 27] + 1) % 50
    seen = (model(other_image, tokens) - logits).abs().amax((1, 2))
    assert seen[1] > 1e-4
    assert seen[[0, 2]].max() < 1e-5


def test_codebook_rows_are_unchanged_or_normalised(make_model, make_batch):
    raw, unit = make_model(), make_model(normalise_codebook=True)
    image_units, tokens, _ = make_batch(raw, num_texts=3)
    assert not torch.allclose(raw(image_units, tokens), unit(image_units, tokens), atol=1e-3)
    raw.encoder.codebook.copy_(F.normalize(raw.encoder.codebook, dim=-1))
    torch.testing.assert_close(raw(image_units, tokens), unit(image_units, tokens))


def test_the_embedding_is_the_output_and_the_codebook_is_not_trained(make_model):
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    assert [name for name in names if 43 in model.get_parameter(name).shape] == [
        "decoder.output_bias",
        "decoder.embedding.weight",
    ]
    assert "encoder.codebook" in model.state_dict()
    assert "encoder.codebook" not in names


def test_one_batch_is_memorised(make_model, make_batch):
    model = make_model(dropout=0.0, attention_dropout=0.0).train()
    batch = make_batch(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = model.loss(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3
    assert losses[-1] < 0.3


def test_dropout_is_for_training_only(make_model, make_batch):
    model = make_model()
    batch = make_batch(model)
    assert model.loss(*batch) == model.loss(*batch)
    model.train()
    assert model.loss(*batch) != model.loss(*batch)


def test_bfloat16_autocast(make_model, make_batch):
    model = make_model().train()
    batch = make_batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(*batch)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.loss(*batch).item() == pytest.approx(model.loss(*batch).item(), rel=0.02)


def test_compiles_in_one_graph(make_model, make_batch):
    stack = StackConfig(width=32, depth=1, heads=2, mlp_width=48)
    model = make_model(encoder=stack, decoder=stack)
    batch = make_batch(model)
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*batch), model.loss(*batch))
    compiled(*batch).backward()


def test_training_on_an_accelerator_compiles_in_one_graph(make_model, make_batch):
    """Tensors without content take the paths of a GPU."""
    stack = StackConfig(width=32, depth=1, heads=2, mlp_width=48)
    model = make_model(encoder=stack, decoder=stack).train().to("meta")
    image_units, tokens, _ = (one.to("meta") for one in make_batch(model, num_texts=6))
    counter = CompileCounter()
    loss = torch.compile(model.loss, backend=counter, fullgraph=True)(image_units, tokens, None)
    assert (loss.shape, loss.device.type, counter.frame_count) == ((), "meta", 1)


def test_presets():
    base = preset_config("base", SPEECH)
    assert base.num_states == 197
    assert preset_config("mini", SPEECH).num_states == 50
    with torch.device("meta"):
        sizes = {
            name: sum(
                p.numel()
                for p in Im2SpModel(preset_config(name, SPEECH), torch.empty(8192, 32)).parameters()
            )
            for name in PRESETS
        }
    assert {name: round(size / 1e6, 1) for name, size in sizes.items()} == {
        "tiny": 0.3,
        "mini": 7.2,
        "midi": 15.2,
        "small": 32.8,
        "base": 129.7,
    }
    with pytest.raises(ValueError, match="preset 'huge', expected one of tiny, mini, midi, small"):
        preset_config("huge", SPEECH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 27}, "grid is 27, expected a multiple of stem_stride, 2"),
        ({"grid": (28, 9)}, r"grid is \(28, 9\), expected a multiple of stem_stride, 2"),
        ({"grid": (4, 4, 4)}, r"grid is \(4, 4, 4\), expected one or two axes"),
        ({"grid": (32,)}, r"grid is \(32,\), a line; expected stem_stride 1 and no conv_stem"),
        ({"stem_stride": 8}, "grid is .*, expected a multiple of stem_stride, 8"),
        ({"stem_stride": 3}, "stem_stride is 3, expected 1 or an even number"),
        ({"stem_stride": 14, "conv_stem": True}, "stem_stride is 14, expected a power of 2 for a"),
        (
            {"stem_stride": 128, "grid": 128, "conv_stem": True},
            "stem_stride is 128, .* at most the encoder's width, 64",
        ),
        ({"code_width": 0}, "code_width is 0, expected at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0, expected \[0, 1\)"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(preset_config("tiny", SPEECH), **changes)


def test_impossible_stacks_are_refused():
    with pytest.raises(ValueError, match="depth is 0, expected at least 1"):
        StackConfig(width=8, depth=0, heads=2, mlp_width=8)
    with pytest.raises(ValueError, match="width is 9, expected a multiple of heads, 2"):
        StackConfig(width=9, depth=1, heads=2, mlp_width=8)


def test_wrong_inputs_are_refused(make_model, make_batch):
    model = make_model()
    image_units, _, _ = make_batch(model)
    with pytest.raises(ValueError, match="a text of 41 tokens, expected at most 40"):
        model(image_units, torch.zeros(3, 41, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"the codebook has shape \(4, 8\), expected \(50, 8\)"):
        Im2SpModel(model.config, torch.zeros(4, 8))


def test_the_normalised_codebook():
    rows = torch.randn(8192, 32) * torch.logspace(-2, 0, 32) + 3.0
    rows[:, 5] = 0.25

    def vectors(**settings):
        config = preset_config("tiny", SPEECH, **settings)
        return Im2SpModel(config, rows).encoder.vectors()

    torch.testing.assert_close(vectors(), rows)
    torch.testing.assert_close(vectors(normalise_codebook=True).norm(dim=1), torch.ones(8192))
    standard = vectors(standardise_codebook=True)
    torch.testing.assert_close(standard.mean(0), torch.zeros(32), atol=1e-3, rtol=0)
    spread = torch.ones(32)
    spread[5] = 0  # a column without differences stays without
    torch.testing.assert_close(standard.std(0), spread, atol=1e-3, rtol=0)


# Words --------------------------------------------------------------------------------------------


@pytest.fixture
def word_batch():
    """A model of 5 words; three images, of which the first has three texts, the last none."""
    vocabulary = Vocabulary(kind="words", num_ids=5)
    config = dataclasses.replace(
        preset_config("tiny", vocabulary, num_codes=50, code_width=8), dropout=0.0
    )
    torch.manual_seed(0)
    model = Im2SpModel(config, torch.randn(50, 8)).double()
    ids = torch.tensor([[0, 3, 0], [3, 0, 0], [0, 0, 0], [1, 2, 4]])
    tokens = vocabulary.encode_batch(ids, torch.tensor([2, 1, 0, 3]))
    shares = torch.tensor([[1, 0, 0, 2, 0], [0, 3, 3, 0, 3]], dtype=torch.float64) / 3
    return model, torch.randint(50, (3, 28, 28)), tokens, torch.tensor([0, 0, 0, 1]), shares


def test_words_are_predicted_from_the_mean_state(word_batch):
    model, image_units, tokens, owner, shares = word_batch
    states = model.projection_norm(model.projection(model.encoder(image_units)))
    chances = torch.sigmoid(model.decoder.logits(states.mean(1))[:2, 3:])
    expected = -(shares * chances.log() + (1 - shares) * (1 - chances).log()).sum(1).mean()
    torch.testing.assert_close(
        model.word_loss(image_units, tokens, owner), expected.float(), rtol=1e-5, atol=1e-5
    )


def test_words_are_memorised(word_batch):
    model, *batch, shares = word_batch
    model.float()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.word_loss(*batch)
        loss.backward()
        optimizer.step()
    least = torch.nn.functional.binary_cross_entropy(shares, shares, reduction="sum") / 2
    assert loss.item() == pytest.approx(least.item(), abs=0.1)


@pytest.mark.parametrize("stride", [2, 4])
def test_states_of_a_stem_of_convolutions(make_model, make_batch, stride):
    model = make_model(conv_stem=True, stem_stride=stride)
    image_units, _, _ = make_batch(model)
    states = model.encoder(image_units)
    assert states.shape == (3, 1 + (28 // stride) ** 2, 48)
    torch.testing.assert_close(model.encoder(image_units[1:2]), states[1:2])
    kernels = [module for module in model.encoder.stem if isinstance(module, torch.nn.Conv2d)]
    assert [kernel.stride[0] for kernel in kernels] == [1, *[2] * (stride // 2), 1]
    widths = {2: [24, 48, 48], 4: [12, 24, 48, 48]}[stride]
    assert [kernel.out_channels for kernel in kernels] == widths


def test_a_new_stem_of_convolutions_keeps_the_scale_of_its_input():
    torch.manual_seed(0)
    config = preset_config("mini", SPEECH, standardise_codebook=True)
    assert config.conv_stem
    stem = Im2SpModel(config, torch.randn(8192, 32)).encoder.stem
    assert 0.3 < stem(torch.randn(8, 32, 28, 28)).std() < 3


def make_inputs(dtype):
    torch.manual_seed(0)
    sizes = {"q": 5, "k": 9, "v": 9}
    return [
        torch.randn(2, length, 3, 8, dtype=dtype).transpose(1, 2).requires_grad_()
        for length in sizes.values()
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_torchs_attention(dtype, masked):
    inputs = make_inputs(dtype)
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4) if masked else None
    expected = F.scaled_dot_product_attention(*[x.float() for x in inputs], mask)
    found = attention(*inputs, mask, 0.0)
    assert found.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-6 if dtype == torch.float32 else 0.03}
    torch.testing.assert_close(found.float(), expected, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(attention(*inputs, mask, 0.0).float(), expected, **tolerance)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    gradients = torch.autograd.grad(found, inputs, gradient.to(dtype))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one.float(), other.float(), **tolerance)


def test_dropout_of_attention_weights():
    q, k, _ = make_inputs(torch.float32)
    ones = torch.ones(2, 3, 9, 8)
    torch.manual_seed(1)
    kept = torch.stack([attention(q, k, ones, None, 0.25) for _ in range(400)])
    assert kept.std() > 0.1
    assert abs(kept.mean().item() - 1) < 0.01


def test_dropout_keeps_the_mean_and_drops_its_share():
    torch.manual_seed(2)
    x = torch.ones(1001, 999, requires_grad=True)
    y = dropout(x, 0.1)
    values = y.unique().tolist()
    assert values[0] == 0
    assert values[1:] == pytest.approx([1 / 0.9], rel=1e-4)
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.002)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    columns = (y == 0).float().mean(0)
    assert 0.03 < columns.min() < columns.max() < 0.17


def test_dropout_follows_the_seed_and_the_type():
    x = torch.ones(7, 3, dtype=torch.bfloat16)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(dropout(x, 0.5))
    assert torch.equal(*drawn)
    assert drawn[0].dtype == torch.bfloat16
    assert not torch.equal(drawn[0], dropout(x, 0.5))
    assert dropout(x, 0.0) is x
    assert dropout(x[:0], 0.5).shape == (0, 3)
