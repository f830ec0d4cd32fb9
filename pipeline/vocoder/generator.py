"""Forward pass of a unit HiFi-GAN, for inference.

It computes the same as the published generator, in another form:

- A transposed convolution is computed as a plain one whose output channels are the `rate` samples
  of each frame; with channels innermost, these samples are already in order.
- Channels are innermost throughout, and on a CPU each convolution runs through oneDNN with its
  leaky ReLU or residual sum fused in.
- The factor of the mean over a stage's residual blocks is folded into the weights that follow it
  (a leaky ReLU commutes with a positive factor).

Legend: `B` clips, `N` units, `T` frames or samples of a stage, `C` channels, `D` width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from im2sp.pipeline.vocoder.weights import BLOCK_PARTS, VocoderWeights

SLOPE = 0.1
# The original calls its last leaky ReLU without a slope; this is torch's default.
LAST_SLOPE = 0.01
NORM_EPS = 1e-5
# Upper limit of a predicted duration: half a minute.
MAX_UNIT_FRAMES = 1500


class PackedConvolution:
    """Convolution over time through oneDNN, with an activation or a sum in the same pass."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int, dtype: torch.dtype) -> None:
        self.dilation, self.padding = dilation, dilation * (weight.shape[2] // 2)
        weight = weight.to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
        sizes = [0, self.padding], [1, 1], [1, dilation], 1
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes)
        self.bias = bias.to(dtype)
        self._sizes = sizes

    def __call__(self, x: Tensor, slope: float | None = None) -> Tensor:
        """(B, C, 1, T), channels innermost -> (B, C', 1, T); `slope` is that of a leaky ReLU."""
        attribute, scalars = ("none", []) if slope is None else ("leaky_relu", [slope])
        return torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, *self._sizes, attribute, scalars, ""
        )

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Convolve `x` and add `residual`."""
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, self.weight, self.bias, *self._sizes, "add", None, None, [], None
        )


class PlainConvolution:
    """Replacement of `PackedConvolution` where oneDNN is not available."""

    def __init__(self, weight: Tensor, bias: Tensor, dilation: int, dtype: torch.dtype) -> None:
        self.dilation, self.padding = dilation, dilation * (weight.shape[2] // 2)
        self.weight = weight.to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
        self.bias = bias.to(dtype)

    def __call__(self, x: Tensor, slope: float | None = None) -> Tensor:
        """Convolve, as `PackedConvolution`."""
        y = F.conv2d(
            x, self.weight, self.bias, padding=(0, self.padding), dilation=(1, self.dilation)
        )
        return y if slope is None else F.leaky_relu_(y, slope)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Convolve `x` and add `residual`."""
        return self(x).add_(residual)


Convolution = PackedConvolution | PlainConvolution


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Upsampling followed by parallel residual blocks, whose outputs are summed."""

    up: Convolution
    rate: int
    blocks: list[list[tuple[Convolution, Convolution | None]]]
    """For each block its dilated convolutions, each with the plain one after it in kind "1"."""

    def __call__(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, C, 1, T), activated -> (B, C', 1, T * rate); `mask` is that of the output."""
        x = from_phases(self.up(x), self.rate)
        total: Tensor | None = None
        first = masked(F.leaky_relu(x, SLOPE), mask)
        for block in self.blocks:
            y, activated = x, first
            for dilated, plain in block:
                if plain is None:
                    y = dilated.plus(activated, y)
                else:
                    y = plain.plus(masked(dilated(activated, SLOPE), mask), y)
                if (dilated, plain) is not block[-1]:
                    activated = masked(F.leaky_relu(y, SLOPE), mask)
            total = y if total is None else total.add_(y)
        assert total is not None
        return total


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero the padding after each clip's end, which convolutions read; in place."""
    return x if mask is None else x.mul_(mask)


def from_phases(x: Tensor, rate: int) -> Tensor:
    """(B, rate * C, 1, T) -> (B, C, 1, T * rate), channels innermost; a view."""
    frames = x.permute(0, 2, 3, 1)  # (B, 1, T, rate * C)
    batch, _, num_frames, channels = frames.shape
    samples = frames.reshape(batch, 1, num_frames * rate, channels // rate)
    return samples.permute(0, 3, 1, 2)


def phase_weights(weight: Tensor, bias: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Convert a transposed convolution to a plain one that computes `rate` samples per frame.

    Output `rate * q + r` of the transposed one uses tap `r + padding - rate * d` of frame
    `q + d`.

    Args:
        weight: Weight (C, C', kernel) of the transposed one, padded by (kernel - rate) / 2.
        bias: Bias (C',).
        rate: Stride.

    Returns:
        (rate * C', C, odd kernel) and (rate * C',).
    """
    in_channels, out_channels, kernel = weight.shape
    padding = (kernel - rate) // 2
    reach = -(-(rate - 1 + padding) // rate)
    phases = weight.new_zeros(rate, out_channels, in_channels, 2 * reach + 1)
    for phase in range(rate):
        for offset in range(-reach, reach + 1):
            tap = phase + padding - rate * offset
            if 0 <= tap < kernel:
                phases[phase, :, :, offset + reach] = weight[:, :, tap].t()
    return phases.flatten(0, 1), bias.repeat(rate)


class UnitGenerator:
    """Generator of samples from units.

    Args:
        weights: Weights; copied.
        dtype: torch.float32 or torch.bfloat16, for all between the embeddings and the samples.
        device: Device of the computation.
    """

    def __init__(self, weights: VocoderWeights, dtype: torch.dtype, device: torch.device) -> None:
        packs = device.type == "cpu" and is_supported(dtype)
        self.dtype, self.device = dtype, device
        self._kind = PackedConvolution if packs else PlainConvolution
        self._tensors = {name: tensor.to(device) for name, tensor in weights.tensors.items()}
        self.units = self._tensors["dict.weight"].clone()
        voices = self._tensors.get("spkr.weight")
        self.voices = None if voices is None else voices.clone()
        self.pre = self._convolution("conv_pre")
        self.stages = [self._stage(weights, index) for index in range(self._num_stages(weights))]
        self.post = self._convolution("conv_post", factor=self._mean_of(weights))
        self.frames_around = frames_around(weights)
        has_durations = weights.has_durations
        self.durations = DurationPredictor(self._tensors) if has_durations else None
        self._tensors = {}

    @staticmethod
    def _num_stages(weights: VocoderWeights) -> int:
        return len(weights.settings.upsample_rates)

    @staticmethod
    def _mean_of(weights: VocoderWeights) -> float:
        return 1 / len(weights.settings.dilations)

    def _convolution(self, name: str, dilation: int = 1, factor: float = 1.0) -> Convolution:
        weight, bias = (self._tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        return self._kind(weight * factor, bias, dilation, self.dtype)

    def _stage(self, weights: VocoderWeights, index: int) -> Stage:
        settings = weights.settings
        weight, bias = (self._tensors[f"ups.{index}.{part}"] for part in ("weight", "bias"))
        rate = settings.upsample_rates[index]
        factor = self._mean_of(weights) if index else 1.0
        blocks: list[list[tuple[Convolution, Convolution | None]]] = []
        parts = BLOCK_PARTS[settings.resblock]
        for block, dilations in enumerate(settings.dilations, index * len(settings.dilations)):
            pairs: list[tuple[Convolution, Convolution | None]] = []
            for place, dilation in enumerate(dilations):
                names = [f"resblocks.{block}.{part}.{place}" for part in parts]
                dilated = self._convolution(names[0], dilation)
                pairs.append((dilated, self._convolution(names[1]) if len(names) > 1 else None))
            blocks.append(pairs)
        up = self._kind(*phase_weights(weight * factor, bias, rate), 1, self.dtype)
        return Stage(up=up, rate=rate, blocks=blocks)

    @torch.no_grad()
    def __call__(self, units: Tensor, voices: Tensor | None, lengths: Tensor | None) -> Tensor:
        """Generate the samples of clips.

        Args:
            units: (B, T) int64, one per frame.
            voices: (B,) int64, if the vocoder has several.
            lengths: (B,) int64, frames of each clip, if they are not all T. The padding after a
                clip's end is set to zero before every convolution, as the original pads, so it
                does not change the clip; samples after the end are undefined.

        Returns:
            (B, T * 320) float32 in (-1, 1).
        """
        x = self.units[units]  # (B, T, D)
        if self.voices is not None:
            assert voices is not None
            voice = self.voices[voices][:, None].expand(-1, x.shape[1], -1)
            x = torch.cat([x, voice], 2)
        mask = frame_mask(lengths, x.shape[1], self.dtype)
        x = masked(x.to(self.dtype)[:, None].permute(0, 3, 1, 2), mask)  # (B, C, 1, T)
        x = masked(self.pre(x, SLOPE), mask)
        for index, stage in enumerate(self.stages):
            mask = None if mask is None else mask.repeat_interleave(stage.rate, 3)
            is_last = index == len(self.stages) - 1
            total = stage(x, mask)
            x = masked(F.leaky_relu_(total, LAST_SLOPE if is_last else SLOPE), mask)
        return self.post(x).float().tanh()[:, 0, 0]


def frame_mask(lengths: Tensor | None, num_frames: int, dtype: torch.dtype) -> Tensor | None:
    """Mask (B, 1, 1, T): one up to each clip's end, then zero; None if all lengths are equal."""
    if lengths is None or bool((lengths == num_frames).all()):
        return None
    is_inside = torch.arange(num_frames, device=lengths.device) < lengths[:, None]
    return is_inside.to(dtype)[:, None, None]


def frames_around(weights: VocoderWeights) -> int:
    """Frames on either side that a frame's samples depend on, rounded up."""
    settings, tensors = weights.settings, weights.tensors
    reach, rate = 3.0, 1
    for stage, factor in enumerate(settings.upsample_rates):
        kernel = tensors[f"ups.{stage}.weight"].shape[2]
        reach += (kernel / 2) / factor / rate + 1 / rate
        rate *= factor
        samples = 0
        for block, dilations in enumerate(settings.dilations, stage * len(settings.dilations)):
            parts = BLOCK_PARTS[settings.resblock]
            half = tensors[f"resblocks.{block}.{parts[0]}.0.weight"].shape[2] // 2
            more = len(parts) - 1
            samples = max(samples, sum(half * (dilation + more) for dilation in dilations))
        reach += samples / rate
    return int(reach + 3 / rate) + 1


class DurationPredictor:
    """Predictor of the frames that each unit lasts; float32 for any generator precision."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        prefix = "dur_predictor."
        self.tensors = {
            name.removeprefix(prefix): tensor.clone()
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    @torch.no_grad()
    def __call__(self, embedded: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, N, D) float32 embedded units, repeats collapsed -> (B, N) int64 in [1, 1500].

        `lengths` (B,) as for `UnitGenerator`.
        """
        mask = frame_mask(lengths, embedded.shape[1], torch.float32)
        x = embedded.transpose(1, 2)
        for index in (1, 2):
            if mask is not None:
                x = x * mask[:, 0]
            weight, bias, scale, shift = (
                self.tensors[name]
                for name in (
                    f"conv{index}.0.weight",
                    f"conv{index}.0.bias",
                    f"ln{index}.weight",
                    f"ln{index}.bias",
                )
            )
            x = F.conv1d(x, weight, bias, padding=weight.shape[2] // 2).relu_().transpose(1, 2)
            x = F.layer_norm(x, scale.shape, scale, shift, NORM_EPS).transpose(1, 2)
        weight, bias = self.tensors["proj.weight"], self.tensors["proj.bias"]
        log_durations = F.linear(x.transpose(1, 2), weight, bias)
        return (log_durations[..., 0].exp() - 1).round().clamp(1, MAX_UNIT_FRAMES).long()


def is_supported(dtype: torch.dtype) -> bool:
    """True if this build of torch and this CPU support `PackedConvolution`'s operations."""
    try:
        weight, bias = torch.ones(16, 16, 3) / 48, torch.ones(16)
        convolution = PackedConvolution(weight, bias, 1, dtype)
        x = torch.ones(1, 16, 1, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        found = convolution.plus(convolution(x, SLOPE), x)
    except (AttributeError, RuntimeError):
        return False
    return bool((found > 2).all())
