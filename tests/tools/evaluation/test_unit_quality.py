import functools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im2sp.tools.evaluation.unit_quality import (
    cluster_purity,
    joint_counts,
    perplexity,
    phone_purity,
    pnmi,
    unit_edit_distance,
    unit_survival,
)

SMALL = st.lists(st.integers(0, 3), max_size=9)


def frames(num_frames=3000, num_phones=7, num_units=23, seed=0):
    """Units that tell something of the phone: each is drawn near its phone's own."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, num_phones, num_frames)
    units = (3 * labels + random.geometric(0.4, num_frames)) % num_units
    return labels, units


def naive_pnmi(labels, units):
    """I(y; z) / H(y), each sum as the paper writes it."""
    total = len(labels)
    phones, clusters = Counter(labels), Counter(units)
    information = sum(
        count / total * math.log(count * total / (phones[y] * clusters[z]))
        for (y, z), count in Counter(zip(labels, units, strict=True)).items()
    )
    return information / -sum(n / total * math.log(n / total) for n in phones.values())


def naive_purity(groups, values):
    """Share of frames with the most frequent value of their group."""
    best = sum(
        Counter(v for g, v in zip(groups, values, strict=True) if g == group).most_common(1)[0][1]
        for group in set(groups)
    )
    return best / len(groups)


@functools.cache
def naive_edits(a, b):
    if not a or not b:
        return len(a) + len(b)
    replaced = naive_edits(a[1:], b[1:]) + (a[0] != b[0])
    return (
        replaced
        if a[0] == b[0]
        else min(replaced, 1 + naive_edits(a[1:], b), 1 + naive_edits(a, b[1:]))
    )


def test_figures_of_the_paper_equal_the_sums_written_out():
    labels, units = frames()
    assert pnmi(labels, units) == pytest.approx(naive_pnmi(labels.tolist(), units.tolist()))
    assert phone_purity(labels, units) == naive_purity(units.tolist(), labels.tolist())
    assert cluster_purity(labels, units) == naive_purity(labels.tolist(), units.tolist())
    assert 0.3 < pnmi(labels, units) < 0.9


def test_known_values():
    labels = ["a", "a", "b", "b"]
    assert pnmi(labels, [5, 5, 9, 9]) == pytest.approx(1)
    assert pnmi(labels, [5, 6, 7, 8]) == pytest.approx(1)
    assert pnmi(labels, [5, 9, 5, 9]) == 0
    assert (phone_purity(labels, [5, 5, 5, 9]), cluster_purity(labels, [5, 6, 5, 5])) == (
        0.75,
        0.75,
    )
    assert joint_counts(labels, [5, 5, 5, 9]).tolist() == [[2, 0], [1, 1]]
    assert perplexity([5, 5, 0]) == pytest.approx(2)


def test_pnmi_does_not_depend_on_the_names():
    labels, units = frames()
    phones = np.array([f"phone {label}" for label in labels])
    assert pnmi(phones, units.astype(np.uint16) * 7) == pytest.approx(pnmi(labels, units))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pnmi([1, 2], [1]),
            r"shape \[2\] and units of shape \[1\], expected one per frame",
        ),
        (lambda: phone_purity([], []), "at least one"),
        (lambda: cluster_purity([[1]], [[1]]), r"the same \[frames\]"),
        (lambda: pnmi(["a"] * 3, [1, 2, 3]), "all 3 frames have one phone, expected two or more"),
        (lambda: perplexity([0, 0]), "no units were counted"),
        (
            lambda: unit_edit_distance([0.5], [1]),
            r"float64 of shape \[1\], expected one row of int",
        ),
        (lambda: unit_edit_distance([[1]], [1]), r"shape \[1, 1\], expected one row of integers"),
        (lambda: unit_survival([1, 2], [1]), "2 and 1 units, expected equal numbers"),
        (lambda: unit_survival([], []), "0 and 0 units, expected .* at least one"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@settings(deadline=None)  # the first call imports rapidfuzz
@given(SMALL, SMALL)
def test_edit_distance_equals_the_definition(a, b):
    edits = naive_edits(tuple(a), tuple(b))
    assert unit_edit_distance(a, b) == (edits / max(len(a), len(b)) if a or b else 0)


def test_edit_distance_of_long_clips():
    a = np.random.default_rng(0).integers(0, 200, 2000).astype(np.uint16)
    b = np.delete(a, [7, 900, 1999])
    b[100] += 1
    assert unit_edit_distance(a, b) == unit_edit_distance(b, a) == 4 / 2000
    assert unit_edit_distance(a, a[::1].copy()) == 0
    assert unit_edit_distance(a, []) == 1


def test_survival():
    assert unit_survival(np.array([1, 2, 3, 4], np.uint16), [1, 2, 9, 4]) == 0.75
