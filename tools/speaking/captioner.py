"""Trained captioners: find a run's checkpoint, load its image tokenizer, describe images.

A run records the image tokenizer and view of its dataset; `load_tokenizer_of` loads the same one
and refuses others by their fingerprint.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from im2sp.pipeline.decoding.views import VIEWS
from im2sp.shards import Manifest, ShardError
from im2sp.trainer import generate, load_model

if TYPE_CHECKING:
    from im2sp.pipeline import ImageTokenizer
    from im2sp.pipeline.tensors import Precision
    from im2sp.trainer.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained captioner with speech as its target: a checkpoint of a run, or an exported file."""

    name: str
    """Name of the run's folder or of the file, or a bundled name."""
    weights: Path | str
    """Argument of `load_model`."""
    step: int
    """Training steps."""
    image_fingerprint: str
    """Fingerprint of the image tokenizer."""
    speech_fingerprint: str | None
    """Fingerprint of the speech tokenizer."""
    image_tokenizer: Mapping[str, Any]
    """Record of the image tokenizer in the dataset: name, view, precision."""


def find_step(path: Path) -> "Checkpoint":
    """Return the best checkpoint of a run, or the one whose folder is given.

    Raises:
        ValueError: There is none.
    """
    from im2sp.trainer.checkpoint import named_checkpoint

    found = named_checkpoint(path)
    if found is None:
        raise ValueError(
            f"--run {path}: holds no checkpoint; expected the --out of im2sp-train, or one of its"
            " step folders"
        )
    return found


def read_run(name_or_path: str | Path) -> Run:
    """Find a bundled captioner, an exported file, or a run's best or given checkpoint.

    Raises:
        ValueError: There is none, or its target is text.
    """
    from im2sp.trainer.checkpoint import is_step
    from im2sp.trainer.export import read_notes
    from im2sp.trainer.weights import BUNDLED

    path = BUNDLED.get(str(name_or_path), Path(name_or_path))
    if path.is_file():
        notes = read_notes(path)
        return Run(
            name=path.name if str(name_or_path) not in BUNDLED else str(name_or_path),
            weights=path,
            step=notes["step"],
            image_fingerprint=notes["fingerprints"]["image"],
            speech_fingerprint=notes["fingerprints"]["speech"],
            image_tokenizer=notes["tokenizers"]["image"],
        )
    found = find_step(path)
    fingerprints = found.state["fingerprints"]
    if "speech" not in fingerprints:
        raise ValueError(
            f"--run {path}: generates text, not speech units; give a run with --target speech,"
            f" which im2sp-train --init-from {path} can start from these weights"
        )
    record = found.state.get("tokenizers", {}).get("image") or _record_of_shards(found.path)
    is_same = record.get("fingerprint") == fingerprints["image"]
    if fingerprints["image"] is None or not is_same or record.get("view") not in VIEWS:
        raise ValueError(
            f"{found.path}: does not record the image tokenizer and view of its images; run this"
            " on the machine with the dataset that it was trained on"
        )
    return Run(
        name=(path.resolve().parent if is_step(path) else path.resolve()).name,
        weights=found.path,
        step=found.step,
        image_fingerprint=fingerprints["image"],
        speech_fingerprint=fingerprints["speech"],
        image_tokenizer=record,
    )


def _record_of_shards(checkpoint_dir: Path) -> Mapping[str, Any]:
    """Record of the image tokenizer in the run's dataset, for checkpoints without it."""
    from im2sp.trainer.config import CONFIG_NAME

    config = tomllib.loads((checkpoint_dir / CONFIG_NAME).read_text("utf-8"))
    try:
        return Manifest.read(Path(config["shards"])).image_tokenizer or {}
    except ShardError:
        return {}


def load_tokenizer_of(
    run: Run, name: str | None, codebook: Path | None, device: str | None
) -> "ImageTokenizer":
    """Load the image tokenizer that a run was trained on.

    Args:
        run: The run.
        name: Name, hub id or path; None for the name recorded in the run.
        codebook: File of the codebook, if separate.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: There are no such weights, or they are not those of the run.
    """
    from im2sp.pipeline import load_image_tokenizer

    recorded = str(run.image_tokenizer.get("name"))
    wanted = name or recorded
    precision = cast("Precision", run.image_tokenizer.get("precision", "fp32"))
    try:
        tokenizer = load_image_tokenizer(wanted, codebook, device=device, precision=precision)
    except ValueError as error:
        if name is not None:
            raise
        raise ValueError(
            f"{error}; the run {run.name} needs that image tokenizer, give its path with"
            " --image-tokenizer"
        ) from None
    if tokenizer.fingerprint != run.image_fingerprint:
        raise ValueError(
            f"image tokenizer {wanted}: its fingerprint is {_short(tokenizer.fingerprint)}, the run"
            f" {run.name} was trained on units of {recorded},"
            f" {_short(run.image_fingerprint)}; name that one with --image-tokenizer (and"
            " --codebook)"
        )
    return tokenizer


def _short(fingerprint: str | None) -> str:
    return f"{fingerprint[:12]}.." if fingerprint else "(none)"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Generated description of an image."""

    units: list[int]
    """Speech units, collapsed; empty if the model generated none."""
    decoded: NDArray[np.uint8] | None
    """(224, 224, 3) uint8: image decoded from its units; None if the weights have no decoder."""


class Captioner:
    """A run's model with its image tokenizer.

    Attributes:
        tokenizer: The image tokenizer.
        view: Mapping of images to squares, as in the run's dataset.
        max_tokens: Maximum tokens of a description; at most the model's positions.
        num_units: Speech units are in [0, num_units).
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
        """Describe images of the view, (S, S, 3) uint8, independently of each other."""
        if not images:
            return []
        image_units = self.view.crop_units(self.tokenizer.encode_uint8(np.stack(images)))
        on_device = image_units.to(self.tokenizer.device)
        generated = generate(self._model, on_device, self._num_beams, self.max_tokens)
        decoded: list[NDArray[np.uint8] | None] = [None] * len(images)
        if self.tokenizer.network.decoder is not None:
            shown = self.tokenizer.decode(image_units).permute(0, 2, 3, 1)
            decoded = list((shown * 255).round().to(torch.uint8).numpy())
        return [
            Description(units=units, decoded=image)
            for units, image in zip(generated, decoded, strict=True)
        ]
