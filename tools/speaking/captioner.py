"""Trained captioners: find a run's checkpoint, load its input, describe images."""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from im2sp.pipeline.decoding.views import VIEWS
from im2sp.shards import Manifest, ShardError
from im2sp.shards.files import read_toml
from im2sp.tools.speaking.image_input import load_input, sees_pixels
from im2sp.trainer import Im2SpModel, generate, load_model

if TYPE_CHECKING:
    from im2sp.pipeline import TextToUnits
    from im2sp.trainer.checkpoint import Checkpoint
    from im2sp.trainer.text import TextModel

BUNDLED_BEAMS = {"compact": 4, "compact-text": 1}
"""Beams of the bundled captioners, those with the best scores; greedy decoding for others."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A trained captioner: a checkpoint of a run, or an exported file."""

    name: str
    """Name of the run's folder or of the file, or a bundled name."""
    weights: Path
    """Argument of `load_model`."""
    target: Literal["speech", "text"]
    """Kind of its descriptions."""
    step: int
    """Training steps."""
    image_fingerprint: str
    """Fingerprint of the image tokenizer, or of the image encoder of a run on pixels."""
    speech_fingerprint: str | None
    """Fingerprint of the speech tokenizer."""
    text_model_sha256: str | None
    """Checksum of the text model, if the target is text."""
    image_tokenizer: Mapping[str, Any]
    """Record of the image tokenizer or encoder: name, view, precision .."""

    @property
    def sees_pixels(self) -> bool:
        """True if the input is the features of an image encoder, not image units."""
        return sees_pixels(self.image_tokenizer)

    @property
    def num_beams(self) -> int:
        """Beams of beam search by default."""
        return BUNDLED_BEAMS.get(self.name, 1) if self.weights.is_file() else 1


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
        ValueError: There is none.
    """
    from im2sp.trainer.checkpoint import is_step
    from im2sp.trainer.export import read_notes
    from im2sp.trainer.weights import BUNDLED

    path = BUNDLED.get(str(name_or_path), Path(name_or_path))
    if path.is_file():
        name = path.name if str(name_or_path) not in BUNDLED else str(name_or_path)
        notes = read_notes(path)
        _check_units(path, notes)
        return _run(name, path, notes, notes["tokenizers"]["image"])
    found = find_step(path)
    if "image" not in found.state["fingerprints"]:
        raise ValueError(
            f"{found.path}: a language model without images cannot describe any; expected a"
            " captioner"
        )
    _check_units(found.path, found.state)
    record = found.state.get("tokenizers", {}).get("image") or _record_of_shards(found.path)
    fingerprint = found.state["fingerprints"]["image"]
    is_same = record.get("fingerprint") == fingerprint
    if fingerprint is None or not is_same or record.get("view") not in VIEWS:
        raise ValueError(
            f"{found.path}: does not record the image tokenizer and view of its images; run this"
            " on the machine with the dataset that it was trained on"
        )
    name = (path.resolve().parent if is_step(path) else path.resolve()).name
    return _run(name, found.path, found.state, record)


def _check_units(path: Path, state: Mapping[str, Any]) -> None:
    """Refuse runs whose units im2sp can neither make from pixels nor turn into sound or text."""
    columns, records = state.get("unit_columns", {}), state.get("tokenizers", {})
    if "target" in columns:
        raise ValueError(
            f"{path}: generates units of the column {columns['target']}, which im2sp cannot turn"
            " into sound or text; generate them from image units with im2sp.trainer.generate"
        )
    image = records.get("image")
    if image is not None and (image.get("fingerprint") is None or image.get("view") not in VIEWS):
        raise ValueError(
            f"{path}: describes units of the column {columns.get('image', 'image_units')} by"
            f" {image.get('name') or 'a tokenizer that is not recorded'}, which im2sp cannot make"
            " from pixels; describe image units with im2sp.trainer.generate"
        )


def _run(
    name: str, weights: Path, state: Mapping[str, Any], image_tokenizer: Mapping[str, Any]
) -> Run:
    """A run from the records of its checkpoint or exported file."""
    fingerprints = state["fingerprints"]
    return Run(
        name=name,
        weights=weights,
        target="speech" if "speech" in fingerprints else "text",
        step=state["step"],
        image_fingerprint=fingerprints["image"],
        speech_fingerprint=fingerprints.get("speech"),
        text_model_sha256=state.get("text_model_sha256"),
        image_tokenizer=image_tokenizer,
    )


def read_runs(names: Sequence[str | Path]) -> list[Run]:
    """One run, or one of speech and one of text on the same image units; that of speech is first.

    Raises:
        ValueError: A run does not exist, two have the same target, or their image units differ.
    """
    runs = sorted(map(read_run, names), key=lambda run: run.target)
    first = runs[0]
    for other in runs[1:]:
        if other.target == first.target or len(runs) > 2:
            raise ValueError(
                f"--run {' --run '.join(map(str, names))}: {len(runs)} runs,"
                f" {sum(run.target == 'speech' for run in runs)} of them of speech; expected one of"
                " speech, one of text, or one of each"
            )
        ours, theirs = (
            (run.image_fingerprint, run.image_tokenizer["view"]) for run in (first, other)
        )
        if ours != theirs:
            raise ValueError(
                f"the runs {first.name} and {other.name}: trained on other image units,"
                f" {_short(ours[0])} with view {ours[1]}, and {_short(theirs[0])} with view"
                f" {theirs[1]}; describe the images with one run at a time"
            )
    return runs


def load_t2u(
    name: str | None, runs: Sequence[Run], device: str | None = None
) -> "TextToUnits | None":
    """The text-to-unit model of a name, for the sentences of runs; None for None.

    Raises:
        ValueError: Its weights are missing or do not fit, or the runs are not one of text.
    """
    if name is None:
        return None
    from im2sp.pipeline import load_text_to_units

    if runs[0].target != "text":
        raise ValueError(
            f"--t2u {name}: the run {runs[0].name} generates speech units; expected one run of text"
        )
    return load_text_to_units(name, device=device)


def _record_of_shards(checkpoint_dir: Path) -> Mapping[str, Any]:
    """Record of the image tokenizer in the run's dataset, for checkpoints without it."""
    from im2sp.trainer.config import CONFIG_NAME

    config = read_toml(checkpoint_dir / CONFIG_NAME)
    try:
        return Manifest.read(config["shards"]).image_tokenizer or {}
    except ShardError:
        return {}


def _short(fingerprint: str | None) -> str:
    return f"{fingerprint[:12]}.." if fingerprint else "(none)"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Generated description of an image."""

    units: list[int]
    """Speech units, collapsed; empty without a model of them, or if it generated none."""
    text: str | None
    """Sentence; None without a run of text."""
    decoded: NDArray[np.uint8] | None
    """(224, 224, 3) uint8: image decoded from its units; None if the weights have no decoder."""


class Captioner:
    """The models of one or two runs with their image tokenizer or encoder.

    Attributes:
        input: The image tokenizer or encoder.
        view: Mapping of images to squares, as in the runs' datasets.
        num_units: Speech units are in [0, num_units); None without a model of them.
        speech_fingerprint: Fingerprint of the speech tokenizer of these units, if recorded.
        units_of: The model that generates them, for messages.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        t2u: "TextToUnits | None" = None,
        image_tokenizer: str | None = None,
        codebook: Path | None = None,
        num_beams: int | None = None,
        max_tokens: int = 511,
        device: str | None = None,
    ) -> None:
        """Load runs (see `read_runs`).

        Args:
            runs: One run, or one of speech and one of text.
            t2u: Model that turns the sentences of a run of text into speech units.
            image_tokenizer: Name, hub id or path; None for the recorded name.
            codebook: File of the codebook of the image units, if separate.
            num_beams: Beams of beam search; None for those of each run.
            max_tokens: Maximum tokens of a description; at most the model's positions.
            device: torch device; None for CUDA if available.

        Raises:
            ValueError: Weights are missing or do not fit.
        """
        first = runs[0]
        self.input = load_input(
            first.name,
            first.image_tokenizer,
            first.image_fingerprint,
            image_tokenizer,
            codebook,
            device,
        )
        self.view = VIEWS[runs[0].image_tokenizer["view"]]
        self._max_tokens = max_tokens
        self._num_beams = {run.target: num_beams or run.num_beams for run in runs}
        self._models: dict[str, Im2SpModel] = {}
        self._text_model: TextModel | None = None
        for run in runs:
            model = load_model(run.weights, device=self.input.device)
            if (kind := model.config.vocabulary.kind) != run.target:
                raise ValueError(
                    f"the run {run.name}: its target is {kind}, so it generates no descriptions;"
                    " expected a run of im2sp-train --target speech or text"
                )
            self._models[run.target] = model
            if run.target == "text":
                self._text_model = _text_model_of(run)
        self._t2u = t2u
        speech = self._models.get("speech")
        if t2u is not None:
            self.units_of = f"the text-to-unit model {t2u.name}"
            self.num_units, self.speech_fingerprint = t2u.num_units, t2u.speech_fingerprint
        else:
            self.units_of = f"the run {first.name}"
            self.num_units = None if speech is None else speech.config.vocabulary.num_units
            self.speech_fingerprint = first.speech_fingerprint

    def describe(
        self,
        images: Sequence[NDArray[np.uint8]],
        num_beams: int | None = None,
        temperature: float | None = None,
    ) -> list[Description]:
        """Describe images of the view, (S, S, 3) uint8, independently of each other.

        Args:
            images: The images.
            num_beams: Other beams than those of the captioner.
            temperature: Sample with this temperature, from a random seed, instead of searching.
        """
        if not images:
            return []
        on_device, decoded = self.input.encode(images)
        settings = (num_beams, temperature)
        units = self._generated("speech", on_device, *settings) or [[]] * len(images)
        texts: list[str | None] = [None] * len(images)
        if self._text_model is not None:
            pieces = self._generated("text", on_device, *settings) or []
            texts = [_sentence(self._text_model.decode(ids)) for ids in pieces]
            if self._t2u is not None:
                units = [self._t2u.units(text or "") for text in texts]
        parts = zip(units, texts, decoded, strict=True)
        return [Description(units=ids, text=text, decoded=shown) for ids, text, shown in parts]

    def _generated(
        self,
        target: str,
        image_units: torch.Tensor,
        num_beams: int | None,
        temperature: float | None,
    ) -> list[list[int]] | None:
        """Units or text pieces of each image; None without a run of this target."""
        model = self._models.get(target)
        if model is None:
            return None
        max_tokens = min(self._max_tokens, model.config.max_positions)
        if temperature is not None:
            seed = random.getrandbits(32)
            return generate(model, image_units, 1, max_tokens, temperature=temperature, seed=seed)
        beams = num_beams or self._num_beams[target]
        return generate(model, image_units, beams, max_tokens)


def _sentence(text: str) -> str:
    """A caption as a sentence: captions of data sets have spaces before punctuation marks."""
    text = re.sub(r"\s+(?=[.,;:!?])", "", text.strip())
    return text[:1].upper() + text[1:]


def _text_model_of(run: Run) -> "TextModel":
    """Read the text model of a run.

    Raises:
        ValueError: It is missing, or not the one that the run was trained with.
    """
    from im2sp.trainer.export import text_model_path
    from im2sp.trainer.text import read_text_model

    path = text_model_path(run.weights)
    model = read_text_model(path)
    if run.text_model_sha256 not in (None, found := hashlib.sha256(model.data).hexdigest()):
        raise ValueError(
            f"{path}: sha256 {found}, expected that of the run {run.name},"
            f" {run.text_model_sha256}; restore that file"
        )
    return model
