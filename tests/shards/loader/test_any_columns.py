"""Every unit column of a dataset of version 2 as target and as image column, in every layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import ShardDataset, ShardError, ShardLoader, UnitColumn
from support.columns import COLUMNS, LAYOUTS, make_rows, write_rows

UNITS = {name: kind for name, kind in COLUMNS.items() if isinstance(kind, UnitColumn)}
FIXED = [name for name, kind in UNITS.items() if not kind.many and not kind.num_variable]


@pytest.fixture(scope="module", params=LAYOUTS)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("data") / "shards"
    return write_rows(folder, make_rows(57), **LAYOUTS[request.param])


def loader_of(dataset: ShardDataset, **options: Any) -> ShardLoader:
    return ShardLoader(dataset, batch_size=8, num_threads=0, shuffle=False, **options)


def arrays_of(value: Any, column: UnitColumn) -> list[np.ndarray]:
    """Arrays of a sample with units."""
    arrays = (value or []) if column.many else [] if value is None else [value]
    return [array for array in arrays if array.size]


@pytest.mark.parametrize("name", UNITS)
def test_targets_of_every_shape_and_codec(dataset: ShardDataset, name: str) -> None:
    column, found = UNITS[name], {}
    for batch in loader_of(dataset, target=name, needs_image=False):
        assert batch.shapes.shape == (len(batch.lengths), len(column.shape))
        assert len(batch.owner) == len(batch.ids) == len(batch.lengths)
        items: list[list[np.ndarray]] = [[] for _ in batch.keys]
        for row, length, shape, owner in zip(
            batch.ids.numpy(), batch.lengths.tolist(), batch.shapes.tolist(), batch.owner.tolist(),
            strict=True,
        ):  # fmt: skip
            assert (row[length:] == -1).all()
            items[owner].append(row[:length].reshape(shape))
        found |= dict(zip(batch.keys, items, strict=True))
    expected = {sample.key: arrays_of(sample[name], column) for sample in dataset}
    assert found.keys() == {key for key, arrays in expected.items() if arrays}
    for key, arrays in found.items():
        for ours, theirs in zip(arrays, expected[key], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", FIXED)
def test_images_of_every_shape_and_codec(dataset: ShardDataset, name: str) -> None:
    loader = loader_of(dataset, target="images", image_column=name)
    found = {}
    for batch in loader:
        found |= dict(zip(batch.keys, batch.image_units.numpy(), strict=True))
    assert loader.image_column == UNITS[name]
    expected = {sample.key: sample[name] for sample in dataset if sample[name] is not None}
    assert list(found) == list(expected)
    for key, units in expected.items():
        np.testing.assert_array_equal(found[key], units)


def test_lengths_of_arrays_are_filtered(dataset: ShardDataset) -> None:
    loader = loader_of(dataset, target="audio_units", needs_image=False, max_length=16)
    found = {key for batch in loader for key in batch.keys}
    sizes = {s.key: s["audio_units"].size for s in dataset if s["audio_units"] is not None}
    assert found == {key for key, size in sizes.items() if 0 < size <= 16}
    num_long = sum(size > 16 for size in sizes.values())
    assert loader.skipped["arrays of audio_units longer than 16"] == num_long


def test_a_dataset_without_images(tmp_path: Path) -> None:
    rows = [{"key": str(i), "audio_units": np.zeros((8, i + 1), int)} for i in range(3)]
    columns = {"audio_units": COLUMNS["audio_units"]}
    dataset = write_rows(tmp_path / "shards", rows, columns=columns)
    (batch,) = loader_of(dataset, target="audio_units", needs_image=False)
    assert batch.image_column is None
    assert batch.images_packed.shape == batch.image_units.shape == (3, 0)
    assert batch.lengths.tolist() == [8, 16, 24]
    with pytest.raises(ValueError, match="no column image_units; the loader needs images"):
        loader_of(dataset, target="audio_units")


def test_damaged_images_of_a_coded_column_are_named(
    dataset: ShardDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(dataset, target="images", image_column="small")
    stored = type(dataset.schema.units["small"])

    def fail(*_: Any) -> Any:
        raise ShardError("huffman: value 0 is cut off")

    monkeypatch.setattr(stored, "decode_values", fail)
    monkeypatch.setattr(stored, "decode", fail)
    with pytest.raises(ShardError, match=r"sample 'dir\.0/image 0.*': column .*: huffman: value 0"):
        list(loader)
