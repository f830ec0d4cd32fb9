"""Several datasets as one: numbering, weights, and reading of batches that mix them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.loader.index import LoaderIndex
from im2sp.shards.loader.kernels import permute
from im2sp.shards.loader.plan import LoaderSettings, key_of
from im2sp.shards.loader.read import SampleReader, Texts, Utterances

Numbers = NDArray[np.int64]


class Mixture:
    """Indexed datasets whose samples are numbered one dataset after the other.

    With weights, an epoch has as many samples as all datasets together, of each dataset its share.
    Each dataset is read pass by pass, each pass in another order: no sample is read again before
    all others of the same dataset.

    Attributes:
        num_samples: Samples of an epoch.
        image_column: Column of the images; None if none is needed and not all have one like it.
        skipped: Items and samples left out: reason -> number, of all datasets.
    """

    def __init__(self, datasets: Sequence[ShardDataset], settings: LoaderSettings) -> None:
        """Index the datasets.

        Raises:
            ShardError: A shard is missing or damaged.
            ValueError: Nothing is left of a dataset, their columns differ, or a weight is wrong.
        """
        self._settings = settings
        names = [settings.target_column] if settings.is_of_units else []
        images = {_described(dataset.columns.get(settings.image_column)) for dataset in datasets}
        if settings.needs_image:
            names.append(settings.image_column)
        elif len(images) > 1:  # no column of all of them
            settings = replace(settings, image_column="")
        check_columns(datasets, names)
        self._indices = [LoaderIndex(dataset, settings) for dataset in datasets]
        pairs = zip(datasets, self._indices, strict=True)
        self._readers = [SampleReader(dataset, index, settings) for dataset, index in pairs]
        sizes = [index.num_samples for index in self._indices]
        self._starts = np.cumsum([0, *sizes])
        self._shares = np.array(sizes)
        if settings.weights is not None:
            self._shares = _shares(settings.weights, sum(sizes), datasets)
        self.num_samples = int(self._shares.sum())
        self.image_column = self._indices[0].image_column
        self.skipped: dict[str, int] = {}
        for index in self._indices:
            for reason, num in index.skipped.items():
                self.skipped[reason] = self.skipped.get(reason, 0) + num

    def drawn(self, numbers: Numbers, epoch: int) -> Numbers:
        """Samples at numbers of an epoch, 0 to `num_samples - 1`."""
        if self._settings.weights is None:
            return numbers
        samples = np.empty_like(numbers)
        ends = np.cumsum(self._shares)
        source = np.searchsorted(ends, numbers, side="right")
        for k, index in enumerate(self._indices):
            rows, num = np.flatnonzero(source == k), index.num_samples
            place = epoch * self._shares[k] + numbers[rows] - (ends[k] - self._shares[k])
            for turn in np.unique(place // num).tolist():
                of_turn = rows[place // num == turn]
                within = place[place // num == turn] % num
                if self._settings.shuffle:
                    key = key_of(self._settings.seed, turn, f"dataset {k}")
                    permute(within, num, key, within)
                samples[of_turn] = self._starts[k] + within
        return samples

    def sort_lengths(self, samples: Numbers, epoch: int) -> NDArray[np.int32]:
        """Length of each sample's longest item, or of the one drawn in this epoch."""
        lengths = np.empty(samples.size, np.int32)
        for k, rows in self._parts(samples):
            local = samples[rows] - self._starts[k]
            lengths[rows] = self._indices[k].sort_lengths(local, epoch)
        return lengths

    def images(self, samples: Numbers) -> NDArray[np.uint8]:
        """Packed rows, (n, bytes) uint8."""
        parts = self._read(samples, lambda reader, local: reader.images(local))
        if len(parts) == 1:
            return parts[0].found
        images = np.empty((samples.size, parts[0].found.shape[1]), np.uint8)
        for part in parts:
            images[part.rows] = part.found
        return images

    def utterances(self, samples: Numbers, epoch: int) -> Utterances:
        """Utterances selected by the settings; see `SampleReader.utterances`."""
        parts = self._read(samples, lambda reader, local: reader.utterances(local, epoch))
        if len(parts) == 1:
            return parts[0].found
        owner, order = _merged([(part.rows, part.found.owner) for part in parts])
        longest = max(part.found.ids.shape[1] for part in parts)
        ids = np.full((owner.size, longest), -1, parts[0].found.ids.dtype)
        start = 0
        for part in parts:
            found = part.found.ids
            ids[start : start + len(found), : found.shape[1]] = found
            start += len(found)
        return Utterances(
            ids=ids[order],
            lengths=np.concatenate([part.found.lengths for part in parts])[order],
            shapes=np.concatenate([part.found.shapes for part in parts])[order],
            owner=owner,
        )

    def target_captions(self, samples: Numbers, epoch: int) -> Texts:
        """Captions selected by the settings."""
        return self._texts(samples, lambda reader, local: reader.target_captions(local, epoch))

    def all_captions(self, samples: Numbers) -> Texts:
        """All non-empty captions."""
        return self._texts(samples, lambda reader, local: reader.all_captions(local))

    def keys(self, samples: Numbers) -> list[str]:
        """Keys of the samples."""
        keys = [""] * samples.size
        for part in self._read(samples, lambda reader, local: reader.keys(local)):
            for row, key in zip(part.rows.tolist(), part.found, strict=True):
                keys[row] = key
        return keys

    def _texts(self, samples: Numbers, read: Callable[[SampleReader, Numbers], Texts]) -> Texts:
        parts = self._read(samples, read)
        if len(parts) == 1:
            return parts[0].found
        owner, order = _merged([(part.rows, part.found.owner) for part in parts])
        texts = [text for part in parts for text in part.found.texts]
        return Texts(texts=[texts[i] for i in order.tolist()], owner=owner)

    def _parts(self, samples: Numbers) -> list[tuple[int, Numbers]]:
        """Number of each dataset with samples, at least one, and the rows of its samples."""
        if len(self._indices) == 1 or not samples.size:
            return [(0, np.arange(samples.size))]
        source = np.searchsorted(self._starts, samples, side="right") - 1
        return [(k, np.flatnonzero(source == k)) for k in np.unique(source).tolist()]

    def _read(
        self, samples: Numbers, read: Callable[[SampleReader, Numbers], Any]
    ) -> list["_Part"]:
        return [
            _Part(rows, read(self._readers[k], samples[rows] - self._starts[k]))
            for k, rows in self._parts(samples)
        ]


@dataclass(frozen=True)
class _Part:
    """Result of reading one dataset."""

    rows: Numbers
    """Rows of the batch."""
    found: Any


def _merged(parts: list[tuple[Numbers, NDArray[np.int32]]]) -> tuple[NDArray[np.int32], Numbers]:
    """Rows of the batch that items belong to, ascending, and the order of the items."""
    owner = np.concatenate([rows[owner].astype(np.int32) for rows, owner in parts])
    order = np.argsort(owner, kind="stable")
    return owner[order], order


def _shares(
    weights: Sequence[float], num_samples: int, datasets: Sequence[ShardDataset]
) -> NDArray[np.int64]:
    """Samples of each dataset in an epoch: its weight's share, by largest remainders."""
    if len(weights) != len(datasets):
        raise ValueError(f"{len(weights)} weights for {len(datasets)} datasets; give one for each")
    exact = num_samples * np.array(weights) / sum(weights)
    shares = exact.astype(np.int64)
    rest = np.argsort(shares - exact, kind="stable")[: num_samples - int(shares.sum())]
    shares[rest] += 1
    for dataset, share in zip(datasets, shares.tolist(), strict=True):
        if not share:
            raise ValueError(
                f"{dataset.path}: its weight gives it none of the {num_samples} samples of an"
                " epoch; use a larger one, or leave it out"
            )
    return shares


def check_columns(datasets: Sequence[ShardDataset], names: Iterable[str]) -> None:
    """Refuse datasets that cannot be used together.

    Args:
        datasets: The datasets.
        names: Columns that need the same shape and number of codes in all of them.

    Raises:
        ValueError: They differ; names the column and two datasets.
    """
    for name in names:
        described = [_described(dataset.columns.get(name)) for dataset in datasets]
        for dataset, one in zip(datasets, described, strict=True):
            if one != described[0]:
                raise ValueError(
                    f"{dataset.path}: column {name} is {one}, but in {datasets[0].path}"
                    f" {described[0]}; datasets that are used together need equal columns"
                )


def _described(kind: UnitColumn | str | None) -> str:
    if not isinstance(kind, UnitColumn):
        return f"of the type {kind}" if kind else "absent"
    many = "any number of " if kind.many else ""
    return f"{many}{kind.shape} of {kind.num_codes:,} codes"
