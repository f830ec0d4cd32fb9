"""Trainable unit HiFi-GAN: the published generator with its published parameter names.

`state_dict()` equals the `generator` entry of speech-resynthesis. As in `pipeline.vocoder`,
transposed convolutions are computed as plain ones and channels are innermost, which is several
times as fast on a CPU, forward and backward.

Legend: `B` clips, `N` units, `T` frames, `C` channels, `D` width.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2sp.pipeline.vocoder.generator import LAST_SLOPE, SLOPE, from_phases, phase_weights
from im2sp.pipeline.vocoder.weights import (
    DURATION_KERNEL,
    OUTER_KERNEL,
    VocoderSettings,
    VocoderWeights,
    expected_shapes,
    fold_weight_norm,
)

START_DEVIATION = 0.01
DURATION_DROPOUT = 0.5


@dataclass(frozen=True, kw_only=True)
class NetworkSizes:
    """Sizes of a generator; its residual blocks are pairs of convolutions (kind "1")."""

    num_units: int = 200
    """Number of units."""
    width: int = 128
    """Width of the unit embedding and of the duration predictor."""
    channels: int = 256
    """Channels before the first upsampling; each stage halves them."""
    upsample_rates: tuple[int, ...] = (5, 4, 4, 4)
    """Factor of each stage; their product is 320."""
    upsample_kernels: tuple[int, ...] = (11, 8, 8, 8)
    """Kernel size of each stage's transposed convolution."""
    block_kernels: tuple[int, ...] = (3, 7, 11)
    """Kernel sizes of the parallel residual blocks of a stage."""
    dilations: tuple[int, ...] = (1, 3, 5)
    """Dilations of the convolution pairs in a residual block."""

    def __post_init__(self) -> None:
        """Raise ValueError for sizes that do not fit together."""
        if len(self.upsample_rates) != len(self.upsample_kernels):
            raise ValueError(
                f"{len(self.upsample_rates)} upsampling rates and {len(self.upsample_kernels)}"
                " kernels, expected equal numbers"
            )
        if self.channels % 2 ** len(self.upsample_rates):
            raise ValueError(
                f"{self.channels} channels cannot be halved {len(self.upsample_rates)} times"
            )

    @property
    def settings(self) -> VocoderSettings:
        """Settings stored with the weights."""
        return VocoderSettings(
            resblock="1",
            upsample_rates=self.upsample_rates,
            dilations=(self.dilations,) * len(self.block_kernels),
        )

    def as_published(self) -> dict[str, Any]:
        """The `config.json` of speech-resynthesis."""
        return {
            "resblock": "1",
            "upsample_rates": list(self.upsample_rates),
            "upsample_kernel_sizes": list(self.upsample_kernels),
            "upsample_initial_channel": self.channels,
            "resblock_kernel_sizes": list(self.block_kernels),
            "resblock_dilation_sizes": [list(self.dilations)] * len(self.block_kernels),
            "num_embeddings": self.num_units,
            "embedding_dim": self.width,
            "model_in_dim": self.width,
            "code_hop_size": 320,
            "sampling_rate": 16000,
            "f0": False,
            "dur_prediction_weight": 1.0,
            "dur_predictor_params": {
                "encoder_embed_dim": self.width,
                "var_pred_hidden_dim": self.width,
                "var_pred_kernel_size": DURATION_KERNEL,
                "var_pred_dropout": DURATION_DROPOUT,
            },
        }


class NormedConvolution(nn.Module):
    """Convolution over time with weight norm, (B, C, 1, T) -> (B, C', 1, T)."""

    def __init__(self, *shape: int, dilation: int = 1, deviation: float = START_DEVIATION) -> None:
        super().__init__()
        self.dilation = dilation
        self.weight_v = nn.Parameter(deviation * torch.randn(shape))
        self.weight_g = nn.Parameter(self.weight_v.detach().flatten(1).norm(dim=1)[:, None, None])
        self.bias = nn.Parameter(torch.zeros(shape[0]))

    @property
    def weight(self) -> Tensor:
        """Kernel: direction times length."""
        norm = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)
        return self.weight_v * (self.weight_g / norm)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with padding that keeps the length."""
        weight = self.weight
        padding = self.dilation * (weight.shape[2] // 2)
        return F.conv2d(
            x, weight[:, :, None], self.bias, padding=(0, padding), dilation=(1, self.dilation)
        )


class Upsampling(NormedConvolution):
    """Transposed convolution with weight norm, (B, C, 1, T) -> (B, C', 1, T * rate)."""

    def __init__(self, *shape: int, rate: int) -> None:
        super().__init__(*shape)
        self.rate = rate
        self.bias = nn.Parameter(torch.zeros(shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with padding that gives `rate` samples per frame."""
        weight, bias = phase_weights(self.weight, self.bias, self.rate)
        y = F.conv2d(x, weight[:, :, None], bias, padding=(0, weight.shape[2] // 2))
        return from_phases(y, self.rate)


class ResidualBlock(nn.Module):
    """Pairs of convolutions, the first of each dilated."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        shape = (channels, channels, kernel)
        self.convs1 = nn.ModuleList(NormedConvolution(*shape, dilation=d) for d in dilations)
        self.convs2 = nn.ModuleList(NormedConvolution(*shape) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, T) -> (B, C, 1, T)."""
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class Durations(nn.Module):
    """Predictor of log(frames + 1) of each collapsed unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(width, width, DURATION_KERNEL, padding="same"))
        self.ln1 = nn.LayerNorm(width)
        self.conv2 = nn.Sequential(nn.Conv1d(width, width, DURATION_KERNEL, padding="same"))
        self.ln2 = nn.LayerNorm(width)
        self.proj = nn.Linear(width, 1)

    def forward(self, embedded: Tensor, is_inside: Tensor) -> Tensor:
        """(B, N, D) and (B, N) bool, false after each clip's end -> (B, N)."""
        x = embedded
        for convolution, norm in ((self.conv1, self.ln1), (self.conv2, self.ln2)):
            x = (x * is_inside[..., None]).transpose(1, 2)
            x = norm(F.relu(convolution(x)).transpose(1, 2))
            x = F.dropout(x, DURATION_DROPOUT, self.training)
        return self.proj(x)[..., 0]


class Generator(nn.Module):
    """Published generator with its duration predictor."""

    def __init__(self, sizes: NetworkSizes) -> None:
        super().__init__()
        self.sizes = sizes
        channels = sizes.channels
        self.dict = nn.Embedding(sizes.num_units, sizes.width)
        fan_in = sizes.width * OUTER_KERNEL
        self.conv_pre = NormedConvolution(
            channels, sizes.width, OUTER_KERNEL, deviation=(3 * fan_in) ** -0.5
        )
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(sizes.upsample_rates, sizes.upsample_kernels, strict=True):
            self.ups.append(Upsampling(channels, channels // 2, kernel, rate=rate))
            channels //= 2
            for size in sizes.block_kernels:
                self.resblocks.append(ResidualBlock(channels, size, sizes.dilations))
        self.conv_post = NormedConvolution(1, channels, OUTER_KERNEL)
        self.dur_predictor = Durations(sizes.width)

    def forward(self, units: Tensor) -> Tensor:
        """(B, T) int64, one per frame -> (B, T * 320) float32 in (-1, 1)."""
        x = self.conv_pre(self.dict(units)[:, None].permute(0, 3, 1, 2))
        num_blocks = len(self.sizes.block_kernels)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            first = stage * num_blocks
            total = self.resblocks[first](x)
            for block in range(first + 1, first + num_blocks):
                total = total + self.resblocks[block](x)
            x = total / num_blocks
        return self.conv_post(F.leaky_relu(x, LAST_SLOPE)).float().tanh()[:, 0, 0]

    def duration_loss(self, units: Tensor, durations: Tensor) -> Tensor:
        """Mean squared error of the predicted log durations.

        Args:
            units: (B, N) int64, repeats collapsed.
            durations: (B, N) int64 frames of each; 0 after a clip's end.
        """
        is_inside = durations > 0
        predicted = self.dur_predictor(self.dict(units), is_inside)
        wanted = (durations + 1).float().log()
        return F.mse_loss(predicted[is_inside], wanted[is_inside])

    def weights(self, tensors: dict[str, Tensor] | None = None) -> VocoderWeights:
        """Weights for `vocoder_bytes`, from these tensors or from the network."""
        folded = fold_weight_norm(tensors or self.state_dict())
        settings = self.sizes.settings
        names = expected_shapes(folded, settings)
        return VocoderWeights(
            settings=settings, tensors={name: folded[name].detach().float().cpu() for name in names}
        )
