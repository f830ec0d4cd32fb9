"""Counts agree with numpy over all numbers at once, in a few numbers or in large ones."""

import math

import numpy as np
import pytest

from im2sp.tools.inspection.counts import Counts, describe_codes, describe_lengths


@pytest.mark.parametrize("top", [5, 3000, 1 << 21, 1 << 32])
def test_counts_are_those_of_all_numbers_together(top):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, top, size, np.uint64) for size in (0, 1, 700, 30)]
    parts.append(np.array([0, top - 1, top - 1], np.uint64))
    counts = Counts()
    for part in parts:
        counts.add(part.astype(np.uint32))
    values, num = np.unique(np.concatenate(parts), return_counts=True)
    found = counts.pairs()
    assert found[0].tolist() == values.tolist()
    assert found[1].tolist() == num.tolist()


def test_entropy_and_frequent_codes():
    counts = Counts()
    counts.add(np.array([7] * 4 + [9] * 2 + [200] + [3], np.uint16))
    found = describe_codes(counts)
    assert found["entropy_bits"] == 1.75
    assert found["codes_used"] == 4
    assert found["most_frequent"] == [[7, 4], [9, 2], [3, 1], [200, 1]]
    assert found["histogram"]["codes_per_bin"] == 4  # 201 codes in at most 64 bins
    assert sum(found["histogram"]["counts"]) == 8
    assert found["histogram"]["counts"][1] == 4


def test_no_codes():
    found = describe_codes(Counts())
    assert (found["codes_used"], found["entropy_bits"], found["most_frequent"]) == (0, 0, [])
    assert describe_lengths(Counts()) is None


@pytest.mark.parametrize("high", [3, 40, 5000, 1 << 31])
def test_lengths(high):
    lengths = np.random.default_rng(1).integers(2, high, 501)
    lengths[0] = high
    counts = Counts()
    counts.add(lengths)
    found = describe_lengths(counts)
    assert (found["min"], found["max"]) == (lengths.min(), high)
    assert (found["num"], found["sum"]) == (501, lengths.sum())
    assert found["median"] == np.median(lengths)
    assert math.isclose(found["mean"], lengths.mean(), abs_tol=0.01)
    histogram = found["histogram"]
    assert len(histogram["counts"]) <= 64
    assert histogram["first"] + len(histogram["counts"]) * histogram["lengths_per_bin"] > high
    first = lengths < histogram["first"] + histogram["lengths_per_bin"]
    assert histogram["counts"][0] == first.sum()
