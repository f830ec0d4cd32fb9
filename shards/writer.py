"""Atomic writing of one shard file, in any layout."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa

from im2sp.shards.errors import ShardError
from im2sp.shards.files import atomic_file
from im2sp.shards.layouts.arrow import write_arrow
from im2sp.shards.layouts.sink import Sink
from im2sp.shards.layouts.webdataset import write_packed, write_plain
from im2sp.shards.manifest import Layout, ShardInfo
from im2sp.shards.schema import (
    MAX_BATCH_ROWS,
    arrow_schema,
    batch_of_rows,
    columns_of_schema,
    rows_of_batch,
)


def write_shard(
    path: str | Path, batches: Iterable[pa.RecordBatch], layout: Layout | None = None
) -> ShardInfo:
    """Write a shard atomically.

    The same batches always give the same bytes. Batch boundaries are kept, but a batch with more
    rows than the layout's 256, or `samples_per_member`, is split. Batches are consumed one at a
    time.

    Args:
        path: The shard's file, directly in the dataset's folder.
        batches: Record batches of `encode_batch`, all with the same columns.
        layout: Layout of the samples; None for Arrow.

    Returns:
        Entry of the file in the manifest.

    Raises:
        ShardError: No samples, or batches of different or unknown columns.
        OSError: Writing failed, for instance on a full disk. No file is left after any exception.
    """
    path = Path(path)
    layout = layout or Layout()
    write = write_arrow if layout.kind == "arrow" else write_packed
    max_rows = MAX_BATCH_ROWS if layout.kind == "arrow" else layout.samples_per_member
    if layout.is_plain:
        write, max_rows = write_plain, MAX_BATCH_ROWS
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ShardError(f"{path.name}: no samples; a shard has at least one")
    schema = _checked_schema(first)
    splits: dict[str, int] = {}
    pieces = _pieces(chain([first], iterator), schema, max_rows, splits)
    with atomic_file(path) as file:
        sink = Sink(file)
        infos = tuple(write(sink, pieces, schema))
        if not infos:
            raise ShardError(f"{path.name}: no samples; a shard has at least one")
    info = ShardInfo(
        file=path.name,
        sha256=sink.sha256(),
        size_bytes=sink.tell(),
        num_samples=sum(batch.num_samples for batch in infos),
        splits=splits,
        batches=infos,
    )
    info.check(layout)
    return info


def _checked_schema(batch: pa.RecordBatch) -> pa.Schema:
    schema = arrow_schema(columns_of_schema(batch.schema))
    if not batch.schema.equals(schema, check_metadata=True):
        raise ShardError(f"batch has schema {batch.schema}; expected what encode_batch makes")
    return schema


def _pieces(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, max_rows: int, splits: dict[str, int]
) -> Iterator[pa.RecordBatch]:
    """Batches of 1 to `max_rows` rows; adds their split counts to `splits`."""
    for batch in batches:
        if not batch.schema.equals(schema, check_metadata=True):
            raise ShardError("batches of one shard have different columns")
        for split in batch.column("split").to_pylist():
            splits[split] = splits.get(split, 0) + 1
        # Always rebuild: a slice's buffers may contain bits of rows outside it.
        rows = rows_of_batch(batch)
        for start in range(0, len(rows), max_rows):
            yield batch_of_rows(rows[start : start + max_rows], schema)
