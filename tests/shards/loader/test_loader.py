import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import DatasetWriter, Sample, ShardDataset, ShardLoader, UnitColumn
from im2sp.shards.testing import batch_content, check_resume, record
from support.grid import random_tables
from support.loader import COLUMNS, expected_content, loader_of, train_samples


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable) -> Path:
    path = tmp_path_factory.mktemp("train")
    write_dataset(path, train_samples(50), batch_rows=7, shard_rows=18)
    return path


def flat(batches: list) -> list:
    return [image for batch in batches for image in batch]


# Output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", COLUMNS)
@pytest.mark.parametrize("target", ["speech", "text", "images"])
def test_batches_equal_a_loop_over_the_dataset(
    tmp_path: Path, layout: str, codec: str, target: str,
    make_samples: Callable, write_dataset: Callable,
) -> None:  # fmt: skip
    """Some samples lack images, utterances, durations or captions."""
    write_dataset(tmp_path, make_samples(61), layout, columns=COLUMNS[codec])
    expected = expected_content(ShardDataset(tmp_path), target)
    in_order = record(loader_of(tmp_path, 7, target=target, shuffle=False))[1]
    assert flat(in_order) == list(expected.values())
    shuffled = flat(record(loader_of(tmp_path, 7, target=target))[1])
    assert shuffled != flat(in_order)
    assert sorted(shuffled) == sorted(flat(in_order))


@pytest.mark.parametrize("codec", COLUMNS)
@pytest.mark.parametrize("target", ["speech", "text"])
def test_lengths_and_splits_are_filtered(
    tmp_path: Path, codec: str, target: str, make_samples: Callable, write_dataset: Callable
) -> None:
    write_dataset(tmp_path, make_samples(90), columns=COLUMNS[codec])
    low, high = (3, 6) if target == "speech" else (20, 20)
    for split in ("train", "val" if target == "speech" else ""):
        options = {"target": target, "split": split, "min_length": low, "max_length": high}
        found = flat(record(loader_of(tmp_path, shuffle=False, **options))[1])
        expected = expected_content(ShardDataset(tmp_path, split), target, low, high)
        assert found == list(expected.values())
        assert found


def test_ids_are_wider_for_large_vocabularies(tmp_path: Path, write_dataset: Callable) -> None:
    sample = Sample(
        key="a", image_units=np.zeros((28, 28), np.uint16),
        speech_units=[np.array([0, 65535, 40000], np.uint16), np.array([7], np.uint16)],
    )  # fmt: skip
    for codec in ("packed-16", "varint"):
        write_dataset(tmp_path / codec, [sample], columns=COLUMNS[codec])
        (batch,) = loader_of(tmp_path / codec)
        assert str(batch.ids.dtype) == "torch.int32"
        assert batch.ids.tolist() == [[0, 65535, 40000], [7, -1, -1]]


def test_fields_of_a_batch(train_dir: Path) -> None:
    batch = next(iter(loader_of(train_dir, 8)))
    assert (batch.step, batch.epoch) == (0, 0)
    dtypes = [str(t.dtype) for t in (batch.images_packed, batch.ids, batch.lengths, batch.owner)]
    assert dtypes == ["torch.uint8", "torch.int16", "torch.int32", "torch.int32"]
    assert batch.images_packed.shape == (8, 1274)
    samples = {sample.key: sample for sample in ShardDataset(train_dir)}
    captions = [text for key in batch.keys for text in samples[key].captions]
    assert batch.captions == captions
    moved = batch.to("cpu")
    assert batch_content(moved) == batch_content(batch)
    assert next(iter(loader_of(train_dir, 8, device="meta"))).ids.is_meta


def test_skipped_items_are_counted(tmp_path: Path, write_dataset: Callable) -> None:
    image = np.zeros((28, 28), np.uint16)
    lengths = [[3], [], [9, 2], [9, 10], [0], [4, 4, 4], [1]]
    samples = [
        Sample(
            key=str(i), split="b" if i == 6 else "a", image_units=None if i == 5 else image,
            speech_units=[np.arange(n, dtype=np.uint16) for n in sizes],
        )
        for i, sizes in enumerate(lengths)
    ]  # fmt: skip
    write_dataset(tmp_path, samples)
    loader = loader_of(tmp_path, split="a", min_length=2, max_length=8)
    assert loader.skipped == {
        "samples without image": 1,
        "samples without utterances": 1,
        "utterances shorter than 2": 1,
        "utterances longer than 8": 3,
        "samples with no utterances left": 2,
    }
    assert loader.num_samples == 2
    assert sorted(key for batch in loader for key in batch.keys) == ["0", "2"]
    unfiltered = loader_of(tmp_path, split="a")
    assert "utterances shorter than 1" in unfiltered.skipped
    assert not any("longer" in reason for reason in unfiltered.skipped)
    assert "2 samples, 1 steps an epoch" in repr(loader)


@pytest.mark.parametrize("target", ["speech", "text"])
@pytest.mark.parametrize("options", [{}, {"max_length": 20}, {"bucket_window": 3}])
def test_one_item_is_drawn(train_dir: Path, target: str, options: dict) -> None:
    loader = loader_of(train_dir, items="one", target=target, epochs=12, **options)
    expected = expected_content(
        ShardDataset(train_dir), target, high=options.get("max_length", 1000)
    )
    drawn: dict[str, list] = {key: [] for key in expected}
    for batch in loader:
        for key, image, items in batch_content(batch):
            assert image == expected[key][1]
            assert len(items) == 1
            assert items[0] in expected[key][2]
            drawn[key] += items
    for key, items in drawn.items():
        assert len(items) == 12
        choices = [str(item) for item in expected[key][2]]
        assert len(choices) == 1 or len(set(map(str, items))) > 1
    again = loader_of(train_dir, items="one", target=target, epochs=12, **options)
    assert flat([batch_content(batch) for batch in again]) == flat(record(fresh(again))[1])


def fresh(loader: ShardLoader) -> ShardLoader:
    loader.reset()
    return loader


def test_buckets_hold_similar_lengths(train_dir: Path) -> None:
    def padding(**options: Any) -> int:
        batches = list(loader_of(train_dir, 5, items="one", **options))
        return sum(int((batch.ids == -1).sum()) for batch in batches)

    assert padding(bucket_window=10) < 0.5 * padding()
    bucketed = flat(record(loader_of(train_dir, 5, bucket_window=4))[1])
    assert sorted(bucketed) == sorted(flat(record(loader_of(train_dir, 5))[1]))


# Resuming, ranks, threads -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "text", "items": "one"},
        {"bucket_window": 3, "drop_last": True},
        {"bucket_window": 2, "items": "one", "max_length": 30},
        {"shuffle": False, "drop_last": True},
        {"num_threads": 2},
    ],
)
def test_resume_at_every_step(train_dir: Path, options: dict) -> None:
    dataset = ShardDataset(train_dir)

    def make() -> ShardLoader:
        return ShardLoader(dataset, batch_size=8, epochs=2, **{"num_threads": 0, **options})

    batches = check_resume(make)
    assert len(batches) == 2 * make().steps_per_epoch
    assert batches[0] != batches[make().steps_per_epoch] or not options.get("shuffle", True)


@pytest.mark.parametrize("options", [{}, {"bucket_window": 3}, {"drop_last": True}])
def test_resume_on_another_number_of_ranks(train_dir: Path, options: dict) -> None:
    dataset = ShardDataset(train_dir)

    def make(world_size: int) -> list[ShardLoader]:
        shared = {"batch_size": 12 // world_size, "epochs": 2, "num_threads": 0, **options}
        return [
            ShardLoader(dataset, rank=rank, world_size=world_size, **shared)
            for rank in range(world_size)
        ]

    def steps(loaders: list[ShardLoader]) -> list[list]:
        parts = zip(*(record(loader)[1] for loader in loaders), strict=True)
        return [sorted(flat(list(part))) for part in parts]

    whole = steps(make(1))
    states = record(make(1)[0])[0]
    for world_size in (2, 3, 4):
        assert steps(make(world_size)) == whole
        for i, state in enumerate(states):
            loaders = make(world_size)
            assert len({json.dumps(loader.state_dict()) for loader in loaders}) == 1
            for loader in loaders:
                loader.load_state_dict(json.loads(json.dumps(state)))
            assert steps(loaders) == whole[i:]


def test_resume_with_other_batches_continues_with_the_same_samples(train_dir: Path) -> None:
    loader = loader_of(train_dir, 12)
    states, batches = record(loader)
    for i, state in enumerate(states[:-1]):
        other = loader_of(train_dir, 5)
        other.load_state_dict(state)
        assert flat(record(other)[1]) == flat(batches[i:])
    other = loader_of(train_dir, 48, drop_last=True, epochs=2)
    other.load_state_dict(loader_of_state(train_dir, 12))
    assert [batch.epoch for batch in other] == [1]


def loader_of_state(path: Path, batch_size: int) -> dict[str, Any]:
    """The state after the first step."""
    loader = loader_of(path, batch_size, drop_last=True, epochs=2)
    next(iter(loader))
    return loader.state_dict()


def test_ranks_take_as_many_steps_whatever_the_shards(
    tmp_path: Path, write_dataset: Callable
) -> None:
    write_dataset(tmp_path, train_samples(17), batch_rows=3, shard_rows=16)
    for drop_last in (False, True):
        loaders = [
            loader_of(tmp_path, 2, rank=rank, world_size=4, drop_last=drop_last)
            for rank in range(4)
        ]
        sizes = [[len(batch.keys) for batch in loader] for loader in loaders]
        last = [] if drop_last else [[1], [0], [0], [0]]
        assert sizes == [[2, 2, *(last[rank] if last else [])] for rank in range(4)]
    (*_, empty) = loader_of(tmp_path, 2, rank=3, world_size=4)
    assert (empty.images_packed.shape, empty.ids.shape) == ((0, 1274), (0, 0))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_change_nothing(train_dir: Path, num_threads: int) -> None:
    dataset = ShardDataset(train_dir)
    options: dict[str, Any] = {"batch_size": 3, "epochs": 3, "bucket_window": 4}
    states, batches = record(ShardLoader(dataset, num_threads=0, **options))
    loader = ShardLoader(dataset, num_threads=num_threads, **options)
    assert record(loader) == (states, batches)


def test_threads_end_with_the_iteration(train_dir: Path) -> None:
    import threading

    before = threading.active_count()
    loader = ShardLoader(train_dir, batch_size=2, num_threads=2, epochs=None)
    iterator = iter(loader)
    next(iterator)
    assert threading.active_count() == before + 2
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert next(iter(loader)).step == 1


def test_iterating_continues_at_the_position(train_dir: Path) -> None:
    loader = loader_of(train_dir)
    whole = record(fresh(loader))[1]
    assert list(loader) == []
    fresh(loader)
    for batch in loader:
        if batch.step == 2:
            break
    assert [batch_content(batch) for batch in loader] == whole[3:]
    fresh(loader)
    first = iter(loader)
    next(first)
    loader.reset()
    with pytest.raises(RuntimeError, match="reset or iterated again"):
        next(first)


def test_length_is_that_of_all_epochs(train_dir: Path) -> None:
    loader = loader_of(train_dir, 3, epochs=2)
    assert (
        len(loader) == len(list(loader)) == len(list(fresh(loader))) == 2 * loader.steps_per_epoch
    )
    with pytest.raises(TypeError, match="an endless loader has no length; see steps_per_epoch"):
        len(loader_of(train_dir, 3, epochs=None))


def test_a_loader_that_resumes_elsewhere_is_noticed(train_dir: Path) -> None:
    class Forgetful(ShardLoader):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            super().load_state_dict(state | {"sample": 0})

    with pytest.raises(AssertionError, match="step 1: the state is"):
        check_resume(lambda: Forgetful(train_dir, batch_size=20, num_threads=0))
    orders = iter(range(100))
    with pytest.raises(AssertionError, match="step 0: other batches follow"):
        check_resume(lambda: loader_of(train_dir, 20, target="images"), lambda _: next(orders))


def test_coded_images_are_those_of_packed_ones(tmp_path: Path) -> None:
    tables = {f"image_units.{name}": tensor for name, tensor in random_tables(4).items()}
    grids = np.random.default_rng(0).integers(0, 40, (70, 3, 5))
    batches: dict[str, Any] = {}
    for coding in ("packed", "coded"):
        columns = {"image_units": UnitColumn((3, 5), 40, coding=coding)}
        used = tables if coding == "coded" else None
        with DatasetWriter(tmp_path / coding, columns=columns, tables=used) as writer:
            for i, grid in enumerate(grids):
                writer.write(key=str(i), image_units=grid)
        loader = ShardLoader(tmp_path / coding, batch_size=32, target="images", num_threads=0)
        batches[coding] = [(batch.keys, batch.image_units.tolist()) for batch in loader]
    assert batches["coded"] == batches["packed"]
    by_key = {key: grid for batch in batches["coded"] for key, grid in zip(*batch, strict=True)}
    assert by_key == {str(i): grid.tolist() for i, grid in enumerate(grids)}
