import numpy as np
import pytest
import torch

from im2sp.pipeline.hubert_weights import load_centres
from im2sp.tools import kmeans_fit
from im2sp.tools.kmeans_fit import draw, fit_kmeans, nearest_centres, plus_plus
from im2sp.tools.reservoir import Reservoir


def heaps(num_heaps=12, num_rows=6000, width=8, seed=0, offset=50.0):
    """Points in well separated heaps, far from the origin, shuffled."""
    random = np.random.default_rng(seed)
    middles = random.normal(0, 6, (num_heaps, width)) + offset
    owners = random.integers(0, num_heaps, num_rows)
    rows = middles[owners] + random.normal(0, 0.3, (num_rows, width))
    return rows.astype(np.float32), owners, middles


def naive_inertia(rows, centres):
    squares = torch.cdist(torch.as_tensor(rows).double(), centres.double()).square()
    return squares.amin(1).mean().item(), squares.argmin(1)


def naive_lloyd(rows, centres, num_rounds):
    rows = np.asarray(rows, np.float64)
    for _ in range(num_rounds):
        owners = ((rows[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        centres = np.stack([rows[owners == k].mean(0) for k in range(len(centres))])
    return centres


def test_every_heap_gets_its_centre():
    rows, owners, middles = heaps()
    fit = fit_kmeans(rows, 12)
    distances = torch.cdist(fit.centres, torch.from_numpy(middles).float())
    assert sorted(distances.argmin(1).tolist()) == list(range(12))
    assert distances.amin(1).max() < 0.1
    assert sorted(fit.counts.tolist()) == sorted(np.bincount(owners).tolist())
    assert fit.num_frames == len(rows)
    assert fit.centres.dtype == torch.float32
    assert torch.equal(load_centres(fit.centres), fit.centres)


def test_the_figures_are_those_of_the_centres_that_are_returned():
    rows = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0)) + 30
    fit = fit_kmeans(rows, 20, max_rounds=3)
    inertia, units = naive_inertia(rows, fit.centres)
    assert fit.inertia == pytest.approx(inertia, rel=1e-4)
    assert fit.counts.tolist() == torch.bincount(units, minlength=20).tolist()
    assert fit.num_rounds == 3


def test_settled_centres_are_a_fixed_point_of_lloyd():
    rows = np.random.default_rng(0).normal(size=(800, 3)).astype(np.float32)
    fit = fit_kmeans(rows, 7, tolerance=0, max_rounds=300)
    again = naive_lloyd(rows, fit.centres.double().numpy(), 1)
    np.testing.assert_allclose(fit.centres.numpy(), again, atol=1e-5)


def test_rounds_equal_those_written_out():
    rows = torch.randn(900, 4, generator=torch.Generator().manual_seed(1)) * 3
    start = rows[:5].clone()
    rounds = kmeans_fit._Rounds(
        sample=rows,
        generator=torch.Generator().manual_seed(0),
        max_rounds=4,
        tolerance=0,
        bar=kmeans_fit.tqdm(disable=True),
    )
    centres, _, num_rounds = rounds.run(lambda: rows.split(100), start)
    assert num_rounds == 4
    expected = naive_lloyd(rows.numpy(), start.numpy(), 4)
    np.testing.assert_allclose(centres.numpy(), expected, atol=1e-4)


def test_a_stream_gives_what_memory_gives():
    rows, _, _ = heaps(num_heaps=30, num_rows=20_000)
    calls = []

    def batches():
        calls.append(1)
        yield from np.array_split(rows, [5000, 8192, 12_000])

    whole = fit_kmeans(torch.from_numpy(rows), 40, seed=3, num_samples=2000)
    stream = fit_kmeans(batches, 40, seed=3, num_samples=2000)
    assert torch.equal(whole.centres, stream.centres)
    assert torch.equal(whole.counts, stream.counts)
    assert stream.inertia == whole.inertia
    assert len(calls) == stream.num_rounds + 2


def test_the_seed_decides():
    rows = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float16)
    first, again, other = (fit_kmeans(rows, 16, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.centres, again.centres)
    assert first.inertia == again.inertia
    assert not torch.equal(first.centres, other.centres)


def test_restarts_keep_the_best():
    rows, _, _ = heaps(num_heaps=40, num_rows=4000, width=2, seed=4)
    one, many = (fit_kmeans(rows, 40, restarts=number).inertia for number in (1, 6))
    assert many <= one


def test_centres_without_features_start_anew():
    rows, _, _ = heaps(num_heaps=6, num_rows=2000)
    points = torch.from_numpy(rows)
    start = torch.cat([points[:1], torch.full((5, 8), 1e4)])
    rounds = kmeans_fit._Rounds(
        sample=points,
        generator=torch.Generator().manual_seed(0),
        max_rounds=20,
        tolerance=1e-4,
        bar=kmeans_fit.tqdm(disable=True),
    )
    centres, _, _ = rounds.run(lambda: [points], start)
    assert nearest_centres(points, centres)[0].unique().tolist() == list(range(6))


def test_nearest_centres_equal_the_distances_written_out():
    generator = torch.Generator().manual_seed(0)
    rows, centres = (
        torch.randn(700, 9, generator=generator),
        torch.randn(33, 9, generator=generator),
    )
    ids, squares = nearest_centres(rows, centres)
    distances = torch.cdist(rows, centres)
    assert torch.equal(ids, distances.argmin(1))
    torch.testing.assert_close(squares, distances.amin(1).square(), rtol=1e-3, atol=1e-4)


def test_drawing_follows_the_weights():
    weights = torch.tensor([0.0, 1, 0, 3, 0])
    drawn = draw(weights, 4000, torch.Generator().manual_seed(0))
    counts = np.bincount(drawn, minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert counts[3] == pytest.approx(3000, abs=120)


def test_first_centres_are_features_of_different_heaps():
    rows, owners, _ = heaps(num_heaps=10, num_rows=1000)
    sample = torch.from_numpy(rows)
    chosen = plus_plus(sample, 10, torch.Generator().manual_seed(0))
    found = [int((sample == row).all(1).nonzero()[0, 0]) for row in chosen]
    assert len({int(owners[i]) for i in found}) == 10


def once(rows):
    """A stream that is empty after its first pass."""
    passes = [rows]
    return lambda: [passes.pop()] if passes else [rows[:5]]


ROWS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("features", "num_centres", "options", "message"),
    [
        (ROWS, 51, {}, "50 features for 51 centres; give more audio"),
        (lambda: [], 1, {}, "0 features for 1 centres"),
        (np.repeat(ROWS[:4] + 9, 20, 0), 5, {}, "4 distinct features in the sample for 5 centres"),
        (ROWS[0], 2, {}, r"torch.float32 of shape \[3\], expected floats of shape"),
        (ROWS.astype(int), 2, {}, "features are torch.int64"),
        (
            lambda: [ROWS, ROWS[:, :2]],
            2,
            {},
            "features are 3 and 2 wide, expected one",
        ),
        (ROWS * np.float32(np.nan), 2, {}, "values that are not finite"),
        (once(ROWS), 2, {}, "50 features in the first pass and 5 in the last"),
        (ROWS, 0, {}, "0 centres, expected 1 to 65536"),
        (ROWS, 2, {"restarts": 0}, "0 restarts of 30 rounds, expected at least 1"),
        (ROWS, 2, {"max_rounds": 0}, "3 restarts of 0 rounds"),
        (ROWS, 2, {"tolerance": 1.0}, "tolerance 1.0, expected a share"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features, num_centres, options, message):
    with pytest.raises(ValueError, match=message):
        fit_kmeans(features, num_centres, **options)


# Reservoir ----------------------------------------------------------------------------------------


def test_a_reservoir_that_is_not_full_holds_everything_in_order():
    reservoir = Reservoir(100, seed=0)
    assert reservoir.rows.shape == (0, 0)
    reservoir.add(ROWS[:20])
    reservoir.add(ROWS[20:], np.arange(30))
    np.testing.assert_array_equal(reservoir.rows, ROWS)
    assert reservoir.tags.tolist() == [-1] * 20 + list(range(30))


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
        reservoir.add(rows)
        counts[reservoir.rows[:, 0].astype(int)] += 1
    parts = counts.reshape(4, 50).mean(1)  # 100 is expected of each, 1.2 is one deviation
    np.testing.assert_allclose(parts, 100, atol=5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[0], r"features of shape \[3\], expected \[frames, width\]"),
        (ROWS.astype(np.float64), "features are float64, expected float32"),
    ],
)
def test_rows_that_a_reservoir_refuses(rows, message):
    with pytest.raises(ValueError, match=message):
        Reservoir(3, seed=0).add(rows)


def test_rows_of_another_width():
    reservoir = Reservoir(3, seed=0)
    reservoir.add(ROWS)
    with pytest.raises(ValueError, match=r"features of shape \[50, 2\], expected \[frames, 3\]"):
        reservoir.add(ROWS[:, :2])


def test_a_reservoir_needs_room():
    with pytest.raises(ValueError, match="a reservoir of 0 rows, expected at least 1"):
        Reservoir(0, seed=0)
