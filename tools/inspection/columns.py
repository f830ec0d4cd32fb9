"""Columns of a dataset, and their values in a record batch, decoded without a loop over samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import ShardDataset
from im2sp.shards.coding import Codec, PackedCodec, VarintCodec
from im2sp.shards.coding.huffman import HuffmanCodec
from im2sp.shards.coding.packing import unpack_units
from im2sp.shards.layouts.batch import Batch, Lists, Values


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of unit arrays."""

    name: str
    shape: tuple[int | None, ...]
    """Shape of one array; None for an axis that varies."""
    num_codes: int
    """Units are below it."""
    is_many: bool
    """True if a sample has a list of arrays, such as utterances."""
    codec: Codec
    """Coding of one array."""

    @property
    def units_per_step(self) -> int:
        """Units in one step along the axis that varies: 8 for (8, None), 1 for (None,)."""
        return int(np.prod([size for size in self.shape if size is not None], dtype=np.int64))

    @property
    def codec_name(self) -> str:
        """Name of the codec, with the bits of `packed`."""
        if isinstance(self.codec, PackedCodec):
            return f"packed, {self.codec.bits} bits"
        return "varint" if isinstance(self.codec, VarintCodec) else "huffman"


@dataclass(frozen=True, kw_only=True)
class ColumnValues:
    """All arrays of a column in a record batch."""

    ids: NDArray[Any]
    """(units,) of all arrays."""
    lengths: NDArray[np.int64]
    """(arrays,) number of units in each."""
    per_row: NDArray[np.int64]
    """(rows with a value,) number of arrays in each."""
    size_bytes: int
    """Bytes of the coded arrays."""


def unit_columns(dataset: ShardDataset) -> list[Column]:
    """The unit columns in the order of the format."""
    codecs, speech = dataset.codecs, dataset.manifest.speech_tokenizer
    known: Mapping[str, Any] = speech or {}
    image = codecs.image_units
    many = {"shape": (None,), "is_many": True}
    num_speech = known.get("num_units") or _num_codes(codecs.speech_units)
    return [
        Column(
            name="image_units",
            shape=codecs.image_shape,
            num_codes=_num_codes(image),
            is_many=False,
            codec=image,
        ),
        Column(name="speech_units", num_codes=num_speech, codec=codecs.speech_units, **many),
        Column(
            name="durations", num_codes=_num_codes(codecs.durations), codec=codecs.durations, **many
        ),
    ]


def read_column(column: Column, batch: Batch) -> ColumnValues:
    """Decode a column of a record batch.

    Raises:
        ShardError: A value is invalid for its codec.
    """
    if column.name == "image_units":
        return _images(column, batch)
    lists: Lists = getattr(batch, column.name)
    is_there = np.ones(batch.num_samples, np.bool_) if lists.valid is None else lists.valid
    ids, lengths = _decode(column.codec, lists.values)
    return ColumnValues(
        ids=ids,
        lengths=lengths,
        per_row=np.diff(lists.offsets.astype(np.int64))[is_there],
        size_bytes=lists.values.data.size,
    )


def _images(column: Column, batch: Batch) -> ColumnValues:
    packed = (
        batch.image_units if batch.image_valid is None else batch.image_units[batch.image_valid]
    )
    codec = column.codec
    assert isinstance(codec, PackedCodec)
    assert codec.count is not None
    ids = unpack_units(packed, codec.bits, codec.count)
    codec.check_range(ids)
    lengths = np.full(len(packed), codec.count, np.int64)
    return ColumnValues(
        ids=ids.reshape(-1),
        lengths=lengths,
        per_row=np.ones(len(packed), np.int64),
        size_bytes=packed.size,
    )


def _decode(codec: Codec, values: Values) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids of all values, and the number of each."""
    offsets = values.offsets.astype(np.int64)
    if isinstance(codec, HuffmanCodec | VarintCodec):
        ids, id_offsets = codec.decode_values(values.data, offsets)
        return ids, np.diff(id_offsets)
    assert isinstance(codec, PackedCodec)
    if (codec.bits, codec.count) == (8, None):
        codec.check_range(values.data)
        return values.data, np.diff(offsets)
    arrays = [codec.decode(values[i]) for i in range(offsets.size - 1)]
    lengths = np.array([array.size for array in arrays], np.int64)
    return np.concatenate([np.zeros(0, np.uint16), *arrays]), lengths


def _num_codes(codec: Codec) -> int:
    if isinstance(codec, PackedCodec):
        return codec.num_units or 1 << codec.bits
    return codec.num_ids if isinstance(codec, HuffmanCodec) else 1 << 16
