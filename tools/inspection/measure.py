"""One pass over a dataset that counts units, lengths and bytes, a record batch at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import ShardDataset
from im2sp.shards.layouts.batch import Batch, Values
from im2sp.tools.inspection.columns import Column, read_column, unit_columns
from im2sp.tools.inspection.counts import Counts, describe_codes, describe_lengths


@dataclass(frozen=True, kw_only=True)
class ColumnCounts:
    """Counts of a unit column."""

    column: Column
    units: Counts = field(default_factory=Counts)
    lengths: Counts = field(default_factory=Counts)
    """Length of each array along the axis that varies, else its number of units."""
    per_sample: Counts = field(default_factory=Counts)
    """Arrays of each sample that has a value."""

    def add(self, batch: Batch) -> int:
        """Count a record batch; return the bytes of its coded arrays."""
        values = read_column(self.column, batch)
        self.units.add(values.ids)
        self.lengths.add(values.lengths // self.column.kind.num_fixed)
        self.per_sample.add(values.per_row)
        return values.size_bytes

    @property
    def num_arrays(self) -> int:
        """Number of arrays."""
        return int(self.lengths.pairs()[1].sum())

    @property
    def num_units(self) -> int:
        """Number of units in all arrays."""
        return int(self.units.pairs()[1].sum())

    @property
    def sum_units(self) -> int:
        """Sum of all units, such as the frames of all durations."""
        codes, num = self.units.pairs()
        return int((codes * num).sum())

    def as_json(self, size_bytes: int) -> dict[str, Any]:
        """Statistics of the column."""
        column, num = self.column, self.num_units
        lengths = describe_lengths(self.lengths)
        return {
            "kind": "units",
            "shape": list(column.kind.shape),
            "many": column.kind.many,
            "num_codes": column.kind.num_codes,
            "codec": column.codec_name,
            "num_arrays": self.num_arrays,
            "num_units": num,
            "size_bytes": size_bytes,
            "stored_bits": round(8 * size_bytes / num, 4) if num else None,
            **describe_codes(self.units),
            "lengths": lengths if column.kind.num_variable else None,
            "per_sample": describe_lengths(self.per_sample) if column.kind.many else None,
        }


@dataclass(frozen=True, kw_only=True)
class TextCounts:
    """Counts of the captions."""

    per_sample: Counts = field(default_factory=Counts)
    characters: Counts = field(default_factory=Counts)
    words: Counts = field(default_factory=Counts)

    def add(self, batch: Batch) -> int:
        """Count a record batch; return the bytes of its captions."""
        self.per_sample.add(np.diff(batch.captions.offsets))
        characters, words = _text_lengths(batch.captions.values)
        self.characters.add(characters)
        self.words.add(words)
        return batch.captions.values.data.size

    def as_json(self, size_bytes: int) -> dict[str, Any]:
        """Statistics of the captions."""
        return {
            "kind": "list of string",
            "num_texts": int(self.words.pairs()[1].sum()),
            "size_bytes": size_bytes,
            "words": describe_lengths(self.words),
            "characters": describe_lengths(self.characters),
            "per_sample": describe_lengths(self.per_sample),
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Counts of a dataset."""

    columns: dict[str, ColumnCounts]
    captions: TextCounts
    sizes: dict[str, int]
    """Bytes of the values of each column; `keys` are those of keys and splits."""
    num_samples: int
    """Samples that were read."""

    def as_json(self) -> dict[str, Any]:
        """Statistics by column."""
        columns = {name: one.as_json(self.sizes[name]) for name, one in self.columns.items()}
        return columns | {"captions": self.captions.as_json(self.sizes["captions"])}


def measure(
    dataset: ShardDataset,
    max_samples: int | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> Measured:
    """Count the values of a dataset.

    Args:
        dataset: The dataset.
        max_samples: Read record batches evenly spaced over the dataset, with at least this many
            samples together; None for all.
        on_progress: Called with the number of samples read since the last call.

    Raises:
        ShardError: A shard is missing or damaged, or a value is invalid for its codec.
    """
    columns = {column.name: ColumnCounts(column=column) for column in unit_columns(dataset)}
    captions = TextCounts()
    sizes = dict.fromkeys([*columns, "captions", "keys"], 0)
    num_samples = 0
    for number in _chosen(dataset, max_samples):
        batch = dataset.batch(number)
        for name, counts in columns.items():
            sizes[name] += counts.add(batch)
        sizes["captions"] += captions.add(batch)
        sizes["keys"] += batch.keys.data.size + batch.splits.data.size
        num_samples += batch.num_samples
        on_progress(batch.num_samples)
    return Measured(columns=columns, captions=captions, sizes=sizes, num_samples=num_samples)


def _chosen(dataset: ShardDataset, max_samples: int | None) -> range | list[int]:
    """Numbers of the record batches to read."""
    num_batches = dataset.num_batches
    if max_samples is None or max_samples >= len(dataset):
        return range(num_batches)
    wanted = -(-num_batches * max_samples // len(dataset))
    return np.unique(np.linspace(0, num_batches - 1, wanted).round().astype(int)).tolist()


def _text_lengths(values: Values) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Characters and words of UTF-8 texts; words are separated by ASCII white space."""
    data, starts = values.data, values.offsets[:-1]
    is_space = (data == 32) | ((data >= 9) & (data <= 13))
    is_first = np.ones(data.size, np.bool_)
    is_first[1:] = is_space[:-1]
    is_first[starts[starts < data.size]] = True
    totals = []
    for is_counted in ((data & 192) != 128, is_first & ~is_space):
        before = np.zeros(data.size + 1, np.int64)
        np.cumsum(is_counted, out=before[1:])
        totals.append(np.diff(before[values.offsets]))
    return totals[0], totals[1]
