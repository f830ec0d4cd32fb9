"""Tables of the `grid-huffman` codec, fitted to a sample of grids.

1. Each code gets a vector by the codes that it adjoins (correspondence analysis); k-means of these
   vectors divides the codes into clusters.
2. Two log-bilinear models predict a unit's cluster, and then the unit in its cluster, from the
   neighbours (`grid_model.py`).
3. k-means in the metric of the predictions merges what makes the least difference: codes become
   classes, and pairs of classes become contexts (`grid_merge.py`).
4. The counts in each context, smoothed with the predictions, put its symbols in order. Contexts
   with similar counts by rank share a Huffman code of the ranks.

Where neighbours do not help, the tables have one context: at worst a unit takes its plain bits.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding.grid import GridHuffmanCodec
from im2sp.shards.coding.grid_merge import (
    Ints,
    code_vectors,
    divided,
    k_means,
    means,
    merged,
    rank_codes,
    root_of,
)
from im2sp.shards.coding.grid_model import NUM_NEIGHBOURS, Floats, LogBilinear, train
from im2sp.shards.coding.grid_tables import MAX_CODES, GridTables
from im2sp.shards.errors import ShardError, check_int

_MAX_UNITS = 4_000_000
_MAX_HELD_OUT = 256
_MAX_SAMPLE = 50_000
_MAX_MEMBERS = 128
_WIDTH = 48
_UPPER_RATE, _LOWER_RATE = 0.07, 0.04
_PRIOR = 40.0
_SMALL = 1e-3
_UNITS_A_CONTEXT = 500

Counts = list[Floats]


@dataclass(frozen=True, kw_only=True)
class GridSizes:
    """Sizes of the tables: larger ones take fewer bits a unit and more of the processor's cache."""

    clusters: int = 96
    """Clusters before large ones are divided."""
    left_classes: int = 256
    above_classes: int = 127
    joint_classes: int = 96
    contexts: int = 512
    """Contexts of the cluster."""
    member_contexts: int = 1024
    """Contexts of the member, in all clusters."""
    cluster_codes: int = 8
    """Codes of ranks that contexts of the cluster share."""
    member_codes: int = 16
    """Codes of ranks that contexts of the member share."""


def fit_grid_tables(
    grids: NDArray[Any], num_codes: int, sizes: GridSizes | None = None
) -> GridTables:
    """Fit tables to grids; the same grids give the same tables on the same machine.

    It takes about 10 microseconds a unit, for four million units at most; further grids are not
    used.

    Args:
        grids: (n, rows, columns) integers below `num_codes`. Codes that do not occur can still be
            coded.
        num_codes: Number of codes, at most 16,384.
        sizes: Sizes of the tables; by default as large as decoding at full speed allows.

    Raises:
        ShardError: The grids have another shape, or a code is out of range.
    """
    check_int("num_codes", num_codes, 1, MAX_CODES)
    if grids.ndim != 3 or 0 in grids.shape[1:] or grids.dtype.kind not in "iu":
        raise ShardError(f"grids are {grids.dtype} {grids.shape}; expected (n, rows, columns)")
    if grids.size and not (int(grids.min()) >= 0 and int(grids.max()) < num_codes):
        raise ShardError(
            f"grids hold {grids.min()} to {grids.max()}; expected 0 to {num_codes - 1}"
        )
    grids = grids[: max(1, _MAX_UNITS // int(np.prod(grids.shape[1:])))]
    is_held_out = np.arange(len(grids)) % 16 == 15
    sample, held_out = grids[~is_held_out], grids[is_held_out][:_MAX_HELD_OUT]
    counts = np.bincount(sample.reshape(-1), minlength=num_codes)
    found = [_plain_tables(np.ones(num_codes)), _plain_tables(counts + 0.5)]
    if len(held_out):
        found.append(_Fit(sample, num_codes, sizes or GridSizes()).tables())
    return min(found, key=partial(mean_bits, held_out)) if len(held_out) else found[0]


def mean_bits(grids: NDArray[Any], tables: GridTables) -> float:
    """Bits a unit that tables need for (n, rows, columns) grids, without filling bits."""
    codec = GridHuffmanCodec(shape=(grids.shape[1], grids.shape[2]), tables=tables)
    coded = (codec.codes_of(grid.reshape(-1).astype(np.int64)) for grid in grids)
    total = sum(int(lengths.sum()) for codes in coded for _, lengths in codes)
    return total / grids.size


def _plain_tables(weights: Floats) -> GridTables:
    """Tables with one context, for units with these weights."""
    num_codes = weights.size
    num_members = 1 << (num_codes.bit_length() + 1) // 2
    clusters = np.empty(num_codes, np.int64)
    clusters[np.argsort(-weights, kind="stable")] = np.arange(num_codes) // num_members
    totals = np.bincount(clusters, weights)
    members = [weights[clusters == cluster] for cluster in range(totals.size)]
    one_class = np.zeros(num_codes, np.int64)
    return _assembled(
        clusters,
        (one_class, one_class, np.zeros((2, 2))),
        (np.zeros((2, 1)), np.zeros((totals.size, 2))),
        ([totals.astype(np.float64)], members),
        GridSizes(),
    )


def _assembled(
    clusters: Ints,
    classes: tuple[Ints, Ints, NDArray[Any]],
    contexts: tuple[NDArray[Any], NDArray[Any]],
    counts: tuple[Counts, Counts],
    sizes: GridSizes,
) -> GridTables:
    """Tables with codes for the counts.

    Args:
        clusters: (codes,) cluster of each code.
        classes: Left, above and joint classes.
        contexts: Contexts of the cluster and of the member.
        counts: Counts of the symbols in each of these contexts.
        sizes: Numbers of codes.
    """
    orders = [[np.argsort(-one, kind="stable").astype(np.uint8) for one in some] for some in counts]
    codes, lengths = rank_codes(counts[0], sizes.cluster_codes)
    member_codes, member_lengths = rank_codes(counts[1], sizes.member_codes)
    lengths += member_lengths
    code_lengths = np.zeros((len(lengths), max(map(len, lengths))), np.uint8)
    for row, found in zip(code_lengths, lengths, strict=True):
        row[: len(found)] = found
    first = len(lengths) - len(member_lengths)
    return GridTables(
        clusters=clusters.astype(np.uint8),
        left_classes=classes[0].astype(np.uint16),
        above_classes=classes[1].astype(np.uint8),
        joint_classes=classes[2].astype(np.uint8),
        cluster_contexts=contexts[0].astype(np.uint16),
        member_contexts=contexts[1].astype(np.uint8),
        cluster_orders=np.stack(orders[0]),
        member_orders=np.concatenate(orders[1]),
        rank_codes=np.concatenate([codes, member_codes + first]).astype(np.uint8),
        code_lengths=code_lengths,
    )


class _Fit:
    """Units of a sample with their neighbours, the clusters, and the models of both symbols."""

    def __init__(self, grids: NDArray[Any], num_codes: int, sizes: GridSizes) -> None:
        self._sizes = sizes
        self._neighbours = _neighbours(grids, num_codes)
        units = grids.reshape(-1).astype(np.int64)
        self._weights = np.bincount(units, minlength=num_codes) + 0.5
        vectors = code_vectors(grids, num_codes, _WIDTH)
        clusters = k_means(vectors, self._weights, min(sizes.clusters, num_codes // 8 + 1))
        self._clusters = divided(clusters, vectors, max(_MAX_MEMBERS, num_codes // 64))
        ranks = np.empty(num_codes, np.int64)  # numbers of the codes, cluster by cluster
        ranks[np.argsort(self._clusters, kind="stable")] = np.arange(num_codes)
        ends = np.cumsum(np.bincount(self._clusters))
        self._members = [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        self._targets, self._ranks = self._clusters[units], ranks[units]
        bounds = np.cumsum(np.bincount(self._targets, minlength=ends.size))
        self._rows = np.split(np.argsort(self._targets, kind="stable"), bounds[:-1])
        totals = np.bincount(self._clusters, self._weights)
        shares = np.empty(num_codes)
        shares[ranks] = self._weights / totals[self._clusters]
        self._upper = _initial(vectors, totals / totals.sum())
        self._lower = _initial(vectors, shares)
        self._train()

    def _train(self) -> None:
        targets = self._targets
        firsts = np.array([members.start for members in self._members])
        sizes = np.array([members.stop for members in self._members]) - firsts
        num_epochs = 2 if targets.size <= _MAX_UNITS // 2 else 1
        all_clusters = np.zeros_like(targets), np.full_like(targets, len(self._members))
        for model, symbols, ranges, rate in (
            (self._upper, targets, all_clusters, _UPPER_RATE),
            (self._lower, self._ranks, (firsts[targets], sizes[targets]), _LOWER_RATE),
        ):
            train(model, self._neighbours, symbols, ranges, rate=rate, num_epochs=num_epochs)

    def tables(self) -> GridTables:
        """Merge codes to classes, pairs of classes to contexts, and make the codes."""
        sizes, max_contexts = self._sizes, self._targets.size // _UNITS_A_CONTEXT + 1
        upper_root, lower_root = self._roots()
        left, above, right = (vectors[:-1] @ upper_root for vectors in self._upper.neighbours)
        left = np.hstack([left, self._lower.neighbours[0][:-1] @ lower_root])
        left_classes = k_means(left, self._weights, sizes.left_classes)
        above_classes = k_means(np.hstack([above, right]), self._weights, sizes.above_classes)
        lefts = _with_outside(left_classes)[self._neighbours[:, 0]]
        aboves = _with_outside(above_classes)[self._neighbours[:, 1:]]
        joint_classes, joints, joint_vectors = merged(
            self._class_means(self._upper.neighbours[1], above_classes),
            self._class_means(self._upper.neighbours[2], above_classes),
            aboves[:, 0],
            aboves[:, 1],
            upper_root,
            sizes.joint_classes,
        )
        cluster_contexts, contexts, hidden = merged(
            self._class_means(self._upper.neighbours[0], left_classes),
            joint_vectors,
            lefts,
            joints,
            upper_root,
            min(sizes.contexts, max_contexts),
        )
        chances = self._upper.probabilities(hidden, slice(None))
        cluster_counts = list(_counts(contexts, self._targets, chances))
        num_contexts = min(sizes.member_contexts, max_contexts)
        member_contexts, member_counts = self._members_merged(left_classes, lefts, num_contexts)
        return _assembled(
            self._clusters,
            (left_classes, above_classes, joint_classes),
            (cluster_contexts, member_contexts),
            (cluster_counts, member_counts),
            sizes,
        )

    def _roots(self) -> tuple[Floats, Floats]:
        """Metrics of both models, averaged over a sample; see `root_of`."""
        rows = np.linspace(0, self._targets.size - 1, _MAX_SAMPLE).astype(np.int64)
        hidden = self._upper.hidden(self._neighbours[rows])
        upper = self._upper.information(hidden, slice(None))
        lower = np.zeros_like(upper)
        for cluster, members in enumerate(self._members):
            some = rows[self._targets[rows] == cluster]
            hidden = self._lower.hidden(self._neighbours[some])
            lower += self._lower.information(hidden, members)
        return root_of(upper / rows.size), root_of(lower / rows.size)

    def _class_means(self, vectors: Floats, classes: Ints) -> Floats:
        """Mean vector of each class, and that of a neighbour outside the grid."""
        return np.concatenate([means(vectors[:-1], classes, self._weights), vectors[-1:]])

    def _members_merged(
        self, left_classes: Ints, lefts: Ints, num_contexts: int
    ) -> tuple[Ints, Counts]:
        """Contexts of the members, (clusters, left classes), and the counts in each."""
        left_vectors = self._class_means(self._lower.neighbours[0], left_classes)
        contexts: list[Ints] = []
        found: Counts = []
        for rows, members in zip(self._rows, self._members, strict=True):
            num = round(num_contexts * rows.size / self._targets.size)
            some = rows[:: max(1, rows.size // 2000)]
            hidden = self._lower.hidden(self._neighbours[some])
            others = (hidden - self._lower.neighbours[0][self._neighbours[some, 0]]).sum(0)
            vectors = left_vectors + others / max(1, some.size)
            root = root_of(self._lower.information(hidden, members))
            weights = np.bincount(lefts[rows], minlength=len(vectors)) + _SMALL
            groups = k_means(vectors @ root, weights, min(max(num, 1), 255))
            chances = self._lower.probabilities(means(vectors, groups, weights), members)
            symbols = self._ranks[rows] - members.start
            found += list(_counts(groups[lefts[rows]], symbols, chances))
            contexts.append(groups)
        return np.stack(contexts), found


def _neighbours(grids: NDArray[Any], outside: int) -> NDArray[np.int32]:
    """(units, 3) codes to the left, above and above right of each unit."""
    num, num_rows, num_columns = grids.shape
    wide = np.full((num, num_rows + 1, num_columns + 2), outside, np.int32)
    wide[:, 1:, 1:-1] = grids
    found = (wide[:, 1:, :-2], wide[:, :-1, 1:-1], wide[:, :-1, 2:])
    return np.stack([codes.reshape(-1) for codes in found], axis=1)


def _initial(vectors: Floats, shares: Floats) -> LogBilinear:
    """Model that predicts the shares of the symbols whatever the neighbours are."""
    neighbours = np.zeros((NUM_NEIGHBOURS, len(vectors) + 1, _WIDTH), np.float32)
    neighbours[:, :-1] = vectors
    zeros = np.zeros((shares.size, _WIDTH), np.float32)
    return LogBilinear(neighbours, zeros, np.log(shares).astype(np.float32))


def _with_outside(classes: Ints) -> Ints:
    """Classes, and that of a neighbour outside the grid."""
    return np.append(classes, classes.max() + 1)


def _counts(contexts: Ints, symbols: Ints, chances: Floats) -> Floats:
    """Counts (contexts, symbols), smoothed with the expected distributions."""
    num, num_symbols = chances.shape
    counts = np.bincount(contexts * num_symbols + symbols, minlength=num * num_symbols)
    return counts.reshape(num, num_symbols) + _PRIOR * chances + _SMALL
