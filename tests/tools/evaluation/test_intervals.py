import sys

import numpy as np
import pytest
import scipy.stats

from im2sp.tools.evaluation.intervals import mean_opinion


def crossed(num_listeners, num_images):
    return np.divmod(np.arange(num_listeners * num_images), num_images)


def analysed(table):
    """Half width by the textbook's two-way analysis of variance of a full (L, M) table."""
    num_listeners, num_images = table.shape
    rows, columns = table.mean(1), table.mean(0)
    of_rows = num_images * rows.var(ddof=1)
    of_columns = num_listeners * columns.var(ddof=1)
    left = table - rows[:, None] - columns + table.mean()
    rest = (left**2).sum() / ((num_listeners - 1) * (num_images - 1))
    variance = (
        (of_rows - rest) / num_images / num_listeners
        + (of_columns - rest) / num_listeners / num_images
        + rest / table.size
    )
    return scipy.stats.t.ppf(0.975, min(table.shape) - 1) * np.sqrt(variance)


def test_a_full_table_is_the_textbooks_analysis_of_variance():
    rng = np.random.default_rng(3)
    table = rng.normal(3, 1, (5, 1)) + rng.normal(0, 1, (1, 7)) + rng.normal(0, 0.5, (5, 7))
    found = mean_opinion(table.ravel(), *crossed(5, 7))
    assert found.mean == pytest.approx(table.mean())
    assert found.half_width == pytest.approx(analysed(table))
    assert (found.num_ratings, found.num_listeners, found.num_images) == (35, 5, 7)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_the_interval_holds_the_truth_where_one_for_independent_ratings_does_not(share):
    rng = np.random.default_rng(0)
    num_tests, listeners, images = 600, 8, 12
    of_listener, of_image = crossed(listeners, images)
    held = held_by_naive = 0
    for _ in range(num_tests):
        ratings = rng.normal(0, 0.5, listeners)[of_listener] + rng.normal(0, 0.4, images)[of_image]
        ratings += rng.normal(0, 0.7, len(ratings))
        kept = rng.random(len(ratings)) < share
        found = mean_opinion(ratings[kept], of_listener[kept], of_image[kept])
        held += abs(found.mean) <= found.half_width
        naive = 1.96 * ratings[kept].std(ddof=1) / np.sqrt(kept.sum())
        held_by_naive += abs(found.mean) <= naive
    assert held / num_tests >= 0.93
    assert held_by_naive / num_tests < 0.75


def test_the_same_rating_by_all_leaves_no_doubt():
    found = mean_opinion(np.full(6, 4.0), *crossed(2, 3))
    assert (found.mean, found.half_width) == (4.0, 0.0)


@pytest.mark.parametrize(
    ("listeners", "images"),
    [([0, 0, 0], [0, 1, 2]), ([0, 1, 2], [0, 0, 0]), ([0, 1], [0, 1]), ([0], [0])],
)
def test_too_few_listeners_or_images_tell_no_interval(listeners, images):
    found = mean_opinion(np.arange(len(listeners)) + 1.0, np.array(listeners), np.array(images))
    assert found.half_width is None
    assert found.mean == (len(listeners) + 1) / 2


def test_lopsided_ratings_still_have_an_interval():
    listeners = np.array([0] * 10 + [1])
    images = np.array([*range(10), 0])
    found = mean_opinion(np.array([4, 5, 3, 4, 4, 5, 2, 4, 4, 3, 2.0]), listeners, images)
    assert found.half_width > 0


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ValueError, match=r"scipy, .* pip install 'im2sp\[evaluate\]'"):
        mean_opinion(np.arange(4.0), *crossed(2, 2))
