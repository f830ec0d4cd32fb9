"""Conversion of published weights to this project's names.

Three forms, distinguished by their tensor names:

- GIT as saved by transformers: `git.encoder.layer.*`, `output.*`. Its image encoder reads pixels
  and is not used here.
- SeiT's ViT under timm's names: `blocks.*`, `patch_embed.proj.*`. `norm.*` and `head.*` belong to
  the classifier and are not used here.
- The paper's own checkpoint: GIT's names below `model.`, SeiT's below `model.git.image_encoder`.

The tables below hold all names. Queries, keys and values are one Linear here and in timm, three in
GIT.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as _short
from typing import Any

import torch
from torch import Tensor

from im2sp.shards.files import MAX_SETTINGS_BYTES, read_json
from im2sp.shards.weights.hub import CONFIG_FILE
from im2sp.shards.weights.pickles import WeightsError
from im2sp.trainer.model_config import ModelConfig, StackConfig
from im2sp.trainer.vocabulary import Vocabulary

HEAD_WIDTH = 64
TIMM_MARK = "patch_embed.proj.weight"
GIT_MARK = "git.embeddings.word_embeddings.weight"
ORIGINAL_PREFIX = "model."
ORIGINAL_ENCODER = "git.image_encoder.vision_model."

# Our name without the last part -> published name; `{}` is the number of a layer.
TIMM_NAMES = {
    "stem": "patch_embed.proj",
    "layers.{}.attention_norm": "blocks.{}.norm1",
    "layers.{}.to_qkv": "blocks.{}.attn.qkv",
    "layers.{}.to_out": "blocks.{}.attn.proj",
    "layers.{}.mlp_norm": "blocks.{}.norm2",
    "layers.{}.mlp_in": "blocks.{}.mlp.fc1",
    "layers.{}.mlp_out": "blocks.{}.mlp.fc2",
}
TIMM_PARAMETERS = {"cls": "cls_token", "positions": "pos_embed"}
GIT_NAMES = {
    "norm": "git.embeddings.LayerNorm",
    "layers.{}.to_out": "git.encoder.layer.{}.attention.output.dense",
    "layers.{}.attention_norm": "git.encoder.layer.{}.attention.output.LayerNorm",
    "layers.{}.mlp_in": "git.encoder.layer.{}.intermediate.dense",
    "layers.{}.mlp_out": "git.encoder.layer.{}.output.dense",
    "layers.{}.mlp_norm": "git.encoder.layer.{}.output.LayerNorm",
}
GIT_PARAMETERS = {
    "embedding.weight": GIT_MARK,
    "positions.weight": "git.embeddings.position_embeddings.weight",
    "output_bias": "output.bias",
}
GIT_QKV = [
    "git.encoder.layer.{}.attention.self.query",
    "git.encoder.layer.{}.attention.self.key",
    "git.encoder.layer.{}.attention.self.value",
]
PROJECTION_NAMES = {
    "projection": "git.visual_projection.visual_projection.0",
    "projection_norm": "git.visual_projection.visual_projection.1",
}
_KINDS = ("weight", "bias")
_SPECIAL_TOKENS = {"pad_token_id": "pad", "bos_token_id": "bos", "eos_token_id": "eos"}


class PublishedError(ValueError):
    """Tensors do not match the published form that their names suggest."""


@dataclass(frozen=True)
class Part:
    """Encoder or decoder of published weights."""

    tensors: dict[str, Tensor]
    """float32, by their names in `ImageEncoder` or `Decoder`."""
    stack: StackConfig


class _Source:
    """Tensors by name; a missing one raises `PublishedError`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __call__(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise PublishedError(f"lacks the tensor {name!r}")
        return self.tensors[name].float()

    def pairs(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Weights and biases by our names."""
        return {
            f"{ours}.{kind}": self(f"{theirs}.{kind}")
            for ours, theirs in names.items()
            for kind in _KINDS
        }

    def depth(self, pattern: str) -> int:
        """Number of layers; the group of `pattern` matches the number of a layer."""
        found = {int(match[1]) for name in self.tensors if (match := re.match(pattern, name))}
        if found and max(found) + 1 != len(found):
            raise PublishedError(f"has {len(found)} layers, one of them numbered {max(found)}")
        return len(found)


def _numbered(names: Mapping[str, str], layer: int) -> dict[str, str]:
    """Names of one layer, or with -1 those outside the layers."""
    return {
        ours.format(layer): theirs.format(layer)
        for ours, theirs in names.items()
        if ours.startswith("layers.") == (layer >= 0)
    }


def _stack(width: int, depth: int, mlp_width: int, heads: int | None) -> StackConfig:
    """Sizes of a stack; heads are 64 wide unless given, as tensor shapes do not show them."""
    if heads is None and width % HEAD_WIDTH:
        raise PublishedError(f"is {width} wide, expected a multiple of {HEAD_WIDTH}")
    return StackConfig(
        width=width, depth=depth, heads=heads or width // HEAD_WIDTH, mlp_width=mlp_width
    )


def encoder_part(tensors: Mapping[str, Tensor], heads: int | None = None) -> Part:
    """Convert SeiT's ViT under timm's names.

    Raises:
        PublishedError: A tensor is missing.
    """
    source = _Source(tensors)
    depth = source.depth(r"blocks\.(\d+)\.")
    found = source.pairs(_numbered(TIMM_NAMES, -1))
    found |= {ours: source(theirs) for ours, theirs in TIMM_PARAMETERS.items()}
    for layer in range(depth):
        found |= source.pairs(_numbered(TIMM_NAMES, layer))
    if not depth:
        raise PublishedError("has no layers")
    mlp_width, width = found["layers.0.mlp_in.weight"].shape
    return Part(found, _stack(width, depth, mlp_width, heads))


def decoder_part(tensors: Mapping[str, Tensor], heads: int | None = None) -> Part:
    """Convert GIT's text decoder under transformers' names.

    Raises:
        PublishedError: A tensor is missing, or output and embedding weights differ.
    """
    source = _Source(tensors)
    depth = source.depth(r"git\.encoder\.layer\.(\d+)\.")
    found = source.pairs(_numbered(GIT_NAMES, -1))
    found |= {ours: source(theirs) for ours, theirs in GIT_PARAMETERS.items()}
    output = tensors.get("output.weight")  # absent if tied weights are saved once
    if output is not None and not torch.equal(output.float(), found["embedding.weight"]):
        raise PublishedError(
            "has an output.weight that differs from its word embedding; expected tied weights"
        )
    for layer in range(depth):
        found |= source.pairs(_numbered(GIT_NAMES, layer))
        for kind in _KINDS:
            parts = [source(f"{name.format(layer)}.{kind}") for name in GIT_QKV]
            found[f"layers.{layer}.to_qkv.{kind}"] = torch.cat(parts)
    if not depth:
        raise PublishedError("has no layers")
    mlp_width, width = found["layers.0.mlp_in.weight"].shape
    return Part(found, _stack(width, depth, mlp_width, heads))


def projection_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert GIT's `visual_projection`."""
    return _Source(tensors).pairs(PROJECTION_NAMES)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names start with `prefix`, by their names without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def git_config(path: Path) -> dict[str, Any]:
    """Settings in the config file beside a GIT's weights; empty if there is none.

    Raises:
        WeightsError: It is not JSON, or asks for another computation.
    """
    file = path.with_name(CONFIG_FILE)
    if not file.is_file():
        return {}
    try:
        settings = read_json(file, MAX_SETTINGS_BYTES)
    except ValueError as error:
        raise WeightsError(f"{file}: not JSON ({error})") from None
    fixed = {
        "model_type": "git",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
    }
    for name, expected in fixed.items():
        found = settings.get(name, expected) if isinstance(settings, dict) else None
        if found != expected:
            raise WeightsError(f"{file}: {name} is {_short(found)}, expected {expected!r}")
    return settings


def git_decoder(path: Path, tensors: dict[str, Tensor], **image: Any) -> tuple[ModelConfig, Part]:
    """Configuration and decoder of a GIT.

    Args:
        path: Its weights.
        tensors: Their tensors.
        image: Fields of the configuration of the image side.

    Raises:
        PublishedError: A tensor is missing.
        WeightsError: The settings beside the weights ask for another computation.
    """
    settings = git_config(path)
    decoder = decoder_part(tensors, settings.get("num_attention_heads"))
    vocabulary = Vocabulary(
        kind="text", num_ids=len(decoder.tensors["embedding.weight"]), layout="git"
    )
    for name, special in _SPECIAL_TOKENS.items():
        expected = getattr(vocabulary, special)
        if settings.get(name, expected) != expected:
            raise WeightsError(f"{path}: {name} is {_short(settings[name])}, expected {expected}")
    config = ModelConfig(
        vocabulary=vocabulary,
        decoder=decoder.stack,
        max_positions=len(decoder.tensors["positions.weight"]),
        dropout=settings.get("hidden_dropout_prob", 0.1),
        attention_dropout=settings.get("attention_probs_dropout_prob", 0.1),
        **image,
    )
    return config, decoder
