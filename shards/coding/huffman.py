"""The `huffman` codec: static canonical Huffman codes, one per preceding id.

Intended for collapsed speech units, where each unit has few likely successors (order 1), and for
their durations (order 0). The code lengths are a parameter in the manifest, so each value can be
decoded on its own. `docs/FORMAT.md` defines the bytes; `huffman_fit.py` fits the tables.
"""

import base64
import binascii
from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.coding.packing import SmallWork
from im2sp.shards.errors import ShardError, check_int

MAX_CODE_BITS = 12
MAX_COLUMNS = 1024
RESERVED_BITS = 8
"""No code starts with this many ones; fewer pad the last byte, more are an error."""
small_work = SmallWork(2**19)


class _Tables(NamedTuple):
    """Tables and settings for the kernels; see `huffman_kernels.decode`."""

    shortest_bits: int
    settings: NDArray[np.int64]
    codes: NDArray[np.uint32]
    singles: NDArray[np.uint32]
    pairs: NDArray[np.uint32]


@dataclass(frozen=True, kw_only=True)
class HuffmanCodec:
    """`huffman`: codes of variable length, chosen by the preceding id.

    An id without a code in its context is written as an escape code followed by its plain bits, so
    every id in range can be coded.
    """

    num_ids: int
    """All ids are below it. At most 65536; at most 1024 for order 1."""
    order: int
    """1: the preceding id chooses the code table. 0: there is one table."""
    lengths: str
    """Base64 of the code lengths; see `lengths_to_text`."""
    minimum: int = 0
    """Smallest id."""

    def __post_init__(self) -> None:
        """Refuse parameters out of range and invalid code lengths."""
        check_int("order", self.order, 0, 1)
        check_int("num_ids", self.num_ids, 1, MAX_COLUMNS if self.order else 65536)
        check_int("minimum", self.minimum, 0, self.num_ids - 1)
        if not isinstance(self.lengths, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # comes from JSON
            raise ShardError(f"lengths is a {type(self.lengths).__name__}; expected base64 text")
        if self.codes[:, : self.minimum].any():
            raise ShardError(f"lengths: an id below minimum {self.minimum} has a code")

    def encode(self, ids: NDArray[Any]) -> bytes:
        """Code (n,) ids."""
        if ids.size and not (self.minimum <= int(ids.min()) and int(ids.max()) < self.num_ids):
            index = int(np.flatnonzero((ids < self.minimum) | (ids >= self.num_ids))[0])
            raise ShardError(
                f"id {index} is {ids[index]}, not in {self.minimum} to {self.num_ids - 1}"
            )
        if small_work.takes(ids.size):
            return self._encode_with_numpy(ids.astype(np.int64))
        tables = _tables(self)
        bound = ids.size * (MAX_CODE_BITS + self.escape_bits) // 8 + 1
        data = np.empty(bound, np.uint8)
        plain = np.require(ids, np.uint16, ["C", "A"])
        size_bytes = int(_kernels().encode(plain, tables.codes, tables.settings, data))
        return data[:size_bytes].tobytes()

    def _encode_with_numpy(self, ids: NDArray[np.int64]) -> bytes:
        """Bytes of ids in range; see `huffman_kernels.encode`."""
        codes = self.codes
        escape = codes.shape[1] - 1
        contexts = self.order * np.concatenate([[self.num_ids], ids[:-1]])[: ids.size]
        found = np.where(ids < escape, codes[contexts, np.minimum(ids, escape)], 0)
        is_escaped = found == 0
        found = np.where(is_escaped, codes[contexts, escape], found).astype(np.int64)
        lengths, values = found >> 16, found & 65535
        values |= np.where(is_escaped, ids << lengths, 0)
        lengths += np.where(is_escaped, self.escape_bits, 0)
        places = np.arange(MAX_CODE_BITS + self.escape_bits)
        stream = (values[:, None] >> places & 1)[places < lengths[:, None]]
        padded = np.concatenate([stream, np.ones(-stream.size % 8, np.int64)])
        return np.packbits(padded.astype(np.uint8), bitorder="little").tobytes()

    def decode(self, data: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Read ids until the bytes end."""
        if not data.flags.c_contiguous:
            data = data.copy()
        return self._decode(data, np.array((0, data.size), np.int64))[0]

    def decode_values(
        self, data: NDArray[np.uint8], offsets: ArrayLike
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Decode many values in one call.

        Args:
            data: (bytes,) uint8.
            offsets: (n + 1,) integers, ascending: value v is `data[offsets[v]:offsets[v + 1]]`.

        Returns:
            ids: (total,) uint16, the ids of all values.
            id_offsets: (n + 1,) int64: value v is `ids[id_offsets[v]:id_offsets[v + 1]]`.

        Raises:
            ShardError: The offsets exceed the data, or a value is invalid.
        """
        data = np.require(data, np.uint8, ["C", "A"])
        bounds = np.require(offsets, np.int64, ["C", "A"])
        if (
            data.ndim != 1
            or bounds.ndim != 1
            or not bounds.size
            or bounds[0] < 0
            or bounds[-1] > data.size
            or (bounds[1:] < bounds[:-1]).any()
        ):
            raise ShardError(f"offsets do not ascend inside the {data.size} bytes")
        return self._decode(data, bounds)

    def _decode(
        self, data: NDArray[np.uint8], offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Decode contiguous arrays with valid offsets; see `decode_values`."""
        shortest_bits, settings, codes, singles, pairs = _tables(self)
        num_bits = 8 * int(offsets[-1] - offsets[0])
        ids = np.empty(num_bits // shortest_bits + 2, np.uint16)  # space for a pair at the end
        id_offsets = np.empty(offsets.size, np.int64)
        kernels = _kernels()
        wrong = kernels.decode(data, offsets, singles, pairs, codes, settings, ids, id_offsets)
        if wrong:
            problem = {
                kernels.NOT_A_CODE: "no code starts there",
                kernels.CUT_OFF: "the code there is cut off",
                kernels.BAD_ESCAPE: "an id after an escape is out of range or has its own code",
            }[wrong]
            value, bit = id_offsets[:2].tolist()
            raise ShardError(f"huffman: value {value}, bit {bit}: {problem}")
        ids.resize(int(id_offsets[-1]), refcheck=False)  # shrinks the array in place
        return ids, id_offsets

    @property
    def codes(self) -> NDArray[np.uint32]:
        """The codes, as returned by `canonical_codes`."""
        return _codes_of_text(self.num_ids, self.order, self.lengths)

    @property
    def escape_bits(self) -> int:
        """Bits of an id after an escape code."""
        return (self.num_ids - 1).bit_length()


def lengths_to_text(lengths: NDArray[np.uint8]) -> str:
    """The `lengths` parameter: base64 of a bit string, bit j being bit j % 8 of byte j // 8.

    First one bit for each id in each context, row by row: 1 if it has a code. Then four bits for
    each code, lowest first, row by row: the length of the row's escape code, then those of its
    ids, ascending. Zeros pad the last byte.

    Args:
        lengths: (contexts, columns + 1) uint8, 0 for no code; the last column is the escape.
    """
    listed = lengths[:, :-1] > 0
    in_order = np.roll(lengths, 1, axis=1)
    nibbles = in_order[in_order > 0][:, None] >> np.arange(4, dtype=np.uint8) & np.uint8(1)
    bits = np.concatenate([listed.reshape(-1).astype(np.uint8), nibbles.reshape(-1)])
    return base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode("ascii")


def text_to_lengths(text: str, num_contexts: int, num_columns: int) -> NDArray[np.uint8]:
    """Parse the text written by `lengths_to_text`.

    Raises:
        ShardError: Not base64, wrong size, or lengths that no prefix code can have.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ShardError(f"lengths: not base64 ({error})") from None
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    num_flags = num_contexts * num_columns
    flags = bits[:num_flags]
    num_codes = num_contexts + int(flags.sum())
    num_bits = num_flags + 4 * num_codes
    if len(data) != -(-num_bits // 8) or bits[num_bits:].any():
        raise ShardError(
            f"lengths: {len(data)} bytes do not match {num_contexts} contexts with "
            f"{num_columns} ids"
        )
    nibbles = bits[num_flags:num_bits].reshape(-1, 4) @ np.array([1, 2, 4, 8], np.uint8)
    present = np.ones((num_contexts, num_columns + 1), np.bool_)
    present[:, 1:] = flags.reshape(num_contexts, num_columns)
    in_order = np.zeros(present.shape, np.uint8)
    in_order[present] = nibbles
    used = np.where(present, 1 << MAX_CODE_BITS >> in_order.astype(np.int64), 0).sum(1)
    free = 1 << MAX_CODE_BITS - RESERVED_BITS
    if not nibbles.all() or nibbles.max() > MAX_CODE_BITS:
        raise ShardError(f"lengths: a code of 0 or over {MAX_CODE_BITS} bits")
    if int(used.max()) > (1 << MAX_CODE_BITS) - free:
        raise ShardError(f"lengths: context {used.argmax()} has more codes than its lengths allow")
    return np.roll(in_order, -1, axis=1)


def canonical_codes(lengths: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Codes from their lengths, (contexts, columns + 1) uint32: length << 16 | code, reversed.

    In each context codes ascend by length, then by id, with the escape last. Their bits are
    reversed because a code's highest bit is written first and bytes are filled from the lowest.
    """
    codes = np.zeros(lengths.shape, np.uint32)
    for row, row_lengths in enumerate(lengths):
        code = 0
        length_before = 0
        for column in np.argsort(row_lengths, kind="stable")[int((row_lengths == 0).sum()) :]:
            length = int(row_lengths[column])
            code <<= length - length_before
            codes[row, column] = length << 16 | int(f"{code:0{length}b}"[::-1], 2)
            code, length_before = code + 1, length
    return codes


@lru_cache(maxsize=16)
def _codes_of_text(num_ids: int, order: int, text: str) -> NDArray[np.uint32]:
    num_contexts = num_ids + 1 if order else 1
    codes = canonical_codes(text_to_lengths(text, num_contexts, min(num_ids, MAX_COLUMNS)))
    codes.flags.writeable = False
    return codes


@lru_cache(maxsize=16)
def _tables(codec: HuffmanCodec) -> _Tables:
    """Tables and settings of a codec for the kernels."""
    codes = codec.codes
    width = int(codes.max()) >> 16
    shortest_bits = int(codes[codes > 0].min()) >> 16
    singles, pairs = (np.empty(len(codes) << width, np.uint32) for _ in range(2))
    _kernels().fill_tables(codes, width, codec.order, singles, pairs)
    numbers = [width, codec.order, codec.num_ids, codec.minimum, codec.escape_bits]
    return _Tables(shortest_bits, np.array(numbers, np.int64), codes, singles, pairs)


@cache
def _kernels() -> ModuleType:
    from im2sp.shards.coding import huffman_kernels

    return huffman_kernels
