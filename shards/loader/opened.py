"""Byte ranges of the columns of record batches, found when a batch is first read."""

from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.columns.arrays import Lists, Values, View
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.loader import kernels

_NO_BYTES = np.zeros(0, np.uint8)


class OpenBatches:
    """The record batches that were read so far, for the kernels.

    A batch takes 64 bytes a column. The bytes stay in the mapped files; those that are in no file
    as they are used, as in plain WebDataset shards, are kept in memory.

    Attributes:
        files: Bytes of each shard, then bytes of each batch that are kept in memory.
        tables: Column -> (num_batches, 8) int64, see `kernels.FILE`.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        columns: Iterable[str],
        check: Callable[[int, Batch], None],
    ) -> None:
        """Open nothing yet.

        Args:
            dataset: The dataset.
            columns: Columns to read.
            check: Called with the number and the views of each batch that is opened.
        """
        self._dataset, self._check = dataset, check
        num = dataset.num_batches
        self._num_shards = len(dataset.manifest.shards)
        self.files = kernels.new_files(self._num_shards + num, _NO_BYTES)
        self.tables = {name: np.zeros((num, kernels.NUM_ENTRIES), np.int64) for name in columns}
        self._shards: dict[int, NDArray[np.uint8]] = {}
        self._is_open = np.zeros(num, np.bool_)
        self._lock = Lock()

    def open(self, places: NDArray[np.uint32]) -> None:
        """Open the batches of places; compares the checksum of each that is not open yet.

        Raises:
            ShardError: A shard is missing or damaged; names file and bytes.
        """
        batches = places >> 8
        if self._is_open[batches].all():
            return
        with self._lock:
            for number in np.unique(batches[~self._is_open[batches]]).tolist():
                self._open(number)
                self._is_open[number] = True

    def _open(self, number: int) -> None:
        batch = self._dataset.read_batch(number)
        self._check(number, batch)
        views = [batch.views[name] for name in self.tables]
        buffers = [buffer for view in views for buffer in _buffers(view)]
        file = self._dataset.shard_of(number)
        shard = self._shard(file)
        starts = [_address(buffer) - _address(shard) if buffer.size else 0 for buffer in buffers]
        ends = [start + buffer.size for start, buffer in zip(starts, buffers, strict=True)]
        if min(starts) < 0 or max(ends) > shard.size:
            file = self._num_shards + number
            kernels.set_file(self.files, file, np.concatenate(buffers))
            starts = np.cumsum([0] + [buffer.size for buffer in buffers]).tolist()
        for k, (table, view) in enumerate(zip(self.tables.values(), views, strict=True)):
            rows, values, data = range(3 * k, 3 * k + 3)
            table[number] = (
                file,
                starts[rows] if buffers[rows].size else -1,
                batch.num_samples,
                starts[values] if buffers[values].size else -1,
                _num_values(view),
                starts[data],
                buffers[data].size,
                np.diff(view.offsets).max(initial=0) if isinstance(view, Lists) else 1,
            )

    def _shard(self, number: int) -> NDArray[np.uint8]:
        data = self._shards.get(number)
        if data is None:
            data = np.frombuffer(memoryview(self._dataset.reader(number).data), np.uint8)
            kernels.set_file(self.files, number, data)
            self._shards[number] = data
        return data


def _buffers(view: View) -> list[NDArray[np.uint8]]:
    """Bytes of a column's offsets of rows, offsets of values, and values; see `kernels.FILE`."""
    if isinstance(view, Lists):
        return [view.offsets.view(np.uint8), *_buffers(view.values)[1:]]
    if isinstance(view, Values):  # without values, the offset is not in the file
        offsets = view.offsets.view(np.uint8) if view.offsets.size > 1 else _NO_BYTES
        return [_NO_BYTES, offsets, view.data]
    return [_NO_BYTES, _NO_BYTES, view.data.reshape(-1)]


def _num_values(view: View) -> int:
    if isinstance(view, Lists):
        return _num_values(view.values)
    return view.offsets.size - 1 if isinstance(view, Values) else len(view.data)


def _address(array: NDArray[Any]) -> int:
    return array.__array_interface__["data"][0]
