"""Reconstruction quality of an image tokenizer (PSNR, SSIM) and its code usage."""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B, C, H, W) in [0, 1] -> (B,) in dB."""
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al., 2004), mean over the channels.

    Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, windows inside the image only.

    Args:
        a: (B, C, H, W) float in [0, 1], sides of at least 11.
        b: Likewise.

    Returns:
        (B,), at most 1.
    """
    offsets = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    weights = torch.exp(-offsets.square() / (2 * 1.5**2))
    weights = weights / weights.sum()

    def blur(x: Tensor) -> Tensor:
        channels = x.shape[1]
        rows = weights.view(1, 1, 11, 1).expand(channels, 1, 11, 1)
        columns = weights.view(1, 1, 1, 11).expand(channels, 1, 1, 11)
        return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a = blur(a * a) - mean_a.square()
    var_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean(
        (1, 2, 3)
    )


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures over a set of images."""

    num_images: int
    """Number of images."""
    psnr_db: float
    """Mean PSNR of the images."""
    ssim: float
    """Mean SSIM of the images."""
    num_codes_used: int
    """Codes that occur at least once."""
    entropy_bits: float
    """Order-0 entropy of the units."""
    perplexity: float
    """2 to the entropy."""

    def as_json(self) -> dict[str, float]:
        """Return all fields, rounded to four decimals."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


class QualityMeter:
    """Accumulator of `Quality` over batches."""

    def __init__(self, num_codes: int) -> None:
        self.counts = torch.zeros(num_codes, dtype=torch.int64)
        self.psnr_db: list[float] = []
        self.ssim: list[float] = []

    def add(self, pixels: Tensor, decoded: Tensor, units: Tensor) -> None:
        """Add a batch: original and decoded (B, 3, H, W) in [0, 1], and units (any shape) int64."""
        decoded = decoded.clamp(0, 1)
        self.psnr_db += psnr(decoded, pixels).tolist()
        self.ssim += ssim(decoded, pixels).tolist()
        self.counts += torch.bincount(units.flatten().cpu(), minlength=len(self.counts))

    def result(self) -> Quality:
        """The figures of all batches so far."""
        shares = self.counts[self.counts > 0].double() / self.counts.sum()
        entropy_bits = -(shares * shares.log2()).sum().item()
        num_images = len(self.psnr_db)
        return Quality(
            num_images=num_images,
            psnr_db=math.fsum(self.psnr_db) / num_images,
            ssim=math.fsum(self.ssim) / num_images,
            num_codes_used=len(shares),
            entropy_bits=entropy_bits,
            perplexity=2**entropy_bits,
        )
