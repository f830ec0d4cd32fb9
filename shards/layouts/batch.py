"""A record batch as numpy views of its buffers, for fast row access without Arrow calls.

`Table.take` on a chunked table reads a few thousand rows a second; indexing these views is
memory-bound.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from im2sp.shards.coding import Codec, ColumnCodecs
from im2sp.shards.errors import ShardError
from im2sp.shards.schema import Sample

_NO_OFFSETS = np.zeros(1, np.int32)
_NO_BYTES = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True)
class Values:
    """Values of varying length: value i is `data[offsets[i]:offsets[i + 1]]`."""

    offsets: NDArray[np.int32]
    """(n + 1,) ascending."""
    data: NDArray[np.uint8]
    """Bytes of all values, concatenated."""

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """Bytes of value i."""
        return self.data[self.offsets[i] : self.offsets[i + 1]]

    def text(self, i: int) -> str:
        """Value i as text; Arrow has checked that it is UTF-8."""
        return self.data[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()


@dataclass(frozen=True, slots=True)
class Lists:
    """One list of values per row: row i has values `offsets[i]` to `offsets[i + 1] - 1`."""

    offsets: NDArray[np.int32]
    """(n + 1,) ascending."""
    values: Values
    """All rows' values."""
    valid: NDArray[np.bool_] | None
    """(n,) False for null rows; None if no row is null."""

    def range(self, i: int) -> range:
        """Indices of row i's values."""
        return range(int(self.offsets[i]), int(self.offsets[i + 1]))


class Batch:
    """Views of a record batch that passed `validate(full=True)`.

    Attributes:
        num_samples: Number of rows.
        keys: Keys.
        splits: Splits.
        image_units: (n, 1274) uint8, one row per sample; undefined (zeros) for null.
        image_valid: (n,) bool, or None if no image is null.
        speech_units: Coded utterances.
        durations: Coded durations.
        captions: Captions as UTF-8.
    """

    __slots__ = (
        "_codecs",
        "captions",
        "durations",
        "image_units",
        "image_valid",
        "keys",
        "num_samples",
        "speech_units",
        "splits",
    )

    def __init__(self, batch: pa.RecordBatch, codecs: ColumnCodecs) -> None:
        self._codecs = codecs
        self.num_samples: int = batch.num_rows
        names = ("key", "split", "image_units", "speech_units", "durations", "captions")
        columns = [batch.column(name) for name in names]
        key, split, image_units, speech_units, durations, captions = columns
        for name, column in zip(names, columns, strict=True):
            if column.offset or (name not in ("image_units", "durations") and column.null_count):
                raise ShardError(f"column {name}: nulls where the format has none")
        self.keys = _values(key)
        self.splits = _values(split)
        size_bytes = codecs.image_size_bytes
        images = _view(image_units.buffers()[1], np.uint8, self.num_samples * size_bytes)
        self.image_units: NDArray[np.uint8] = images.reshape(self.num_samples, size_bytes)
        self.image_valid = _valid(image_units)
        self.speech_units = _lists("speech_units", speech_units)
        self.durations = _lists("durations", durations)
        self.captions = _lists("captions", captions)

    def sample(self, i: int) -> Sample:
        """Decode row i.

        Raises:
            ShardError: A value is invalid for its codec.
        """
        key = self.keys.text(i)
        try:
            return Sample(
                key=key,
                split=self.splits.text(i),
                image_units=self._image(i),
                speech_units=self._decode(self.speech_units, i, self._codecs.speech_units),
                durations=self._durations(i),
                captions=[self.captions.values.text(j) for j in self.captions.range(i)],
            )
        except ShardError as error:
            raise ShardError(f"sample {key!r}: {error}") from None

    def _image(self, i: int) -> NDArray[np.uint16] | None:
        if self.image_valid is not None and not self.image_valid[i]:
            return None
        return self._codecs.image_units.decode(self.image_units[i]).reshape(
            self._codecs.image_shape
        )

    def _durations(self, i: int) -> list[NDArray[np.uint16]] | None:
        if self.durations.valid is not None and not self.durations.valid[i]:
            return None
        return self._decode(self.durations, i, self._codecs.durations)

    @staticmethod
    def _decode(lists: Lists, i: int, codec: Codec) -> list[NDArray[np.uint16]]:
        return [codec.decode(lists.values[j]) for j in lists.range(i)]


def _values(array: pa.Array) -> Values:
    """Views of a string or binary array that starts at its buffers' start."""
    buffers = array.buffers()
    return _values_of_buffers(len(array), buffers[1], buffers[2])


def _lists(name: str, array: pa.Array) -> Lists:
    """Views of a list array of strings or binaries that starts at its buffers' start."""
    if array.values.null_count or array.values.offset:
        raise ShardError(f"column {name}: nulls inside a list")
    _, offsets, _, value_offsets, data = array.buffers()
    return Lists(
        offsets=_view(offsets, np.int32, len(array) + 1),
        values=_values_of_buffers(len(array.values), value_offsets, data),
        valid=_valid(array),
    )


def _values_of_buffers(
    num_values: int, offsets: pa.Buffer | None, data: pa.Buffer | None
) -> Values:
    if num_values == 0:
        return Values(_NO_OFFSETS, _NO_BYTES)
    size_bytes = 0 if data is None else data.size
    return Values(_view(offsets, np.int32, num_values + 1), _view(data, np.uint8, size_bytes))


def _valid(array: pa.Array) -> NDArray[np.bool_] | None:
    if not array.null_count:
        return None
    bits = _view(array.buffers()[0], np.uint8, (len(array) + 7) // 8)
    return np.unpackbits(bits, count=len(array), bitorder="little").astype(np.bool_)


def _view(buffer: pa.Buffer | None, dtype: type[np.generic], count: int) -> NDArray[Any]:
    if buffer is None or count == 0:
        return np.zeros(count, dtype)
    return np.frombuffer(memoryview(buffer), dtype, count)
