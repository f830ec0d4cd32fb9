"""Log-bilinear model of units given their neighbours, behind the tables of `grid_fit.py`.

The probability of a symbol is the softmax of `vectors[symbol] @ hidden + biases[symbol]`, where
`hidden` is the sum of one vector for each neighbour (Mnih and Hinton, 2007). Unlike counts, it
generalises to combinations of neighbours that are rare in the sample.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from im2sp.shards.coding.packing_kernels import compiled

NUM_NEIGHBOURS = 3
_RATE_SHARE_AT_END = 0.02
_PARTS_AN_EPOCH = 8

Floats = NDArray[np.floating[Any]]
_F1, _F2, _F3 = (types.Array(types.float32, axes, "C") for axes in (1, 2, 3))
_I1 = types.Array(types.int64, 1, "C", readonly=True)
_I2 = types.Array(types.int32, 2, "C", readonly=True)


@dataclass(frozen=True, eq=False)
class LogBilinear:
    """Parameters of the model."""

    neighbours: Floats
    """(3, codes + 1, width) vector of each code as the unit to the left, above and above right; the
    last one stands for a neighbour outside the grid."""
    vectors: Floats
    """(symbols, width)."""
    biases: Floats
    """(symbols,)."""

    def hidden(self, contexts: NDArray[np.int32]) -> Floats:
        """(n, width) sums of the vectors of (n, 3) neighbours."""
        left, above, right = (self.neighbours[k][contexts[:, k]] for k in range(NUM_NEIGHBOURS))
        return left + above + right

    def probabilities(self, hidden: Floats, symbols: slice) -> Floats:
        """Distribution over a range of symbols for each row of (n, width) `hidden`."""
        scores = hidden @ self.vectors[symbols].T + self.biases[symbols]
        scores = np.exp(scores - scores.max(1, keepdims=True))
        return scores / scores.sum(1, keepdims=True)

    def information(self, hidden: Floats, symbols: slice) -> Floats:
        """(width, width) Fisher information of `hidden`, summed over its (n, width) rows.

        A small change d of `hidden` costs d @ information @ d / 2 nats.
        """
        vectors, chances = self.vectors[symbols], self.probabilities(hidden, symbols)
        means = chances @ vectors
        return (vectors.T * chances.sum(0)) @ vectors - means.T @ means


def train(
    model: LogBilinear,
    contexts: NDArray[np.int32],
    targets: NDArray[np.int64],
    ranges: tuple[NDArray[np.int64], NDArray[np.int64]],
    *,
    rate: float,
    num_epochs: int,
) -> None:
    """Train in place by stochastic gradient descent with one adaptive rate a vector.

    Args:
        model: Initial parameters; changed.
        contexts: (n, 3) codes of the neighbours.
        targets: (n,) symbols.
        ranges: First symbol, and number of symbols, that each target is one of; (n,) each.
        rate: Initial rate; it falls linearly.
        num_epochs: Passes over the samples, always in the same order.
    """
    squares = [
        np.full(shape, 1e-3, np.float32)
        for shape in (model.neighbours.shape[:2], model.vectors.shape[:1])
    ]
    rng = np.random.default_rng(0)
    for epoch in range(num_epochs):
        parts = np.array_split(rng.permutation(len(targets)), _PARTS_AN_EPOCH)
        for k, part in enumerate(parts):
            left = 1 - (epoch + k / _PARTS_AN_EPOCH) / num_epochs
            _descend(
                part,
                contexts,
                targets,
                *ranges,
                model.neighbours,
                model.vectors,
                model.biases,
                *squares,
                rate * (left + _RATE_SHARE_AT_END),
            )


@compiled(
    types.void(_I1, _I2, _I1, _I1, _I1, _F3, _F2, _F1, _F2, _F1, types.float32), fastmath=True
)
def _descend(
    order: Any,
    contexts: Any,
    targets: Any,
    firsts: Any,
    sizes: Any,
    neighbours: Any,
    vectors: Any,
    biases: Any,
    neighbour_squares: Any,
    vector_squares: Any,
    rate: float,
) -> None:
    """One step for each sample of `order`: row-wise AdaGrad."""
    width = vectors.shape[1]
    hidden, gradient = np.zeros(width, np.float32), np.zeros(width, np.float32)
    chances = np.zeros(sizes.max(), np.float32)
    for i in order:
        first, size = firsts[i], sizes[i]
        hidden[:] = 0
        for role in range(NUM_NEIGHBOURS):
            vector = neighbours[role, contexts[i, role]]
            for d in range(width):
                hidden[d] += vector[d]
        highest = np.float32(-1e30)
        for k in range(size):
            score, vector = biases[first + k], vectors[first + k]
            for d in range(width):
                score += hidden[d] * vector[d]
            chances[k] = score
            highest = max(highest, score)
        total, square = np.float32(0), np.float32(1e-3)
        for k in range(size):
            chances[k] = math.exp(chances[k] - highest)
            total += chances[k]
        for d in range(width):
            square += hidden[d] * hidden[d] / width
        gradient[:] = 0
        for k in range(size):
            error = chances[k] / total - np.float32(first + k == targets[i])
            vector_squares[first + k] += error * error * square
            step = rate * error / np.float32(math.sqrt(vector_squares[first + k]))
            biases[first + k] -= np.float32(0.3) * step
            vector = vectors[first + k]
            for d in range(width):
                gradient[d] += error * vector[d]
                vector[d] -= step * hidden[d]
        square = np.float32(0)
        for d in range(width):
            square += gradient[d] * gradient[d] / width
        for role in range(NUM_NEIGHBOURS):
            code = contexts[i, role]
            neighbour_squares[role, code] += square
            step = rate / np.float32(math.sqrt(neighbour_squares[role, code]))
            vector = neighbours[role, code]
            for d in range(width):
                vector[d] -= step * gradient[d]


@compiled(types.void(_I1, _I1, _F2, _F2), fastmath=True)
def add_rows(targets: Any, sources: Any, rows: Any, sums: Any) -> None:
    """Add `rows[sources[i]]` to `sums[targets[i]]` for each i."""
    for i in range(targets.size):
        row, total = rows[sources[i]], sums[targets[i]]
        for d in range(rows.shape[1]):
            total[d] += row[d]
