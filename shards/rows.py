"""Rows of stock readers as arrays: pyarrow's, those of datasets, and samples of webdataset."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.layouts.webdataset import batch_of_sample, row_of_sample
from im2sp.shards.manifest import MANIFEST_NAME
from im2sp.shards.schema import Schema, entries_of

ColumnsOrDataset = Mapping[str, UnitColumn | str] | ShardDataset


def decode_row(row: Mapping[str, Any], columns_or_dataset: ColumnsOrDataset) -> dict[str, Any]:
    """Turn the bytes of a row into arrays.

    >>> row = pyarrow_table.slice(0, 1).to_pylist()[0]  # doctest: +SKIP
    >>> decode_row(row, ShardDataset("out/"))["image_units"]  # doctest: +SKIP

    Args:
        row: Column -> value as pyarrow or datasets read it, or a sample of the plain layout as
            webdataset reads it.
        columns_or_dataset: The dataset; or its columns, as for `DatasetWriter`, if none is coded
            and the version is 2.

    Returns:
        Column -> array, list of arrays, or the value itself of other columns.

    Raises:
        ShardError: A value is invalid for its column; names sample and column.
    """
    schema = _schema(columns_or_dataset)
    if "arrow" in row:
        raise ShardError("a packed member holds many samples; use expand_members")
    if "json" in row:
        row, _ = row_of_sample(str(row.get("__key__")), row, schema)
    return schema.decode_row(row)


def datasets_transform(
    columns_or_dataset: ColumnsOrDataset,
) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    """Transform of the datasets library that turns bytes into arrays.

    >>> rows = datasets.load_dataset("out/")["train"]  # doctest: +SKIP
    >>> rows.set_transform(datasets_transform(ShardDataset("out/")))  # doctest: +SKIP

    Args:
        columns_or_dataset: As for `decode_row`.
    """
    schema = _schema(columns_or_dataset)

    def transform(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        names = list(batch)
        rows = [
            schema.decode_row(dict(zip(names, row, strict=True)))
            for row in zip(*batch.values(), strict=True)
        ]
        return {name: [row[name] for row in rows] for name in names}

    return transform


def expand_members(
    samples: Iterable[dict[str, Any]], columns_or_dataset: ColumnsOrDataset | None = None
) -> Iterator[dict[str, Any]]:
    """Convert samples read by the stock webdataset library into one dict per sample.

    >>> dataset = webdataset.WebDataset(urls).compose(expand_members)  # doctest: +SKIP

    Args:
        samples: Undecoded dicts of the library: `__key__`, and bytes by member suffix.
        columns_or_dataset: Needed for coded columns whose tables are not in the shards, unless
            `__url__` is a file beside `dataset.json`.

    Yields:
        Dicts with `__key__` (the key of the `Sample`), `__url__` if given, the fields of `Sample`
        by name, and the other columns of the dataset.

    Raises:
        ShardError: A member was not written by im2sp, or is damaged.
    """
    given = None if columns_or_dataset is None else _schema(columns_or_dataset)
    beside: dict[Path, Schema] = {}
    for members in samples:
        stem = str(members.get("__key__"))
        try:
            batch, schema = batch_of_sample(stem, members, given)
            if given is None and schema.needs_tables:
                folder = Path(str(members.get("__url__", "")).removeprefix("file:")).parent
                if folder not in beside and (folder / MANIFEST_NAME).is_file():
                    beside[folder] = ShardDataset(folder).schema
                schema = beside.get(folder, schema)
            views = Batch(batch, schema)
            decoded = [views.sample(i) for i in range(views.num_samples)]
        except ShardError as error:
            raise ShardError(f"{members.get('__url__', '')}: member {stem}: {error}") from None
        for sample in decoded:
            fields = {name: value for name, value in vars(sample).items() if name != "columns"}
            expanded = {"__key__": sample.key, **sample.columns, **fields}
            if "__url__" in members:
                expanded["__url__"] = members["__url__"]
            yield expanded


def _schema(columns_or_dataset: ColumnsOrDataset) -> Schema:
    if isinstance(columns_or_dataset, ShardDataset):
        return columns_or_dataset.schema
    return Schema(2, entries_of(columns_or_dataset))
