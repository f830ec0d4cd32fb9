"""Index of a loader: the rows to read, their positions, and counts of skipped ones.

Building it opens every batch once, which compares all checksums (270 MB take 0.2 s from the page
cache). It takes 4 bytes a sample; if lengths are needed, 12 more and 4 for each item.
"""

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding import Codec, PackedCodec, VarintCodec
from im2sp.shards.coding.huffman import HuffmanCodec
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.batch import Batch, Lists, Values
from im2sp.shards.loader import kernels
from im2sp.shards.loader.plan import LoaderSettings, key_of

NO_LENGTHS = np.zeros(0, np.int32)
LONGEST = (1 << 31) - 1
_MAX_BATCHES = 1 << 24
_WIDEST_INT16 = 1 << 15
_NO_OFFSETS = np.zeros(0, np.int32)


class SpeechDecoder:
    """Decoder of all utterances of a batch in one call, for any codec.

    Attributes:
        dtype: int16 if every id fits, else int32.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        num_ids = 1 << 16
        if isinstance(codec, HuffmanCodec):
            num_ids = codec.num_ids
        elif isinstance(codec, PackedCodec):
            num_ids = codec.num_units or 1 << codec.bits
        self.dtype: type[np.int16] | type[np.int32] = (
            np.int16 if num_ids <= _WIDEST_INT16 else np.int32
        )
        self._is_bytes = isinstance(codec, PackedCodec) and (codec.bits, codec.count) == (8, None)

    def rows(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int16 | np.int32], NDArray[np.int32]]:
        """Decode all values.

        Args:
            data: (bytes,) uint8.
            offsets: (n + 1,) int64: value v is `data[offsets[v]:offsets[v + 1]]`.

        Returns:
            rows: (n, longest), padded with -1.
            lengths: (n,) int32.

        Raises:
            ShardError: A value is invalid for its codec.
        """
        ids, id_offsets = (data, offsets) if self._is_bytes else self._decode(data, offsets)
        if isinstance(self._codec, PackedCodec):
            self._codec.check_range(ids)
        lengths = (id_offsets[1:] - id_offsets[:-1]).astype(np.int32)
        rows = np.empty((lengths.size, int(lengths.max(initial=0))), self.dtype)
        kernels.spread(ids, id_offsets, rows)
        return rows, lengths

    def id_offsets(self, data: NDArray[np.uint8], offsets: NDArray[np.int32]) -> NDArray[np.int64]:
        """Offsets of each value's ids among all ids; see `rows`."""
        wide = offsets.astype(np.int64)
        return wide if self._is_bytes else self._decode(data, wide)[1]

    def _decode(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        codec = self._codec
        if isinstance(codec, HuffmanCodec):
            return codec.decode_values(data, offsets)
        if isinstance(codec, VarintCodec):
            return codec.decode_values(data, offsets)
        assert isinstance(codec, PackedCodec)
        id_offsets = np.empty(offsets.size, np.int64)
        ids = np.empty(8 * data.size // codec.bits, np.uint16)
        count = -1 if codec.count is None else codec.count
        wrong = kernels.decode_packed(data, offsets, codec.bits, count, ids, id_offsets)
        if wrong >= 0:
            raise ShardError(f"value {wrong} is invalid for its codec")
        return ids, id_offsets


class LoaderIndex:
    """The samples of a loader, numbered 0 to `num_samples - 1`.

    Attributes:
        batches: All batches of the dataset; they keep the mapped files open.
        places: (n,) uint32: batch << 8 | row of each sample.
        images: Buffers of the image rows of all batches, see `kernels.add_buffers`.
        speech: Buffers of the utterances.
        captions: Buffers of the captions.
        max_items: Maximum number of items of a row in the target's column.
        max_captions: Maximum number of captions of a row.
        lengths: (items,) int32 of all items of the samples, empty if lengths are not needed.
        first_lengths: (n + 1,) int64: offset in `lengths` of each sample's items.
        skipped: Items and samples left out: reason -> number.
    """

    def __init__(self, dataset: ShardDataset, settings: LoaderSettings) -> None:
        """Index the dataset.

        Raises:
            ShardError: A shard is missing or damaged.
            ValueError: No sample matches the settings.
        """
        if dataset.num_batches > _MAX_BATCHES:
            raise ValueError(
                f"{dataset.path}: {dataset.num_batches} batches; "
                f"the loader takes at most {_MAX_BATCHES}"
            )
        self.max_length = LONGEST if settings.max_length is None else settings.max_length
        self.skipped: dict[str, int] = {}
        self.batches = [dataset.batch(number) for number in range(dataset.num_batches)]
        self.images = kernels.new_column()
        for batch in self.batches:
            image_bytes = batch.image_units.reshape(-1)
            kernels.add_buffers(self.images, _NO_OFFSETS, _NO_OFFSETS, image_bytes)
        self.speech = _column([batch.speech_units for batch in self.batches])
        self.captions = _column([batch.captions for batch in self.batches])
        self.max_captions = _max_items([batch.captions for batch in self.batches])
        self.max_items = self.max_captions
        if settings.target == "speech":
            self.max_items = _max_items([batch.speech_units for batch in self.batches])
        self._dataset = dataset
        self._settings = settings
        self._decoder = SpeechDecoder(dataset.codecs.speech_units)
        self._needs_lengths = settings.is_filtered or settings.is_bucketed
        self._counts: Counter[str] = Counter()
        self._build()

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

    def _build(self) -> None:
        places: list[NDArray[np.uint32]] = []
        num_items: list[NDArray[np.int64]] = []
        lengths: list[NDArray[np.int32]] = []
        longest: list[NDArray[np.int32]] = []
        for number, batch in enumerate(self.batches):
            rows = self._rows_with_image(batch)
            if self._settings.target != "images":
                found, counts, kept_longest, all_lengths = self._rows_with_items(number, rows)
                rows = found
                num_items.append(counts)
                longest.append(kept_longest)
                lengths.append(all_lengths)
            places.append((np.uint32(number << 8) | rows.astype(np.uint32)).astype(np.uint32))
        self.skipped = {reason: num for reason, num in self._counts.items() if num}
        self.places = np.concatenate(places) if places else np.zeros(0, np.uint32)
        self.lengths, self.first_lengths = NO_LENGTHS, np.zeros(1, np.int64)
        self._longest = NO_LENGTHS
        if self._needs_lengths and self.places.size:
            self.lengths = np.concatenate(lengths)
            self.first_lengths = np.concatenate([[0], np.cumsum(np.concatenate(num_items))])
            self._longest = np.concatenate(longest)
        if not self.places.size:
            raise ValueError(self._why_empty())

    def _rows_with_image(self, batch: Batch) -> NDArray[np.int64]:
        """Rows of the split that have an image."""
        is_in = np.ones(batch.num_samples, np.bool_)
        if self._settings.split is not None:
            is_in = _is_text(batch.splits, self._settings.split)
        rows = np.flatnonzero(is_in)
        if batch.image_valid is None:
            return rows
        with_image = np.flatnonzero(is_in & batch.image_valid)
        self._counts["samples without image"] += rows.size - with_image.size
        return with_image

    def _rows_with_items(
        self, number: int, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
        """Select rows with at least one item in bounds.

        Returns:
            The rows, their numbers of items, the length of their longest item in bounds, and the
            lengths of all their items.
        """
        batch, low, high = self.batches[number], self._settings.min_length, self.max_length
        noun = "utterances" if self._settings.target == "speech" else "captions"
        lists = batch.speech_units if self._settings.target == "speech" else batch.captions
        lengths = self._lengths_of(number, lists.values)
        starts, ends = lists.offsets[:-1][rows], lists.offsets[1:][rows]
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

    def _lengths_of(self, number: int, values: Values) -> NDArray[np.int32]:
        """Length of each value; if only emptiness matters, its size in bytes."""
        if not self._needs_lengths:
            return np.diff(values.offsets)
        if self._settings.target == "text":
            starts = np.zeros(values.data.size + 1, np.int32)  # characters before each byte
            np.cumsum((values.data & 192) != 128, out=starts[1:])
            return np.diff(starts[values.offsets])
        try:
            return np.diff(self._decoder.id_offsets(values.data, values.offsets)).astype(np.int32)
        except ShardError:
            for row in range(self.batches[number].num_samples):
                self._dataset.sample(number, row)  # raises an error that names the sample
            raise

    def _why_empty(self) -> str:
        settings, dataset = self._settings, self._dataset
        reasons = [f"{num} {reason}" for reason, num in self.skipped.items()]
        advice = "use other length limits"
        if not len(dataset):
            advice = "use a dataset with samples"
        elif settings.target == "speech" and not self.max_items:
            advice = "it has no speech; use another target, or a dataset with speech"
        elif settings.target == "text" and not self.max_items:
            advice = "it has no captions; use another target, or a dataset with captions"
        elif "samples without image" in self.skipped and len(reasons) == 1:
            advice = "the loader needs images"
        return (
            f"{dataset.path}: none of {len(dataset)} samples of split {settings.split!r} is left "
            f"for target {settings.target!r} ({', '.join(reasons) or 'it is empty'}); {advice}"
        )


def _column(columns: list[Lists]) -> Any:
    """Buffers of a list column of all batches, for the kernels."""
    column = kernels.new_column()
    for lists in columns:
        kernels.add_buffers(column, lists.offsets, lists.values.offsets, lists.values.data)
    return column


def _max_items(columns: list[Lists]) -> int:
    return max((int(np.diff(lists.offsets).max()) for lists in columns), default=0)


def _is_text(values: Values, text: str) -> NDArray[np.bool_]:
    """Mask of the values that equal the text."""
    wanted = np.frombuffer(text.encode(), np.uint8)
    is_text = np.diff(values.offsets) == wanted.size
    starts = values.offsets[:-1][is_text]
    found = values.data[starts[:, None] + np.arange(wanted.size)]
    is_text[is_text] = (found == wanted).all(axis=1)
    return is_text
