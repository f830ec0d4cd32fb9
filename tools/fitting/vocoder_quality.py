"""Quality of a vocoder: word error rates of a recognizer, and mel distance."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from im2sp.pipeline.vocoder.vocoder import Vocoder
from im2sp.tools.fitting.vocoder_corpus import collapse, normalised
from im2sp.tools.fitting.vocoder_losses import MelDistance

RATE_HZ = 16_000
Recognize = Callable[[np.ndarray], str]


def words(text: str) -> list[str]:
    """Lower-case runs of letters, digits and apostrophes."""
    return re.findall(r"[a-z0-9']+", text.lower())


def num_word_errors(expected: Sequence[str], recognized: Sequence[str]) -> int:
    """Minimum number of insertions, deletions and substitutions between two word lists."""
    row = np.arange(len(recognized) + 1)
    for number, word in enumerate(expected, start=1):
        changed = row[:-1] + np.array([word != other for other in recognized], np.int64)
        best = np.r_[number, np.minimum(changed, row[1:] + 1)]
        # Insertions: running minimum of the costs before, plus one per step.
        steps = np.arange(len(best))
        row = np.minimum.accumulate(best - steps) + steps
    return int(row[-1])


def word_error_rate(texts: Sequence[str], recognized: Sequence[str]) -> float:
    """Word errors per word of the texts."""
    pairs = [(words(text), words(one)) for text, one in zip(texts, recognized, strict=True)]
    errors = sum(num_word_errors(text, one) for text, one in pairs)
    return errors / max(1, sum(len(text) for text, _ in pairs))


def pocketsphinx_recognizer() -> Recognize:
    """Recognizer of (S,) float32 at 16 kHz with the English model of pocketsphinx.

    Raises:
        ValueError: pocketsphinx is not installed.
    """
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise ValueError(
            "pocketsphinx is not installed, which is needed for word error rates;"
            " pip install pocketsphinx, or pass --measure-clips 0"
        ) from None
    decoder = Decoder(samprate=RATE_HZ, loglevel="FATAL")

    def recognize(samples: np.ndarray) -> str:
        decoder.start_utt()
        as_integers = np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16)
        decoder.process_raw(as_integers.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found is not None else ""

    return recognize


def measure(
    vocoder: Vocoder,
    waveforms: Sequence[np.ndarray],
    units: Sequence[np.ndarray],
    texts: Sequence[str | None],
    recognize: Recognize | None,
) -> dict[str, Any]:
    """Measure a vocoder on held-out clips.

    Args:
        vocoder: The vocoder.
        waveforms: (S,) float32 of each clip.
        units: (T,) of each clip, repeats kept.
        texts: Text of each clip; clips with None are not transcribed.
        recognize: Speech recognizer; None for no word error rates.

    Returns:
        `mel_distance` (natural logarithm, true durations), `duration_error` (mean frames per unit),
        and for clips with texts `wer_recorded`, `wer_true_durations` and `wer_told_durations`
        (predicted durations).
    """
    runs = [collapse(one) for one in units]
    collapsed = [run[0] for run in runs]
    kept = vocoder.synthesize_batch(collapsed, [run[1] for run in runs])
    predicted = vocoder.synthesize_batch(collapsed)
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
    with_text = [row for row, text in enumerate(texts) if text]
    if recognize is None or not with_text:
        return figures
    expected = [text for text in texts if text]
    waveforms_of = {"recorded": waveforms, "true_durations": kept, "told_durations": predicted}
    for name, clips in waveforms_of.items():
        recognized = [recognize(clips[row]) for row in with_text]
        figures[f"wer_{name}"] = round(word_error_rate(expected, recognized), 4)
    return figures
