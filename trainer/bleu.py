"""Corpus BLEU-4, a criterion for the best checkpoint of a run.

The sums are additive, so batches and processes are counted separately. Words are lower-case runs
of letters and digits; published figures use the PTB tokenizer (see `im2sp-evaluate`).
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

MAX_ORDER = 4
NUM_SUMS = 2 * MAX_ORDER + 2
_WORDS = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """The words of a text."""
    return _WORDS.findall(text.lower())


def bleu_sums(found: Sequence[Hashable], references: Sequence[Sequence[Hashable]]) -> list[int]:
    """Counts of one sequence, to be added up over a corpus.

    Args:
        found: Generated words or units.
        references: Reference sequences, at least one.

    Returns:
        Matches of order 1 to 4, n-grams of order 1 to 4, length, length of the nearest reference.
    """
    matches, totals = [], []
    for order in range(1, MAX_ORDER + 1):
        most: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            most |= _ngrams(reference, order)
        own = _ngrams(found, order)
        matches.append((own & most).total())
        totals.append(own.total())
    nearest = min((abs(len(ref) - len(found)), len(ref)) for ref in references)[1]
    return [*matches, *totals, len(found), nearest]


def bleu(sums: Sequence[float]) -> float:
    """BLEU-4 in [0, 1] from the sums of a corpus; 0 if an order has no match.

    >>> bleu(bleu_sums("a dog runs in snow".split(), ["a dog runs in snow".split()]))
    1.0
    """
    matches, totals = sums[:MAX_ORDER], sums[MAX_ORDER : 2 * MAX_ORDER]
    length, reference_length = sums[2 * MAX_ORDER :]
    if min(matches) <= 0:
        return 0.0
    logs = [math.log(match / total) for match, total in zip(matches, totals, strict=True)]
    brevity = min(0.0, 1 - reference_length / length)
    return math.exp(sum(logs) / MAX_ORDER + brevity)


def _ngrams(sequence: Sequence[Hashable], order: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(sequence[i : i + order]) for i in range(len(sequence) - order + 1))
