"""Intervals of scores: what they might have been on other items of the same kind."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 1000
_ROWS_AT_ONCE = 100


def interval(
    rows: NDArray[np.float64] | Sequence[float],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    *,
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """95 % interval of a figure, by the percentile bootstrap: items are drawn again and again.

    Args:
        rows: (n,) or (n, k) numbers of each item.
        statistic: Makes (resamples, ...) figures of the (resamples, k) sums of drawn rows; None for
            the mean of (n,) rows.
        resamples: How often n items are drawn with replacement.
        seed: Of the drawing. The same seed draws the same items, whatever the figure.

    Returns:
        (2, ...) float64, the lower and the upper end.

    Raises:
        ValueError: No items, or fewer than two resamples.
    """
    table = np.asarray(rows, np.float64)
    num_items = len(table)
    if not num_items or resamples < 2:
        raise ValueError(
            f"{num_items} items and {resamples} resamples; an interval needs at least one item"
            " and two resamples"
        )
    flat = table.reshape(num_items, -1)
    rng = np.random.default_rng(seed)
    sums = np.empty((resamples, flat.shape[1]))
    for start in range(0, resamples, _ROWS_AT_ONCE):
        part = sums[start : start + _ROWS_AT_ONCE]
        drawn = rng.integers(num_items, size=(len(part), num_items))
        for row, items in zip(part, drawn, strict=True):
            row[:] = np.bincount(items, minlength=num_items) @ flat
    figures = sums[:, 0] / num_items if statistic is None else statistic(sums)
    edge = (1 - CONFIDENCE) / 2
    return np.quantile(figures, [edge, 1 - edge], axis=0)
