"""Codecs between the ids of a column and bytes: one class per codec, named in the manifest.

To add a codec, write a dataclass with the two methods of `Codec`, whose fields are its parameters
in the manifest, and list it in `CODECS`. Readers refuse unknown codec names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding.huffman import HuffmanCodec
from im2sp.shards.coding.packing import (
    id_dtype,
    kernels,
    pack_units,
    packed_size_bytes,
    unpack_units,
)
from im2sp.shards.errors import ShardError, check_int

MAX_COUNT = 1 << 24
"""Largest fixed number of ids in a value."""
MAX_AXES = 8
"""Most axes of an array."""


class Codec(Protocol):
    """Lossless conversion of a sequence of ids to bytes and back."""

    def encode(self, ids: NDArray[Any]) -> bytes:
        """Bytes of (n,) integers; raises `ShardError` if an id cannot be coded."""
        ...

    def decode(self, data: NDArray[np.uint8]) -> NDArray[np.uint16 | np.uint32]:
        """The (n,) uint16 or uint32 ids of a value; raises `ShardError` on invalid bytes."""
        ...

    def decode_values(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Ids of many values and the offsets of each value's; see `HuffmanCodec`."""
        ...


@dataclass(frozen=True, kw_only=True)
class PackedCodec:
    """`packed`: fixed width, least significant bit first (see `packing.py`)."""

    bits: int
    """Width of one id, 1 to 32; in version 1 at most 16."""
    count: int | None = None
    """Number of ids in each value; None if values differ in length."""
    shape: tuple[int, ...] | None = None
    """Shape of the ids, in raster order; its product is `count`."""
    num_units: int | None = None
    """Size of the vocabulary; all ids are below it. None means 2**bits."""

    def __post_init__(self) -> None:
        """Refuse parameters that contradict each other."""
        check_int("bits", self.bits, 1, 32)
        if self.count is not None:
            check_int("count", self.count, 1, MAX_COUNT)
        if self.num_units is not None:
            check_int("num_units", self.num_units, 1, 1 << self.bits)
        if self.shape is not None and (
            self.count is None
            or len(self.shape) > MAX_AXES
            or not all(type(n) is int and 0 < n <= self.count for n in self.shape)
            or math.prod(self.shape) != self.count
        ):
            shape = str(list(self.shape[: MAX_AXES + 1]))
            raise ShardError(
                f"shape {shape[:80]} does not make count {self.count} in 1 to {MAX_AXES} axes"
            )

    def encode(self, ids: NDArray[Any]) -> bytes:
        """Pack (n,) ids."""
        if self.count is not None and ids.shape != (self.count,):
            raise ShardError(f"{ids.shape} ids; every value has {self.count}")
        self.check_range(ids)
        return pack_units(ids, self.bits).tobytes()

    def decode(
        self, data: NDArray[np.uint8], count: int | None = None
    ) -> NDArray[np.uint16 | np.uint32]:
        """Unpack one value of `count` ids; if None, the codec's, or all in the bytes."""
        if count is None:
            count = 8 * data.size // self.bits if self.count is None else self.count
        if self.bits == 8 and data.size == count:
            ids = data.astype(np.uint16)
        else:
            ids = unpack_units(data, self.bits, count)
        self.check_range(ids)
        return ids

    def decode_values(
        self,
        data: NDArray[np.uint8],
        offsets: NDArray[np.int64],
        counts: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Decode consecutive values, of `counts` ids each, with a kernel; 8-bit ids as they are."""
        if counts is None:
            if (self.bits, self.count) == (8, None):
                self.check_range(data)
                return data, offsets
            num = 0 if self.count is None else offsets.size - 1
            counts = np.full(num, self.count or 0, np.int64)
        id_offsets = np.empty(offsets.size, np.int64)
        ids = np.empty(8 * data.size // self.bits, id_dtype(self.bits))
        wrong = kernels().decode_packed(data, offsets, self.bits, counts, ids, id_offsets)
        if wrong >= 0:
            raise ShardError(f"value {wrong} is invalid for its codec")
        ids = ids[: id_offsets[-1]]
        self.check_range(ids)
        return ids, id_offsets

    def check_range(self, ids: NDArray[Any]) -> None:
        """Raise if an id is not below `num_units`; `pack_units` checks the width."""
        if self.num_units is not None and ids.size and int(ids.max()) >= self.num_units:
            index = int(np.flatnonzero(ids >= self.num_units)[0])
            raise ShardError(f"id {index} is {ids.flat[index]}, not below {self.num_units}")

    @property
    def value_size_bytes(self) -> int | None:
        """Bytes of one value, or None if values differ in length."""
        return None if self.count is None else packed_size_bytes(self.count, self.bits)


@dataclass(frozen=True, kw_only=True)
class VarintCodec:
    """`varint`: id - `minimum` as LEB128: 7 bits a byte, low first; a set high bit continues it.

    With minimum 1, a duration of 1 to 128 frames takes one byte, up to 16,384 two, up to 65,535
    three. Only the shortest form is allowed.
    """

    minimum: int = 0
    """Smallest id; the difference to it is stored."""

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        check_int("minimum", self.minimum, 0, 65535)

    def encode(self, ids: NDArray[Any]) -> bytes:
        """Code (n,) ids."""
        if ids.size and not (self.minimum <= int(ids.min()) and int(ids.max()) <= 65535):
            bad = (ids < self.minimum) | (ids > 65535)
            index = int(np.flatnonzero(bad)[0])
            raise ShardError(f"id {index} is {ids[index]}, not in {self.minimum} to 65535")
        rest = ids.astype(np.uint32) - np.uint32(self.minimum)
        if not ids.size or int(rest.max()) < 128:
            return rest.astype(np.uint8).tobytes()
        coded = bytearray()
        for number in rest.tolist():
            while number >= 128:
                coded.append(number & 127 | 128)
                number >>= 7
            coded.append(number)
        return bytes(coded)

    def decode(self, data: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Read ids until the bytes end."""
        if not data.size or (int(data.max()) < 128 and self.minimum <= 65535 - 127):
            return data.astype(np.uint16) + np.uint16(self.minimum)
        ends = np.flatnonzero(data < 128)
        sizes = np.diff(ends, prepend=-1)
        numbers = np.full(ends.size, self.minimum, np.int64)
        for k in range(3):
            has = sizes > k
            numbers[has] += (data[ends[has] - sizes[has] + 1 + k] & 127).astype(np.int64) << 7 * k
        is_bad = (sizes > 3) | (numbers > 65535) | ((sizes > 1) & (data[ends] == 0))
        if is_bad.any():
            index = int(is_bad.argmax())
            problem = "over 65535 or not in shortest form"
            if sizes[index] > 3:
                problem = "longer than three bytes"
            raise ShardError(f"varint: id {index} is {problem}")
        if data[-1] > 127:
            raise ShardError(f"varint: id {ends.size} is cut off")
        return numbers.astype(np.uint16)

    def decode_values(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Decode consecutive values; see `HuffmanCodec.decode_values`."""
        ends = offsets[1:][offsets[1:] > offsets[:-1]]
        if (data[ends - 1] > 127).any():
            raise ShardError("varint: an id is cut off")
        id_offsets = np.zeros(data.size + 1, np.int64)
        np.cumsum(data < 128, out=id_offsets[1:])
        return self.decode(data), id_offsets[offsets]


CODECS: dict[str, type[PackedCodec] | type[VarintCodec] | type[HuffmanCodec]] = {
    "packed": PackedCodec,
    "varint": VarintCodec,
    "huffman": HuffmanCodec,
}

Columns = Mapping[str, Mapping[str, Any]]
"""Coded column -> {"codec": name, parameter: value, ...}, as in the manifest."""


@dataclass(frozen=True, kw_only=True)
class ColumnCodecs:
    """The codecs of the three coded columns."""

    image_units: PackedCodec
    speech_units: Codec
    durations: Codec

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image's units, (28, 28) unless the manifest says otherwise."""
        assert self.image_units.shape is not None
        return self.image_units.shape

    @property
    def image_size_bytes(self) -> int:
        """Bytes of one image's packed units, 1,274 unless the manifest says otherwise."""
        size_bytes = self.image_units.value_size_bytes
        assert size_bytes is not None
        return size_bytes


def make_codecs(columns: Columns) -> ColumnCodecs:
    """Build the codecs that `columns` names.

    Raises:
        ShardError: A column, its codec or a parameter is missing or unknown.
    """
    expected = {field.name for field in fields(ColumnCodecs)}
    if set(columns) != expected:
        raise ShardError(f"coded columns are {sorted(columns)}; expected {sorted(expected)}")
    image_units = _make_codec("image_units", columns["image_units"])
    if not isinstance(image_units, PackedCodec) or image_units.shape is None:
        raise ShardError("column image_units: needs codec packed with count and shape")
    return ColumnCodecs(
        image_units=image_units,
        speech_units=_make_codec("speech_units", columns["speech_units"]),
        durations=_make_codec("durations", columns["durations"]),
    )


def _make_codec(column: str, params: Mapping[str, Any]) -> PackedCodec | VarintCodec | HuffmanCodec:
    rest = dict(params)
    name = rest.pop("codec", None)
    codec_class = CODECS.get(name) if isinstance(name, str) else None
    if codec_class is None:
        raise ShardError(
            f"column {column}: codec {name!r} is unknown (known: {', '.join(CODECS)}); "
            "a newer im2sp may read it"
        )
    unknown = set(rest) - {field.name for field in fields(codec_class)}
    if unknown:
        raise ShardError(f"column {column}: codec {name} has no parameter {sorted(unknown)}")
    if "shape" in rest:
        if not isinstance(rest["shape"], list):
            raise ShardError(f"column {column}: shape is {rest['shape']!r}, expected a list")
        rest["shape"] = tuple(cast(list[int], rest["shape"]))
    try:
        if name == "packed" and "bits" in rest:
            check_int("bits", rest["bits"], 1, 16)
            if rest.get("count") is None:
                check_int("bits (without count)", rest["bits"], 8, 16)
        return codec_class(**rest)
    except (ShardError, TypeError) as error:
        raise ShardError(f"column {column}: codec {name}: {error}") from None
