import sys

import numpy as np
import pytest
import torch

from im2sp.pipeline.speech_tokenizer.weights import load_centroids
from im2sp.tools.fitting.kmeans import PIECE_ROWS, Reservoir, fit_kmeans, nearest_centroids


def heaps(num_heaps=12, num_rows=6000, width=8, seed=0, offset=50.0):
    """Points in well separated heaps, far from the origin, shuffled."""
    random = np.random.default_rng(seed)
    middles = random.normal(0, 6, (num_heaps, width)) + offset
    owners = random.integers(0, num_heaps, num_rows)
    rows = middles[owners] + random.normal(0, 0.3, (num_rows, width))
    return rows.astype(np.float32), middles


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_every_heap_gets_its_centroid(init):
    rows, middles = heaps(num_heaps=5 if init == "random" else 12)
    fit = fit_kmeans(rows, len(middles), init=init, restarts=9 if init == "random" else 1)
    distances = torch.cdist(fit.centroids, torch.from_numpy(middles).float())
    assert sorted(distances.argmin(1).tolist()) == list(range(len(middles)))
    assert distances.amin(1).max() < 0.1
    assert fit.centroids.dtype == torch.float32
    assert torch.equal(load_centroids(fit.centroids), fit.centroids)


def test_the_inertia_is_that_of_the_centroids_that_are_returned():
    rows = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)) + 30
    fit = fit_kmeans(rows, 20, max_rounds=3)
    squares = torch.cdist(rows.double(), fit.centroids.double()).square().amin(1)
    assert fit.inertia == pytest.approx(squares.mean().item(), rel=1e-4)
    assert fit.num_rounds == 3


def test_the_seed_decides():
    rows = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float16)
    first, again, other = (fit_kmeans(rows, 16, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.centroids, again.centroids)
    assert first.inertia == again.inertia
    assert not torch.equal(first.centroids, other.centroids)


def test_restarts_keep_the_best():
    rows, _ = heaps(num_heaps=40, num_rows=4000, width=2, seed=4)
    one, many = (fit_kmeans(rows, 40, restarts=number).inertia for number in (1, 6))
    assert many <= one


def test_nearest_centroids_equal_the_distances_written_out():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(PIECE_ROWS + 7, 9, generator=generator)
    centroids = torch.randn(33, 9, generator=generator)
    ids, squares = nearest_centroids(rows, centroids)
    distances = torch.cdist(rows, centroids)
    assert torch.equal(ids, distances.argmin(1))
    torch.testing.assert_close(squares, distances.amin(1).square(), rtol=1e-3, atol=1e-4)


ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "num_centroids", "options", "message"),
    [
        (ROWS, 51, {}, "51 centroids for 50 rows, .* give more data"),
        (ROWS[:0], 1, {}, "1 centroids for 0 rows"),
        (ROWS, 0, {}, "0 centroids for 50 rows, expected 1 to 65536"),
        (np.repeat(ROWS[:4] + 9, 20, 0), 5, {}, r"distinct clusters \(4\) .* Give more data"),
        (ROWS[0], 2, {}, r"torch.float32 of shape \[3\], expected finite floats"),
        (ROWS.astype(int), 2, {}, "rows are torch.int64"),
        (ROWS * np.float32(np.nan), 2, {}, "expected finite floats"),
        (ROWS, 2, {"restarts": 0}, "0 restarts of 50 rounds, expected 1 or more"),
        (ROWS, 2, {"max_rounds": 0}, "1 restarts of 0 rounds"),
    ],
)
def test_what_cannot_be_fitted_is_refused(rows, num_centroids, options, message):
    with pytest.raises(ValueError, match=message):
        fit_kmeans(rows, num_centroids, **options)


def test_duplicates_are_allowed_on_request():
    rows = np.repeat(ROWS[:4], 20, 0)
    fit = fit_kmeans(rows, 5, init="random", allow_duplicates=True)
    assert fit.centroids.shape == (5, 3)
    distances = torch.cdist(fit.centroids, torch.from_numpy(ROWS[:4]))
    assert distances.amin(1).max() < 1e-5
    assert set(distances.argmin(1).tolist()) == {0, 1, 2, 3}


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ValueError, match=r"scikit-learn, .* pip install 'im2sp\[fit\]'"):
        fit_kmeans(ROWS, 2)


# Reservoir ----------------------------------------------------------------------------------------


def test_a_reservoir_that_is_not_full_holds_everything_in_order():
    reservoir = Reservoir(100, seed=0)
    assert reservoir.rows.shape == (0, 0)
    reservoir.add(ROWS[:20], np.arange(20))
    reservoir.add(ROWS[20:], np.arange(20, 50))
    np.testing.assert_array_equal(reservoir.rows, ROWS)
    assert reservoir.tags.tolist() == list(range(50))


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_reservoir_draws_the_same_however_rows_are_split(step):
    rows = np.arange(1000, dtype=np.float32)[:, None]
    reservoir = Reservoir(64, seed=1)
    for start in range(0, 1000, step):
        reservoir.add(rows[start : start + step], np.arange(start, min(1000, start + step)))
    whole = Reservoir(64, seed=1)
    whole.add(rows, np.arange(1000))
    np.testing.assert_array_equal(reservoir.rows, whole.rows)
    np.testing.assert_array_equal(reservoir.tags, reservoir.rows[:, 0])
    assert (reservoir.num_seen, len(set(reservoir.tags.tolist()))) == (1000, 64)


def test_every_row_is_drawn_equally_often():
    rows = np.arange(200, dtype=np.float32)[:, None]
    counts = np.zeros(200)
    for seed in range(400):
        reservoir = Reservoir(50, seed=seed)
        reservoir.add(rows, np.arange(200))
        counts[reservoir.tags] += 1
    parts = counts.reshape(4, 50).mean(1)  # 100 is expected of each, 1.2 is one deviation
    np.testing.assert_allclose(parts, 100, atol=5)
