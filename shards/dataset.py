"""`ShardDataset`: random access to the samples of a dataset in a folder or in a store."""

import operator
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.codebook import codebook_name, read_tensors
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.manifest import Manifest
from im2sp.shards.reader import ShardReader
from im2sp.shards.schema import Sample
from im2sp.shards.stores import folder_or_url

_MAX_OPEN_BATCHES = 16384


class ShardDataset:
    """A map-style dataset of `Sample`, read from memory-mapped shards.

    Opening reads only `dataset.json`; a shard is mapped when its first sample is requested, and
    each batch's checksum is compared on first access. Forked children share the parent's mappings;
    a pickle stores the path and reopens the dataset. Files that the manifest does not list are
    ignored.

    A shard in a store (`s3://..`, see `im2sp.shards.stores`) is copied before it is mapped, once a
    machine; see `DatasetFiles`.

    Damage to a file while it is mapped is not detected; truncating it then kills the process
    (SIGBUS), as with any memory map.

    Attributes:
        path: The folder as a `Path`, or the URL as text.
        files: The dataset's files on this machine.
        split: The split, None for all samples.
        manifest: Content of `dataset.json`.
        schema: Columns and how they are stored.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open a dataset.

        Args:
            path: Folder or URL with `dataset.json`.
            split: Split to read, None for all samples.
            cache_dir: Folder for the copies of a dataset in a store, a subfolder for each manifest;
                None for `$XDG_CACHE_HOME/im2sp/datasets` (or `~/.cache`).

        Raises:
            ShardError: `dataset.json` is missing, invalid or of another version, or lacks the
                split.
        """
        place = folder_or_url(path)
        self.path = place if isinstance(place, str) else Path(os.path.abspath(place))
        self.cache_dir = None if cache_dir is None else os.path.abspath(cache_dir)
        self.split = split
        self.manifest = Manifest.read(self.path)
        self.files = self.manifest.files(self.path, self.cache_dir)
        if split is not None and split not in self.manifest.splits:
            raise ShardError(
                f"{self.path}: no split {split!r}; it has {sorted(self.manifest.splits)}"
            )
        self.schema = self.manifest.schema
        if self.schema.needs_tables:
            self.schema = self.schema.with_tables(self.tensors())
        self._readers: dict[int, ShardReader] = {}
        self._batches: dict[int, Batch] = {}
        self._places: list[tuple[int, int]] = []  # per batch: shard, number in the shard
        self._starts = [0]  # per batch: its first row; finally the number of rows
        for number, shard in enumerate(self.manifest.shards):
            if split is not None and split not in shard.splits:
                continue
            for k, info in enumerate(shard.batches):
                self._places.append((number, k))
                self._starts.append(self._starts[-1] + info.num_samples)
        self._is_mixed = split is not None and any(
            split in shard.splits and len(shard.splits) > 1 for shard in self.manifest.shards
        )
        self._rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Number of samples of the split."""
        if self.split is None:
            return self.manifest.num_samples
        return self.manifest.splits[self.split]

    def __getitem__(self, index: SupportsIndex) -> Sample:
        """Sample `index`, counted from the end if negative.

        Raises:
            IndexError: There is no such sample.
            ShardError: The shard is missing or damaged; names file, position, found and expected.
        """
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return self.sample(*self.locate(i % len(self)))

    def __iter__(self) -> Iterator[Sample]:
        """All samples in order."""
        for i in range(len(self)):
            yield self[i]

    def __repr__(self) -> str:
        return f"ShardDataset({str(self.path)!r}, split={self.split!r}): {len(self)} samples"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle path and split; unpickling fails if the dataset has changed."""
        place = (str(self.path), self.split, self.cache_dir)
        return _reopen, (type(self), place, self.manifest.sha256)

    @property
    def columns(self) -> dict[str, UnitColumn | str]:
        """Declared columns: a `UnitColumn`, or the type of an own column such as "string"."""
        return self.schema.columns

    def torch(self, columns: Sequence[str] | None = None) -> Any:
        """A torch `Dataset` of dicts of tensors that a plain `DataLoader` takes.

        Batches are padded by it, see `im2sp.shards.loader.map_style.TorchDataset`.

        Args:
            columns: Names of columns; None for all.

        Raises:
            ValueError: There is no such column.
        """
        module = import_module("im2sp.shards.loader.map_style")  # imports torch
        return module.TorchDataset(self, columns)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Codebooks and coding tables; empty if the dataset has none.

        Raises:
            ShardError: Their file is missing or damaged.
        """
        name, sha256 = self.manifest.codebook_file, self.manifest.codebook_sha256
        if name is None or sha256 is None:
            return {}
        return read_tensors(self.files.local(name), sha256)

    def codebook(self, column: str = "image_units") -> NDArray[np.float32]:
        """The (num_codes, width) float32 vectors of the units of a column.

        Raises:
            ShardError: The dataset has no codebook for it, or its file is missing or damaged.
        """
        codebook = self.tensors().get(codebook_name(column))
        if codebook is None:
            raise ShardError(f"{self.path}: dataset.json names no codebook for {column}")
        return codebook

    def copy_shards(self, on_copied: Callable[[int], object] = lambda _: None) -> None:
        """Copy the shards that contain the split from a store, eight at once; else do nothing.

        Args:
            on_copied: Called with the size of each shard in bytes.

        Raises:
            ShardError: As `DatasetFiles.local` does.
        """
        shards = dict.fromkeys(shard for shard, _ in self._places)
        self.files.copy_all((self.manifest.shards[shard].file for shard in shards), on_copied)

    @property
    def num_batches(self) -> int:
        """Number of batches in the shards that contain the split."""
        return len(self._places)

    def locate(self, i: int) -> tuple[int, int]:
        """Batch number and row within it of sample i, 0 <= i < len."""
        if self._is_mixed:
            i = int(self._split_rows()[i])
        batch = bisect_right(self._starts, i) - 1
        return batch, i - self._starts[batch]

    def batch_path(self, number: int) -> Path:
        """The shard file on this machine that contains batch `number`."""
        return self.files.folder / self.manifest.shards[self.shard_of(number)].file

    def batch(self, number: int) -> Batch:
        """Views of batch `number` (of `locate`), for reading many rows at once.

        Raises:
            ShardError: The shard is missing or damaged.
        """
        batch = self._batches.get(number)
        if batch is None:
            batch = self.read_batch(number)
            if len(self._batches) >= _MAX_OPEN_BATCHES:
                self._batches.pop(next(iter(self._batches)), None)
            self._batches[number] = batch
        return batch

    def read_batch(self, number: int, *, is_compared: bool = True) -> Batch:
        """As `batch`, but the views are not kept; see `ShardReader.batch`."""
        shard, k = self._places[number]
        return self.reader(shard).batch(k, is_compared=is_compared)

    def reader(self, shard: int) -> ShardReader:
        """Reader of a shard, opened on first use.

        Raises:
            ShardError: The shard is missing or of another size, or cannot be copied.
        """
        reader = self._readers.get(shard)
        if reader is None:
            info, layout = self.manifest.shards[shard], self.manifest.layout
            reader = ShardReader(self.files.local(info.file), info, layout, self.schema)
            self._readers[shard] = reader
        return reader

    def shard_of(self, number: int) -> int:
        """Number in the manifest of the shard that contains batch `number`."""
        return self._places[number][0]

    def sample(self, batch: int, row: int) -> Sample:
        """The sample at a position returned by `locate`.

        Raises:
            ShardError: As `dataset[i]` does.
        """
        try:
            return self.batch(batch).sample(row)
        except ShardError as error:
            raise self._named(batch, error) from None

    def _split_rows(self) -> NDArray[np.int64]:
        """Rows of the split if shards mix splits, read from their split columns."""
        if self._rows is None:
            rows: list[NDArray[np.int64]] = []
            for number, (shard, _) in enumerate(self._places):
                num_rows = self._starts[number + 1] - self._starts[number]
                if len(self.manifest.shards[shard].splits) == 1:
                    found = np.arange(num_rows)
                else:
                    splits = self.batch(number).splits
                    texts = [splits.text(i) for i in range(num_rows)]
                    found = np.flatnonzero([text == self.split for text in texts])
                rows.append(found + self._starts[number])
            joined = np.concatenate(rows)
            if joined.size != len(self):
                raise ShardError(
                    f"{self.path}: {joined.size} samples of split {self.split!r}, dataset.json "
                    f"says {len(self)}; run im2sp-verify"
                )
            self._rows = joined
        return self._rows

    def _named(self, batch: int, error: ShardError) -> ShardError:
        path, text = self.batch_path(batch), str(error)
        if path.name in text:
            return error
        k = self._places[batch][1]
        return ShardError(f"{path}: batch {k}: {text}; run im2sp-verify")


def _reopen(
    dataset_class: type[ShardDataset], place: tuple[str, str | None, str | None], sha256: str
) -> ShardDataset:
    dataset = dataset_class(*place)
    if dataset.manifest.sha256 != sha256:
        raise ShardError(
            f"{dataset.path}: the dataset has changed since it was pickled; open it again"
        )
    return dataset
