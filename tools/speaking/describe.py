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
from im2sp.tools.speaking.captioner import Captioner, load_t2u, read_runs
from im2sp.tools.speaking.config import BUNDLED, BUNDLED_T2U, BUNDLED_TEXT


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Description of an image."""

    text: str | None
    """Sentence; None without a run of text."""
    units: list[int] | None
    """Speech units, collapsed; None without a model of them."""
    waveform: NDArray[np.float32] | None
    """(T,) float32 samples in [-1, 1]; None without sound."""
    rate_hz: int | None
    """Sample rate of the waveform; None without sound."""


class Describer:
    """Loaded captioners and the vocoder.

    Attributes:
        runs: The captioners; that of speech is first.
        captioner: Their models.
        vocoder: None without sound.
    """

    def __init__(
        self,
        names: Sequence[str | Path] = (),
        vocoder: str = "compact",
        device: str | None = None,
        t2u: str | None = None,
    ) -> None:
        """Load the runs of names (see `read_runs`), the text-to-unit model and the vocoder.

        Without names these are the bundled models: compact-text, whose sentence `compact` speaks.

        Raises:
            ValueError: Weights are missing or do not fit.
        """
        self.runs = read_runs(names or (BUNDLED_TEXT,))
        self.t2u = load_t2u(t2u or (None if names else BUNDLED_T2U), self.runs, device)
        self.vocoder: Vocoder | None = None
        self.captioner = Captioner(self.runs, t2u=self.t2u, device=device)
        if self.runs[0].target == "speech" or self.t2u is not None:
            self.vocoder = load_vocoder(vocoder, device=device)
            found = self.captioner
            self.vocoder.check_units(found.num_units, found.speech_fingerprint, found.units_of)

    def describe(
        self, image: Image.Image, num_beams: int | None = None, temperature: float | None = None
    ) -> tuple[Found, NDArray[np.uint8] | None]:
        """Describe an upright RGB image.

        Args:
            image: The image.
            num_beams: Beams of beam search; None for those of each run.
            temperature: Sample with this temperature instead of searching.

        Returns:
            The description, and the (224, 224, 3) uint8 image decoded from its units, None if the
            tokenizer has no decoder.
        """
        pixels = self.captioner.view.apply(image)
        (found,) = self.captioner.describe([pixels], num_beams, temperature)
        if self.vocoder is None:
            none = Found(text=found.text, units=None, waveform=None, rate_hz=None)
            return none, found.decoded
        described = Found(
            text=found.text,
            units=found.units,
            waveform=self.vocoder.synthesize(found.units),
            rate_hz=self.vocoder.rate_hz,
        )
        return described, found.decoded


def describe(
    image: str | Path | Image.Image,
    run: str | Path | Sequence[str | Path] = BUNDLED,
    *,
    t2u: str | None = None,
    vocoder: str = "compact",
    device: str | None = None,
) -> Found:
    """Describe an image in a sentence, in speech, or in both.

    The models of the last call are kept for the next one. With a text-to-unit model the sound is
    the sentence; a run of speech and one of text are independent, so their descriptions may differ.

    Args:
        image: Path of an image file, or an image of Pillow, upright.
        run: "compact" for the bundled captioner of text and the bundled text-to-unit model; else a
            run of im2sp-train, one of its checkpoints, a file of tools/export_captioner.py or a
            bundled name; or two of them, one of speech and one of text.
        t2u: Text-to-unit model that speaks the sentences of a run of text, as for
            `load_text_to_units`.
        vocoder: Vocoder of the speech units: a name or path, as for `load_vocoder`.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: The image cannot be read, or weights are missing or do not fit.
    """
    names = (run,) if isinstance(run, str | Path) else tuple(run)
    if run == BUNDLED:
        names = ()
    pixels = image if isinstance(image, Image.Image) else read_image(Path(image), name=str(image))
    return _describer(names, vocoder, device, t2u).describe(pixels.convert("RGB"))[0]


_describer = lru_cache(maxsize=1)(Describer)
