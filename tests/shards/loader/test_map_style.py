import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from im2sp.shards import ShardDataset, UnitColumn
from support.columns import COLUMNS, make_rows, write_rows


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rows = make_rows(20)
    for i, row in enumerate(rows):
        row["number"], row["is_free"] = i - (1 << 62), i % 2 == 0
    return rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> ShardDataset:
    return write_rows(tmp_path_factory.mktemp("data") / "shards", rows)


def assert_item(item: dict[str, Any], row: dict[str, Any]) -> None:
    """Compare an item, without its padding, with the row that was written."""
    for name, column in COLUMNS.items():
        found, value = item[name], row[name]
        if not isinstance(column, UnitColumn):
            expected = value
            if column == "list of string":
                expected = "\n".join(value or [])
            elif value is None:
                expected = {"string": "", "bytes": b"", "float": float("nan")}[column]
            np.testing.assert_equal(
                found if isinstance(found, str | bytes) else found.item(), expected
            )
            continue
        assert found.dtype == torch.int64
        arrays = ([] if value is None else [value]) if not column.many else value or []
        units = found if column.many else found[None]
        sizes = (
            item[f"{name}_sizes"]
            if column.many or column.num_variable
            else torch.tensor([size or 0 for size in column.shape])
        )
        sizes = sizes if column.many else sizes[None]
        for array, padded, size in zip(arrays, units, sizes, strict=False):
            assert size.tolist() == list(array.shape)
            whole = padded[tuple(map(slice, array.shape))]
            np.testing.assert_array_equal(whole, array)
            assert (padded >= 0).sum() == array.size
        assert (units[len(arrays) :] == -1).all()
    captions = row["captions"]
    assert (item["key"], item["split"], item["captions"]) == (
        row["key"], row["split"], "\n".join(captions)
    )  # fmt: skip


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_loader_takes_every_column(
    dataset: ShardDataset, rows: list[dict[str, Any]], num_workers: int
) -> None:
    found = []
    for batch in DataLoader(dataset.torch(), batch_size=6, num_workers=num_workers):
        size = len(batch["key"])
        assert {len(value) for value in batch.values()} == {size}
        found += [{name: value[i] for name, value in batch.items()} for i in range(size)]
    for item, row in zip(found, rows, strict=True):
        assert_item(item, row)


def test_single_samples_and_copies(dataset: ShardDataset, rows: list[dict[str, Any]]) -> None:
    samples = copy.deepcopy(dataset.torch())  # as pickling does
    assert len(samples) == 20
    for i in (0, 7, 19):
        assert_item(samples[i], rows[i])
    assert samples[3]["audio_units"].shape == (8, 3)
    assert samples[3]["audio_units_sizes"].tolist() == [8, 3]
    assert "image_units_sizes" not in samples[3]
    with pytest.raises(IndexError, match="sample 20 of 20"):
        samples[20]


def test_chosen_columns(dataset: ShardDataset) -> None:
    names = ["captions", "image_units"]
    batch = next(iter(DataLoader(dataset.torch(names), batch_size=4)))
    assert list(batch) == names
    assert batch["image_units"].shape == (4, 4, 4)
    with pytest.raises(ValueError, match=r"no column 'sound', expected some of \['key', 'split'"):
        dataset.torch(["sound"])


def test_what_a_tensor_cannot_hold(tmp_path: Path) -> None:
    row = {"key": "a", "number": None, "line": None}
    columns = {name: COLUMNS[name] for name in ("number", "line")}
    samples = write_rows(tmp_path / "shards", [row], columns=columns).torch()
    with pytest.raises(
        ValueError, match="sample 'a': column number has no value, which a tensor of"
    ):
        samples[0]
