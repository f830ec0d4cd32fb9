"""Speech recognizers by name: pocketsphinx (no download) or a model of transformers.

    load_recognizer("pocketsphinx")
    load_recognizer("pocketsphinx+captions")        # with a language model of Flickr8k's captions
    load_recognizer("facebook/wav2vec2-large-960h-lv60-self")     # the paper's

Clips are recognized one by one, so a transcript does not depend on the other clips.
"""

import hashlib
import importlib.metadata
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from im2sp.shards.files import read_regular
from im2sp.shards.weights.compressed import decompress

POCKETSPHINX = "pocketsphinx"
LANGUAGE_MODELS = {"captions": Path(__file__).parent / "captions.arpa.gz"}
"""Language models for `pocketsphinx+NAME`, by name."""
# Weight of the language model against the sound. pocketsphinx's own 6.5 is for its larger model; on
# the 30 spoken captions of val, 5 has 20.8 % word errors and 6.5 has 22.8 %.
_LANGUAGE_WEIGHT = 5.0
RATE_HZ = 16_000
# Language models are compressed about fourfold.
_TEXT_BYTES_A_BYTE = 7
# Shorter clips are too short for the features of some models, and contain no word.
_LEAST_SAMPLES = 1600


class Recognizer(Protocol):
    """Speech recognizer: audio to text."""

    @property
    def name(self) -> str:
        """Name it was loaded by; for a path, its last part."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity: fingerprint of the weights, or version of the package."""
        ...

    def transcribe(self, samples: np.ndarray) -> str:
        """Transcribe (T,) float32 samples in [-1, 1] at 16 kHz; "" for less than 0.1 s."""
        ...


def load_recognizer(name: str, device: str | None = None) -> Recognizer:
    """Load a recognizer.

    Args:
        name: "pocketsphinx"; "pocketsphinx+captions", with the bundled language model of captions,
            or "pocketsphinx+PATH", with one in the ARPA format (tools/fit_asr.py); or a CTC or
            sequence-to-sequence model of transformers: a folder or a hub id.
        device: torch device; None for CUDA if available. Not used by pocketsphinx.

    Raises:
        ValueError: A package or the model is missing, or it is not a speech-to-text model.
    """
    first, plus, language_model = name.partition("+")
    if first != POCKETSPHINX:
        return TransformersRecognizer(name, device)
    return Pocketsphinx(language_model if plus else None)


class Pocketsphinx:
    """pocketsphinx with the American English model in its package.

    Args:
        language_model: Name in `LANGUAGE_MODELS`, or path of a file in the ARPA format, perhaps
            compressed by gzip. It knows the words that are in it and in the package's dictionary.
            None for the package's own.

    Raises:
        ValueError: The package or the language model is missing or unusable.
    """

    def __init__(self, language_model: str | None = None) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError:
            raise ValueError(
                "pocketsphinx is not installed: pip install 'im2sp[evaluate]'"
            ) from None
        self.name = POCKETSPHINX
        self.fingerprint = f"{POCKETSPHINX} {importlib.metadata.version(POCKETSPHINX)}"
        # Cepstral means per clip, not running means: the order of clips must not matter.
        settings: dict[str, Any] = {"samprate": float(RATE_HZ), "cmn": "batch", "loglevel": "FATAL"}
        if language_model is None:
            self._decoder: Any = Decoder(**settings)
            return
        path = LANGUAGE_MODELS.get(language_model, Path(language_model))
        data = _read_arpa(path)
        self.name += f"+{language_model if language_model in LANGUAGE_MODELS else path.name}"
        self.fingerprint += f", language model {hashlib.sha256(data).hexdigest()}"
        with tempfile.NamedTemporaryFile(suffix=".arpa") as file:
            file.write(data)
            file.flush()
            try:
                self._decoder = Decoder(**settings, lm=file.name, lw=_LANGUAGE_WEIGHT)
            except RuntimeError:
                raise ValueError(f"{path}: pocketsphinx cannot load this language model") from None

    def transcribe(self, samples: np.ndarray) -> str:
        """See `Recognizer`."""
        if len(samples) < _LEAST_SAMPLES:
            return ""
        sound = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.start_utt()
        self._decoder.process_raw(sound, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return "" if found is None else found.hypstr


def _read_arpa(path: Path) -> bytes:
    """Read a language model in the ARPA format.

    Raises:
        ValueError: It cannot be read, or is in another format.
    """
    try:
        is_packed = path.suffix == ".gz"
        data = decompress(path, "gzip", _TEXT_BYTES_A_BYTE) if is_packed else read_regular(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        known = ", ".join(f"{POCKETSPHINX}+{name}" for name in LANGUAGE_MODELS)
        raise ValueError(
            f"--asr {POCKETSPHINX}+{path}: cannot be read: {reason}; expected {known}, or the path"
            " of a language model written by tools/fit_asr.py"
        ) from None
    if not data.startswith(b"\\data\\"):
        raise ValueError(f"{path}: not a language model in the ARPA format; its first line is not"
                         " \\data\\")  # fmt: skip
    return data


class TransformersRecognizer:
    """A model of transformers: CTC (greedy), or sequence to sequence (its generation settings)."""

    def __init__(self, name: str, device: str | None = None) -> None:
        try:
            import transformers
        except ImportError:
            raise ValueError(
                f"{name}: needs transformers, which is not installed: pip install 'im2sp[evaluate]'"
            ) from None
        import torch

        from im2sp.pipeline.tensors import state_fingerprint

        self._torch = torch
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.name = Path(name).name if Path(name).exists() else name
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            architecture = " ".join(config.architectures or [])
            self._is_ctc = architecture.endswith("ForCTC")
            loader = (
                transformers.AutoModelForCTC
                if self._is_ctc
                else transformers.AutoModelForSpeechSeq2Seq
            )
            model = loader.from_pretrained(name)
            self._processor: Any = transformers.AutoProcessor.from_pretrained(name)
            rate_hz = getattr(self._processor.feature_extractor, "sampling_rate", RATE_HZ)
            if rate_hz != RATE_HZ:
                raise ValueError(f"its sampling_rate is {rate_hz}, expected {RATE_HZ}")
        except (OSError, ValueError, AttributeError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{name}: not a speech-to-text model that transformers can load ({first}); give"
                " pocketsphinx, a hub id, or a folder with model and processor"
            ) from None
        self._model: Any = model.to(self._device).eval()
        self.fingerprint = state_fingerprint(self._model)

    def transcribe(self, samples: np.ndarray) -> str:
        """See `Recognizer`."""
        if len(samples) < _LEAST_SAMPLES:
            return ""
        inputs = self._processor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        inputs = inputs.to(self._device)
        with self._torch.inference_mode():
            if self._is_ctc:
                ids = self._model(**inputs).logits.argmax(-1)
            else:
                ids = self._model.generate(**inputs)
        return self._processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


def words_of(text: str) -> list[str]:
    """Lower-case words of letters, digits and apostrophes, for word error rates."""
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower())
    return kept.split()


def edits(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions from `found` to `wanted`.

    Raises:
        ValueError: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise ValueError(
            "edit distances need rapidfuzz, which is not installed: pip install 'im2sp[evaluate]'"
            " or 'im2sp[fit]'"
        ) from None
    return Levenshtein.distance(found, wanted)


def word_errors(found: str, wanted: str) -> tuple[int, int]:
    """Word edits between two texts, and the number of words of the second; see `words_of`."""
    right = words_of(wanted)
    return edits(words_of(found), right), len(right)
