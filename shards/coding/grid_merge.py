"""Grouping of codes and of contexts, and codes shared by contexts, for `grid_fit.py`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding.grid_model import Floats, add_rows
from im2sp.shards.coding.huffman_fit import code_lengths

_MAX_UNITS = 1_500_000
_TURNS_OF_VECTORS = 4
_TURNS_OF_K_MEANS = 8
_TURNS_OF_CODES = 6
_MAX_BITS = 10  # longer codes make the decoder's tables exceed the processor's cache
_SMALL = 1e-3

Ints = NDArray[np.int64]


def code_vectors(grids: NDArray[Any], num_codes: int, width: int) -> Floats:
    """Vectors of the codes by what they adjoin, (codes, width), 0.3 in the root mean square.

    Correspondence analysis of the counts of neighbours in the four directions: singular vectors of
    the four matrices side by side, found by subspace iteration.
    """
    some = grids[: max(1, _MAX_UNITS // grids[0].size)].astype(np.int64)
    pairs = [
        (first.reshape(-1), second.reshape(-1))
        for first, second in ((some[:, :, :-1], some[:, :, 1:]), (some[:, :-1], some[:, 1:]))
    ]
    pairs += [(second, first) for first, second in pairs]
    columns = [_inverse_root(np.bincount(second, minlength=num_codes)) for _, second in pairs]
    firsts = np.concatenate([first for first, _ in pairs])
    rows = _inverse_root(np.bincount(firsts, minlength=num_codes))
    size = num_codes, min(width + 1, num_codes)
    vectors = np.random.default_rng(0).normal(size=size).astype(np.float32)
    applied = vectors
    for _ in range(_TURNS_OF_VECTORS):
        vectors = np.linalg.qr(applied)[0]
        applied = np.zeros_like(vectors)
        for (first, second), scale in zip(pairs, columns, strict=True):
            right = _added(second, first, rows * vectors, num_codes)
            applied += rows * _added(first, second, scale**2 * right, num_codes)
    squares, turn = np.linalg.eigh(vectors.T @ applied)
    found = rows * (vectors @ turn) * np.sqrt(np.maximum(squares, 0))
    found = found[:, ::-1][:, 1:]  # the first singular vector is constant
    weights = np.bincount(some.reshape(-1), minlength=num_codes) + 0.5
    scale = np.sqrt((weights @ found**2).sum() / weights.sum() / width)
    padded = np.zeros((num_codes, width), np.float32)
    padded[:, : found.shape[1]] = 0.3 * found / max(scale, 1e-9)
    return padded


def _inverse_root(counts: Ints) -> Floats:
    return ((counts + 1.0) ** -0.5).astype(np.float32)[:, None]


def _added(targets: Ints, sources: Ints, rows: Floats, num: int) -> Floats:
    sums = np.zeros((num, rows.shape[1]), np.float32)
    places = np.ascontiguousarray(targets), np.ascontiguousarray(sources)
    add_rows(*places, np.ascontiguousarray(rows, np.float32), sums)
    return sums


def divided(clusters: Ints, vectors: Floats, max_members: int) -> Ints:
    """Halve clusters along their longest axis until none has more members."""
    waiting = list(range(int(clusters.max()) + 1))
    while waiting:
        cluster = waiting.pop()
        members = np.flatnonzero(clusters == cluster)
        if members.size > max_members:
            centred = vectors[members] - vectors[members].mean(0)
            axis = np.linalg.svd(centred, full_matrices=False)[2][0]
            new = int(clusters.max()) + 1
            order = np.argsort(centred @ axis, kind="stable")
            clusters[members[order[members.size // 2 :]]] = new
            waiting += [cluster, new]
    return clusters


def root_of(information: Floats) -> Floats:
    """Matrix by which vectors are multiplied to make their distance what it costs to confuse them.

    Args:
        information: (width, width), positive semidefinite.
    """
    values, vectors = np.linalg.eigh(information)
    return (vectors * np.sqrt(np.maximum(values, 0))).astype(np.float32)


def k_means(points: Floats, weights: Floats, num: int) -> Ints:
    """Group of each of (n, width) points, numbered without gaps."""
    rng = np.random.default_rng(0)
    num = min(num, len(points))
    chosen = rng.choice(len(points), num, replace=False, p=weights / weights.sum())
    centres = points[chosen]
    groups = np.zeros(len(points), np.int64)
    for _ in range(_TURNS_OF_K_MEANS if num > 1 else 0):
        groups = ((centres**2).sum(1) - 2 * points @ centres.T).argmin(1)
        is_used = np.bincount(groups, minlength=num) > 0
        centres[is_used] = means(points, np.cumsum(is_used)[groups] - 1, weights)
    return np.unique(groups, return_inverse=True)[1]


def means(points: Floats, groups: Ints, weights: Floats) -> Floats:
    """Weighted mean of the points of each group."""
    totals = np.bincount(groups, weights)
    scaled = points * weights[:, None].astype(np.float32)
    return _added(groups, np.arange(groups.size), scaled, totals.size) / totals[:, None].astype(
        np.float32
    )


def merged(
    first: Floats, second: Floats, firsts: Ints, seconds: Ints, root: Floats, num: int
) -> tuple[Ints, Ints, Floats]:
    """Merge pairs of classes.

    Args:
        first: (a, width) vectors of the first classes.
        second: (b, width) vectors of the second classes.
        firsts: (n,) first class of each unit.
        seconds: (n,) second class of each unit.
        root: Metric of `root_of`.
        num: Number of groups.

    Returns:
        (a, b) group of each pair; (n,) group of each unit; (groups, width) mean vectors.
    """
    pairs = firsts * len(second) + seconds
    counts = np.bincount(pairs, minlength=len(first) * len(second)) + _SMALL
    vectors = (first[:, None] + second).reshape(counts.size, -1)
    groups = k_means(vectors @ root, counts, num)
    return groups.reshape(len(first), -1), groups[pairs], means(vectors, groups, counts)


def rank_codes(contexts: list[Floats], num: int) -> tuple[Ints, list[list[int]]]:
    """Code of the ranks for each context, and the lengths of each code.

    Lloyd's algorithm: each context takes the code that needs the fewest bits for it, each code is
    made for the contexts that took it.
    """
    sizes = np.array([counts.size for counts in contexts])
    ranked = np.zeros((sizes.size, sizes.max()))
    for row, counts in zip(ranked, contexts, strict=True):
        row[: counts.size] = -np.sort(-counts)
    totals = ranked.sum(1)
    peaks = ranked[:, 0] / totals
    order = np.lexsort((peaks, sizes))
    chosen = np.empty(sizes.size, np.int64)
    chosen[order] = np.cumsum(totals[order]) / totals.sum() * num * (1 - 1e-9)
    lengths: list[list[int]] = []
    before = chosen
    for _ in range(_TURNS_OF_CODES):
        chosen = np.unique(chosen, return_inverse=True)[1]
        lengths = []
        bits = np.full((int(chosen.max()) + 1, ranked.shape[1]), np.inf)
        for code in range(len(bits)):
            num_ranks = int(sizes[chosen == code].max())
            sums = ranked[chosen == code].sum(0)[:num_ranks]
            lengths.append(sorted(code_lengths(sums.tolist(), _MAX_BITS)))
            bits[code, :num_ranks] = lengths[-1]
        costs = ranked @ np.where(np.isinf(bits), 0, bits).T
        costs[sizes[:, None] > np.isfinite(bits).sum(1)] = np.inf
        chosen, before = costs.argmin(1), chosen
    return before, lengths
