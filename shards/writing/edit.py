"""New datasets from existing ones: `concatenate`, `filter_samples` and `split_samples`.

Samples are copied as they are stored. Units are decoded only where the new dataset codes them
differently: in columns that are coded with tables fitted to each dataset, and from version 1.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.codebook import codebook_name
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.manifest import Manifest
from im2sp.shards.schema import entries_of
from im2sp.shards.writing.dataset_writer import DatasetWriter, fit_tables
from im2sp.shards.writing.parts import check_new, drop_parts, join_parts

Source = str | os.PathLike[str] | ShardDataset
_FITTED_SAMPLES = 16384


def concatenate(datasets: Iterable[Source], out: str | os.PathLike[str]) -> Manifest:
    """Write the samples of several datasets to a new one, in order.

    Args:
        datasets: Folders or datasets, with the same columns and tokenizers; of a dataset that was
            opened with a split, only that split.
        out: New folder; it has the layout of the first dataset.

    Returns:
        The manifest.

    Raises:
        ShardError: Columns, tokenizers or codebooks differ, or a key occurs twice; names both
            datasets, found and expected. Nothing is written then.
    """
    sources = [_opened(one) for one in datasets]
    if not sources:
        raise ShardError("no datasets to concatenate; give at least one")
    first = sources[0]
    for other in sources[1:]:
        _check_alike(first, other)
    origin = [{"manifest_sha256": one.manifest.sha256, "split": one.split} for one in sources]
    settings = {"source": {"kind": "concatenate", "datasets": origin}}
    with _writer(first, out, settings=settings, tables=_tables(first)) as writer:
        for one in sources:
            for batch, row in _rows(one):
                try:
                    writer.write_stored(batch.row(row), one.schema)
                except ShardError as error:
                    raise ShardError(f"{one.path}: {error}") from None
            if one.split is None:
                writer.add_raw(**one.manifest.raw)
    return _manifest_of(writer)


def filter_samples(
    dataset: Source, out: str | os.PathLike[str], keep: Callable[[Mapping[str, Any]], bool]
) -> Manifest:
    """Write the samples that a function keeps to a new dataset, in order.

    >>> filter_samples("a/", "short/", lambda row: len(row["captions"][0]) < 50)  # doctest: +SKIP

    Args:
        dataset: Folder or dataset; of a dataset that was opened with a split, only that split.
        out: New folder.
        keep: Called with key, split, captions and own columns of each sample.

    Returns:
        The manifest.
    """
    source = _opened(dataset)
    origin = {"kind": "filter", "manifest_sha256": source.manifest.sha256, "split": source.split}
    with _writer(source, out, settings={"source": origin}, tables=_tables(source)) as writer:
        for batch, row in _rows(source):
            if keep(batch.own_values(row)):
                writer.write_stored(batch.row(row), source.schema)
    return _manifest_of(writer)


def split_samples(
    dataset: Source,
    out: str | os.PathLike[str],
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Manifest:
    """Write a dataset whose shards hold one split each, as the Hugging Face Hub expects it.

    Args:
        dataset: Folder or dataset.
        out: New folder.
        shares: Split -> its share of the samples, such as {"train": 0.9, "val": 0.1}; they sum to
            1. The split of a sample depends only on its key, the shares and the seed. None keeps
            the splits.
        seed: Another seed gives another division.

    Returns:
        The manifest.

    Raises:
        ShardError: The shares are not positive or do not sum to 1.
    """
    source = _opened(dataset)
    if shares is not None:
        _check_shares(shares)
    origin = {"kind": "split", "manifest_sha256": source.manifest.sha256, "split": source.split}
    if shares is not None:
        origin |= {"shares": dict(shares), "seed": seed}
    kept = source.manifest.splits if source.split is None else [source.split]
    names = sorted(shares or kept) or [""]

    def split_of(batch: Batch, row: int) -> str:
        return _drawn(batch.keys.text(row), shares, seed) if shares else batch.splits.text(row)

    # A part for each split, since a shard is of one part.
    settings, tables = {"source": origin}, _tables(source)
    check_new(Path(out))
    try:
        for number, name in enumerate(names):
            part = (number, len(names))
            with _writer(source, out, settings=settings, tables=tables, part=part) as writer:
                for batch, row in _rows(source):
                    if split_of(batch, row) == name:
                        writer.write_stored(batch.row(row) | {"split": name}, source.schema)
                if number == 0 and source.split is None:
                    writer.add_raw(**source.manifest.raw)
        return join_parts(Path(out))
    except BaseException:
        drop_parts(Path(out), len(names))
        raise


def _opened(source: Source) -> ShardDataset:
    return source if isinstance(source, ShardDataset) else ShardDataset(source)


def _rows(dataset: ShardDataset) -> Iterator[tuple[Batch, int]]:
    """Batch and row of each sample, in order."""
    for i in range(len(dataset)):
        number, row = dataset.locate(i)
        yield dataset.batch(number), row


def _tables(source: ShardDataset) -> dict[str, NDArray[Any]]:
    """Tables of the coded columns: those of the dataset, or fitted to it if it is of version 1."""
    manifest = source.manifest
    if manifest.format_version > 1 and entries_of(source.columns) == dict(manifest.columns):
        books = {codebook_name(name) for name in source.columns}
        return {name: tensor for name, tensor in source.tensors().items() if name not in books}
    samples = islice(source, _FITTED_SAMPLES)
    return fit_tables(source.columns, (sample.columns for sample in samples))


def _writer(
    source: ShardDataset,
    out: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    tables: Mapping[str, NDArray[Any]],
    part: tuple[int, int] | None = None,
) -> DatasetWriter:
    """A writer of a dataset with the columns, tokenizers and codebooks of `source`."""
    columns, manifest = source.columns, source.manifest
    tensors = source.tensors()
    books = {name: tensors.get(codebook_name(name)) for name in columns}
    return DatasetWriter(
        Path(out),
        columns=columns,
        layout=manifest.layout.kind,
        samples_per_member=manifest.layout.samples_per_member,
        tokenizers=_tokenizers(source),
        codebooks={name: book for name, book in books.items() if book is not None},
        tables=tables,
        settings=settings,
        part=part,
    )


def _tokenizers(dataset: ShardDataset) -> dict[str, dict[str, Any]]:
    """Records of the tokenizers; version 1 names the codebook's file in them."""
    found: dict[str, dict[str, Any]] = {}
    for name in dataset.columns:
        record = dataset.manifest.tokenizer_of(name)
        if record is not None:
            own = ("codebook_file", "codebook_sha256")
            found[name] = {key: value for key, value in record.items() if key not in own}
    return found


def _check_alike(first: ShardDataset, other: ShardDataset) -> None:
    """Refuse a dataset whose units are not those of the first one."""

    def check(what: str, found: object, expected: object) -> None:
        if found != expected:
            raise ShardError(
                f"{other.path}: {what} {found}, expected {expected} as in {first.path}"
            )

    def kind(column: UnitColumn | str) -> UnitColumn | str:
        if isinstance(column, str):
            return column
        return UnitColumn(column.shape, column.num_codes, column.many)  # however it is coded

    check("columns", sorted(other.columns), sorted(first.columns))
    for name, column in first.columns.items():
        check(f"column {name}:", kind(other.columns[name]), kind(column))
    records = _tokenizers(first), _tokenizers(other)
    for name in sorted({*records[0], *records[1]}):
        found, expected = records[1].get(name), records[0].get(name)
        check(f"column {name}: made by the tokenizer", found, expected)
    ours, theirs = first.tensors(), other.tensors()
    for name in map(codebook_name, first.columns):
        if not np.array_equal(ours.get(name, np.zeros(0)), theirs.get(name, np.zeros(0))):
            raise ShardError(f"{other.path}: tensor {name!r} differs from that of {first.path}")


def _check_shares(shares: Mapping[str, float]) -> None:
    values: Sequence[float] = list(shares.values())
    if not values or min(values) <= 0 or abs(sum(values) - 1) > 1e-9:
        raise ShardError(f"shares are {dict(shares)}; expected positive numbers that sum to 1")


def _drawn(key: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of a key."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    place = int.from_bytes(digest[:7], "big") / 2**56
    names = sorted(shares)
    for name in names[:-1]:
        place -= shares[name]
        if place < 0:
            return name
    return names[-1]


def _manifest_of(writer: DatasetWriter) -> Manifest:
    assert writer.manifest is not None
    return writer.manifest
