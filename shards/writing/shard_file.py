"""Atomic writing of one shard file, in any layout."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from im2sp.shards.errors import ShardError
from im2sp.shards.files import atomic_file
from im2sp.shards.layouts.arrow import arrow_file
from im2sp.shards.layouts.shard_info import BatchInfo, Layout, ShardInfo
from im2sp.shards.layouts.sink import Sink
from im2sp.shards.layouts.webdataset import packed_tar, plain_tar
from im2sp.shards.schema import MAX_BATCH_ROWS, Schema, batch_of_rows, schema_of_arrow


class ShardFile(AbstractContextManager["ShardFile"]):
    """A shard that is written atomically: it appears when the block ends well.

    Attributes:
        num_samples: Samples written so far.
        info: Entry of the file in the manifest, once it is complete.
    """

    info: ShardInfo

    def __init__(self, path: Path, schema: Schema, layout: Layout) -> None:
        self._path, self._schema, self._layout = path, schema, layout
        self._stack = ExitStack()
        self._infos: list[BatchInfo] = []
        self._splits: dict[str, int] = {}
        self.num_samples = 0

    def __enter__(self) -> Self:
        """Open the file."""
        open_layout = arrow_file if self._layout.kind == "arrow" else packed_tar
        if self._layout.is_plain:
            open_layout = plain_tar
        with ExitStack() as stack:
            self._sink = Sink(stack.enter_context(atomic_file(self._path)))
            self._write = stack.enter_context(open_layout(self._sink, self._schema))
            self._stack = stack.pop_all()
        return self

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch of 1 to `max_rows(layout)` rows."""
        for split in batch.column("split").to_pylist():
            self._splits[split] = self._splits.get(split, 0) + 1
        self._infos.append(self._write(batch))
        self.num_samples += batch.num_rows

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the file, or remove it after an exception or without samples."""
        if error is None and not self._infos:
            error = ShardError(f"{self._path.name}: no samples; a shard has at least one")
            self._stack.__exit__(type(error), error, None)
            raise error
        self._stack.__exit__(kind, error, trace)
        if error is None:
            self.info = ShardInfo(
                file=self._path.name,
                sha256=self._sink.sha256(),
                size_bytes=self._sink.tell(),
                num_samples=self.num_samples,
                splits=self._splits,
                batches=tuple(self._infos),
            )
            self.info.check(self._layout)


def max_rows(layout: Layout) -> int:
    """Largest number of samples in a batch."""
    if layout.kind == "arrow" or layout.is_plain:
        return MAX_BATCH_ROWS
    return layout.samples_per_member


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
    path, layout = Path(path), layout or Layout()
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ShardError(f"{path.name}: no samples; a shard has at least one")
    schema = schema_of_arrow(first.schema)
    if not first.schema.equals(schema.arrow, check_metadata=True):
        raise ShardError(f"batch has schema {first.schema}; expected what encode_batch makes")
    with ShardFile(path, schema, layout) as file:
        for piece in _pieces(chain([first], iterator), schema.arrow, max_rows(layout)):
            file.write(piece)
    return file.info


def _pieces(
    batches: Iterable[pa.RecordBatch], arrow: pa.Schema, num_rows: int
) -> Iterator[pa.RecordBatch]:
    """Batches of 1 to `num_rows` rows."""
    for batch in batches:
        if not batch.schema.equals(arrow, check_metadata=True):
            raise ShardError("batches of one shard have different columns")
        # Always rebuild: a slice's buffers may contain bits of rows outside it.
        rows = batch.to_pylist()
        for start in range(0, len(rows), num_rows):
            yield batch_of_rows(rows[start : start + num_rows], arrow)
