"""k-means by scikit-learn (extra `fit`), and a uniform sample of rows that arrive in batches."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im2sp.pipeline.speech_tokenizer.weights import MAX_UNITS
from im2sp.shards.errors import log

# Rows whose distances are in memory at once.
PIECE_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class KMeansFit:
    """Fitted centroids (K, D) float32, mean squared distance per row, iterations."""

    centroids: Tensor
    inertia: float
    num_rounds: int


def fit_kmeans(
    rows: Tensor | NDArray[np.floating[Any]],
    num_centroids: int,
    *,
    seed: int = 0,
    restarts: int = 1,
    max_rounds: int = 50,
    init: Literal["k-means++", "random"] = "k-means++",
    allow_duplicates: bool = False,
    quiet: bool = True,
) -> KMeansFit:
    """Fit K centroids to rows (n, D); reproducible for a fixed number of threads.

    Args:
        rows: Finite floats in memory.
        num_centroids: K.
        seed: Random seed of the starts.
        restarts: Number of starts; the one with the least inertia is kept.
        max_rounds: Maximum Lloyd iterations per start.
        init: Choice of initial centroids; k-means++ is slow for thousands of them.
        allow_duplicates: With fewer distinct rows than centroids, fill up with drawn rows.
        quiet: Do not log.

    Raises:
        ValueError: Fewer (distinct) rows than centroids, rows that are not finite floats, settings
            out of range, or scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError:
        raise ValueError(
            "k-means needs scikit-learn, which is not installed: pip install 'im2sp[fit]'"
        ) from None
    table = torch.as_tensor(rows).detach().cpu()
    if table.ndim != 2 or not table.is_floating_point() or not bool(table.isfinite().all()):
        found = f"{table.dtype} of shape {list(table.shape)}"
        raise ValueError(f"k-means: rows are {found}, expected finite floats [rows, width]")
    if not 1 <= num_centroids <= min(MAX_UNITS, len(table)):
        raise ValueError(
            f"k-means: {num_centroids} centroids for {len(table)} rows, expected 1 to {MAX_UNITS}"
            " and at least as many rows; give more data or ask for fewer centroids"
        )
    if restarts < 1 or max_rounds < 1:
        raise ValueError(f"k-means: {restarts} restarts of {max_rounds} rounds, expected 1 or more")
    if not quiet:
        log(f"k-means: {num_centroids} centroids for {len(table)} rows")
    model: Any = cast(Any, KMeans)(
        num_centroids, init=init, n_init=restarts, max_iter=max_rounds, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if allow_duplicates else "error", ConvergenceWarning)
        try:
            model.fit(table.float().numpy())
        except ConvergenceWarning as error:
            raise ValueError(f"k-means: {error} Give more data or fewer centroids") from None
    centroids = torch.from_numpy(model.cluster_centers_.astype(np.float32))
    # scikit-learn leaves arbitrary values in centroids without rows.
    is_unused = torch.bincount(torch.from_numpy(model.labels_).long(), minlength=num_centroids) == 0
    drawn = np.random.default_rng(seed).permutation(len(table))[: int(is_unused.sum())]
    centroids[is_unused] = table[torch.from_numpy(drawn)].float()
    return KMeansFit(
        centroids=centroids,
        inertia=float(model.inertia_) / len(table),
        num_rounds=int(model.n_iter_),
    )


def nearest_centroids(rows: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """(n, D) float32 -> ids (n,) int64 of the nearest of (K, D) centroids, and squared distances.

    Ties go to the first centroid.
    """
    half_lengths = centroids.square().sum(1) / 2
    ids, distances = [], []
    for piece in rows.split(PIECE_ROWS):
        best, nearest = torch.addmm(-half_lengths, piece, centroids.T).max(1)
        ids.append(nearest)
        distances.append((piece.square().sum(1) - 2 * best).clamp_(min=0))
    return torch.cat(ids), torch.cat(distances)


class Reservoir:
    """Uniform sample of at most `capacity` of `num_seen` rows, each with a tag (algorithm R).

    The sample depends on the seed and the order of the rows, not on the batches.
    """

    def __init__(self, capacity: int, *, seed: int) -> None:
        self.capacity, self.num_seen = capacity, 0
        self._random = np.random.default_rng(seed)
        self._rows = np.empty((0, 0), np.float32)
        self._tags = np.empty(capacity, np.int64)

    def add(self, rows: NDArray[np.float32], tags: NDArray[np.int64]) -> None:
        """Offer rows (n, D) and their tags (n,)."""
        if not self.num_seen:
            self._rows = np.empty((self.capacity, rows.shape[1]), np.float32)
        places = np.arange(self.num_seen, self.num_seen + len(rows))
        late = places >= self.capacity
        places[late] = self._random.integers(0, places[late] + 1)
        kept = places < self.capacity
        # If several rows have one place, numpy keeps the last.
        self._rows[places[kept]], self._tags[places[kept]] = rows[kept], tags[kept]
        self.num_seen += len(rows)

    @property
    def rows(self) -> NDArray[np.float32]:
        """(min(num_seen, capacity), D), a view."""
        return self._rows[: self.num_seen]

    @property
    def tags(self) -> NDArray[np.int64]:
        """Tags of `rows`, a view."""
        return self._tags[: self.num_seen]
