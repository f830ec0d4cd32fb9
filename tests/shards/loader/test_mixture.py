"""Several datasets in one loader: each sample as often as the weights say, resumed anywhere."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import DatasetWriter, ShardDataset, ShardLoader, UnitColumn
from im2sp.shards.testing import batch_content, check_resume, record

IMAGE = UnitColumn((4, 4), 16384)
AUDIO = UnitColumn((2, None), 64)
SPEECH = UnitColumn((None,), 50, many=True)


def write(
    folder: Path, name: str, num: int, splits: tuple[str, ...] = ("",), **columns: UnitColumn
) -> Path:
    rng = np.random.default_rng(num)
    declared = {"image_units": IMAGE, "audio_units": AUDIO, "speech_units": SPEECH, **columns}
    with DatasetWriter(folder / name, columns=declared, samples_per_shard=16) as writer:
        for i in range(num):
            writer.write(
                key=f"{name}{i}",
                split=splits[i % len(splits)],
                captions=[f"{name} {i} {j}" for j in range(1 + i % 3)],
                image_units=rng.integers(0, 4096, declared["image_units"].shape),
                audio_units=rng.integers(0, 64, (2, rng.integers(1, 9))),
                speech_units=[rng.integers(0, 50, rng.integers(1, 9)) for _ in range(i % 2 + 1)],
            )
    return folder / name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    coded = UnitColumn((None,), 50, many=True, coding="coded")  # stored in another way
    return [
        write(folder, "a", 40), write(folder, "b", 12, speech_units=coded), write(folder, "c", 5)
    ]  # fmt: skip


def loader_of(folders: Any, batch_size: int = 8, **options: Any) -> ShardLoader:
    return ShardLoader(folders, batch_size=batch_size, num_threads=0, **options)


@pytest.mark.parametrize("target", ["speech", "text", "images", "audio_units"])
def test_without_weights_an_epoch_has_every_sample_once(folders: list[Path], target: str) -> None:
    alone = [
        sample
        for folder in folders
        for batch in record(loader_of(folder, target=target, shuffle=False))[1]
        for sample in batch
    ]
    loader = loader_of(folders, target=target)
    assert (loader.num_samples, loader.steps_per_epoch) == (57, 8)
    mixed = record(loader)[1]
    assert sorted(sample for batch in mixed for sample in batch) == sorted(alone)
    names = [{key[0] for key, *_ in batch} for batch in mixed]
    assert sum(len(one) > 1 for one in names) > 5
    in_order = record(loader_of(folders, target=target, shuffle=False))[1]
    assert [sample for batch in in_order for sample in batch] == alone


def test_shapes_of_mixed_arrays(folders: list[Path]) -> None:
    samples = {s.key: s for folder in folders for s in ShardDataset(folder)}
    for batch in loader_of(folders, target="audio_units"):
        rows = zip(batch.ids.numpy(), batch.shapes.tolist(), batch.owner.tolist(), strict=True)
        for row, shape, owner in rows:
            units = row[: np.prod(shape)].reshape(shape)
            np.testing.assert_array_equal(units, samples[batch.keys[owner]]["audio_units"])


def test_weights_are_the_shares_of_an_epoch(folders: list[Path]) -> None:
    loader = loader_of(folders, weights=(2, 1, 1), epochs=4)
    epochs = [Counter(), Counter(), Counter(), Counter()]
    for batch in loader:
        epochs[batch.epoch].update(batch.keys)
    for counts in epochs:
        shares = Counter(key[0] for key in counts.elements())
        assert sum(shares.values()) == loader.num_samples == 57
        assert (shares["a"], abs(shares["b"] - 14), abs(shares["c"] - 14)) <= (29, 1, 1)
    total = sum(epochs, Counter())
    for name, num in (("a", 40), ("b", 12), ("c", 5)):
        # No sample is read again before all others of its dataset were.
        counts = [total[f"{name}{i}"] for i in range(num)]
        assert max(counts) - min(counts) <= 1
    first, second = (sorted(key for key in one if key[0] == "a") for one in epochs[:2])
    assert first != second


@pytest.mark.parametrize(
    "options",
    [
        {"weights": (0.7, 0.2, 0.1)},
        {"weights": (1, 1, 1), "bucket_window": 3, "items": "one"},
        {"target": "text", "weights": (0.7, 0.2, 0.1), "drop_last": True},
        {"bucket_window": 2, "max_length": 5},
        {"shuffle": False, "weights": (1, 1, 1)},
    ],
)
def test_resume_at_every_step(folders: list[Path], options: dict[str, Any]) -> None:
    def make() -> ShardLoader:
        return loader_of(folders, epochs=2, **options)

    assert len(check_resume(make)) == 2 * make().steps_per_epoch


def test_ranks_share_the_samples_of_a_step(folders: list[Path]) -> None:
    settings = {"weights": (0.7, 0.2, 0.1), "epochs": 2}
    whole = [sorted(batch_content(batch)) for batch in loader_of(folders, 12, **settings)]
    ranks = [
        record(loader_of(folders, 4, rank=rank, world_size=3, **settings))[1] for rank in range(3)
    ]
    parts = zip(*ranks, strict=True)
    assert [sorted(sample for part in step for sample in part) for step in parts] == whole


def test_threads_change_nothing(folders: list[Path]) -> None:
    settings = {"weights": (3, 2, 1), "epochs": 2, "bucket_window": 2, "batch_size": 8}
    expected = record(ShardLoader(folders, num_threads=0, **settings))
    assert record(ShardLoader(folders, num_threads=2, **settings)) == expected


def test_skipped_items_of_all_datasets_are_counted(folders: list[Path]) -> None:
    counted = [loader_of(folder, max_length=5).skipped for folder in folders]
    expected = sum(map(Counter, counted), Counter())
    assert loader_of(folders, max_length=5).skipped == expected


def test_each_dataset_has_its_own_split(folders: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path, "d", 6, ("train", "val"))
    found = loader_of([ShardDataset(folders[2]), ShardDataset(other, "train")])
    assert sorted(key for batch in found for key in batch.keys) == [
        "c0", "c1", "c2", "c3", "c4", "d0", "d2", "d4"
    ]  # fmt: skip


def test_images_may_differ_where_none_is_needed(folders: list[Path], tmp_path: Path) -> None:
    columns = {"image_units": UnitColumn((2, 8), 9), "audio_units": AUDIO}
    with DatasetWriter(tmp_path / "e", columns=columns) as writer:
        writer.write(key="e0", image_units=None, audio_units=np.zeros((2, 3), int))
    loader = loader_of([folders[2], tmp_path / "e"], target="audio_units", needs_image=False)
    keys = [key for batch in loader for key in batch.keys]
    assert sorted(keys) == ["c0", "c1", "c2", "c3", "c4", "e0"]
    assert loader.image_column is None
    (batch,) = loader_of([folders[2]] * 2, 10, target="audio_units", needs_image=False)
    assert batch.image_units.shape == (10, 4, 4)


def test_what_is_refused(folders: list[Path], tmp_path: Path) -> None:
    other = write(tmp_path, "other", 3, image_units=UnitColumn((2, 8), 16384))
    for names in ([folders[0], other], [other, folders[0]]):
        with pytest.raises(
            ValueError, match=r"column image_units is .* of 16,384 codes, but in .*"
        ):
            loader_of(names)
    message = r"other: column audio_units is \(3, None\) of 64 codes, but in .*a \(2, None\) of 64"
    columns = {"image_units": IMAGE, "audio_units": UnitColumn((3, None), 64)}
    with DatasetWriter(tmp_path / "x/other", columns=columns) as writer:
        writer.write(key="a", image_units=np.zeros((4, 4), int), audio_units=None)
    with pytest.raises(ValueError, match=message):
        loader_of([folders[0], tmp_path / "x/other"], target="audio_units")
    with pytest.raises(ValueError, match="2 weights for 3 datasets; give one for each"):
        loader_of(folders, weights=(1, 2))
    with pytest.raises(ValueError, match=r"weights are \(1, 0, 1\); expected numbers above 0"):
        loader_of(folders, weights=(1, 0, 1))
    with pytest.raises(ValueError, match="c: its weight gives it none of the 57 samples of an ep"):
        loader_of(folders, weights=(1, 1, 1e-9))
    with pytest.raises(ValueError, match="no dataset; give at least one"):
        loader_of([])
    state = loader_of(folders, weights=(1, 2, 3)).state_dict()
    with pytest.raises(ValueError, match=r"weights was \[1, 2, 3\] and is None now"):
        loader_of(folders).load_state_dict(state)
    with pytest.raises(ValueError, match="of the dataset with manifest_sha256 .*, this one has"):
        loader_of(folders[:2]).load_state_dict(state)
