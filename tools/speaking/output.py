"""Files of im2sp-speak: clips, images, tables and the page."""

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from im2sp.pipeline import Vocoder
from im2sp.shards.errors import shown
from im2sp.tools.engines.asr import Recognizer
from im2sp.tools.speaking.config import SpeakConfig
from im2sp.tools.speaking.inputs import Clip, Reject
from im2sp.tools.speaking.page import (
    REJECTS_NAME,
    SPOKEN_NAME,
    PageImage,
    PageItem,
    SpeechFolder,
    page,
)

JPEG_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Described:
    """Units to synthesize, a sentence, or both, with the image that they describe."""

    clip: Clip
    """Key and units; no units for a sentence only."""
    stem: str
    text: str | None = None
    captions: tuple[str, ...] = ()
    """Captions of the source."""
    thumbnail: NDArray[np.uint8] | None = None
    decoded: NDArray[np.uint8] | None = None
    is_cut: bool = False
    """True if the view crops the image to a square, so its units show only that square."""


class Sound:
    """Vocoder, with a recognizer to transcribe its output if one is given.

    Attributes:
        vocoder: The vocoder.
        recognizer: The recognizer, if any.
    """

    def __init__(
        self, vocoder: Vocoder, recognizer: Recognizer | None, speaker: int | None
    ) -> None:
        """Choose the voice; raise ValueError for a speaker that the vocoder does not have."""
        self.vocoder, self.recognizer = vocoder, recognizer
        self._speaker = (speaker or 0) if vocoder.num_speakers else speaker
        if self._speaker is not None and self._speaker >= vocoder.num_speakers:
            raise ValueError(
                f"--speaker {self._speaker}: the vocoder {vocoder.name} has"
                f" {vocoder.num_speakers or 'no'} speakers"
            )

    def check_durations(self, is_needed: bool) -> None:
        """Refuse a vocoder without a duration predictor if durations are not given."""
        if is_needed and not self.vocoder.has_durations:
            raise ValueError(
                f"vocoder {self.vocoder.name}: has no duration predictor, and the units have no"
                " durations; give a vocoder with a duration predictor with --vocoder"
            )

    def synthesize(self, clips: Sequence[Clip]) -> list[NDArray[np.float32]]:
        """(T,) float32 samples in [-1, 1] of each clip."""
        waveforms: dict[int, NDArray[np.float32]] = {}
        for is_given in (False, True):
            places = [i for i, clip in enumerate(clips) if (clip.durations is not None) == is_given]
            units = [clips[i].units for i in places]
            durations = [clips[i].durations or [] for i in places] if is_given else None
            made = self.vocoder.synthesize_batch(units, durations, self._speaker)
            waveforms |= dict(zip(places, made, strict=True))
        return [waveforms[i] for i in range(len(clips))]


class Output:
    """Writer of descriptions to a folder.

    Attributes:
        sound: Synthesis; None for sentences only.
        items: Items of the page, so far.
        rejects: Rows of rejects.jsonl, so far.
    """

    def __init__(self, config: SpeakConfig, sound: Sound | None) -> None:
        self.sound, self._config = sound, config
        self.items: list[PageItem] = []
        self.rejects: list[Reject] = []
        self._rows: list[dict[str, Any]] = []
        self._folder: SpeechFolder | None = None

    def begin(self, names: Iterable[str]) -> None:
        """Prepare the folder for files of these names; see `SpeechFolder`."""
        self._folder = SpeechFolder(self._config.out, names)

    def add(self, described: Sequence[Described]) -> None:
        """Synthesize a batch and write its files."""
        waveforms: Sequence[NDArray[np.float32] | None] = [None] * len(described)
        if self.sound is not None:
            waveforms = self.sound.synthesize([one.clip for one in described])
        for one, samples in zip(described, waveforms, strict=True):
            self._write(one, samples)

    def _write(self, one: Described, samples: NDArray[np.float32] | None) -> None:
        """Write the files of one description, and its row and item."""
        assert self._folder is not None
        clip = one.clip
        wav, duration_s, transcript = None, 0.0, None
        if self.sound is not None and samples is not None:
            wav, duration_s = f"{one.stem}.wav", len(samples) / self.sound.vocoder.rate_hz
            self._folder.write(wav, wav_bytes(samples, self.sound.vocoder.rate_hz))
            if self.sound.recognizer is not None:
                transcript = self.sound.recognizer.transcribe(samples)
        if not (self._config.quiet or self._config.json):
            for text, what in ((one.text, ""), (transcript, " (transcript)")):
                if text is not None:
                    tqdm.write(shown(f"{clip.key}{what}: {text}"), file=sys.stdout)
        row = {"key": clip.key, "text": one.text, "wav": wav, "duration_s": duration_s}
        row |= {"transcript": transcript, "units": clip.units}
        if clip.durations is not None:
            row["durations"] = clip.durations
        self._rows.append(row)
        self.items.append(
            PageItem(
                key=clip.key,
                text=one.text,
                wav=wav,
                num_units=len(clip.units),
                duration_s=duration_s,
                transcript=transcript,
                captions=one.captions,
                **self._pictures(one),
            )
        )

    def _pictures(self, one: Described) -> dict[str, PageImage]:
        """Write the image and the one decoded from its units; return their page entries."""
        assert self._folder is not None
        if one.thumbnail is None:
            return {}
        height, width, _ = one.thumbnail.shape
        self._folder.write(f"{one.stem}.jpg", jpeg_bytes(Image.fromarray(one.thumbnail)))
        found = {"picture": PageImage(file=f"{one.stem}.jpg", width_px=width, height_px=height)}
        if one.decoded is not None:
            name = f"{one.stem}.units.jpg"
            self._folder.write(name, jpeg_bytes(Image.fromarray(one.decoded)))
            if one.is_cut:
                width = height = min(width, height)
            found["decoded"] = PageImage(file=name, width_px=width, height_px=height)
        return found

    def finish(self, title: str, about: Sequence[str]) -> None:
        """Write the tables and the page."""
        assert self._folder is not None
        self._folder.write_rows(SPOKEN_NAME, self._rows)
        self._folder.write_rows(REJECTS_NAME, self.rejects)
        recognizer = None if self.sound is None else self.sound.recognizer
        if recognizer is not None:
            about = [*about, f"Transcript: of the sound, by the recognizer {recognizer.name}."]
        self._folder.finish(page(title, about, self.items))


def wav_bytes(samples: NDArray[np.float32], rate_hz: int) -> bytes:
    """(T,) float32 in [-1, 1] as a 16-bit wav file."""
    file = io.BytesIO()
    sf.write(file, samples, rate_hz, "PCM_16", format="WAV")
    return file.getvalue()


def jpeg_bytes(image: Image.Image) -> bytes:
    """An image as a JPEG file, without metadata."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
