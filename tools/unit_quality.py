"""How good speech units are: what they tell of phones, how alike two clips are, what noise changes.

The first three figures are those of the HuBERT paper (Hsu et al. 2021, arXiv 2106.07447, section
V.A), over frames that bear a phone `y` and a unit `z`:

- PNMI, I(y; z) / H(y): the share of what is not known about the phone that the unit tells.
- Phone purity: how often the unit's most frequent phone is right.
- Cluster purity: how often the phone's most frequent unit is there; it falls as units are added.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.kernels import compiled


def pnmi(labels: ArrayLike, units: ArrayLike) -> float:
    """Phone-normalised mutual information of frames, 0 to 1.

    Args:
        labels: (n,) the phone of each frame, numbers or text.
        units: (n,) integers, the unit of each frame.

    Raises:
        ValueError: Other shapes, no frames, or fewer than two phones, whose entropy is 0.
    """
    joint = joint_counts(labels, units) / np.size(labels)
    of_phones, of_units = joint.sum(1), joint.sum(0)
    phone_entropy = _entropy(of_phones)
    if phone_entropy == 0:
        raise ValueError(f"all {np.size(labels)} frames have one phone, expected two or more")
    information = phone_entropy + _entropy(of_units) - _entropy(joint)
    return float(min(1.0, max(0.0, information / phone_entropy)))


def phone_purity(labels: ArrayLike, units: ArrayLike) -> float:
    """Share of frames whose phone is the most frequent one of their unit; see `pnmi`."""
    return float(joint_counts(labels, units).max(0).sum() / np.size(labels))


def cluster_purity(labels: ArrayLike, units: ArrayLike) -> float:
    """Share of frames whose unit is the most frequent one of their phone; see `pnmi`."""
    return float(joint_counts(labels, units).max(1).sum() / np.size(labels))


def joint_counts(labels: ArrayLike, units: ArrayLike) -> NDArray[np.int64]:
    """(phones that occur, units that occur) int64: frames of each pair; errors as `pnmi`."""
    phones, clusters = np.asarray(labels), np.asarray(units)
    if phones.ndim != 1 or phones.shape != clusters.shape or not len(phones):
        raise ValueError(
            f"labels of shape {list(phones.shape)} and units of shape {list(clusters.shape)},"
            " expected one of each a frame: the same [frames], at least one"
        )
    names, rows = np.unique(phones, return_inverse=True)
    ids, columns = np.unique(clusters, return_inverse=True)
    flat = np.bincount(rows * len(ids) + columns, minlength=len(names) * len(ids))
    return flat.reshape(len(names), len(ids))


def perplexity(counts: ArrayLike) -> float:
    """Number of equally frequent units with the same entropy as these counts.

    perplexity([5, 5, 0]) == 2.0.

    Raises:
        ValueError: Nothing was counted.
    """
    frequencies = np.asarray(counts, np.float64)
    if not frequencies.sum() > 0:
        raise ValueError("no units were counted, expected at least one")
    return float(np.exp(_entropy(frequencies / frequencies.sum())))


def _entropy(shares: NDArray[np.float64]) -> float:
    """In nats."""
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def unit_edit_distance(a: Sequence[int] | NDArray[Any], b: Sequence[int] | NDArray[Any]) -> float:
    """Units to insert, drop or replace to make `b` of `a`, over the longer one's length: 0 to 1.

    Collapse repeats first to compare what is said rather than how fast. Two empty clips are equal.

    Raises:
        ValueError: Other than one row of integers each.
    """
    first, second = _one_row(a), _one_row(b)
    longer = max(len(first), len(second))
    return int(_edits(first, second)) / longer if longer else 0.0


def unit_survival(clean: ArrayLike, noisy: ArrayLike) -> float:
    """Share of frames whose unit stays the same, 0 to 1.

    Args:
        clean: (n,) integers, units of each frame, repeats kept.
        noisy: (n,) those of the same clip with noise.

    Raises:
        ValueError: Other shapes or no frames.
    """
    before, after = _one_row(clean), _one_row(noisy)
    if len(before) != len(after) or not len(before):
        raise ValueError(
            f"{len(before)} and {len(after)} units, expected as many of both and at least one;"
            " compare clips of the same length before repeats are collapsed"
        )
    return float((before == after).mean())


def _one_row(units: ArrayLike) -> NDArray[np.int64]:
    row = np.asarray(units)
    if row.ndim != 1 or (len(row) and row.dtype.kind not in "iu"):
        raise ValueError(f"{row.dtype} of shape {list(row.shape)}, expected one row of integers")
    return np.ascontiguousarray(row, np.int64)


_ROW = types.Array(types.int64, 1, "C", readonly=True)


@compiled(types.int64(_ROW, _ROW))
def _edits(a: Any, b: Any) -> Any:
    """Levenshtein's distance, one row of its table at a time."""
    row = np.arange(len(b) + 1)
    for i in range(len(a)):
        above_left = row[0]
        row[0] = i + 1
        for j in range(len(b)):
            above = row[j + 1]
            replaced = above_left + (a[i] != b[j])
            row[j + 1] = min(replaced, above + 1, row[j] + 1)
            above_left = above
    return row[len(b)]
