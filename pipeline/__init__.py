"""Raw media to units and back: decoding, tokenizers, published weights, the tokenize job."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer, load_image_tokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer, load_speech_tokenizer
    from im2sp.pipeline.text_to_units.model import TextToUnits, load_text_to_units
    from im2sp.pipeline.vocoder.vocoder import Vocoder, load_vocoder

__all__ = [
    "ImageTokenizer",
    "SpeechTokenizer",
    "TextToUnits",
    "Vocoder",
    "load_image_tokenizer",
    "load_speech_tokenizer",
    "load_text_to_units",
    "load_vocoder",
]

_MODULES = {
    "ImageTokenizer": "image_tokenizer.tokenizer",
    "SpeechTokenizer": "speech_tokenizer.tokenizer",
    "TextToUnits": "text_to_units.model",
    "Vocoder": "vocoder.vocoder",
    "load_image_tokenizer": "image_tokenizer.tokenizer",
    "load_speech_tokenizer": "speech_tokenizer.tokenizer",
    "load_text_to_units": "text_to_units.model",
    "load_vocoder": "vocoder.vocoder",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing this package does not import torch."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
