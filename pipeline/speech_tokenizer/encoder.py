"""HuBERT's forward pass up to one layer, for inference.

It computes the same as transformers' `HubertModel`, in another order:

- Only the GroupNorm of the first convolution depends on the whole clip. Its mean and variance are
  computed from the samples (the mean and variance of a filter's output follow from its ten weights
  and the mean and covariance of all ten-sample windows). So all convolutions run in blocks of a few
  frames that stay in the cache, and no activations of the whole clip are stored.
- A convolution over frames is a Linear over windows of frames, which on a CPU runs through oneDNN
  with its GELU fused in (see `onednn`).

Legend: `B` clips of one length, `S` samples, `T` frames, `C` channels, `D` width, `H` heads,
`K` head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from im2sp.pipeline.onednn import PackedLinear, PackedNorm, is_supported, packed_attention
from im2sp.pipeline.speech_tokenizer.published import CONV_STRIDES, POSITIONS
from im2sp.pipeline.speech_tokenizer.weights import HubertWeights

FIRST_FRAME_SAMPLES = 400
FRAME_SAMPLES = 320
# Frames per block of the convolutions: on a CPU about what fits in a core's cache.
CPU_BLOCK_FRAMES = 100
GPU_BLOCK_FRAMES = 5000
CONV_NORM_EPS = 1e-5


def num_frames(num_samples: int) -> int:
    """Number of units of a clip that is not split; 0 if it is too short for one."""
    return max(0, (num_samples - FIRST_FRAME_SAMPLES) // FRAME_SAMPLES + 1)


def normalized(samples: Tensor, eps: float | None) -> Tensor:
    """(S,) float32 samples of a whole clip with zero mean and unit variance, as some weights need.

    Args:
        samples: The clip.
        eps: Added to the variance; None returns the samples as they are.
    """
    if eps is None:
        return samples
    centred = samples.double() - samples.double().mean()
    return (centred / (centred.square().mean() + eps).sqrt()).float()


class PlainLinear:
    """Replacement of `PackedLinear` where oneDNN is not available."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """Apply the layer; `activation` is "none" or "gelu"."""
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y) if activation == "gelu" else y

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Apply the layer to `x` and add `residual`."""
        return residual + self(x)


Linear = PackedLinear | PlainLinear


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution over frames, an optional norm over channels, and GELU."""

    linear: Linear
    kernel: int
    stride: int
    norm: PackedNorm | None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T', C'), with the dtype of `x`."""
        x = windows(x, self.kernel, self.stride)
        if self.norm is None:
            return self.linear(x, "gelu")
        return F.gelu(self.norm(self.linear(x).float())).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Grouped convolution for relative positions: one Linear per group of channels."""

    groups: list[Linear]
    kernel: int

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D), with the dtype of `x`."""
        before = self.kernel // 2
        padded = F.pad(x, (0, 0, before, self.kernel - 1 - before))
        parts = padded.unflatten(2, (len(self.groups), -1)).permute(2, 0, 1, 3).contiguous()
        mixed = [
            linear(windows(part, self.kernel, 1), "gelu")
            for linear, part in zip(self.groups, parts, strict=True)
        ]
        return torch.cat(mixed, 2)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One transformer layer. Linears and attention are in `dtype`, norms and sums in float32."""

    dtype: torch.dtype
    heads: int
    is_pre_norm: bool
    attention_norm: PackedNorm
    to_qkv: Linear
    to_out: Linear
    mlp_norm: PackedNorm
    mlp_in: Linear
    mlp_out: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """(B, T, D) float32 -> (B, T, D) float32."""
        if self.is_pre_norm:
            x = self._plus(self.to_out, self._attend(self.attention_norm(x)), x)
            return self._plus(self.mlp_out, self._hidden(self.mlp_norm(x)), x)
        x = self.attention_norm(self._plus(self.to_out, self._attend(x), x))
        return self.mlp_norm(self._plus(self.mlp_out, self._hidden(x), x))

    def _hidden(self, x: Tensor) -> Tensor:
        return self.mlp_in(x.to(self.dtype), "gelu")

    def _attend(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(x.to(self.dtype)).unflatten(-1, (3, self.heads, -1))
        if isinstance(self.to_qkv, PackedLinear):
            return packed_attention(qkv)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)

    def _plus(self, linear: Linear, x: Tensor, residual: Tensor) -> Tensor:
        """Linear of `x` plus `residual`; the sum is fused if both have the same dtype."""
        return linear.plus(x, residual) if x.dtype == residual.dtype else residual + linear(x)


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, T, C) contiguous -> (B, T', kernel * C), a view."""
    batch, frames, channels = x.shape
    num_windows = (frames - kernel) // stride + 1
    return x.as_strided(
        (batch, num_windows, kernel * channels),
        (x.stride(0), stride * channels, 1),
        x.storage_offset(),
    )


class HubertEncoder:
    """Features of clips of one length.

    Args:
        weights: Weights; copied.
        dtype: torch.float32 or torch.bfloat16, for all convolutions but the first, Linears and
            attention. The first convolution, norms, sums and the projection are always float32.
        device: Device of the computation.
    """

    def __init__(self, weights: HubertWeights, dtype: torch.dtype, device: torch.device) -> None:
        packs = device.type == "cpu" and is_supported(dtype) and is_supported(torch.float32)
        self.settings = weights.settings
        self.dtype, self.device = dtype, device
        self._linear_kind = PackedLinear if packs else PlainLinear
        self._tensors = {name: tensor.to(device) for name, tensor in weights.tensors.items()}
        self.block_frames = CPU_BLOCK_FRAMES if device.type == "cpu" else GPU_BLOCK_FRAMES
        first = "feature_extractor.conv_layers.0"
        self.first_weight = self._tensors[f"{first}.conv.weight"][:, 0]  # (C, 10)
        self.first_bias = self._tensors.get(f"{first}.conv.bias")
        self.first_norm = self._norm(f"{first}.layer_norm", CONV_NORM_EPS)
        self.convolutions = [
            self._convolution(index, stride) for index, stride in enumerate(CONV_STRIDES) if index
        ]
        self.projection_norm = self._norm("feature_projection.layer_norm")
        self.projection = self._linear("feature_projection.projection", torch.float32)
        self.positions = self._positions()
        self.norm = None if self.settings.is_pre_norm else self._norm("encoder.layer_norm")
        self.layers = [self._layer(index) for index in range(self.settings.layer)]
        self._tensors = {}

    def _norm(self, name: str, eps: float | None = None) -> PackedNorm:
        weight, bias = (self._tensors[f"{name}.{part}"].clone() for part in ("weight", "bias"))
        return PackedNorm(
            weight=weight, bias=bias, eps=self.settings.norm_eps if eps is None else eps
        )

    def _linear(self, name: str, dtype: torch.dtype) -> Linear:
        weight, bias = (self._tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        return self._linear_kind(weight, bias, dtype)

    def _convolution(self, index: int, stride: int) -> Convolution:
        name = f"feature_extractor.conv_layers.{index}"
        weight = self._tensors[f"{name}.conv.weight"]  # (C', C, kernel)
        has_norm = f"{name}.layer_norm.weight" in self._tensors
        return Convolution(
            linear=self._linear_kind(
                weight.transpose(1, 2).flatten(1),
                self._tensors.get(f"{name}.conv.bias"),
                self.dtype,
            ),
            kernel=weight.shape[2],
            stride=stride,
            norm=self._norm(f"{name}.layer_norm", CONV_NORM_EPS) if has_norm else None,
        )

    def _positions(self) -> Positions:
        direction, length = (self._tensors[f"{POSITIONS}.weight_{part}"] for part in "vg")
        norm = torch.linalg.vector_norm(direction, dim=(0, 1), keepdim=True)
        weight = direction * (length / norm)  # (D, group width, kernel)
        bias = self._tensors[f"{POSITIONS}.bias"]
        _, group_width, kernel = weight.shape
        weights = weight.transpose(1, 2).flatten(1).split(group_width)
        return Positions(
            groups=[
                self._linear_kind(part, part_bias.clone(), self.dtype)
                for part, part_bias in zip(weights, bias.split(group_width), strict=True)
            ],
            kernel=kernel,
        )

    def _layer(self, index: int) -> Layer:
        name = f"encoder.layers.{index}"
        parts = [
            [self._tensors[f"{name}.attention.{part}_proj.{kind}"].clone() for part in "qkv"]
            for kind in ("weight", "bias")
        ]
        for kinds in parts:  # queries are scaled here
            kinds[0] *= (len(kinds[0]) // self.settings.heads) ** -0.5
        return Layer(
            dtype=self.dtype,
            heads=self.settings.heads,
            is_pre_norm=self.settings.is_pre_norm,
            attention_norm=self._norm(f"{name}.layer_norm"),
            to_qkv=self._linear_kind(torch.cat(parts[0]), torch.cat(parts[1]), self.dtype),
            to_out=self._linear(f"{name}.attention.out_proj", self.dtype),
            mlp_norm=self._norm(f"{name}.final_layer_norm"),
            mlp_in=self._linear(f"{name}.feed_forward.intermediate_dense", self.dtype),
            mlp_out=self._linear(f"{name}.feed_forward.output_dense", self.dtype),
        )

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        """(B, S) float32, at least 400 samples -> (B, T, D) float32."""
        samples = samples.contiguous()
        x = self.projection(self.projection_norm(self._convolve(samples)))
        x = x + self.positions(x.to(self.dtype))
        if self.norm is not None:
            x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def _convolve(self, samples: Tensor) -> Tensor:
        """(B, S) -> (B, T, C) float32."""
        frames = num_frames(samples.shape[1])
        weight, bias = self._first_filters(samples)
        blocks: list[Tensor] = []
        for start in range(0, frames, self.block_frames):
            end = min(frames, start + self.block_frames)
            last = (end - 1) * FRAME_SAMPLES + FIRST_FRAME_SAMPLES
            piece = samples[:, start * FRAME_SAMPLES : last, None]
            x = torch.baddbmm(bias, windows(piece, weight.shape[1], CONV_STRIDES[0]), weight)
            if self.settings.conv_norm == "layer":
                x = self.first_norm(x)
            x = F.gelu(x).to(self.dtype)
            for convolution in self.convolutions:
                x = convolution(x)
            blocks.append(x.float())
        return torch.cat(blocks, 1)

    def _first_filters(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """First convolution as weight (B, 10, C) and bias (B, 1, C), its GroupNorm folded in."""
        weight = self.first_weight.double()
        bias = weight.new_zeros(len(weight)) if self.first_bias is None else self.first_bias
        bias = bias.double()
        if self.settings.conv_norm == "layer":
            weight, bias = weight.t().expand(len(samples), -1, -1), bias.expand(len(samples), 1, -1)
            return weight.float(), bias.float()
        mean, covariance = window_moments(samples, weight.shape[1], CONV_STRIDES[0])
        variance = torch.einsum("cj,bjk,ck->bc", weight, covariance, weight).clamp_min(0)
        scale = self.first_norm.weight.double() / (variance + self.first_norm.eps).sqrt()  # (B, C)
        # The filter's bias cancels: it shifts the output and its mean equally.
        shift = self.first_norm.bias.double() - scale * (mean @ weight.t())
        return (weight.t() * scale[:, None]).float(), shift[:, None].float()


def window_moments(samples: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of all windows of each clip.

    Args:
        samples: (B, S).
        size: Samples in a window.
        stride: Samples from one window to the next.

    Returns:
        (B, size) and (B, size, size), float64; the covariance divides by the number of windows.
    """
    all_windows = samples.double().unfold(1, size, stride)  # (B, N, size)
    mean = all_windows.mean(1)
    centred = all_windows - mean[:, None]
    return mean, centred.transpose(1, 2) @ centred / centred.shape[1]
