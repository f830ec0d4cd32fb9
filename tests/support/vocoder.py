"""Small random unit vocoders in every published format, and a reference synthesizer.

It follows the published structure, one convolution after another, without code of im2sp.
"""

import json

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4, 4],
    "upsample_initial_channel": 64,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "num_embeddings": 20,
    "embedding_dim": 16,
    "model_in_dim": 16,
    "code_hop_size": 320,
    "sampling_rate": 16000,
    "f0": False,
}
DURATIONS = {
    "encoder_embed_dim": 16,
    "var_pred_hidden_dim": 24,
    "var_pred_kernel_size": 3,
    "var_pred_dropout": 0.5,
}
PUBLISHED = {
    **SIZES,
    "upsample_initial_channel": 512,
    "num_embeddings": 200,
    "embedding_dim": 128,
    "model_in_dim": 128,
    "dur_predictor_params": {
        **DURATIONS,
        "encoder_embed_dim": 128,
        "var_pred_hidden_dim": 128,
    },
}


def make_config(*, num_speakers=0, durations=True, **changes):
    config = {**SIZES, **changes}
    if durations:
        config["dur_predictor_params"] = DURATIONS
    if num_speakers:
        config["multispkr"] = "single"
        config["num_speakers"] = num_speakers
        config["model_in_dim"] = 2 * config["embedding_dim"]
    return config


def random_generator(config, seed=0):
    """A state dict with weight norm under the published names."""
    random = torch.Generator().manual_seed(seed)
    state = {}

    def convolution(name, *shape, gain=1.0):
        fan_in = shape[1] * shape[2] if not name.startswith("ups") else shape[0] * 2
        direction = torch.randn(shape, generator=random)
        norm = direction.flatten(1).norm(dim=1).view(-1, 1, 1)
        spread = 0.8 + 0.4 * torch.rand(shape[0], 1, 1, generator=random)
        state[f"{name}.weight_v"] = direction
        state[f"{name}.weight_g"] = gain * spread * norm * fan_in**-0.5
        out_channels = shape[1] if name.startswith("ups") else shape[0]
        state[f"{name}.bias"] = 0.1 * torch.randn(out_channels, generator=random)

    width, channels = config["embedding_dim"], config["upsample_initial_channel"]
    state["dict.weight"] = torch.randn(config["num_embeddings"], width, generator=random)
    if "num_speakers" in config:
        state["spkr.weight"] = torch.randn(config["num_speakers"], width, generator=random)
    convolution("conv_pre", channels, config["model_in_dim"], 7)
    parts = ["convs1", "convs2"] if config["resblock"] == "1" else ["convs"]
    block = 0
    for stage, kernel in enumerate(config["upsample_kernel_sizes"]):
        convolution(f"ups.{stage}", channels, channels // 2, kernel, gain=1.4)
        channels //= 2
        kernels, dilations = config["resblock_kernel_sizes"], config["resblock_dilation_sizes"]
        for size, block_dilations in zip(kernels, dilations, strict=True):
            for part in parts:
                for index in range(len(block_dilations)):
                    name = f"resblocks.{block}.{part}.{index}"
                    convolution(name, channels, channels, size, gain=0.7)
            block += 1
    convolution("conv_post", 1, channels, 7, gain=0.5)
    if "dur_predictor_params" in config:
        hidden = config["dur_predictor_params"]["var_pred_hidden_dim"]
        for index, size in ((1, width), (2, hidden)):
            name = f"dur_predictor.conv{index}.0"
            state[f"{name}.weight"] = torch.randn(hidden, size, 3, generator=random) * size**-0.5
            state[f"{name}.bias"] = 0.1 * torch.randn(hidden, generator=random)
            norm = f"dur_predictor.ln{index}"
            state[f"{norm}.weight"] = 1 + 0.1 * torch.randn(hidden, generator=random)
            state[f"{norm}.bias"] = 0.1 * torch.randn(hidden, generator=random)
        state["dur_predictor.proj.weight"] = 0.1 * torch.randn(1, hidden, generator=random)
        state["dur_predictor.proj.bias"] = torch.tensor([1.1])
    return state


def save_published(folder, config, state, steps=400_000):
    """A folder as written by speech-resynthesis."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    torch.save({"generator": state}, folder / f"g_{steps:08d}")
    return folder


# Reference synthesizer --------------------------------------------------------------------------


def _load(module, state, name):
    direction, length = state[f"{name}.weight_v"], state[f"{name}.weight_g"]
    weight = torch._weight_norm(direction, length, 0)
    assert module.weight.shape == weight.shape
    module.weight, module.bias = nn.Parameter(weight), nn.Parameter(state[f"{name}.bias"])
    return module


def _conv(state, name, dilation=1):
    out_channels, in_channels, kernel = state[f"{name}.weight_v"].shape
    padding = (kernel * dilation - dilation) // 2
    made = nn.Conv1d(in_channels, out_channels, kernel, padding=padding, dilation=dilation)
    return _load(made, state, name)


def _block(state, name, kind, dilations, x):
    for index, dilation in enumerate(dilations):
        y = F.leaky_relu(x, 0.1)
        if kind == "1":
            y = F.leaky_relu(_conv(state, f"{name}.convs1.{index}", dilation)(y), 0.1)
            y = _conv(state, f"{name}.convs2.{index}")(y)
        else:
            y = _conv(state, f"{name}.convs.{index}", dilation)(y)
        x = y + x
    return x


@torch.no_grad()
def plain_samples(config, state, units, speaker=None):
    """(T * 320,) samples of one clip, from units with repeats."""
    x = state["dict.weight"][torch.as_tensor(units)].t()[None]
    if speaker is not None:
        voice = state["spkr.weight"][speaker][None, :, None].expand(-1, -1, x.shape[-1])
        x = torch.cat([x, voice], 1)
    x = _conv(state, "conv_pre")(x)
    num_blocks = len(config["resblock_kernel_sizes"])
    limit = 3 if config["resblock"] == "1" else 2
    for stage, rate in enumerate(config["upsample_rates"]):
        in_channels, out_channels, kernel = state[f"ups.{stage}.weight_v"].shape
        up = nn.ConvTranspose1d(in_channels, out_channels, kernel, rate, (kernel - rate) // 2)
        x = _load(up, state, f"ups.{stage}")(F.leaky_relu(x, 0.1))
        blocks = [
            _block(
                state,
                f"resblocks.{stage * num_blocks + j}",
                config["resblock"],
                config["resblock_dilation_sizes"][j][:limit],
                x,
            )
            for j in range(num_blocks)
        ]
        x = sum(blocks) / num_blocks
    return torch.tanh(_conv(state, "conv_post")(F.leaky_relu(x)))[0, 0]


@torch.no_grad()
def plain_durations(state, units):
    """(N,) durations in frames of one clip's collapsed units."""
    x = state["dict.weight"][torch.as_tensor(units)].t()[None]
    for index in (1, 2):
        weight, bias = (state[f"dur_predictor.conv{index}.0.{part}"] for part in ("weight", "bias"))
        x = F.relu(F.conv1d(x, weight, bias, padding=1)).transpose(1, 2)
        scale, shift = (state[f"dur_predictor.ln{index}.{part}"] for part in ("weight", "bias"))
        x = F.layer_norm(x, (x.shape[-1],), scale, shift).transpose(1, 2)
    weight, bias = state["dur_predictor.proj.weight"], state["dur_predictor.proj.bias"]
    predicted = F.linear(x.transpose(1, 2), weight, bias)[0, :, 0]
    return torch.clamp(torch.round(torch.exp(predicted) - 1).long(), min=1)


def plain_speech(config, state, units, speaker=None):
    """Samples of one clip of collapsed units, with durations from the predictor."""
    units = torch.as_tensor(units).repeat_interleave(plain_durations(state, units))
    return plain_samples(config, state, units, speaker)
