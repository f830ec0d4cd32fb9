"""Pictures to speech units with a trained run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from im2sp.pipeline.views import VIEWS
from im2sp.tools.speak_run import Run, load_tokenizer_of
from im2sp.trainer import generate, load_model


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a run says of a picture."""

    units: list[int]
    """Speech units, collapsed; none where it says nothing."""
    decoded: NDArray[np.uint8] | None
    """(224, 224, 3) uint8: the picture from its units; None where the weights hold no decoder."""


class Captioner:
    """A run with its image tokenizer.

    Attributes:
        tokenizer: The image tokenizer.
        view: How pictures become squares, as for the run's dataset.
        max_tokens: Most tokens of a description; at most the model's positions.
        num_units: Speech units lie in [0, num_units).
    """

    def __init__(
        self,
        run: Run,
        *,
        image_tokenizer: str | None = None,
        codebook: Path | None = None,
        num_beams: int = 1,
        max_tokens: int = 511,
        device: str | None = None,
    ) -> None:
        self.tokenizer = load_tokenizer_of(run, image_tokenizer, codebook, device)
        self.view = VIEWS[run.image_tokenizer["view"]]
        self._model = load_model(run.weights, device=self.tokenizer.device)
        self._num_beams = num_beams
        self.max_tokens = min(max_tokens, self._model.config.max_positions)
        self.num_units = self._model.config.vocabulary.num_units

    def describe(self, images: Sequence[NDArray[np.uint8]]) -> list[Description]:
        """Descriptions of images of the view, (S, S, 3) uint8; none depends on the others."""
        if not images:
            return []
        image_units = self.view.crop_units(self.tokenizer.encode_uint8(np.stack(images)))
        on_device = image_units.to(self.tokenizer.device)
        said = generate(self._model, on_device, self._num_beams, self.max_tokens)
        decoded: list[NDArray[np.uint8] | None] = [None] * len(images)
        if self.tokenizer.network.decoder is not None:
            shown = self.tokenizer.decode(image_units).permute(0, 2, 3, 1)
            decoded = list((shown * 255).round().to(torch.uint8).numpy())
        return [
            Description(units=units, decoded=picture)
            for units, picture in zip(said, decoded, strict=True)
        ]
