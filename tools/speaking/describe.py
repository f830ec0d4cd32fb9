"""Description of one image in Python: `from im2sp import describe`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from im2sp.pipeline import Vocoder, load_vocoder
from im2sp.pipeline.decoding.images import read_image
from im2sp.tools.speaking.captioner import Captioner, read_runs
from im2sp.tools.speaking.config import BUNDLED, BUNDLED_TEXT


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Description of an image."""

    text: str | None
    """Sentence; None without a run of text."""
    units: list[int] | None
    """Speech units, collapsed; None without a run of speech."""
    waveform: NDArray[np.float32] | None
    """(T,) float32 samples in [-1, 1]; None without a run of speech."""
    rate_hz: int | None
    """Sample rate of the waveform; None without a run of speech."""


def describe(
    image: str | Path | Image.Image,
    run: str | Path | Sequence[str | Path] = BUNDLED,
    *,
    vocoder: str = "compact",
    device: str | None = None,
) -> Found:
    """Describe an image in a sentence, in speech, or in both.

    The models of the last call are kept for the next one. A run of speech and one of text are
    independent models, so their descriptions may differ.

    Args:
        image: Path of an image file, or an image of Pillow, upright.
        run: "compact" for the bundled captioners of speech and of text; else a run of im2sp-train,
            one of its checkpoints, a file of tools/export_captioner.py or a bundled name; or two of
            them, one of speech and one of text.
        vocoder: Vocoder of the speech units: a name or path, as for `load_vocoder`.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: The image cannot be read, or weights are missing or do not fit.
    """
    if run == BUNDLED:
        run = (BUNDLED, BUNDLED_TEXT)
    names = (run,) if isinstance(run, str | Path) else tuple(run)
    captioner, voice = _models(names, vocoder, device)
    pixels = image if isinstance(image, Image.Image) else read_image(Path(image), name=str(image))
    (found,) = captioner.describe([captioner.view.apply(pixels.convert("RGB"))])
    if voice is None:
        return Found(text=found.text, units=None, waveform=None, rate_hz=None)
    waveform = voice.synthesize(found.units)
    return Found(text=found.text, units=found.units, waveform=waveform, rate_hz=voice.rate_hz)


@lru_cache(maxsize=1)
def _models(
    names: tuple[str | Path, ...], vocoder: str, device: str | None
) -> tuple[Captioner, Vocoder | None]:
    """The captioner, and the vocoder if it generates speech."""
    runs = read_runs(names)
    voice = None
    if runs[0].target == "speech":
        voice = load_vocoder(vocoder, device=device)
        voice.check_units(None, runs[0].speech_fingerprint, f"the run {runs[0].name}")
    captioner = Captioner(runs, device=device)
    if voice is not None:
        voice.check_units(captioner.num_units, None, f"the run {runs[0].name}")
    return captioner, voice
