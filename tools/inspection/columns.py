"""Columns of a dataset, and their values in a record batch, decoded without a loop over samples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import ShardDataset, UnitColumn
from im2sp.shards.columns.arrays import Lists, Rows
from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.layouts.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of unit arrays."""

    name: str
    kind: UnitColumn
    """Shape, number of codes, one array or many."""
    stored: StoredUnits
    """Coding of one array."""
    codec_name: str
    """Name of the codec, with the bits of `packed`."""


@dataclass(frozen=True, kw_only=True)
class ColumnValues:
    """All arrays of a column in a record batch."""

    ids: NDArray[Any]
    """(units,) of all arrays."""
    lengths: NDArray[np.int64]
    """(arrays,) number of units in each."""
    per_row: NDArray[np.int64]
    """(rows with a value,) number of arrays in each."""
    size_bytes: int
    """Bytes of the coded arrays."""


def unit_columns(dataset: ShardDataset) -> list[Column]:
    """The unit columns in the order of the format."""
    columns: list[Column] = []
    for name, stored in dataset.schema.units.items():
        kind = stored.column
        codec_name: str = dataset.manifest.columns[name]["codec"]
        if codec_name == "packed":
            codec_name = f"packed, {kind.bits} bits"
        num_codes = (dataset.manifest.tokenizer_of(name) or {}).get("num_units", kind.num_codes)
        kind = UnitColumn(kind.shape, num_codes, kind.many, kind.coding)
        columns.append(Column(name=name, kind=kind, stored=stored, codec_name=codec_name))
    return columns


def read_column(column: Column, batch: Batch) -> ColumnValues:
    """Decode a column of a record batch.

    Raises:
        ShardError: A value is invalid for its codec.
    """
    view = batch.views[column.name]
    is_there = np.ones(batch.num_samples, np.bool_) if view.valid is None else view.valid
    per_row = np.ones(int(is_there.sum()), np.int64)
    if isinstance(view, Rows):
        data = view.data[is_there]
        offsets = np.arange(len(data) + 1) * view.data.shape[1]
        data = data.reshape(-1)
    else:
        values = view.values if isinstance(view, Lists) else view
        data, offsets = values.data, values.offsets.astype(np.int64)
        if isinstance(view, Lists):
            per_row = np.diff(view.offsets.astype(np.int64))[is_there]
        else:  # a null has no bytes
            offsets = np.concatenate([[0], offsets[1:][is_there]])
    ids, id_offsets, _ = column.stored.decode_values(data, offsets)
    return ColumnValues(ids=ids, lengths=np.diff(id_offsets), per_row=per_row, size_bytes=data.size)
