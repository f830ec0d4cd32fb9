"""Trigram language model of captions, for the recognizer `pocketsphinx+captions`.

Interpolated Witten-Bell smoothing (Witten and Bell, "The zero-frequency problem", 1991): a word
after a history h, which was followed by c(h) words of t(h) kinds, has the probability

    p(w | h) = (c(h, w) + t(h) p(w | h without its first word)) / (c(h) + t(h))

Written in the ARPA format with weights of backing off that make every distribution sum to 1, also
where rare trigrams are left out.
"""

import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from im2sp.tools.engines.asr import words_of

ORDER = 3
BEGIN, END = "<s>", "</s>"
# log10 of the probability of <s>, which is never predicted.
_LOG_ZERO = -99.0

Gram = tuple[str, ...]


def fit_lm(captions: Iterable[str], min_count: int = 2) -> dict[Gram, tuple[float, float]]:
    """Fit a trigram model.

    Args:
        captions: Texts; split into words by `words_of`.
        min_count: Occurrences of a trigram to be kept; all words and pairs of words are.

    Returns:
        For each n-gram its probability, that of the last word after the others, and the weight of
        backing off after it.

    Raises:
        ValueError: The captions contain no words.
    """
    counts: list[Counter[Gram]] = [Counter() for _ in range(ORDER)]
    for caption in captions:
        words = words_of(caption)
        if not words:
            continue
        padded = (BEGIN, *words, END)
        for order in range(1, ORDER + 1):
            grams = (padded[i : i + order] for i in range(len(padded) - order + 1))
            counts[order - 1].update(gram for gram in grams if gram != (BEGIN,))
    if not counts[0]:
        raise ValueError("the captions contain no words")
    probability: dict[Gram, float] = {}
    for order, table in enumerate(counts, 1):
        total, kinds = Counter[Gram](), Counter[Gram]()
        for gram, count in table.items():
            total[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        for gram, count in table.items():
            history = gram[:-1]
            lower = 1 / len(counts[0]) if order == 1 else probability[gram[1:]]
            probability[gram] = (count + kinds[history] * lower) / (total[history] + kinds[history])
    kept = {g: p for g, p in probability.items() if len(g) < ORDER or counts[-1][g] >= min_count}
    weights = _backing_off(kept)
    return {gram: (p, weights.get(gram, 1.0)) for gram, p in kept.items()} | {
        (BEGIN,): (0.0, weights[(BEGIN,)])
    }


def _backing_off(probability: Mapping[Gram, float]) -> dict[Gram, float]:
    """Weight of each history that makes the probabilities of all words after it sum to 1."""
    after: dict[Gram, float] = defaultdict(float)
    shorter: dict[Gram, float] = defaultdict(float)
    for gram, p in probability.items():
        if len(gram) > 1:
            after[gram[:-1]] += p
            shorter[gram[:-1]] += probability[gram[1:]]
    # Nothing is left where every word was seen, but for rounding.
    return {h: (1 - after[h]) / (1 - shorter[h]) if after[h] < 1 - 1e-9 else 0.0 for h in after}


def arpa(model: Mapping[Gram, tuple[float, float]]) -> str:
    """The model in the ARPA format; n-grams in alphabetical order."""
    orders = [sorted(gram for gram in model if len(gram) == n) for n in range(1, ORDER + 1)]
    lines = ["\\data\\", *(f"ngram {n}={len(grams)}" for n, grams in enumerate(orders, 1)), ""]
    for n, grams in enumerate(orders, 1):
        lines.append(f"\\{n}-grams:")
        for gram in grams:
            p, weight = model[gram]
            line = f"{_log10(p):.4f} {' '.join(gram)}"
            lines.append(line if n == ORDER else f"{line} {_log10(weight):.4f}")
        lines.append("")
    return "\n".join([*lines, "\\end\\", ""])


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else _LOG_ZERO


def compressed(text: str) -> bytes:
    """The text, compressed by gzip; the same text gives the same bytes."""
    return gzip.compress(text.encode(), 9, mtime=0)
