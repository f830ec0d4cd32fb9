"""Index of a loader: the rows to read, their positions, and counts of skipped ones.

It takes 4 bytes a sample; if lengths are needed, 12 more and 4 for each item. Making it reads
splits, nulls and lengths of all batches. Checksums are compared later, when a batch is first used.
That of a large dataset is kept in the user's cache folder, for the other processes and later runs.
"""

import hashlib
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.columns.arrays import Lists, Values, View
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.loader import kernels
from im2sp.shards.loader.cache import Arrays, cache_path, cached
from im2sp.shards.loader.plan import LoaderSettings, key_of

NO_LENGTHS = np.zeros(0, np.int32)
LONGEST = (1 << 31) - 1
MIN_CACHED = 1 << 17
"""Samples of a dataset from which its index is kept in a file."""
_MAX_BATCHES = 1 << 24
_VERSION = 1


class LoaderIndex:
    """The samples of a loader, numbered 0 to `num_samples - 1`.

    Attributes:
        places: (n,) uint32: batch << 8 | row of each sample.
        image_column: Column of the images; None if there is none and none is needed.
        columns: Columns that batches are read from.
        lengths: (items,) int32 of all items of the samples, empty if lengths are not needed.
        first_lengths: (n + 1,) int64: offset in `lengths` of each sample's items.
        skipped: Items and samples left out: reason -> number.
    """

    def __init__(self, dataset: ShardDataset, settings: LoaderSettings) -> None:
        """Index the dataset.

        Raises:
            ShardError: A shard is missing, or so damaged that it cannot be indexed.
            ValueError: No sample matches the settings.
        """
        if dataset.num_batches > _MAX_BATCHES:
            raise ValueError(
                f"{dataset.path}: {dataset.num_batches} batches; "
                f"the loader takes at most {_MAX_BATCHES}"
            )
        self.max_length = LONGEST if settings.max_length is None else settings.max_length
        self.image_column: UnitColumn | None = None
        if settings.needs_image or settings.image_column in dataset.columns:
            self.image_column = _image_column(dataset, settings.image_column)
        self._target = settings.target_column
        self._noun = "captions" if self._target == "captions" else f"arrays of {self._target}"
        if self._target == "speech_units":
            self._noun = "utterances"
        if settings.is_of_units:
            _check_target(dataset, self._target)
        self.columns = {"key", "captions"}
        if self.image_column is not None:
            self.columns.add(settings.image_column)
        self._dataset, self._settings = dataset, settings
        self._needs_lengths = settings.is_filtered or settings.is_bucketed
        if settings.is_of_units:
            self.columns.add(self._target)
            stored = dataset.schema.units[self._target]
            self._stored = stored
            # Bytes alone do not say whether an array has units.
            self._needs_lengths |= stored.has_lengths or stored.column.num_variable == 0
        self._counts: Counter[str] = Counter()
        self._path = None if len(dataset) < MIN_CACHED else cache_path(self._file_name())
        if self._path is None:
            arrays, self.skipped, self._is_found = *self._made(), False
        else:
            arrays, self.skipped, self._is_found = cached(self._path, self._made)
        self.places, self.lengths = arrays["places"], arrays["lengths"]
        self.first_lengths, self._longest = arrays["first_lengths"], arrays["longest"]

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return self.places.size

    def sort_lengths(self, samples: NDArray[np.int64], epoch: int) -> NDArray[np.int32]:
        """Length of each sample's longest item, or of the one drawn in this epoch."""
        starts, ends = self.first_lengths[samples], self.first_lengths[samples + 1]
        sort_lengths = np.empty(samples.size, np.int32)
        if self._settings.items == "one":
            key = key_of(self._settings.seed, epoch, "draw")
            bounds = (self._settings.min_length, self.max_length)
            kernels.drawn_lengths(
                self.places[samples], starts, ends, self.lengths, *bounds, key, sort_lengths
            )
        else:
            sort_lengths[:] = self._longest[samples]
        return sort_lengths

    def check(self, number: int, batch: Batch) -> None:
        """Compare an index that was found in a file with a batch whose checksum is right.

        It was made without comparing checksums, perhaps before a damaged shard was replaced.

        Raises:
            ShardError: They differ; the file was removed.
        """
        if self._path is None or not self._is_found:
            return
        first = np.searchsorted(self.places, np.uint32(number << 8))
        last = np.searchsorted(self.places, np.uint32(number << 8 | 255), side="right")
        starts = self.first_lengths[first : last + 1] if self._needs_lengths else NO_LENGTHS
        known = [self.places[first:last], np.diff(starts), self._longest[first:last]]
        known.append(self.lengths[starts[0] : starts[-1]] if starts.size else NO_LENGTHS)
        found = self._selected(number, batch)
        if not all(np.array_equal(*pair) for pair in zip(known, found, strict=True)):
            self._path.unlink(missing_ok=True)
            raise ShardError(
                f"{self._dataset.batch_path(number)}: its samples differ from the index"
                f" {self._path}, which was made when a shard was damaged; it is removed now, start"
                " again"
            )

    def _file_name(self) -> str:
        settings, sha256 = self._settings, self._dataset.manifest.sha256
        image_column = settings.image_column if settings.needs_image else None
        limits = (settings.min_length, settings.max_length, self._needs_lengths)
        parts = (_VERSION, self._dataset.split, settings.target, image_column, *limits)
        return f"{sha256}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"

    def _made(self) -> tuple[Arrays, dict[str, int]]:
        """The arrays, and the counts of `skipped`."""
        places, lengths = _Parts(np.uint32), _Parts(np.int32)
        num_items, longest = _Parts(np.int64), _Parts(np.int32)
        num_items.add(np.zeros(1, np.int64))
        dataset = self._dataset
        dataset.copy_shards()
        for number in range(dataset.num_batches):
            batch = dataset.read_batch(number, is_compared=False)
            selected = self._selected(number, batch)
            for parts, part in zip((places, num_items, longest, lengths), selected, strict=True):
                parts.add(part)
        skipped = {reason: num for reason, num in self._counts.items() if num}
        arrays = {"places": places.all(), "lengths": lengths.all(), "longest": longest.all()}
        first_lengths = arrays["first_lengths"] = num_items.all()
        np.cumsum(first_lengths, out=first_lengths)
        if not arrays["places"].size:
            raise ValueError(self._why_empty(skipped))
        return arrays, skipped

    def _selected(self, number: int, batch: Batch) -> list[NDArray[Any]]:
        """Places, and if lengths are needed numbers, longest and all lengths of items."""
        rows = self._rows_with_image(batch)
        found: list[NDArray[Any]] = []
        if self._settings.target != "images":
            rows, *found = self._rows_with_items(number, batch, rows)
        if not self._needs_lengths:
            found = [NO_LENGTHS] * 3
        return [np.uint32(number << 8) | rows.astype(np.uint32), *found]

    def _rows_with_image(self, batch: Batch) -> NDArray[np.int64]:
        """Rows of the split that have an image, or all of them if none is needed."""
        is_in = np.ones(batch.num_samples, np.bool_)
        if self._dataset.split is not None:
            is_in = _is_text(batch.splits, self._dataset.split)
        rows = np.flatnonzero(is_in)
        if not self._settings.needs_image:
            return rows
        valid = batch.views[self._settings.image_column].valid
        if valid is None:
            return rows
        with_image = np.flatnonzero(is_in & valid)
        self._counts["samples without image"] += rows.size - with_image.size
        return with_image

    def _rows_with_items(
        self, number: int, batch: Batch, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
        """Select rows with at least one item in bounds.

        Returns:
            The rows, their numbers of items, the length of their longest item in bounds, and the
            lengths of all their items.
        """
        low, high = self._settings.min_length, self.max_length
        noun, view = self._noun, batch.views[self._target]
        row_offsets, value_offsets, data = _buffers(view)
        lengths = np.zeros(value_offsets.size - 1, np.int32)
        has_value = np.ones(lengths.size, np.bool_)
        if isinstance(view, Values) and view.valid is not None:
            has_value = view.valid  # others have no bytes, not even the lengths of their axes
        with_end = np.append(np.flatnonzero(has_value), lengths.size)
        lengths[has_value] = self._lengths_of(number, value_offsets[with_end], data)
        starts, ends = row_offsets[:-1][rows], row_offsets[1:][rows]
        if view.valid is not None:
            ends = np.where(view.valid[rows], ends, starts)
        row_of_item = np.repeat(np.arange(rows.size), ends - starts)
        first = np.concatenate([[0], np.cumsum(ends - starts)])
        item = np.arange(row_of_item.size) - first[row_of_item] + starts[row_of_item]
        item_lengths = lengths[item]
        is_short, is_long = item_lengths < low, item_lengths > high
        longest = np.zeros(rows.size, np.int32)
        kept = ~is_short & ~is_long
        np.maximum.at(longest, row_of_item[kept], item_lengths[kept])
        has_items, is_taken = ends > starts, longest > 0
        self._counts[f"samples without {noun}"] += int((~has_items).sum())
        self._counts[f"{noun} shorter than {low}"] += int(is_short.sum())
        self._counts[f"{noun} longer than {high}"] += int(is_long.sum())
        self._counts[f"samples with no {noun} left"] += int((has_items & ~is_taken).sum())
        return (
            rows[is_taken],
            (ends - starts)[is_taken].astype(np.int64),
            longest[is_taken],
            item_lengths[is_taken[row_of_item]],
        )

    def _lengths_of(
        self, number: int, offsets: NDArray[np.int32], data: NDArray[np.uint8]
    ) -> NDArray[np.int32]:
        """Length of each value; if only emptiness matters, its size in bytes."""
        if not self._needs_lengths:
            return np.diff(offsets)
        if not self._settings.is_of_units:
            starts = np.zeros(data.size + 1, np.int32)  # characters before each byte
            np.cumsum((data & 192) != 128, out=starts[1:])
            return np.diff(starts[offsets])
        try:
            return self._stored.lengths(data, offsets)
        except ShardError:
            for row in range(self._dataset.batch(number).num_samples):
                self._dataset.sample(number, row)  # raises an error that names the sample
            raise

    def _why_empty(self, skipped: dict[str, int]) -> str:
        settings, dataset = self._settings, self._dataset
        reasons = [f"{num} {reason}" for reason, num in skipped.items()]
        is_limited = any(
            "longer" in reason or ("shorter" in reason and settings.min_length > 1)
            for reason in skipped
        )
        if not len(dataset):
            advice = "use a dataset with samples"
        elif is_limited:
            advice = "use other length limits"
        elif list(skipped) == ["samples without image"]:
            advice = "the loader needs images"
        else:
            what = "speech" if self._target == "speech_units" else self._target
            advice = f"it has no {what}; use another target, or a dataset with {what}"
        return (
            f"{dataset.path}: none of {len(dataset)} samples of split {dataset.split!r} is left "
            f"for target {settings.target!r} ({', '.join(reasons) or 'it is empty'}); {advice}"
        )


def _image_column(dataset: ShardDataset, name: str) -> UnitColumn:
    """The column of the images; raises ValueError if it has no units of a fixed shape."""
    column = dataset.columns.get(name)
    if not isinstance(column, UnitColumn) or column.many or column.num_variable:
        found = f"column {name} is {column}" if column else f"no column {name}"
        raise ValueError(
            f"{dataset.path}: {found}; the loader needs images, one array of a fixed shape a "
            f"sample; it has {sorted(dataset.columns)}"
        )
    return column


def _check_target(dataset: ShardDataset, name: str) -> None:
    if not isinstance(dataset.columns.get(name), UnitColumn):
        known = [name for name, kind in dataset.columns.items() if isinstance(kind, UnitColumn)]
        what = "speech" if name == "speech_units" else name
        raise ValueError(
            f"{dataset.path}: it has no {what}; use another target, or a dataset with {what}; its "
            f"unit columns are {', '.join(sorted(known))}"
        )


def _buffers(view: View) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
    """Items of each row, bytes of each item, and all bytes."""
    if isinstance(view, Lists):
        return view.offsets, view.values.offsets, view.values.data
    if isinstance(view, Values):
        return np.arange(view.offsets.size, dtype=np.int32), view.offsets, view.data
    size = view.data.shape[1] if view.data.ndim > 1 else 1
    rows = np.arange(len(view.data) + 1, dtype=np.int32)
    return rows, rows * np.int32(size), view.data.reshape(-1)


class _Parts:
    """Array that grows; many small arrays would leave their memory in pieces."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._array, self._size = np.empty(1 << 16, dtype), 0

    def add(self, part: NDArray[Any]) -> None:
        size = self._size + part.size
        if size > self._array.size:
            self._array.resize(size + size // 4, refcheck=False)  # moves pages, copies nothing
        self._array[self._size : size] = part
        self._size = size

    def all(self) -> NDArray[Any]:
        self._array.resize(self._size, refcheck=False)
        return self._array


def _is_text(values: Values, text: str) -> NDArray[np.bool_]:
    """Mask of the values that equal the text."""
    wanted = np.frombuffer(text.encode(), np.uint8)
    is_text = np.diff(values.offsets) == wanted.size
    starts = values.offsets[:-1][is_text]
    found = values.data[starts[:, None] + np.arange(wanted.size)]
    is_text[is_text] = (found == wanted).all(axis=1)
    return is_text
