"""What a run of im2sp-train was trained on, and the image tokenizer that it wants."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from im2sp.pipeline.decoding.views import VIEWS
from im2sp.shards import Manifest, ShardError
from im2sp.trainer import generate, load_model

if TYPE_CHECKING:
    from im2sp.pipeline import ImageTokenizer
    from im2sp.trainer.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained captioner whose target is speech: a run's checkpoint, or an exported file."""

    name: str
    """The last part of the run's folder or the file's name, or a bundled name."""
    weights: Path | str
    """What `load_model` takes."""
    step: int
    """Steps it was trained for."""
    image_fingerprint: str
    """Of the image tokenizer."""
    speech_fingerprint: str | None
    """Of the speech tokenizer."""
    image_tokenizer: Mapping[str, Any]
    """What the dataset told of the image tokenizer: name, view, precision."""


def find_step(path: Path) -> "Checkpoint":
    """The best checkpoint of a run, or the one whose folder is given.

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
    """A bundled captioner, an exported file, the best checkpoint of a run, or one of its steps.

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
            f"--run {path}: it writes text, which has no speech units; give a run with --target"
            f" speech, which im2sp-train --init-from {path} can begin with these weights"
        )
    record = found.state.get("tokenizers", {}).get("image") or _record_of_shards(found.path)
    is_same = record.get("fingerprint") == fingerprints["image"]
    if fingerprints["image"] is None or not is_same or record.get("view") not in VIEWS:
        raise ValueError(
            f"{found.path}: does not tell with which image tokenizer and view its images were"
            " tokenized; run this where the dataset is that it was trained on"
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
    """What the run's dataset tells of the image tokenizer, for checkpoints that do not."""
    from im2sp.trainer.config import CONFIG_NAME

    config = tomllib.loads((checkpoint_dir / CONFIG_NAME).read_text("utf-8"))
    try:
        return Manifest.read(Path(config["shards"])).image_tokenizer or {}
    except ShardError:
        return {}


def load_tokenizer_of(
    run: Run, name: str | None, codebook: Path | None, device: str | None
) -> "ImageTokenizer":
    """The image tokenizer that a run was trained on.

    Args:
        run: The run.
        name: Its name, hub id or path; None for the name that the run tells.
        codebook: Its codebook's file, where it is one of its own.
        device: As torch names it; None for CUDA where there is one.

    Raises:
        ValueError: There are no such weights, or they are others than the run's.
    """
    from im2sp.pipeline import load_image_tokenizer

    told = str(run.image_tokenizer.get("name"))
    wanted = name or told
    precision = "bf16" if run.image_tokenizer.get("precision") == "bf16" else "fp32"
    try:
        tokenizer = load_image_tokenizer(wanted, codebook, device=device, precision=precision)
    except ValueError as error:
        if name is not None:
            raise
        raise ValueError(
            f"{error}; the run {run.name} wants that image tokenizer, give its place with"
            " --image-tokenizer"
        ) from None
    if tokenizer.fingerprint != run.image_fingerprint:
        raise ValueError(
            f"image tokenizer {wanted}: its fingerprint is {_short(tokenizer.fingerprint)}, the run"
            f" {run.name} was trained on units of {told},"
            f" {_short(run.image_fingerprint)}; name that one with --image-tokenizer (and"
            " --codebook)"
        )
    return tokenizer


def _short(fingerprint: str | None) -> str:
    return f"{fingerprint[:12]}.." if fingerprint else "(none)"


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
