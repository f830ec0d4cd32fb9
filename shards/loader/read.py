"""Reading of a batch's samples from the mapped shards, without a Python loop over samples."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding.packing import pack_units, packed_size_bytes, small_work
from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.errors import ShardError, memory_limit
from im2sp.shards.loader import kernels
from im2sp.shards.loader.decoder import UnitsDecoder, check_memory
from im2sp.shards.loader.index import LONGEST, NO_LENGTHS, LoaderIndex
from im2sp.shards.loader.opened import OpenBatches
from im2sp.shards.loader.plan import LoaderSettings, key_of

_NO_KEY = np.uint64(0)
_ALL = (NO_LENGTHS, 0, LONGEST, False, _NO_KEY)
"""Arguments of `choose` for all items."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts and the indices of their images."""

    texts: list[str]
    """(N,) texts."""
    owner: NDArray[np.int32]
    """(N,) int32, the row in the batch of each text's image."""


@dataclass(frozen=True, kw_only=True)
class Utterances:
    """Utterances, or arrays of another unit column, and the indices of their images."""

    ids: NDArray[np.int16 | np.int32 | np.int64]
    """(N, longest), padded with -1."""
    lengths: NDArray[np.int32]
    """(N,) int32."""
    shapes: NDArray[np.int32]
    """(N, axes) int32."""
    owner: NDArray[np.int32]
    """(N,) int32, the row in the batch of each utterance's image."""


@dataclass(frozen=True)
class _Items:
    """Coded items of a batch, concatenated."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    owner: NDArray[np.int32]


class SampleReader:
    """Thread-safe reader of batches of samples by their numbers in the index."""

    def __init__(self, dataset: ShardDataset, index: LoaderIndex, settings: LoaderSettings) -> None:
        self._dataset = dataset
        self._index = index
        self._settings = settings
        self._opened = OpenBatches(dataset, index.columns, index.check)
        self._image_size_bytes, self._images = 0, None
        if (column := index.image_column) is not None:
            self._image_size_bytes = packed_size_bytes(column.num_fixed, column.bits)
            images = dataset.schema.units[settings.image_column]
            self._images = None if images.size_bytes else images
        if self._images is not None:
            small_work.takes(1 << 62)  # numba is imported already, so kernels pack the images
        self._limit_bytes = memory_limit(sum(s.size_bytes for s in dataset.manifest.shards))
        if settings.is_of_units:
            self._decoder = UnitsDecoder(dataset.schema.units[settings.target_column])

    def images(self, samples: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Packed rows, (n, bytes) uint8."""
        if self._images is not None:
            return self._coded_images(samples, self._images)
        images = np.empty((samples.size, self._image_size_bytes), np.uint8)
        if self._index.image_column is None:
            return images
        places = self._index.places[samples]
        self._opened.open(places)
        table = self._opened.tables[self._settings.image_column]
        num = kernels.gather_rows(places, self._opened.files, table, images)
        assert num == places.size, "the index names a row that its batch lacks"
        return images

    def _coded_images(self, samples: NDArray[np.int64], images: StoredUnits) -> NDArray[np.uint8]:
        """Images of a coded column, decoded and packed."""
        column = images.column
        items = self._items(samples, self._settings.image_column, _ALL)
        try:
            ids = images.decode_values(items.data, items.offsets)[0]
        except ShardError as error:
            self._blame(samples, error)
        return pack_units(ids.reshape(samples.size, column.num_fixed), column.bits)

    def utterances(self, samples: NDArray[np.int64], epoch: int) -> Utterances:
        """Utterances selected by the settings.

        Raises:
            ShardError: A value is invalid for its codec; names file and sample.
        """
        items = self._target_items(samples, epoch)
        try:
            ids, lengths, shapes = self._decoder.rows(items.data, items.offsets, self._limit_bytes)
        except ShardError as error:
            self._blame(samples, error)
        return Utterances(ids=ids, lengths=lengths, shapes=shapes, owner=items.owner)

    def target_captions(self, samples: NDArray[np.int64], epoch: int) -> Texts:
        """Captions selected by the settings."""
        return _texts(self._target_items(samples, epoch))

    def all_captions(self, samples: NDArray[np.int64]) -> Texts:
        """All non-empty captions."""
        how = (NO_LENGTHS, 1, LONGEST, False, _NO_KEY)
        return _texts(self._items(samples, "captions", how))

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """Keys of the samples."""
        return _texts(self._items(samples, "key", _ALL)).texts

    def _target_items(self, samples: NDArray[np.int64], epoch: int) -> _Items:
        index, settings = self._index, self._settings
        is_drawn = settings.items == "one"
        key = key_of(settings.seed, epoch, "draw") if is_drawn else _NO_KEY
        how = (index.lengths, settings.min_length, index.max_length, is_drawn, key)
        return self._items(samples, settings.target_column, how)

    def _items(self, samples: NDArray[np.int64], column: str, how: Any) -> _Items:
        """Gather items; `how` holds the remaining arguments of `choose`."""
        index, opened = self._index, self._opened
        places = index.places[samples]
        opened.open(places)
        table = opened.tables[column]
        max_items = int(table[places >> 8, kernels.MAX_ITEMS].max(initial=0))
        first_lengths = index.first_lengths[samples] if how[0].size else index.first_lengths
        capacity = samples.size * max_items
        check_memory(
            f"{samples.size} samples of up to {max_items} items", 20 * capacity, self._limit_bytes
        )
        starts, offsets = np.empty(capacity, np.int64), np.empty(capacity + 1, np.int64)
        owner = np.empty(capacity, np.int32)
        found = (opened.files, table)
        num = kernels.choose(places, *found, first_lengths, *how, starts, offsets, owner)
        if num < 0:
            batch = int(places[-1 - num]) >> 8
            raise ShardError(
                f"{self._dataset.batch_path(batch)}: its offsets changed while it was in use; "
                "stop the process that writes to it, and run im2sp-verify"
            )
        offsets, owner = offsets[: num + 1], owner[:num].copy()
        data = np.empty(int(offsets[-1]), np.uint8)
        kernels.gather(places, *found, starts, offsets, owner, data)
        return _Items(data, offsets, owner)

    def _blame(self, samples: NDArray[np.int64], error: ShardError) -> NoReturn:
        """Raise an error that names the first sample that cannot be decoded."""
        for place in self._index.places[samples].tolist():
            self._dataset.sample(place >> 8, place & 255)
        raise error


class Reader(Protocol):
    """Reader of a batch's texts by the numbers of its samples."""

    def keys(self, samples: NDArray[np.int64]) -> list[str]:
        """Keys of the samples."""
        ...

    def target_captions(self, samples: NDArray[np.int64], epoch: int) -> Texts:
        """Captions selected by the settings."""
        ...

    def all_captions(self, samples: NDArray[np.int64]) -> Texts:
        """All non-empty captions."""
        ...


class BatchTexts:
    """Texts of a batch, read on first use."""

    def __init__(
        self, reader: Reader, samples: NDArray[np.int64], epoch: int, is_target: bool
    ) -> None:
        self._reader, self._samples, self._epoch = reader, samples, epoch
        self._is_target = is_target

    @cached_property
    def keys(self) -> list[str]:
        """Keys of the samples."""
        return self._reader.keys(self._samples)

    @cached_property
    def captions(self) -> Texts:
        """Selected captions if they are the target, else all non-empty ones."""
        if self._is_target:
            return self._reader.target_captions(self._samples, self._epoch)
        return self._reader.all_captions(self._samples)


def _texts(items: _Items) -> Texts:
    data = items.data.tobytes()
    bounds = pairwise(items.offsets.tolist())
    if data.isascii():
        joined = data.decode("ascii")
        texts = [joined[start:end] for start, end in bounds]
    else:
        texts = [data[start:end].decode() for start, end in bounds]
    return Texts(texts=texts, owner=items.owner)
