import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from im2sp.shards.loader.kernels import permute
from im2sp.shards.loader.plan import LoaderSettings, Plan, Position, key_of


def permutation(num: int, key: int) -> np.ndarray:
    permuted = np.empty(num, np.int64)
    permute(np.arange(num), num, np.uint64(key), permuted)
    return permuted


def no_lengths(samples: np.ndarray, epoch: int) -> np.ndarray:
    raise AssertionError("lengths are not used here")


def plan_of(num: int, batch_size: int, rank: int = 0, world_size: int = 1, **settings) -> Plan:
    return Plan(
        num,
        LoaderSettings(**settings),
        no_lengths,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )


# Permutation --------------------------------------------------------------------------------------


@given(num=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_it_is_a_bijection(num: int, key: int) -> None:
    assert sorted(permutation(num, key)) == list(range(num))


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 256, 257, 65535, 65536, 65537])
def test_it_is_a_bijection_at_the_edges(num: int) -> None:
    for key in range(20):
        np.testing.assert_array_equal(np.sort(permutation(num, key)), np.arange(num))


@given(
    num=st.integers(1, 2**62), places=st.lists(st.integers(0, 2**62), min_size=2, max_size=50),
    key=st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_large_ranges_stay_inside_and_apart(num: int, places: list[int], key: int) -> None:
    distinct = sorted({place % num for place in places})
    found = np.empty((len(distinct), 1), np.int64)
    for row, place in zip(found, distinct, strict=True):
        permute(np.array([place]), num, np.uint64(key), row)
    assert found.min() >= 0
    assert found.max() < num
    assert np.unique(found).size == len(distinct)


@given(num=st.integers(1, 500), first=st.integers(0, 499), stride=st.integers(1, 9))
def test_strides_pick_from_the_same_order(num: int, first: int, stride: int) -> None:
    first %= num
    picked = np.empty(len(range(first, num, stride)), np.int64)
    numbers = first + stride * np.arange(picked.size)
    permute(numbers, num, np.uint64(7), picked)
    np.testing.assert_array_equal(picked, permutation(num, 7)[first::stride])


def test_all_orders_of_three_are_about_as_likely() -> None:
    orders = [tuple(permutation(3, key)) for key in range(6000)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert min(counts) > 850


def test_it_looks_shuffled() -> None:
    num = 20_000
    order = permutation(num, 3)
    steps = np.diff(order)
    assert abs(np.corrcoef(order, np.arange(num))[0, 1]) < 0.03
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert np.unique(steps).size > 0.6 * num  # detects a fixed stride, or a few of them
    # Sources of each tenth of the places: 100 cells of 200 each, five standard deviations.
    table = np.histogram2d(np.arange(num), order, 10)[0]
    assert abs(table - 200).max() < 5 * np.sqrt(200)
    assert (order == permutation(num, 4)).mean() < 0.001


def test_keys_differ_by_every_argument() -> None:
    keys = {
        int(key_of(seed, epoch, purpose))
        for seed in range(20) for epoch in range(20) for purpose in ("order", "draw")
    }  # fmt: skip
    assert len(keys) == 800


# Plan ---------------------------------------------------------------------------------------------


def epoch_of(plan: Plan, epoch: int = 0) -> list[np.ndarray]:
    start = Position(epoch=epoch)
    return [plan.samples(position) for position in plan.positions(start, epoch + 1)]


@given(
    num=st.integers(1, 60), batch_size=st.integers(1, 9), world_size=st.integers(1, 5),
    drop_last=st.booleans(), shuffle=st.booleans(),
)  # fmt: skip
def test_an_epoch_deals_each_sample_once(
    num: int, batch_size: int, world_size: int, drop_last: bool, shuffle: bool
) -> None:
    total = batch_size * world_size
    if drop_last and num < total:
        return
    settings = {"drop_last": drop_last, "shuffle": shuffle}
    plans = [plan_of(num, batch_size, rank, world_size, **settings) for rank in range(world_size)]
    epochs = [epoch_of(plan) for plan in plans]
    (steps,) = {len(epoch) for epoch in epochs}
    assert steps == plans[0].steps_per_epoch
    dealt = np.concatenate([batch for epoch in epochs for batch in epoch])
    assert np.unique(dealt).size == dealt.size == (num // total * total if drop_last else num)
    one = epoch_of(plan_of(num, total, **settings))
    for step in range(steps):
        together = np.concatenate([epoch[step] for epoch in epochs])
        assert sorted(together) == sorted(one[step])
        assert max(epoch[step].size for epoch in epochs) <= batch_size


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = [
        tuple(np.concatenate(epoch_of(plan_of(50, 8, seed=seed), epoch)))
        for seed in (0, 1)
        for epoch in (0, 1, 2)
    ]
    assert len(set(orders)) == 6
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(50))}
    in_order = np.concatenate(epoch_of(plan_of(50, 8, shuffle=False), 3))
    np.testing.assert_array_equal(in_order, np.arange(50))


@given(
    num=st.integers(1, 80), batch_size=st.integers(1, 5), world_size=st.integers(1, 3),
    window=st.integers(2, 6), drop_last=st.booleans(),
)  # fmt: skip
def test_buckets_deal_each_sample_once_with_similar_lengths(
    num: int, batch_size: int, world_size: int, window: int, drop_last: bool
) -> None:
    total = batch_size * world_size
    if drop_last and num < total:
        return
    lengths = np.random.default_rng(0).integers(1, 1000, num).astype(np.int32)
    settings = LoaderSettings(bucket_window=window, drop_last=drop_last)
    plans = [
        Plan(
            num, settings, lambda samples, _: lengths[samples], batch_size=batch_size, rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    steps = [np.concatenate(parts) for parts in zip(*map(epoch_of, plans), strict=True)]
    plain = epoch_of(plan_of(num, total, drop_last=drop_last))
    assert [step.size for step in steps] == [step.size for step in plain]
    for start in range(0, len(steps), window):
        ours, theirs = (np.concatenate(s[start : start + window]) for s in (steps, plain))
        assert sorted(ours) == sorted(theirs)
        whole = [lengths[s] for s in steps[start : start + window] if s.size == total]
        whole.sort(key=lambda found: (found.min(), found.max()))
        for shorter, longer in zip(whole, whole[1:], strict=False):
            assert shorter.max() <= longer.min()


def test_batches_of_a_window_come_in_no_order_of_length() -> None:
    settings = LoaderSettings(bucket_window=50)
    plan = Plan(5000, settings, lambda samples, _: samples.astype(np.int32), batch_size=10)
    means = np.array([batch.mean() for batch in epoch_of(plan)[:50]])
    assert abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.5
    assert max(np.ptp(batch) for batch in epoch_of(plan)[:50]) < 400


def test_positions_run_through_epochs_and_end() -> None:
    plan = plan_of(10, 4)
    found = [(p.step, p.epoch, p.sample) for p in plan.positions(Position(), 2)]
    assert found == [(0, 0, 0), (1, 0, 4), (2, 0, 8), (3, 1, 0), (4, 1, 4), (5, 1, 8)]
    endless = plan.positions(Position(step=7, epoch=5, sample=8), None)
    assert [next(endless).epoch for _ in range(5)] == [5, 6, 6, 6, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 1}, "items is 1; expected one of all, one"),
        ({"min_length": 0}, "min_length is 0; expected at least 1"),
        ({"min_length": 9, "max_length": 8}, "max_length is 8; expected at least min_length, 9"),
        ({"bucket_window": -1}, "bucket_window is -1; expected 0 or more"),
        ({"target": "images", "bucket_window": 4}, "'images', which have no length"),
        ({"target": "images", "max_length": 4}, "'images', which have no length"),
    ],
)
def test_settings_that_make_no_sense(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoaderSettings(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9, 0), "batch_size is 0; expected at least 1"),
        ((9, 2, 0, 0), "world_size is 0; expected at least 1"),
        ((9, 2, 3, 3), "rank is 3; expected 0 to 2"),
        ((9, 2, -1, 3), "rank is -1; expected 0 to 2"),
    ],
)
def test_plans_that_make_no_sense(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(*arguments)


def test_fewer_samples_than_a_batch() -> None:
    with pytest.raises(ValueError, match=r"9 samples do not fill a batch of 12 \(4 on each of 3"):
        plan_of(9, 4, 0, 3, drop_last=True)
