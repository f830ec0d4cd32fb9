"""BLEU, ROUGE-L and CIDEr as the COCO caption evaluation counts them, of tokens already split.

Each gives figures of single captions that add up to, or average to, the corpus's, so that a
bootstrap can draw them again. They equal pycocoevalcap 1.2 (CIDEr there is what its paper calls
CIDEr-D: clipped, with a Gaussian of the length's difference, sigma 6).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from im2sp.trainer.bleu import MAX_ORDER
from im2sp.trainer.bleu import bleu_sums as counted

Tokens = Sequence[Hashable]
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's, against a division by zero
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0


def _ngrams(tokens: Tokens) -> Counter[tuple[Hashable, ...]]:
    """How often each run of 1 to 4 tokens occurs."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    )


def bleu_sums(candidate: Tokens, references: Sequence[Tokens]) -> NDArray[np.float64]:
    """(NUM_SUMS,) what one candidate adds to its corpus, as `trainer.bleu` counts it; see `bleu`.

    Args:
        candidate: Its tokens, none is allowed.
        references: Those of one or more references.
    """
    return np.array(counted(candidate, references), np.float64)


def bleu(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 4) BLEU-1 to BLEU-4, 0 to 1, of (..., NUM_SUMS) sums over a corpus."""
    found, tried = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    length, closest = sums[..., 2 * MAX_ORDER, None], sums[..., 2 * MAX_ORDER + 1, None]
    products = np.cumprod((found + _TINY) / (tried + _SMALL), axis=-1)
    ratio = (length + _TINY) / (closest + _SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return products ** (1 / np.arange(1, MAX_ORDER + 1)) * brevity


def rouge_l(candidate: Tokens, references: Sequence[Tokens]) -> float:
    """ROUGE-L of one candidate, 0 to 1: best precision and best recall, each of any reference."""
    common = [_common(candidate, reference) for reference in references]
    precision = max(common) / len(candidate)
    recall = max(c / len(r) for c, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    weight = _ROUGE_BETA**2
    return (1 + weight) * precision * recall / (recall + weight * precision)


def _common(a: Tokens, b: Tokens) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for left in a:
        above_left = 0
        for j, right in enumerate(b, 1):
            above = row[j]
            row[j] = above_left + 1 if left == right else max(above, row[j - 1])
            above_left = above
    return row[-1]


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr of each candidate, 0 to 10; the corpus's is their mean.

    An n-gram weighs the less, the more images have it in their references. So a caption's score
    depends on the corpus: one image alone scores 0.
    """
    counts = [[_ngrams(reference) for reference in group] for group in references]
    images_with: dict[tuple[Hashable, ...], int] = defaultdict(int)
    for group in counts:
        for ngram in set().union(*group):
            images_with[ngram] += 1
    log_images = math.log(len(counts)) if counts else 0.0

    def vectors(ngrams: Counter[tuple[Hashable, ...]]) -> tuple[list[dict], list[float], int]:
        """Of each order the weights and their norm; and how many pairs of words there are."""
        weights: list[dict[tuple[Hashable, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for ngram, count in ngrams.items():
            rarity = log_images - math.log(max(1, images_with.get(ngram, 0)))
            weights[len(ngram) - 1][ngram] = count * rarity
        norms = [math.sqrt(sum(w * w for w in of_order.values())) for of_order in weights]
        return weights, norms, sum(c for ngram, c in ngrams.items() if len(ngram) == 2)

    scores = []
    for candidate, group in zip(candidates, counts, strict=True):
        ours, our_norms, our_length = vectors(_ngrams(candidate))
        total = 0.0
        for theirs, their_norms, their_length in map(vectors, group):
            gauss = math.exp(-((our_length - their_length) ** 2) / (2 * _CIDER_SIGMA**2))
            for order in range(MAX_ORDER):
                other = theirs[order]
                alike = sum(
                    min(weight, other[ngram]) * other[ngram]
                    for ngram, weight in ours[order].items()
                    if ngram in other
                )
                norm = our_norms[order] * their_norms[order]
                total += gauss * (alike / norm if norm else alike)
        scores.append(10 * total / MAX_ORDER / len(group))
    return scores
