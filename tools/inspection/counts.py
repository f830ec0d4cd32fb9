"""Counts of codes and of lengths, and what they say: entropy, quantiles, histograms."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 64
NUM_FREQUENT = 10
_DENSE = 1 << 20


class Counts:
    """Occurrences of each whole number, from 0 on.

    Numbers below 2**20 are counted in an array, larger ones in sorted pairs, so that memory is
    bounded by the numbers that occur.
    """

    def __init__(self) -> None:
        self._dense = np.zeros(0, np.int64)
        self._large = np.zeros(0, np.int64)
        self._large_counts = np.zeros(0, np.int64)

    def add(self, numbers: NDArray[Any]) -> None:
        """Count (n,) numbers."""
        if numbers.size and int(numbers.max()) >= _DENSE:
            is_large = numbers >= _DENSE
            self._add_large(numbers[is_large])
            numbers = numbers[~is_large]
        found = np.bincount(numbers, minlength=self._dense.size)
        found[: self._dense.size] += self._dense
        self._dense = found

    def _add_large(self, numbers: NDArray[Any]) -> None:
        new, new_counts = np.unique(numbers, return_counts=True)
        joined = np.concatenate([self._large, new.astype(np.int64)])
        self._large, places = np.unique(joined, return_inverse=True)
        counts = np.zeros(self._large.size, np.int64)
        np.add.at(counts, places, np.concatenate([self._large_counts, new_counts]))
        self._large_counts = counts

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The numbers that occur, ascending, and their counts, both (n,)."""
        small = np.flatnonzero(self._dense)
        return (
            np.concatenate([small, self._large]),
            np.concatenate([self._dense[small], self._large_counts]),
        )


def describe_codes(counts: Counts) -> dict[str, Any]:
    """Codes used, order-0 entropy in bits, frequent codes, and a histogram of ranges."""
    codes, num = counts.pairs()
    shares = num / max(int(num.sum()), 1)
    first = np.lexsort((codes, -num))[:NUM_FREQUENT]
    num_shown = int(codes.max(initial=0)) + 1
    codes_per_bin = -(-num_shown // NUM_BINS)
    bins = np.zeros(-(-num_shown // codes_per_bin), np.int64)
    np.add.at(bins, codes // codes_per_bin, num)
    return {
        "codes_used": int(codes.size),
        "entropy_bits": round(abs(float((shares * np.log2(shares)).sum())), 4),
        "most_frequent": np.stack([codes[first], num[first]], 1).tolist(),
        "histogram": {"codes_per_bin": codes_per_bin, "counts": bins.tolist()},
    }


def describe_lengths(counts: Counts) -> dict[str, Any] | None:
    """Number, sum, extremes, median, mean and histogram of lengths; None if there are none."""
    lengths, num = counts.pairs()
    if not num.size:
        return None
    total = int(num.sum())
    low, high = int(lengths[0]), int(lengths[-1])
    width = -(-(high - low + 1) // NUM_BINS)
    bins = np.zeros(-(-(high - low + 1) // width), np.int64)
    np.add.at(bins, (lengths - low) // width, num)
    return {
        "num": total,
        "sum": int((lengths * num).sum()),
        "min": low,
        "median": int(lengths[np.searchsorted(np.cumsum(num), (total + 1) // 2)]),
        "mean": round(float((lengths * num).sum()) / total, 2),
        "max": high,
        "histogram": {"first": low, "lengths_per_bin": width, "counts": bins.tolist()},
    }
