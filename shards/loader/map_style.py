"""`ShardDataset.torch()`: a dataset that a plain torch `DataLoader` takes."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from im2sp.shards.columns.names import SIZES_SUFFIX
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.schema import BUILT_IN, Sample

PADDING = -1


class TorchDataset(Dataset[dict[str, Any]]):
    """Samples as dicts of tensors, padded where a `DataLoader` fetches a batch.

    The `DataLoader` fetches a batch by `__getitems__`, which pads arrays of varying shapes to the
    largest of the batch, so that its default collate function can stack them:

    - a unit column: int64 (*shape), padded with -1; where an axis varies also `NAME_sizes`, int64
      (axes,), the sizes without padding. With `many` both have one more axis in front, padded
      with arrays of the size 0. A sample without the column has -1 only, and sizes of 0.
    - key, split and strings: str, "" if absent; captions and lists of strings: one str, a line for
      each; bytes: bytes, b"" if absent
    - float: float64, NaN if absent; int: int64; bool: bool

    >>> from torch.utils.data import DataLoader  # doctest: +SKIP
    >>> for batch in DataLoader(dataset.torch(), batch_size=32):  # doctest: +SKIP
    ...     batch["audio_units"]  # int64 [32, 8, T]
    """

    def __init__(self, dataset: ShardDataset, columns: Sequence[str] | None = None) -> None:
        """Choose columns.

        Args:
            dataset: The dataset.
            columns: Names of columns; None for all.

        Raises:
            ValueError: The dataset lacks a column.
        """
        known = [*BUILT_IN, *dataset.columns]
        for name in columns or ():
            if name not in known:
                raise ValueError(f"{dataset.path}: no column {name!r}, expected some of {known}")
        self.dataset = dataset
        self._columns = known if columns is None else list(columns)
        self._types = {**BUILT_IN, **dataset.columns}

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Sample `index`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Samples, padded to the same shapes.

        Raises:
            IndexError: There is no such sample.
            ShardError: A shard is missing or damaged.
            ValueError: A sample has no value where a tensor needs one.
        """
        samples = [self.dataset[index] for index in indices]
        items: list[dict[str, Any]] = [{} for _ in samples]
        for name in self._columns:
            kind = self._types[name]
            if not isinstance(kind, UnitColumn):
                for item, sample in zip(items, samples, strict=True):
                    item[name] = _own(name, kind, sample)
                continue
            units, sizes = _padded(kind, [sample[name] for sample in samples])
            for item, one, size in zip(items, units, sizes, strict=True):
                item[name] = one
                if kind.many or kind.num_variable:
                    item[name + SIZES_SUFFIX] = size
        return items


def _padded(column: UnitColumn, values: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Arrays of all samples as one tensor, and their sizes; see `TorchDataset`."""
    axes = len(column.shape)
    lists: list[list[NDArray[Any]]] = [
        list(value or ()) if column.many else ([] if value is None else [value]) for value in values
    ]
    num = max((len(arrays) for arrays in lists), default=0) if column.many else 1
    sizes = np.zeros((len(lists), num, axes), np.int64)
    for row, arrays in enumerate(lists):
        for k, array in enumerate(arrays):
            sizes[row, k] = array.shape
    largest = sizes.reshape(-1, axes).max(axis=0, initial=0)
    shape = [size or int(most) for size, most in zip(column.shape, largest, strict=True)]
    units = np.full((len(lists), num, *shape), PADDING, np.int64)
    for row, arrays in enumerate(lists):
        for k, array in enumerate(arrays):
            units[(row, k, *map(slice, array.shape))] = array
    if not column.many:
        units, sizes = units[:, 0], sizes[:, 0]
    return torch.from_numpy(units), torch.from_numpy(sizes)  # pyright: ignore[reportUnknownMemberType]  # torch does not say


def _own(name: str, kind: str, sample: Sample) -> Any:
    """A value of a column without units, as the default collate function takes it."""
    value = getattr(sample, name) if name in BUILT_IN else sample[name]
    if kind == "list of string":
        return "\n".join(cast(list[str], value or []))
    if kind in ("string", "bytes"):
        return value if value is not None else {"string": "", "bytes": b""}[kind]
    if value is None and kind != "float":
        raise ValueError(
            f"sample {sample.key!r}: column {name} has no value, which a tensor of the type {kind}"
            " cannot hold; name the other columns with columns="
        )
    dtype = {"float": torch.float64, "int": torch.int64, "bool": torch.bool}[kind]
    return torch.tensor(float("nan") if value is None else value, dtype=dtype)
