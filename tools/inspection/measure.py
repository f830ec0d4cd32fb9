"""One pass over a dataset that counts units, lengths and bytes, a record batch at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import ShardDataset
from im2sp.shards.columns.arrays import Lists, Values
from im2sp.shards.layouts.batch import Batch
from im2sp.tools.inspection.columns import Column, read_column, unit_columns
from im2sp.tools.inspection.counts import Counts, describe_codes, describe_lengths

OTHER_PARTS = ("keys", "tables", "checksums", "container", "total")
"""Parts of a dataset on disk that are no column."""


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
    """Counts of a column of texts, or of lists of texts."""

    name: str
    type: str
    """`string` or `list of string`."""
    per_sample: Counts = field(default_factory=Counts)
    characters: Counts = field(default_factory=Counts)
    words: Counts = field(default_factory=Counts)

    def add(self, batch: Batch) -> int:
        """Count a record batch; return the bytes of its texts."""
        view = batch.views[self.name]
        is_there = np.ones(batch.num_samples, np.bool_) if view.valid is None else view.valid
        texts: Values = view.values if isinstance(view, Lists) else view
        characters, words = _text_lengths(texts)
        if isinstance(view, Lists):
            self.per_sample.add(np.diff(view.offsets)[is_there])
        else:
            characters, words = characters[is_there], words[is_there]
        self.characters.add(characters)
        self.words.add(words)
        return texts.data.size

    def as_json(self, size_bytes: int) -> dict[str, Any]:
        """Statistics of the column."""
        return {
            "kind": self.type,
            "num_values": int(self.words.pairs()[1].sum()),
            "size_bytes": size_bytes,
            "words": describe_lengths(self.words),
            "characters": describe_lengths(self.characters),
            "per_sample": describe_lengths(self.per_sample),
        }


@dataclass(kw_only=True)
class ValueCounts:
    """Counts of a column of numbers, booleans or bytes."""

    name: str
    type: str
    """`int`, `float`, `bool` or `bytes`."""
    num_values: int = 0
    total: float = 0
    low: float | None = None
    high: float | None = None

    def add(self, batch: Batch) -> int:
        """Count a record batch; return the bytes of its values."""
        view = batch.views[self.name]
        is_there = np.ones(batch.num_samples, np.bool_) if view.valid is None else view.valid
        self.num_values += int(is_there.sum())
        if isinstance(view, Values):
            return view.data.size
        numbers = view.data[is_there]
        if numbers.size:
            self.total += numbers.sum(dtype=np.float64)
            self.low = min(numbers.min().item(), numbers[0] if self.low is None else self.low)
            self.high = max(numbers.max().item(), numbers[0] if self.high is None else self.high)
        return (view.data.size + 7) // 8 if self.type == "bool" else view.data.nbytes

    def as_json(self, size_bytes: int) -> dict[str, Any]:
        """Statistics of the column; numbers only of numbers, and the mean is the share of True."""
        found = {"kind": self.type, "num_values": self.num_values, "size_bytes": size_bytes}
        if self.low is None or self.high is None:
            return found
        numbers = {"min": self.low, "mean": self.total / self.num_values, "max": self.high}
        return found | {name: _plain(number) for name, number in numbers.items()}


def _plain(number: Any) -> Any:
    return number.item() if isinstance(number, np.generic) else number


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Counts of a dataset."""

    columns: dict[str, ColumnCounts]
    """Unit columns."""
    others: dict[str, TextCounts | ValueCounts]
    """Captions and own columns."""
    sizes: dict[str, int]
    """Bytes of the values of each column; `keys` are those of keys and splits."""
    num_samples: int
    """Samples that were read."""

    def as_json(self) -> dict[str, Any]:
        """Statistics by column."""
        every: dict[str, ColumnCounts | TextCounts | ValueCounts] = self.columns | self.others
        return {name: one.as_json(self.sizes[part_name(name)]) for name, one in every.items()}


def part_name(column: str) -> str:
    """Name of a column in lists of bytes by part, where other parts have names as well."""
    return f"{column} (column)" if column in OTHER_PARTS else column


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
    others: dict[str, TextCounts | ValueCounts] = {}
    for name, kind in ({"captions": "list of string"} | dataset.columns).items():
        if isinstance(kind, str):
            counts_of = TextCounts if kind.endswith("string") else ValueCounts
            others[name] = counts_of(name=name, type=kind)
    sizes = dict.fromkeys([*map(part_name, [*columns, *others]), "keys"], 0)
    num_samples = 0
    for number in _chosen(dataset, max_samples):
        batch = dataset.batch(number)
        for name, counts in (columns | others).items():
            sizes[part_name(name)] += counts.add(batch)
        sizes["keys"] += batch.keys.data.size + batch.splits.data.size
        num_samples += batch.num_samples
        on_progress(batch.num_samples)
    return Measured(columns=columns, others=others, sizes=sizes, num_samples=num_samples)


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
