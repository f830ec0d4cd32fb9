"""Raw media to units and back: decoding, tokenizers, published weights, the tokenize job."""

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

_SPEECH_NAMES = ("SpeechTokenizer", "load_speech_tokenizer")
_VOCODER_NAMES = ("Vocoder", "load_vocoder")
_TEXT_NAMES = ("TextToUnits", "load_text_to_units")


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing this package does not import torch."""
    if name in _SPEECH_NAMES:
        from im2sp.pipeline.speech_tokenizer import tokenizer as hubert_units

        return getattr(hubert_units, name)
    if name in _TEXT_NAMES:
        from im2sp.pipeline.text_to_units import model

        return getattr(model, name)
    if name in _VOCODER_NAMES:
        from im2sp.pipeline.vocoder import vocoder

        return getattr(vocoder, name)
    if name in __all__:
        from im2sp.pipeline.image_tokenizer import tokenizer as image_tokenizer

        return getattr(image_tokenizer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
