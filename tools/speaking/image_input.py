"""Input of captioners from pixels: image units, or the features of a frozen image encoder.

A run records the image tokenizer or encoder of its dataset; `load_input` loads the same one and
refuses others by their fingerprint.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from im2sp.pipeline.decoding.views import VIEWS

if TYPE_CHECKING:
    from im2sp.pipeline import ImageTokenizer
    from im2sp.pipeline.tensors import Precision
    from im2sp.tools.engines.image_encoders import PixelEncoder

Images = Sequence[NDArray[np.uint8]]


class ImageInput(Protocol):
    """Images of the view, (S, S, 3) uint8, to the input of models."""

    @property
    def name(self) -> str:
        """Name of the image tokenizer or encoder."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the input."""
        ...

    def encode(self, images: Images) -> tuple[torch.Tensor, list[NDArray[np.uint8] | None]]:
        """Input of a batch, and each image decoded from its units, (224, 224, 3), if possible."""
        ...


class UnitsInput:
    """Image units of an image tokenizer."""

    def __init__(self, tokenizer: "ImageTokenizer", view: str) -> None:
        self.tokenizer, self._view = tokenizer, VIEWS[view]
        self.name, self.device = tokenizer.name, tokenizer.device

    def encode(self, images: Images) -> tuple[torch.Tensor, list[NDArray[np.uint8] | None]]:
        """(B, 28, 28) int64, and the images decoded from them if the weights have a decoder."""
        image_units = self._view.crop_units(self.tokenizer.encode_uint8(np.stack(images)))
        decoded: list[NDArray[np.uint8] | None] = [None] * len(images)
        if self.tokenizer.network.decoder is not None:
            shown = self.tokenizer.decode(image_units).permute(0, 2, 3, 1)
            decoded = list((shown * 255).round().to(torch.uint8).numpy())
        return image_units.to(self.device), decoded


class PixelsInput:
    """Features of a frozen image encoder."""

    def __init__(self, encoder: "PixelEncoder") -> None:
        self._encoder = encoder
        self.name, self.device = encoder.name, encoder.device

    def encode(self, images: Images) -> tuple[torch.Tensor, list[NDArray[np.uint8] | None]]:
        """(B, P, C) float16, as in training; no decoded images."""
        states = self._encoder.states(torch.from_numpy(np.stack(images)))
        return states.to(self.device), [None] * len(images)


def sees_pixels(record: Mapping[str, Any]) -> bool:
    """True if a run's record is of an image encoder, not of an image tokenizer."""
    return record.get("input") == "pixels"


def load_input(
    run: str,
    record: Mapping[str, Any],
    fingerprint: str,
    name: str | None,
    codebook: Path | None,
    device: str | None,
    flag: str = "--image-tokenizer",
) -> ImageInput:
    """Load the image tokenizer or encoder that a run was trained on.

    Args:
        run: Name of the run, for messages.
        record: Record of the run: name, view and so on.
        fingerprint: Fingerprint that it must have.
        name: Name, hub id or path; None for the recorded name.
        codebook: File of the codebook of a tokenizer, if separate.
        device: torch device; None for CUDA if available.
        flag: Flag of `name`, for messages.

    Raises:
        ValueError: There are no such weights, or they are not those of the run.
    """
    is_encoder = sees_pixels(record)
    kind = "image encoder" if is_encoder else "image tokenizer"
    recorded = str(record.get("name"))
    wanted = name or recorded
    if is_encoder and codebook is not None:
        raise ValueError(f"--codebook: the run {run} sees pixels; omit it")
    try:
        if is_encoder:
            from im2sp.tools.engines.image_encoders import load_image_encoder

            encoder = load_image_encoder(wanted, device)
            found, loaded = encoder.record["fingerprint"], PixelsInput(encoder)
        else:
            from im2sp.pipeline import load_image_tokenizer

            precision = cast("Precision", record.get("precision", "fp32"))
            tokenizer = load_image_tokenizer(wanted, codebook, device=device, precision=precision)
            found, loaded = tokenizer.fingerprint, UnitsInput(tokenizer, record["view"])
    except ValueError as error:
        if name is not None:
            raise
        raise ValueError(
            f"{error}; the run {run} needs that {kind}, give its path with {flag}"
        ) from None
    if found != fingerprint:
        advice = " (and --codebook)" * (not is_encoder)
        trained = "features" if is_encoder else "units"
        raise ValueError(
            f"{kind} {wanted}: its fingerprint is {found[:12]}.., the run {run} was trained on"
            f" {trained} of {recorded}, {fingerprint[:12]}..; name that one with"
            f" {flag}{advice}"
        )
    return loaded
