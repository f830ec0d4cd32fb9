"""How well a vocoder is understood: words that a recogniser hears, and spectra."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from im2sp.pipeline.vocoder.vocoder import Vocoder
from im2sp.tools.fitting.vocoder_corpus import collapse, normalised
from im2sp.tools.fitting.vocoder_losses import MelDistance

RATE_HZ = 16_000
Hear = Callable[[np.ndarray], str]


def words(text: str) -> list[str]:
    """Lower-case runs of letters, digits and apostrophes."""
    return re.findall(r"[a-z0-9']+", text.lower())


def num_word_errors(expected: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that lead from one to the other."""
    row = np.arange(len(heard) + 1)
    for number, word in enumerate(expected, start=1):
        changed = row[:-1] + np.array([word != other for other in heard], np.int64)
        best = np.r_[number, np.minimum(changed, row[1:] + 1)]
        # Insertions: the least of all that stand before, each a step further.
        steps = np.arange(len(best))
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def word_error_rate(texts: Sequence[str], heard: Sequence[str]) -> float:
    """Word errors a word of the texts."""
    pairs = [(words(text), words(one)) for text, one in zip(texts, heard, strict=True)]
    errors = sum(num_word_errors(text, one) for text, one in pairs)
    return errors / max(1, sum(len(text) for text, _ in pairs))


def pocketsphinx_ears() -> Hear:
    """Hears (S,) float32 at 16 kHz with the English model that pocketsphinx brings along.

    Raises:
        ValueError: pocketsphinx is not installed.
    """
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise ValueError(
            "pocketsphinx is not installed, which the words are counted with;"
            " pip install pocketsphinx, or pass --measure-clips 0"
        ) from None
    decoder = Decoder(samprate=RATE_HZ, loglevel="FATAL")

    def hear(samples: np.ndarray) -> str:
        decoder.start_utt()
        as_integers = np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16)
        decoder.process_raw(as_integers.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found is not None else ""

    return hear


def measure(
    vocoder: Vocoder,
    waveforms: Sequence[np.ndarray],
    units: Sequence[np.ndarray],
    texts: Sequence[str | None],
    hear: Hear | None,
) -> dict[str, Any]:
    """Figures of a vocoder on clips it was not trained with.

    Args:
        vocoder: What to measure.
        waveforms: (S,) float32 each.
        units: (T,) of each, repeats kept.
        texts: What each says; those of None are not heard.
        hear: A recogniser; None for no word error rates.

    Returns:
        `mel_distance` (natural logarithms, units with their true durations), `duration_error`
        (mean frames a unit), and of clips with texts `wer_recorded`, `wer_true_durations` and
        `wer_told_durations`.
    """
    runs = [collapse(one) for one in units]
    collapsed = [run[0] for run in runs]
    kept = vocoder.synthesize_batch(collapsed, [run[1] for run in runs])
    told = vocoder.synthesize_batch(collapsed)
    mel = MelDistance([1024])
    distances: list[float] = []
    for waveform, made in zip(waveforms, kept, strict=True):
        if len(made) >= 1024:
            real = normalised(waveform)[: len(made)]
            pair = [torch.from_numpy(np.ascontiguousarray(one))[None] for one in (made, real)]
            distances.append(float(mel(*pair)))
    errors = [
        np.abs(durations - run[1])
        for durations, run in zip(vocoder.predict_durations(collapsed), runs, strict=True)
    ]
    figures: dict[str, Any] = {
        "num_clips": len(units),
        "mel_distance": round(float(np.mean(distances)), 4) if distances else None,
        "duration_error": round(float(np.concatenate(errors).mean()), 3),
    }
    said = [row for row, text in enumerate(texts) if text]
    if hear is None or not said:
        return figures
    expected = [text for text in texts if text]
    sounds = {"recorded": waveforms, "true_durations": kept, "told_durations": told}
    for name, clips in sounds.items():
        heard = [hear(clips[row]) for row in said]
        figures[f"wer_{name}"] = round(word_error_rate(expected, heard), 4)
    return figures
