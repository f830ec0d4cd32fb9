"""Losses of vocoder training: mel distance, and period and scale discriminators.

As in HiFi-GAN (Kong et al., 2020), with two options for small machines: the mel distance may use
several window sizes, and the discriminators may be narrower.

Legend: `B` clips, `S` samples, `C` channels.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from im2sp.pipeline.vocoder.weights import RATE_HZ

SLOPE = 0.1
PERIODS = (2, 3, 5, 7, 11)
# Kernel, stride, groups and channels of the scale discriminator's convolutions.
SCALE_LAYERS = (
    (15, 1, 1, 128),
    (41, 2, 4, 128),
    (41, 2, 16, 256),
    (41, 4, 16, 512),
    (41, 4, 16, 1024),
    (41, 1, 16, 1024),
    (5, 1, 1, 1024),
)
# Strides and channels of the period discriminator's convolutions, whose kernels are 5.
PERIOD_LAYERS = ((3, 32), (3, 128), (3, 512), (3, 1024), (1, 1024))
LEAST_MAGNITUDE = 1e-5
MAX_MELS = 80
Judgement = tuple[Tensor, list[Tensor]]


def mel_filters(num_mels: int, window: int) -> Tensor:
    """(mels, window // 2 + 1) float32: triangles of equal area, Slaney's mel scale, to 8 kHz."""
    step_hz, log_from_hz, log_step = 200 / 3, 1000.0, np.log(6.4) / 27

    def to_hz(mels: np.ndarray) -> np.ndarray:
        over = mels - log_from_hz / step_hz
        return np.where(over < 0, mels * step_hz, log_from_hz * np.exp(log_step * over))

    top = log_from_hz / step_hz + np.log(RATE_HZ / 2 / log_from_hz) / log_step
    edges_hz = to_hz(np.linspace(0, top, num_mels + 2))
    bins_hz = np.linspace(0, RATE_HZ / 2, window // 2 + 1)
    widths = np.diff(edges_hz)
    slopes = edges_hz[:, None] - bins_hz
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    areas = 2 / (edges_hz[2:] - edges_hz[:-2])
    filters = np.maximum(0, np.minimum(rising, falling)) * areas[:, None]
    return torch.from_numpy(filters.astype(np.float32))


class MelDistance(nn.Module):
    """Mean distance of log mel spectra over several window sizes; hops are a quarter of the window.

    A window of 1,024 samples has 80 mels, as published; a smaller one has an eighth of its size.
    """

    def __init__(self, windows: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(windows)
        for size in windows:
            filters = mel_filters(min(MAX_MELS, size // 8), size)
            self.register_buffer(f"filters_{size}", filters, persistent=False)
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def spectrum(self, samples: Tensor, size: int) -> Tensor:
        """(B, S) float32 -> (B, mels, S / hop), natural logarithm."""
        hop = size // 4
        padded = F.pad(samples, ((size - hop) // 2,) * 2, mode="reflect")
        spectra = torch.stft(
            padded,
            size,
            hop,
            window=self.get_buffer(f"window_{size}"),
            center=False,
            return_complex=True,
        )
        power = torch.view_as_real(spectra).square().sum(-1)
        magnitudes = (power + 1e-9).sqrt()
        return (self.get_buffer(f"filters_{size}") @ magnitudes).clamp_min(LEAST_MAGNITUDE).log()

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """(B, S) and (B, S) -> scalar distance."""
        distances = [
            F.l1_loss(self.spectrum(made, size), self.spectrum(real, size)) for size in self.sizes
        ]
        return torch.stack(distances).mean()


def scaled(number: int, width: float) -> int:
    """Number of channels or groups of a narrower discriminator."""
    return max(1, round(number * width))


class PeriodDiscriminator(nn.Module):
    """Discriminator of samples one period apart."""

    def __init__(self, period: int, width: float) -> None:
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        channels = 1
        for stride, count in PERIOD_LAYERS:
            made = nn.Conv2d(channels, scaled(count, width), (5, 1), (stride, 1), (2, 0))
            self.layers.append(weight_norm(made))
            channels = scaled(count, width)
        self.last = weight_norm(nn.Conv2d(channels, 1, (3, 1), 1, (1, 0)))

    def forward(self, samples: Tensor) -> Judgement:
        """(B, S) -> (B, judgements), and the features of each layer."""
        missing = -samples.shape[1] % self.period
        x = F.pad(samples[:, None], (0, missing), mode="reflect") if missing else samples[:, None]
        return judge(x.unflatten(2, (-1, self.period)), self.layers, self.last)


class ScaleDiscriminator(nn.Module):
    """Discriminator of consecutive samples."""

    def __init__(self, width: float, *, is_spectral: bool) -> None:
        super().__init__()
        norm = spectral_norm if is_spectral else weight_norm
        self.layers = nn.ModuleList()
        channels = 1
        for kernel, stride, groups, count in SCALE_LAYERS:
            count, groups = scaled(count, width), scaled(groups, width)
            made = nn.Conv1d(channels, count, kernel, stride, kernel // 2, groups=groups)
            self.layers.append(norm(made))
            channels = count
        self.last = norm(nn.Conv1d(channels, 1, 3, 1, 1))

    def forward(self, samples: Tensor) -> Judgement:
        """(B, S) -> (B, judgements), and the features of each layer."""
        return judge(samples[:, None], self.layers, self.last)


def judge(x: Tensor, layers: nn.ModuleList, last: nn.Module) -> Judgement:
    """Run the layers, each with a leaky ReLU, and the last one."""
    features: list[Tensor] = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        features.append(x)
    x = last(x)
    return x.flatten(1), [*features, x]


class Discriminators(nn.Module):
    """Discriminators of all periods and of some scales.

    Args:
        width: Factor of the published numbers of channels.
        num_scales: Number of sample rates (full, half, ..); 3 as published. On a CPU they take
            nearly all of the time, for a smaller gain.
    """

    def __init__(self, width: float, num_scales: int) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in PERIODS)
        self.scales = nn.ModuleList(
            ScaleDiscriminator(width, is_spectral=index == 0) for index in range(num_scales)
        )

    def forward(self, samples: Tensor) -> list[Judgement]:
        """(B, S) -> one judgement per discriminator."""
        judgements: list[Judgement] = [period(samples) for period in self.periods]
        for index, scale in enumerate(self.scales):
            if index:
                samples = F.avg_pool1d(samples[:, None], 4, 2, padding=2)[:, 0]
            judgements.append(scale(samples))
        return judgements


def discriminator_loss(real: Sequence[Judgement], made: Sequence[Judgement]) -> Tensor:
    """Least-squares loss with targets one for real and zero for generated samples."""
    losses = [
        (1 - of_real.float()).square().mean() + of_made.float().square().mean()
        for (of_real, _), (of_made, _) in zip(real, made, strict=True)
    ]
    return torch.stack(losses).sum()


def adversarial_loss(made: Sequence[Judgement]) -> Tensor:
    """Least-squares loss with target one for generated samples."""
    return torch.stack([(1 - judged.float()).square().mean() for judged, _ in made]).sum()


def feature_distance(real: Sequence[Judgement], made: Sequence[Judgement]) -> Tensor:
    """Sum over layers of the mean distance between features of real and generated samples."""
    distances = [
        F.l1_loss(of_made.float(), of_real.detach().float())
        for (_, reals), (_, mades) in zip(real, made, strict=True)
        for of_real, of_made in zip(reals, mades, strict=True)
    ]
    return torch.stack(distances).sum()
