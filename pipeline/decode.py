"""One picture or one clip, decoded; whatever is wrong with it becomes a reason."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from im2sp.pipeline.audio import DEFAULT_MAX_SECONDS, read_audio
from im2sp.pipeline.images import read_image
from im2sp.pipeline.media import AudioError, ByteRange, ImageError, shown, source_size_bytes
from im2sp.pipeline.source_items import SourceItem, Utterance
from im2sp.pipeline.views import VIEWS

Medium = SourceItem | Utterance
"""What is decoded at once: an input's picture, or one of its clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A picture or clip after decoding, or the reason why there is none."""

    pixels: np.ndarray | None = None
    """uint8 [S, S, 3] of a picture."""
    waveform: np.ndarray | None = None
    """float32 [T] at 16 kHz of a clip."""
    size_bytes: int = 0
    """Size of the original file."""
    reason: str = ""
    """Why it is refused; "" where it is not."""


def media_of(item: SourceItem) -> list[Medium]:
    """What there is to decode of an input: its picture, then its clips.

    An input that cannot be used, or holds nothing, is one medium that will be refused.
    """
    if item.error is not None or not (item.image or item.utterances):
        return [item]
    return [*([item] if item.image else []), *item.utterances]


def decode(
    medium: Medium, view: str, max_pixels: int, max_audio_s: float = DEFAULT_MAX_SECONDS
) -> Decoded:
    """Decode a picture, as the view shows it, or a clip; never raises for what it holds."""
    if medium.error is not None:
        return Decoded(reason=medium.error)
    try:
        if isinstance(medium, Utterance):
            return _decode_clip(medium, max_audio_s)
        return _decode_picture(medium.image, medium.name, view, max_pixels)
    except OSError as error:  # it went away after it was read
        return Decoded(reason=f"cannot be read: {error.strerror or error}")
    except MemoryError:
        return Decoded(reason="decoding needs more memory than there is")
    except Exception as error:  # the per-item edge: one input never ends the run
        detail = " ".join(str(error).split())
        return Decoded(reason=f"cannot be decoded: {type(error).__name__}: {detail}")


def _decode_picture(
    source: Path | ByteRange | None, name: str, view: str, max_pixels: int
) -> Decoded:
    if source is None:
        return Decoded(reason="no image")
    try:
        image = read_image(source, name=name, max_pixels=max_pixels)
        pixels = VIEWS[view].apply(image)
        return Decoded(pixels=pixels, size_bytes=source_size_bytes(source))
    except ImageError as error:
        # The message begins with the name, which the reject has in a field of its own.
        return Decoded(reason=str(error).removeprefix(f"{name}: "))


def _decode_clip(utterance: Utterance, max_audio_s: float) -> Decoded:
    if utterance.audio is None:
        return Decoded(reason="no audio")
    try:
        waveform = read_audio(utterance.audio, name=utterance.name, max_seconds=max_audio_s)
        return Decoded(waveform=waveform, size_bytes=source_size_bytes(utterance.audio))
    except AudioError as error:
        return Decoded(reason=str(error).removeprefix(f"{shown(utterance.name)}: "))
