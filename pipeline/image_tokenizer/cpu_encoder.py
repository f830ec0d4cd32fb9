"""The image encoder's forward pass on a CPU, and the search for the nearest code.

It computes the same as the module; every Linear runs through oneDNN (see `onednn`) with its Tanh or
residual sum fused in. float32 differs by rounding only.

Legend: `B` batch, `N` patches, `D` width, `C` code width.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from im2sp.pipeline.image_tokenizer.network import (
    Attention,
    FeedForward,
    PreNorm,
    ViTVQGAN,
    to_patches,
)
from im2sp.pipeline.onednn import PackedLinear, PackedNorm, is_supported, packed_attention

# Patches compared with all codes at once: 196 x 8192 floats fit in the cache.
SEARCH_CHUNK_PATCHES = 196
ARGMAX_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class PackedBlock:
    """One pre-norm block. Linears and attention are in `dtype`, norms and sums in float32."""

    dtype: torch.dtype
    heads: int
    attention_norm: PackedNorm
    to_qkv: PackedLinear
    to_out: PackedLinear | None
    mlp_norm: PackedNorm
    mlp_in: PackedLinear
    mlp_out: PackedLinear

    def __call__(self, x: Tensor) -> Tensor:
        """(B, N, D) float32 -> (B, N, D) float32."""
        qkv = self.to_qkv(self.attention_norm(x).to(self.dtype))
        mixed = packed_attention(qkv.unflatten(-1, (3, self.heads, -1)))
        x = x + mixed if self.to_out is None else self._plus(self.to_out, mixed, x)
        hidden = self.mlp_in(self.mlp_norm(x).to(self.dtype), "tanh")
        return self._plus(self.mlp_out, hidden, x)

    def _plus(self, linear: PackedLinear, x: Tensor, residual: Tensor) -> Tensor:
        """Linear of `x` plus `residual`; the sum is fused if both have the same dtype."""
        return linear.plus(x, residual) if x.dtype == residual.dtype else residual + linear(x)


def argmax_rows(values: Tensor) -> Tensor:
    """(M, codes) -> (M,) int64, as `values.argmax(-1)`: the first of equal maxima.

    torch's argmax on a CPU is not vectorised, but amax is. So this first computes the maxima of
    blocks, then searches one block per row: twelve times as fast for 8,192 codes.
    """
    num_rows, num_codes = values.shape
    if num_codes % ARGMAX_BLOCK:
        return values.argmax(-1)
    blocks = values.view(num_rows, -1, ARGMAX_BLOCK)
    best = blocks.view(-1, ARGMAX_BLOCK).amax(-1).view(num_rows, -1).argmax(-1)
    rows = torch.arange(num_rows, device=values.device)
    return best * ARGMAX_BLOCK + blocks[rows, best].argmax(-1)


class CodeSearch:
    """Search of nearest codes on a CPU, in batches of patches whose distances fit in the cache.

    Args:
        codes: (rows, C) float32, L2-normalised.
    """

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes
        self.linear = PackedLinear(codes, None, codes.dtype) if is_supported(codes.dtype) else None

    def __call__(self, features: Tensor) -> Tensor:
        """(M, C) float32, L2-normalised -> (M,) int64."""
        found = [
            argmax_rows(self.linear(part) if self.linear is not None else part @ self.codes.t())
            for part in features.split(SEARCH_CHUNK_PATCHES)
        ]
        return torch.cat(found)


class PackedEncoder:
    """Implementation of `ViTVQGAN.encode_features` for inference on a CPU.

    Args:
        network: Network; its encoder's weights are copied.
        dtype: torch.float32 or torch.bfloat16, for the blocks' Linears and attention. The patch
            embedding, residual sums, norms and `pre_quant` are always float32: rounding them would
            exceed the differences between codes.
    """

    def __init__(self, network: ViTVQGAN, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.positions = network.encoder.positions
        self.patch_size_px = network.config.patch_size_px
        convolution = network.encoder.to_patch_embedding[0]
        assert isinstance(convolution, nn.Conv2d)
        # A convolution whose stride is its kernel is a Linear over flattened patches.
        self.to_patch_embedding = PackedLinear(
            convolution.weight.flatten(1), convolution.bias, torch.float32
        )
        self.blocks = [self._pack_block(layer) for layer in network.encoder.transformer.layers]
        self.norm = self._pack_norm(network.encoder.transformer.norm)
        linear = network.pre_quant
        self.pre_quant = PackedLinear(linear.weight, linear.bias, torch.float32)

    def _pack_linear(self, linear: nn.Linear) -> PackedLinear:
        return PackedLinear(linear.weight, linear.bias, self.dtype)

    def _pack_norm(self, norm: nn.LayerNorm) -> PackedNorm:
        weight, bias = norm.weight.detach(), norm.bias.detach()
        return PackedNorm(weight=weight.float(), bias=bias.float(), eps=norm.eps)

    def _pack_block(self, layer: nn.Module) -> PackedBlock:
        attention_part, mlp_part = cast(list[PreNorm], list(layer.children()))
        attention, mlp = cast(Attention, attention_part.fn), cast(FeedForward, mlp_part.fn)
        to_out = attention.to_out
        qkv_weight = attention.to_qkv.weight.detach().clone()  # queries first
        qkv_weight[: len(qkv_weight) // 3] *= attention.head_width**-0.5
        return PackedBlock(
            dtype=self.dtype,
            heads=attention.heads,
            attention_norm=self._pack_norm(attention_part.norm),
            to_qkv=PackedLinear(qkv_weight, None, self.dtype),
            to_out=self._pack_linear(to_out) if isinstance(to_out, nn.Linear) else None,
            mlp_norm=self._pack_norm(mlp_part.norm),
            mlp_in=self._pack_linear(cast(nn.Linear, mlp.net[0])),
            mlp_out=self._pack_linear(cast(nn.Linear, mlp.net[2])),
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, channels, h * P, w * P) float32 -> (B, N, C) float32, not normalised."""
        size = self.patch_size_px
        grid = (pixels.shape[2] // size, pixels.shape[3] // size)
        patches = to_patches(pixels, size)
        positions = self.positions(grid).expand(len(pixels), -1, -1).contiguous()
        x = self.to_patch_embedding.plus(patches, positions)
        for block in self.blocks:
            x = block(x)
        return self.pre_quant(self.norm(x))
