"""Samples to show on the page: chosen, decoded to images and sound, as data URLs."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from im2sp.shards import Sample, ShardDataset
from im2sp.shards.columns.arrays import Lists

Log = Callable[[str], object]
_MAP_PX = 8


@dataclass(frozen=True, kw_only=True)
class MediaConfig:
    """Models that decode units for the page; None for what the dataset records."""

    num_samples: int = 24
    image_tokenizer: str | None = None
    codebook: Path | None = None
    vocoder: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample on the page."""

    sample: Sample
    image: str | None = None
    """Data URL of the image decoded from its units, or of a map of the units."""
    sound: str | None = None
    """Data URL of the first utterance."""
    sound_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Media:
    """All samples on the page, and what decoded them."""

    shown: list[Shown]
    notes: list[str] = field(default_factory=list)
    """Models that decoded the units, or the reason why they are not decoded."""


def show_samples(dataset: ShardDataset, config: MediaConfig, log: Log) -> Media:
    """Choose samples and decode their units.

    Units that no model can decode are left as they are, with a note. A model that was asked for by
    name and does not fit is an error.

    Raises:
        ValueError: The image tokenizer or the vocoder that `config` names is not that of the units.
    """
    samples = [dataset.sample(*place) for place in _places(dataset, config.num_samples)]
    notes: list[str] = []
    pictures = [sample.image_units is not None for sample in samples]
    images = iter(
        _images(dataset, [s for s in samples if s.image_units is not None], config, notes)
    )
    spoken = [sample for sample in samples if sample.speech_units]
    sounds = iter(_sounds(dataset, spoken, config, notes))
    for note in notes:
        log(note)
    shown: list[Shown] = []
    for sample, has_image in zip(samples, pictures, strict=True):
        url, seconds = next(sounds) if sample.speech_units else (None, 0.0)
        image = next(images) if has_image else None
        shown.append(Shown(sample=sample, image=image, sound=url, sound_s=seconds))
    return Media(shown=shown, notes=notes)


def _places(dataset: ShardDataset, num: int) -> list[tuple[int, int]]:
    """Batch and row of samples spaced evenly: of each range, the first that lacks the least."""
    starts = np.unique(
        np.linspace(0, len(dataset), min(num, len(dataset)), endpoint=False).astype(int)
    )
    places: list[tuple[int, int]] = []
    for start, end in zip(starts, [*starts[1:], len(dataset)], strict=True):
        number, row = dataset.locate(int(start))
        batch = dataset.batch(number)
        score = np.zeros(batch.num_samples, np.int64)
        for view in (batch.views.get(name) for name in ("image_units", "speech_units", "captions")):
            if isinstance(view, Lists):
                score += np.diff(view.offsets) > 0
            elif view is not None:
                score += True if view.valid is None else view.valid
        places.append((number, row + int(score[row : row + int(end - start)].argmax())))
    return places


def _images(
    dataset: ShardDataset, samples: Sequence[Sample], config: MediaConfig, notes: list[str]
) -> list[str]:
    """Data URLs of the samples' images."""
    if not samples:
        return []
    record = dataset.manifest.image_tokenizer
    name = config.image_tokenizer or (record or {}).get("name")
    try:
        if record is None or name is None:
            raise ValueError("dataset.json names no image tokenizer")
        from im2sp.tools.reconstruct import decode_samples

        decoded = decode_samples(samples, record, name, config.codebook)
    except ValueError as error:
        if config.image_tokenizer is not None:
            raise
        notes.append(f"Images are shown as maps of their units, a colour for each code: {error}.")
        return [_map_url(sample.image_units) for sample in samples]
    notes.append(f"Images are decoded from their units by the image tokenizer {name}.")
    return [_jpeg_url(pixels) for pixels in decoded]


def _sounds(
    dataset: ShardDataset, samples: Sequence[Sample], config: MediaConfig, notes: list[str]
) -> list[tuple[str | None, float]]:
    """Data URL and seconds of the first utterance of each sample."""
    if not samples:
        return []
    record: dict[str, Any] = dict(dataset.manifest.speech_tokenizer or {})
    name = config.vocoder or "compact"
    try:
        if config.vocoder is None and not record:
            raise ValueError("dataset.json names no speech tokenizer")
        from im2sp.pipeline import load_vocoder

        vocoder = load_vocoder(name, device=config.device)
        num_units, fingerprint = record.get("num_units"), record.get("fingerprint")
        vocoder.check_units(num_units, fingerprint, str(dataset.path))
        units = [sample.speech_units[0] for sample in samples]
        durations = [sample.durations[0] for sample in samples if sample.durations]
        has_all = len(durations) == len(units)
        speaker = 0 if vocoder.num_speakers else None
        clips = vocoder.synthesize_batch(units, durations if has_all else None, speaker)
    except ValueError as error:
        if config.vocoder is not None:
            raise
        notes.append(f"Speech units have no sound here: {error}.")
        return [(None, 0.0)] * len(samples)
    notes.append(f"Sound is synthesized from speech units by the vocoder {vocoder.name}.")
    return [(_wav_url(clip, vocoder.rate_hz), clip.size / vocoder.rate_hz) for clip in clips]


def _map_url(units: NDArray[Any] | None) -> str:
    """A map of the units of an image; each code has a colour, the same everywhere."""
    assert units is not None
    rows = units.reshape(units.shape[0], -1) if units.ndim > 1 else units[None]
    hues = (rows.astype(np.uint64) * np.uint64(2654435769)) % np.uint64(1 << 32)
    hsv = np.full((*rows.shape, 3), 160, np.uint8)
    hsv[..., 0] = hues >> np.uint64(24)
    hsv[..., 2] = 120 + (hues >> np.uint64(17) & np.uint64(127))
    image = Image.fromarray(hsv, "HSV").convert("RGB")
    image = image.resize((image.width * _MAP_PX, image.height * _MAP_PX), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, "PNG")
    return _data_url("image/png", file.getvalue())


def _jpeg_url(pixels: NDArray[np.uint8]) -> str:
    from im2sp.tools.speaking.output import jpeg_bytes

    return _data_url("image/jpeg", jpeg_bytes(Image.fromarray(pixels)))


def _wav_url(samples: NDArray[np.float32], rate_hz: int) -> str:
    from im2sp.tools.speaking.output import wav_bytes

    return _data_url("audio/wav", wav_bytes(samples, rate_hz))


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
