"""95 % intervals: bootstrap of a score over items, and mean opinions of a listening test.

Ratings of a listening test are crossed: each listener rates many images and each image is rated by
many listeners, so ratings are not independent, and resampling items of one kind (`interval`)
gives too narrow an interval. `mean_opinion` uses the model of CrowdMOS (Ribeiro, Florencio, Zhang,
Seltzer 2011):

    rating = mean + listener + image + rest

Each term has its own variance. The variances are estimated without bias, even if ratings are
missing, from three sums of squares: within listeners, within images, and over all. With T ratings,
n of a listener and m of an image, the variance of the mean is then

    listener * sum(n^2) / T^2 + image * sum(m^2) / T^2 + rest / T

and the interval is the mean plus or minus Student's t times its square root, with one degree of
freedom less than the number of listeners or images, whichever is smaller.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """95 % interval of a figure, by the percentile bootstrap.

    Args:
        rows: (n,) or (n, k) values of the items.
        statistic: Maps (resamples, k) sums of drawn rows to (resamples, ...) figures; None for the
            mean of (n,) rows.
        resamples: Number of draws of n items with replacement.
        seed: Random seed; the same seed draws the same items for every figure.

    Returns:
        (2, ...) float64, lower and upper end.

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


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """Mean of ratings with its interval."""

    mean: float
    half_width: float | None
    """Half the width of the 95 % interval around the mean; None if it cannot be estimated: with one
    listener or one image, or if no listener or no image has two ratings."""
    num_ratings: int
    num_listeners: int
    num_images: int


def mean_opinion(
    ratings: NDArray[np.float64], listeners: NDArray[np.int64], images: NDArray[np.int64]
) -> Opinion:
    """Mean and interval of crossed ratings.

    Args:
        ratings: (T,) values, T >= 1; at most one per listener and image.
        listeners: (T,) listener of each rating, numbered from 0.
        images: (T,) image of each rating, numbered from 0.
    """
    num_ratings = len(ratings)
    of_listener = np.bincount(listeners)
    of_image = np.bincount(images)
    num_listeners, num_images = np.count_nonzero(of_listener), np.count_nonzero(of_image)
    half_width = None
    if min(num_listeners, num_images) > 1 and max(num_listeners, num_images) < num_ratings:
        parts = _parts(ratings, listeners, images)
        shares = (
            float(np.sum(of_listener**2)) / num_ratings**2,
            float(np.sum(of_image**2)) / num_ratings**2,
            1 / num_ratings,
        )
        variance = sum(part * share for part, share in zip(parts, shares, strict=True))
        freedom = int(min(num_listeners, num_images)) - 1
        half_width = _student_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance)
    return Opinion(
        mean=float(np.mean(ratings)),
        half_width=half_width,
        num_ratings=num_ratings,
        num_listeners=int(num_listeners),
        num_images=int(num_images),
    )


def _parts(
    ratings: NDArray[np.float64], listeners: NDArray[np.int64], images: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Variances of listeners, images and the rest; negative estimates become 0.

    The expected mean squares are image + rest within listeners, listener + rest within images, and
    over all ratings a * listener + b * image + rest, with a and b a little below 1.
    """
    num_ratings = len(ratings)
    within_listeners = _within(ratings, listeners)
    within_images = _within(ratings, images)
    overall = float(np.var(ratings, ddof=1))
    a, b = (
        (num_ratings - float(np.sum(np.bincount(of) ** 2)) / num_ratings) / (num_ratings - 1)
        for of in (listeners, images)
    )
    rest = (a * within_images + b * within_listeners - overall) / (a + b - 1)
    rest = max(rest, 0.0)
    return max(within_images - rest, 0.0), max(within_listeners - rest, 0.0), rest


def _within(ratings: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """Mean square of the ratings around the means of their groups."""
    counts = np.bincount(groups)
    means = np.bincount(groups, ratings) / np.maximum(counts, 1)
    freedom = len(ratings) - np.count_nonzero(counts)
    return float(np.sum((ratings - means[groups]) ** 2) / freedom)


def _student_quantile(probability: float, freedom: int) -> float:
    try:
        from scipy.stats import t
    except ImportError:
        raise ValueError(
            "intervals of opinions need scipy, which is not installed: pip install"
            " 'im2sp[evaluate]'"
        ) from None
    return float(t.ppf(probability, freedom))
