"""Scores of the COCO caption evaluation: captions against their references.

Equal to pycocoevalcap 1.2 (its CIDEr is CIDEr-D of the paper: clipped, with a Gaussian penalty of
the length difference, sigma 6). BLEU, ROUGE-L and CIDEr have no dependencies; METEOR and SPICE are
Java programs, and if they cannot run, the report names what is missing. Intervals are bootstraps
over images; resamples keep the n-gram weights of CIDEr that the whole corpus gives.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from im2sp.tools.engines.java import (
    METEOR_JAR,
    TOKENIZER_JAR,
    JavaTools,
    Meteor,
    meteor_statistics,
    spice,
)
from im2sp.tools.evaluation.caption_tokens import tokenize, tokenize_with_java
from im2sp.tools.evaluation.intervals import DEFAULT_RESAMPLES, interval
from im2sp.trainer.bleu import MAX_ORDER
from im2sp.trainer.bleu import bleu_sums as counted

Tokens = Sequence[Hashable]
_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's guards against division by zero
_ROUGE_BETA = 1.2
_CIDER_SIGMA = 6.0


@dataclass(kw_only=True)
class Scores:
    """Scores of a corpus with 95 % intervals, and the reasons for missing scores.

    CIDEr is between 0 and 10, the others between 0 and 1.
    """

    num_items: int
    scores: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, score: float | np.floating, ends: ArrayLike) -> None:
        """Add a score and the two ends of its interval."""
        self.scores[name] = float(score)
        self.intervals[name] = np.asarray(ends, np.float64).tolist()

    def as_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {
            "num_items": self.num_items,
            **self.scores,
            "intervals": self.intervals,
            "missing": self.missing,
        }


def check_captions(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the ids in the candidates' order.

    Raises:
        ValueError: No captions, ids on one side only, or a value that is not text.
    """
    if not candidates:
        raise ValueError("no candidates, expected at least one id with its caption")
    for here, there, side in (
        (candidates, references, "references"),
        (references, candidates, "candidates"),
    ):
        alone = [key for key in here if key not in there]
        if alone:
            raise ValueError(
                f"{len(alone)} ids have no {side}, the first is {alone[0]!r}; give both for each id"
            )
    for key, text in candidates.items():
        if not isinstance(text, str):
            raise ValueError(f"candidate {key!r}: {type(text).__name__}, expected one text")
        group = references[key]
        if not isinstance(group, list | tuple) or not group:
            raise ValueError(f"references {key!r}: expected a list of one or more texts")
        if not all(isinstance(reference, str) for reference in group):
            raise ValueError(f"references {key!r}: an item of the list is not text")
    return list(candidates)


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    tools: JavaTools | None = None,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Scores:
    """Score captions.

    Args:
        candidates: Caption of each image id.
        references: One or more reference captions of each image id.
        tools: Java and its jars; None searches for them.
        resamples: Number of bootstrap resamples.
        seed: Random seed of the bootstrap.

    Raises:
        ValueError: See `check_captions`. A Java program that fails is in `missing`.
    """
    ids = check_captions(candidates, references)
    tools = JavaTools.find() if tools is None else tools
    result = Scores(num_items=len(ids))
    sizes = [len(references[key]) for key in ids]
    texts = [candidates[key] for key in ids]
    texts += [text for key in ids for text in references[key]]
    tokenized = _tokenized(result, texts, tools)
    found, flat = tokenized[: len(ids)], iter(tokenized[len(ids) :])
    wanted = [[next(flat) for _ in range(size)] for size in sizes]
    _put_ngram_scores(result, found, wanted, resamples, seed)
    for name, put in (("METEOR", _put_meteor), ("SPICE", _put_spice)):
        try:
            put(result, found, wanted, tools, resamples, seed)
        except (ValueError, LookupError, OSError) as error:
            result.missing[name] = str(error)
    return result


def _tokenized(result: Scores, texts: list[str], tools: JavaTools) -> list[str]:
    """Tokenize with the Java program if it can run, otherwise with `tokenize`."""
    if tools.missing(TOKENIZER_JAR) is None:
        assert tools.java is not None
        assert tools.jars is not None
        try:
            return tokenize_with_java(texts, tools.java, tools.jars / TOKENIZER_JAR)
        except (ValueError, OSError) as error:
            result.missing["tokenizer in Java"] = f"{error}; another one was used"
    return [tokenize(text) for text in texts]


def _put_ngram_scores(
    result: Scores, found: list[str], wanted: list[list[str]], resamples: int, seed: int
) -> None:
    words = [text.split() for text in found]
    groups = [[text.split() for text in group] for group in wanted]
    sums = np.stack([bleu_sums(c, group) for c, group in zip(words, groups, strict=True)])
    ends = interval(sums, bleu, resamples=resamples, seed=seed)
    for order, score in enumerate(bleu(sums.sum(0))):
        result.put(f"Bleu_{order + 1}", score, ends[:, order])
    # pycocoevalcap splits at single spaces here, so an empty text is one empty word.
    pairs = zip(found, wanted, strict=True)
    rouge = [rouge_l(c.split(" "), [r.split(" ") for r in group]) for c, group in pairs]
    result.put("ROUGE_L", np.mean(rouge), interval(rouge, resamples=resamples, seed=seed))
    each = cider(words, groups)
    result.put("CIDEr", np.mean(each), interval(each, resamples=resamples, seed=seed))


def _put_meteor(
    result: Scores,
    found: list[str],
    wanted: list[list[str]],
    tools: JavaTools,
    resamples: int,
    seed: int,
) -> None:
    why = tools.missing(METEOR_JAR)
    if why is not None:
        result.missing["METEOR"] = why
        return
    with Meteor(tools) as meteor:
        counts = meteor_statistics(meteor, found, wanted)

        def scored(sums: np.ndarray) -> np.ndarray:
            return np.array([meteor.score(row) for row in sums])

        ends = interval(counts, scored, resamples=resamples, seed=seed)
        result.put("METEOR", meteor.score(counts.sum(0)), ends)


def _put_spice(
    result: Scores,
    found: list[str],
    wanted: list[list[str]],
    tools: JavaTools,
    resamples: int,
    seed: int,
) -> None:
    why = tools.spice_missing()
    if why is not None:
        result.missing["SPICE"] = why
        return
    each = spice(tools, found, wanted)
    result.put("SPICE", np.mean(each), interval(each, resamples=resamples, seed=seed))


def _ngrams(tokens: Tokens) -> Counter[tuple[Hashable, ...]]:
    """Counts of n-grams of 1 to 4 tokens."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    )


def bleu_sums(candidate: Tokens, references: Sequence[Tokens]) -> NDArray[np.float64]:
    """(NUM_SUMS,) additive statistics of one candidate (see `trainer.bleu`), for `bleu`.

    Args:
        candidate: Tokens; may be empty.
        references: Tokens of one or more references.
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
    """ROUGE-L of one candidate, 0 to 1: best precision and best recall over the references."""
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
    """CIDEr of each candidate, 0 to 10; the corpus score is their mean.

    N-grams that occur in the references of many images weigh less, so a caption's score depends on
    the corpus: a single image scores 0.
    """
    counts = [[_ngrams(reference) for reference in group] for group in references]
    images_with: dict[tuple[Hashable, ...], int] = defaultdict(int)
    for group in counts:
        for ngram in set().union(*group):
            images_with[ngram] += 1
    log_images = math.log(len(counts)) if counts else 0.0

    def vectors(ngrams: Counter[tuple[Hashable, ...]]) -> tuple[list[dict], list[float], int]:
        """Weights and their norm for each order, and the number of bigrams."""
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
