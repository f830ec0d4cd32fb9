"""Conversion of weights files of any published form to a `ViTVQGAN`, and to safetensors.

The published forms differ in names only: a Lightning checkpoint has `encoder.`, `decoder.`,
`quantizer.` (and `loss.`, which is dropped); SeiT's pickled module ends at the features before
quantisation, with the names of its module, and its codebook is a separate file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from im2sp.pipeline.image_tokenizer.network import (
    HEAD_WIDTH,
    TransformerConfig,
    ViTVQGAN,
    ViTVQGANConfig,
    position_table,
)
from im2sp.pipeline.tensors import (
    Weights,
    checked_tensor,
    describe,
    finite_float32,
    read_weights,
    tensors_fingerprint,
)
from im2sp.shards.errors import memory_limit
from im2sp.shards.files import parse_json
from im2sp.shards.weights.pickles import WeightsError

ENCODER_MARK = "to_patch_embedding.0.weight"
DECODER_MARKS = ("to_pixel.1.weight", "to_pixel.conv_out.weight")
CODEBOOK = "quantizer.embedding.weight"
POSITIONS = ("encoder.en_pos_embedding", "decoder.de_pos_embedding")
_UNIT_PARTS = ("encoder.", "pre_quant.", "quantizer.")
METADATA_KEY = "im2sp"
# Names in other versions of the published code -> names here.
_OLD_NAMES = {
    "encoder.norm.": "encoder.transformer.norm.",
    "decoder.norm.": "decoder.transformer.norm.",
    "decoder.to_pixel.conv_out.": "decoder.to_pixel.1.",
}
# A table stored as float16 is off by at most 2 ** -11.
POSITION_TOLERANCE = 1e-3
MAX_IMAGE_PX = 1 << 16
# Fewest tensors of a layer, and memory of a number of a position table while it is computed.
_LAYER_TENSORS = 9
_POSITION_BYTES = 24


def load_network(weights: Weights, codebook: Tensor | None = None) -> ViTVQGAN:
    """Build a network from the tensors of a file.

    Args:
        weights: Content of the file.
        codebook: Codebook (rows, C) that replaces the one in the file.

    Raises:
        WeightsError: One line with what the file holds and what was expected.
    """
    tensors = published_names(weights.tensors())
    if codebook is not None:
        tensors[CODEBOOK] = codebook
    if f"encoder.{ENCODER_MARK}" not in tensors:
        raise WeightsError(
            f"{weights.path}: holds {describe(weights.content)}, expected a ViT-VQGAN"
            f" (encoder.{ENCODER_MARK} and so on)"
        )
    if CODEBOOK not in tensors:
        raise WeightsError(
            f"{weights.path}: holds a ViT-VQGAN without a codebook; pass the file of its codebook"
            " as `codebook`"
        )
    settings = _settings(weights)
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.numel()}
        config = config_from_shapes(shapes, settings.get("heads"))
        grid = _stored_grid(tensors, settings, config.patch_size_px)
        _check_positions(config, grid, weights.path)
    except KeyError as error:
        raise WeightsError(
            f"{weights.path}: lacks {error.args[0]} of a ViT-VQGAN; holds"
            f" {describe(weights.content)}"
        ) from None
    except (ValueError, TypeError, IndexError) as error:
        raise WeightsError(f"{weights.path}: not the shapes of a ViT-VQGAN: {error}") from None
    checked = _checked(config, grid, tensors, weights.path)
    with torch.device("meta"):
        network = ViTVQGAN(config, grid)
    network.load_state_dict(checked, strict=False, assign=True)
    _use_positions(network, tensors)
    return network.eval().requires_grad_(False)


def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], heads: int | None = None
) -> ViTVQGANConfig:
    """Derive the sizes from the tensors of a checkpoint.

    Args:
        shapes: Shape of each tensor under its published name.
        heads: Number of heads of both stacks; None for inner width / 64, as published.

    Raises:
        KeyError: A tensor that determines a size is missing; its name.
        ValueError: Shapes do not fit each other.
    """
    width, channels, patch_size_px, _ = shapes["encoder.to_patch_embedding.0.weight"]
    num_codes, code_width = shapes["quantizer.embedding.weight"]
    has_decoder = any(name.startswith("decoder.") for name in shapes)
    decoder_width = shapes["post_quant.weight"][0] if has_decoder else 0
    return ViTVQGANConfig(
        encoder=_stack_from_shapes(shapes, "encoder", width, heads),
        decoder=_stack_from_shapes(shapes, "decoder", decoder_width, heads)
        if has_decoder
        else None,
        num_codes=num_codes,
        code_width=code_width,
        patch_size_px=patch_size_px,
        channels=channels,
    )


def _stack_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], stack: str, width: int, heads: int | None
) -> TransformerConfig:
    layers = f"{stack}.transformer.layers."
    indices = {int(name[len(layers) :].split(".")[0]) for name in shapes if name.startswith(layers)}
    if indices and max(indices) + 1 != len(indices):
        raise ValueError(f"{stack} has {len(indices)} layers, one of them numbered {max(indices)}")
    num_tensors = sum(name.startswith(layers) for name in shapes)
    if num_tensors < _LAYER_TENSORS * len(indices):
        raise ValueError(f"{stack} has {len(indices)} layers of {num_tensors} tensors")
    inner_width = shapes[f"{layers}0.0.fn.to_qkv.weight"][0] // 3
    # A missing output projection identifies a single head, whose width need not be 64.
    if heads is None and f"{layers}0.0.fn.to_out.weight" not in shapes:
        heads = 1
    heads = heads or max(1, inner_width // HEAD_WIDTH)
    if inner_width % heads:
        raise ValueError(f"inner width {inner_width} of {stack} is not a multiple of {heads} heads")
    return TransformerConfig(
        width=width,
        depth=len(indices),
        heads=heads,
        head_width=inner_width // heads,
        mlp_width=shapes[f"{layers}0.1.fn.net.0.weight"][0],
    )


def published_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename to the published names and drop tensors outside the network (`loss.*`).

    If the parts have other names (such as a pickled `Sequential` of encoder and Linear), the
    encoder is the part with the patch embedding, the decoder the one with the pixel projection, and
    the Linear before quantisation is identified by its shape.
    """
    parts: dict[str, str] = {}  # prefix in the file -> prefix here
    encoder = _prefix_of(tensors, (ENCODER_MARK,))
    if encoder is None:
        return {}
    root = encoder.removesuffix("encoder.")
    parts[encoder] = "encoder."
    decoder = _prefix_of(tensors, DECODER_MARKS)
    if decoder is not None:
        parts[decoder] = "decoder."
    for part in ("pre_quant.", "post_quant.", "quantizer."):
        if any(name.startswith(root + part) for name in tensors):
            parts[root + part] = part
    outside = {
        name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(parts))
    }
    if "pre_quant." not in parts.values():
        width = tensors[encoder + ENCODER_MARK].shape[0]
        candidates = [
            name.removesuffix("weight")
            for name, tensor in outside.items()
            if name.endswith("weight") and tensor.ndim == 2 and tensor.shape[1] == width
            if name.removesuffix("weight") + "bias" in outside
        ]
        if len(candidates) == 1:
            parts[candidates[0]] = "pre_quant."
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for found, here in parts.items():
            if name.startswith(found):
                renamed[_current_name(here + name[len(found) :])] = tensor
    return renamed


def _prefix_of(tensors: dict[str, Tensor], marks: tuple[str, ...]) -> str | None:
    """Shortest prefix before one of `marks` at the end of a name; None if there is none."""
    found = [
        name.removesuffix(mark)
        for name in tensors
        for mark in marks
        if name == mark or name.endswith("." + mark)
    ]
    return min(found, key=lambda prefix: (len(prefix), prefix), default=None)


def _current_name(name: str) -> str:
    for old, new in _OLD_NAMES.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _settings(weights: Weights) -> dict[str, Any]:
    """Settings in the metadata of an im2sp file; empty for other files."""
    text = weights.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        settings = parse_json(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise WeightsError(f"{weights.path}: its metadata {METADATA_KEY!r} is not a JSON object")
    return settings


def _stored_grid(
    tensors: dict[str, Tensor], settings: dict[str, Any], patch_size_px: int
) -> tuple[int, int]:
    """Grid of the stored position tables; a square one, from the metadata or the table's size."""
    image_size_px = settings.get("train_image_size_px")
    if isinstance(image_size_px, int):
        if not 1 <= image_size_px <= MAX_IMAGE_PX:
            raise ValueError(f"images of {image_size_px} pixels, expected 1 to {MAX_IMAGE_PX}")
        return image_size_px // patch_size_px, image_size_px // patch_size_px
    table = tensors.get(POSITIONS[0])
    num_patches = 28 * 28 if table is None else table.shape[-2]
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise ValueError(f"{num_patches} stored positions, expected a square number")
    return side, side


def _check_positions(config: ViTVQGANConfig, grid: tuple[int, int], path: Path) -> None:
    """Refuse position tables that are larger than `memory_limit` allows for the file."""
    width = config.encoder.width + (config.decoder.width if config.decoder else 0)
    if _POSITION_BYTES * grid[0] * grid[1] * width > memory_limit(path.stat().st_size):
        raise ValueError(f"positions of {grid[0]} x {grid[1]} patches and width {width}")


def _checked(
    config: ViTVQGANConfig, grid: tuple[int, int], tensors: dict[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """float32 copies of all tensors of a network; position tables may be missing.

    Shapes are compared with those of a network on the meta device, before one takes memory.
    """
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in ViTVQGAN(config, grid).state_dict().items()}
    missing = [name for name in shapes if name not in tensors and name not in POSITIONS]
    if missing:
        raise WeightsError(
            f"{path}: lacks {missing[0]} of a ViT-VQGAN ({len(missing)} names in all)"
        )
    return {
        # Copies, because the tensors are mapped from the file.
        name: checked_tensor(path, tensors, name, shape, what="a ViT-VQGAN").clone()
        for name, shape in shapes.items()
        if name in tensors
    }


def _use_positions(network: ViTVQGAN, tensors: dict[str, Tensor]) -> None:
    """Compare stored position tables with the formula, and replace those rounded to halves."""
    for name, part in zip(POSITIONS, (network.encoder, network.decoder), strict=True):
        if part is not None and name in tensors:
            formula = torch.from_numpy(position_table(part.grid, tensors[name].shape[-1]))
            stored = tensors[name][0].float()
            part.has_fixed_positions = bool((stored - formula).abs().max() <= POSITION_TOLERANCE)
            if part.has_fixed_positions and tensors[name].dtype != torch.float32:
                getattr(part, part.table_name)[0].copy_(formula)


def load_codebook(source: str | Path | Tensor | np.ndarray) -> Tensor:
    """Return a codebook (rows, C) float32 from a tensor, or a file that `read_weights` can read.

    Raises:
        WeightsError: The source is not one table of numbers.
    """
    if isinstance(source, str | Path):
        weights = read_weights(source)
        tensors, name = weights.tensors(), str(source)
        found = describe(weights.content)
    else:
        tensors, name = {"": torch.as_tensor(source)}, "codebook"
        found = f"shape {list(tensors[''].shape)}"
    tables = [table for table in tensors.values() if table.ndim == 2 and table.is_floating_point()]
    if len(tensors) > 1 and CODEBOOK in tensors:
        tables = [tensors[CODEBOOK]]
    if len(tables) != 1 or not 1 <= tables[0].shape[0] <= 2**16:
        raise WeightsError(f"{name}: holds {found}, expected one codebook [rows, width]")
    rows = finite_float32(tables[0], f"{name}: the codebook").clone()
    if not rows.any(dim=-1).all():
        raise WeightsError(f"{name}: a codebook row is zero")
    return rows


def fingerprint(network: ViTVQGAN, precision: str) -> str:
    """sha256 (hex) of all that determines an image's units.

    These are the encoder's weights as float32, `pre_quant`, the codebook's rows, patch size, heads
    and precision: float32 and bfloat16 give other units for a share of the patches. The container,
    the stored dtype, computed position tables and the decoder do not matter, so SeiT's encoder with
    its codebook has the same fingerprint as the checkpoint that it was extracted from.
    """
    settings = {
        "format": 1,
        "model": "vitvqgan",
        "patch_size_px": network.config.patch_size_px,
        "heads": network.config.encoder.heads,
        "precision": precision,
    }
    tensors = network.state_dict()
    if network.encoder.has_fixed_positions:
        del tensors[POSITIONS[0]]
    parts = [pair for pair in tensors.items() if pair[0].startswith(_UNIT_PARTS)]
    return tensors_fingerprint(settings, parts)


def image_tokenizer_bytes(
    network: ViTVQGAN,
    dtype: torch.dtype = torch.float16,
    settings: dict[str, Any] | None = None,
) -> bytes:
    """Serialise a network as safetensors: published names, without the computed positions.

    Args:
        network: Network to write.
        dtype: Type of the stored tensors.
        settings: Further metadata, such as the recipe; JSON values.
    """
    stacks = [stack for stack in (network.config.encoder, network.config.decoder) if stack]
    heads = {stack.heads for stack in stacks}
    metadata = {
        **(settings or {}),
        "patch_size_px": network.config.patch_size_px,
        "train_image_size_px": network.encoder.grid[0] * network.config.patch_size_px,
        "heads": heads.pop() if len(heads) == 1 else None,
    }
    tensors = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
        if name not in POSITIONS
    }
    return save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})
