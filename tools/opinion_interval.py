"""Mean opinions with 95 % intervals that allow for strict listeners and for hard images.

The ratings of a listening test are crossed: each listener rates many images, each image is rated by
many listeners, and both leave their mark on every rating of theirs. An interval that takes the
ratings for independent draws is too narrow, and so is one that draws items of one kind again and
again (`bootstrap.interval`). The model here is that of CrowdMOS (Ribeiro, Florencio, Zhang, Seltzer
2011), by which speech synthesis from units has been scored:

    rating = mean + listener + image + rest

Each part has a variance of its own. They are estimated without bias, also where ratings are
missing, from three sums of squares: within listeners, within images, and over all. With T ratings,
n of a listener and m of an image, the variance of the mean is then

    listener * sum(n^2) / T^2 + image * sum(m^2) / T^2 + rest / T

and the interval is the mean plus or minus Student's t times its root, with one degree of freedom
less than there are listeners or images, whichever are fewer.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """The mean of ratings."""

    mean: float
    half_width: float | None
    """The 95 % interval is the mean plus or minus this; None where the ratings cannot tell: with
    one listener or one image, or where none of the listeners or of the images has two ratings."""
    num_ratings: int
    num_listeners: int
    num_images: int


def mean_opinion(
    ratings: NDArray[np.float64], listeners: NDArray[np.int64], images: NDArray[np.int64]
) -> Opinion:
    """Mean and interval of crossed ratings.

    Args:
        ratings: (T,) numbers, T >= 1; one at most of each listener for each image.
        listeners: (T,) who gave it, as numbers from 0 on.
        images: (T,) of which image, as numbers from 0 on.
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
        half_width = student_quantile((1 + CONFIDENCE) / 2, freedom) * math.sqrt(variance)
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
    """Variances of listeners, images and the rest; one that comes out below 0 is 0.

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


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t; `student_quantile(0.975, 9)` is 2.262.

    Args:
        probability: From 0.5 up, below 1.
        freedom: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _student_below(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if _student_below(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_below(t: float, freedom: int) -> float:
    """Probability of less than t, t >= 0: the finite sums for whole degrees of freedom."""
    angle = math.atan2(t, math.sqrt(freedom))
    square = math.cos(angle) ** 2
    total = term = 1.0
    first = 2 if freedom % 2 else 1
    for k in range(first, freedom - 2, 2):
        term *= square * k / (k + 1)
        total += term
    if freedom % 2:
        more = math.sin(angle) * math.cos(angle) * total if freedom > 1 else 0.0
        return 0.5 + (angle + more) / math.pi
    return 0.5 + math.sin(angle) * total / 2
