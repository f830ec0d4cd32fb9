import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from im2sp.pipeline.image_tokenizer.network import (
    TransformerConfig,
    ViTVQGAN,
    ViTVQGANConfig,
    from_patches,
    position_table,
    to_patches,
)
from im2sp.pipeline.image_tokenizer.weights import config_from_shapes


def make_network(heads=2, width=32, depth=2, grid=(4, 4), num_codes=40, head_width=64):
    torch.manual_seed(7)
    stack = TransformerConfig(
        width=width, depth=depth, heads=heads, mlp_width=48, head_width=head_width
    )
    config = ViTVQGANConfig(encoder=stack, decoder=stack, num_codes=num_codes)
    network = ViTVQGAN(config, grid).eval().requires_grad_(False)
    for parameter in network.parameters():  # biases and norms that matter
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def naive_positions(rows, columns, width):
    """One number at a time, in Python floats."""
    table = np.zeros((rows * columns, width))
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                channels = table[row * columns + column]
                channels[i] = math.sin(column * frequency)
                channels[quarter + i] = math.cos(column * frequency)
                channels[2 * quarter + i] = math.sin(row * frequency)
                channels[3 * quarter + i] = math.cos(row * frequency)
    return table


def naive_norm(x, state, name):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def naive_stack(x, state, name, depth, heads):
    """The published blocks, written out in float64: softmax over all pairs, Tanh, pre-norm."""
    for layer in range(depth):
        prefix = f"{name}.layers.{layer}"
        qkv = naive_norm(x, state, f"{prefix}.0.norm") @ state[f"{prefix}.0.fn.to_qkv.weight"].T
        mixed = []
        q, k, v = qkv.chunk(3, dim=-1)
        head_width = q.shape[-1] // heads
        for head in range(heads):
            part = slice(head * head_width, (head + 1) * head_width)
            scores = q[..., part] @ k[..., part].transpose(-1, -2) * head_width**-0.5
            weights = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
            mixed.append(weights @ v[..., part])
        y = torch.cat(mixed, dim=-1)
        if f"{prefix}.0.fn.to_out.weight" in state:
            y = y @ state[f"{prefix}.0.fn.to_out.weight"].T + state[f"{prefix}.0.fn.to_out.bias"]
        x = x + y
        y = naive_norm(x, state, f"{prefix}.1.norm")
        y = torch.tanh(
            y @ state[f"{prefix}.1.fn.net.0.weight"].T + state[f"{prefix}.1.fn.net.0.bias"]
        )
        x = x + y @ state[f"{prefix}.1.fn.net.2.weight"].T + state[f"{prefix}.1.fn.net.2.bias"]
    return naive_norm(x, state, f"{name}.norm")


def naive_features(pixels, state, depth, heads, patch=8):
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    tokens = []
    for row in range(rows):
        for column in range(columns):
            cut = pixels[
                :, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch
            ]
            weight = state["encoder.to_patch_embedding.0.weight"].flatten(1)
            tokens.append(cut.flatten(1) @ weight.T + state["encoder.to_patch_embedding.0.bias"])
    x = torch.stack(tokens, dim=1)
    x = x + torch.from_numpy(naive_positions(rows, columns, x.shape[-1]))
    x = naive_stack(x, state, "encoder.transformer", depth, heads)
    return x @ state["pre_quant.weight"].T + state["pre_quant.bias"]


def float64_state(network):
    return {name: tensor.double() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(3, 5, 16), (4, 4, 8), (28, 28, 64), (1, 7, 4)]
)
def test_positions_are_the_published_formula(rows, columns, width):
    table = position_table((rows, columns), width)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table, naive_positions(rows, columns, width), atol=2e-7)


def test_a_smaller_grid_is_the_corner_of_a_larger_one():
    large = position_table((32, 32), 64).reshape(32, 32, 64)
    small = position_table((28, 28), 64).reshape(28, 28, 64)
    assert np.array_equal(large[:28, :28], small)
    middle = position_table((7, 9), 64, origin=(3, 2)).reshape(7, 9, 64)
    assert np.array_equal(large[3:10, 2:11], middle)


def test_patches_are_what_the_convolutions_see():
    network = make_network()
    pixels = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(9))
    patches = to_patches(pixels, 8)
    assert torch.equal(from_patches(patches, (3, 5), 8), pixels)
    embed = network.encoder.to_patch_embedding[0]
    expected = embed(pixels).flatten(2).transpose(1, 2)
    found = F.linear(patches, embed.weight.flatten(1), embed.bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("heads", "width"), [(2, 32), (1, 64), (3, 128)])
@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_encoder_agrees_with_a_naive_one(heads, width, size):
    network = make_network(heads, width)
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = naive_features(pixels.double(), float64_state(network), 2, heads)
    torch.testing.assert_close(
        network.encode_features(pixels).double(), expected, atol=2e-5, rtol=2e-5
    )


def test_decoder_agrees_with_a_naive_one():
    network = make_network()
    state = float64_state(network)
    codes = F.normalize(torch.randn(2, 15, 32, generator=torch.Generator().manual_seed(2)), dim=-1)
    x = codes.double() @ state["post_quant.weight"].T + state["post_quant.bias"]
    x = x + torch.from_numpy(naive_positions(3, 5, 32))
    x = naive_stack(x, state, "decoder.transformer", 2, 2)
    expected = torch.zeros(2, 3, 24, 40, dtype=torch.float64)
    for index in range(15):
        row, column = divmod(index, 5)
        patch = torch.einsum("bd,dcij->bcij", x[:, index], state["decoder.to_pixel.1.weight"])
        expected[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = patch
    expected += state["decoder.to_pixel.1.bias"][:, None, None]
    torch.testing.assert_close(
        network.decode_features(codes, (3, 5)).double(), expected, atol=2e-5, rtol=2e-5
    )


def test_names_are_the_published_ones():
    names = set(make_network(depth=1).state_dict())
    block = "transformer.layers.0"
    parts = [
        f"{block}.0.norm.weight",
        f"{block}.0.norm.bias",
        f"{block}.0.fn.to_qkv.weight",
        f"{block}.0.fn.to_out.weight",
        f"{block}.0.fn.to_out.bias",
        f"{block}.1.norm.weight",
        f"{block}.1.norm.bias",
        f"{block}.1.fn.net.0.weight",
        f"{block}.1.fn.net.0.bias",
        f"{block}.1.fn.net.2.weight",
        f"{block}.1.fn.net.2.bias",
        "transformer.norm.weight",
        "transformer.norm.bias",
    ]
    assert names == {
        *(f"encoder.{part}" for part in parts),
        *(f"decoder.{part}" for part in parts),
        "encoder.to_patch_embedding.0.weight",
        "encoder.to_patch_embedding.0.bias",
        "encoder.en_pos_embedding",
        "decoder.de_pos_embedding",
        "decoder.to_pixel.1.weight",
        "decoder.to_pixel.1.bias",
        "pre_quant.weight",
        "pre_quant.bias",
        "post_quant.weight",
        "post_quant.bias",
        "quantizer.embedding.weight",
    }


def test_one_head_as_wide_as_the_network_has_no_output_projection():
    network = make_network(heads=1, width=64)
    assert "encoder.transformer.layers.0.0.fn.to_out.weight" not in network.state_dict()


@pytest.mark.parametrize(("heads", "width"), [(2, 32), (1, 64), (4, 64), (1, 32)])
def test_sizes_are_read_from_shapes(heads, width):
    network = make_network(heads, width)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert config_from_shapes(shapes) == network.config


def test_the_library_quantizer_holds_the_same_parts():
    network = make_network()
    quantizer = network.vector_quantizer()
    hidden = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(3))
    rows = F.normalize(network.quantizer.embedding.weight, dim=-1)
    expected = torch.cdist(F.normalize(network.pre_quant(hidden), dim=-1), rows).argmin(-1)
    quantized, ids, _ = quantizer(hidden)
    assert torch.equal(ids, expected)
    assert torch.equal(quantized, network.post_quant(rows[ids]))
    assert quantizer.project_in is network.pre_quant


def test_features_of_a_crop_use_its_place():
    network = make_network(grid=(4, 4))
    pixels = torch.rand(1, 3, 16, 16)
    shifted = network.encoder.positions((2, 2), (1, 1))
    whole = network.encoder.en_pos_embedding.unflatten(1, (4, 4))
    assert torch.equal(shifted[0].view(2, 2, -1), whole[0, 1:3, 1:3])
    assert not torch.equal(network.encode_features(pixels), network.encode_features(pixels, (1, 1)))


def test_learned_positions_are_good_for_their_grid_only():
    network = make_network()
    network.encoder.has_fixed_positions = False
    network.encode_features(torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="learned positions for 4x4 only"):
        network.encode_features(torch.rand(1, 3, 16, 32))


@pytest.mark.parametrize("bad", [{"width": 30}, {"heads": 0}, {"depth": 0}])
def test_impossible_sizes_are_refused(bad):
    sizes = {"width": 32, "depth": 1, "heads": 1, "mlp_width": 8} | bad
    with pytest.raises(ValueError, match=next(iter(bad))):
        TransformerConfig(**sizes)


def test_gradients_reach_every_weight():
    network = make_network().requires_grad_(True)
    features = network.encode_features(torch.rand(1, 3, 32, 32))
    network.decode_features(F.normalize(features, dim=-1)).square().sum().backward()
    without = [name for name, value in network.named_parameters() if value.grad is None]
    assert without == ["quantizer.embedding.weight"]
