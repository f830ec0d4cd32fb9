"""`Sample`, its six Arrow columns, and encoding of samples with `encode_batch`."""

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.coding import Codec, ColumnCodecs, Columns, make_codecs
from im2sp.shards.errors import ShardError

FORMAT_VERSION = 1
MAX_BATCH_ROWS = 256
METADATA_KEY = b"im2sp"

DEFAULT_COLUMNS: dict[str, dict[str, Any]] = {
    "image_units": {"codec": "packed", "bits": 13, "count": 784, "shape": [28, 28]},
    "speech_units": {"codec": "packed", "bits": 8},
    "durations": {"codec": "varint", "minimum": 1},
}
"""Default codecs of the coded columns."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One image with its speech units and captions."""

    key: str
    """Name of the sample, unique in its dataset, not empty."""
    split: str = ""
    """Part of the dataset, such as train or val; "" if it has no splits."""
    image_units: NDArray[np.uint16] | None = None
    """(28, 28) uint16, each in [0, 8192), or None."""
    speech_units: list[NDArray[np.uint16]] = field(default_factory=list[NDArray[np.uint16]])
    """Collapsed units, one (S,) uint16 array per utterance."""
    durations: list[NDArray[np.uint16]] | None = None
    """Run lengths in frames, each at least 1, one (S,) uint16 array per utterance; or None."""
    captions: list[str] = field(default_factory=list[str])
    """Texts: none, or first one per utterance in the same order ("" if unknown), then those
    without speech."""


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """A sample as stored in the columns, with ids coded to bytes."""

    key: str
    split: str
    image_units: bytes | None
    speech_units: list[bytes]
    durations: list[bytes] | None
    captions: list[str]


def arrow_schema(columns: Columns) -> pa.Schema:
    """Arrow schema of a dataset with the coded columns `columns`.

    The schema's metadata repeats `columns`, so a shard can be decoded without the manifest.
    """
    image_size_bytes = make_codecs(columns).image_size_bytes
    note = {"columns": columns, "format_version": FORMAT_VERSION}
    return pa.schema(
        [
            pa.field("key", pa.string()),
            pa.field("split", pa.string()),
            pa.field("image_units", pa.binary(image_size_bytes)),
            pa.field("speech_units", pa.list_(pa.binary())),
            pa.field("durations", pa.list_(pa.binary())),
            pa.field("captions", pa.list_(pa.string())),
        ],
        metadata={METADATA_KEY: compact_json(note).encode()},
    )


def columns_of_schema(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Coded columns from the schema metadata of a shard.

    Raises:
        ShardError: The metadata is missing, not from im2sp, or of another format version.
    """
    return columns_of_note(note_of_schema(schema))


def note_of_schema(schema: pa.Schema) -> Any:
    """Parsed JSON note from a schema's metadata, None if there is none."""
    try:
        return json.loads((schema.metadata or {}).get(METADATA_KEY, b""))
    except (ValueError, RecursionError):
        return None


def columns_of_note(note: Any) -> dict[str, dict[str, Any]]:
    """Coded columns from the parsed JSON note of a shard; see `columns_of_schema`."""
    try:
        version, columns = note["format_version"], note["columns"]
    except (TypeError, KeyError):
        raise ShardError("its im2sp format note is missing; did im2sp write it?") from None
    if version != FORMAT_VERSION:
        raise ShardError(
            f"format version {version!r}, this im2sp reads {FORMAT_VERSION}; update im2sp"
        )
    make_codecs(columns)
    return columns


def encode_batch(samples: Sequence[Sample], columns: Columns = DEFAULT_COLUMNS) -> pa.RecordBatch:
    """Code samples into one record batch of schema `arrow_schema(columns)`.

    Raises:
        ShardError: A sample violates the format; names its key and the problem.
    """
    codecs = make_codecs(columns)
    return batch_of_rows([encode_row(sample, codecs) for sample in samples], arrow_schema(columns))


def batch_of_rows(rows: Sequence[RawRow], schema: pa.Schema) -> pa.RecordBatch:
    """Build a record batch; the same rows always give the same buffers."""
    arrays = [
        _array([getattr(row, name) for row in rows], schema.field(name).type)
        for name in schema.names
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _array(values: list[Any], type_: pa.DataType) -> pa.Array:
    """Build an array of text, bytes, or lists of either, with None for null, like `pa.array`.

    `pa.array` imports pandas if it is installed, which takes a second.
    """
    present = np.array([value is not None for value in values], np.bool_)
    validity = None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))
    if isinstance(type_, pa.FixedSizeBinaryType):
        blank = bytes(type_.byte_width)
        filled = pa.py_buffer(b"".join(blank if value is None else value for value in values))
        return pa.Array.from_buffers(type_, len(values), [validity, filled])
    data: list[pa.Buffer] = []
    children: list[pa.Array] = []
    if isinstance(type_, pa.ListType):
        values = [[] if value is None else value for value in values]
        children = [_array(list(itertools.chain(*values)), type_.value_type)]
    else:
        values = [v.encode() if isinstance(v, str) else v or b"" for v in values]
        data = [pa.py_buffer(b"".join(values))]
    offsets = np.cumsum([0, *map(len, values)])
    if offsets[-1] >= 2**31:
        raise ShardError(f"{len(values)} values of {offsets[-1]} bytes; at most 2 GiB a batch")
    buffers = [validity, pa.py_buffer(offsets.astype(np.int32)), *data]
    return pa.Array.from_buffers(type_, len(values), buffers, children=children)


def rows_of_batch(batch: pa.RecordBatch) -> list[RawRow]:
    """Rows of a record batch, without decoding."""
    return [RawRow(**row) for row in batch.to_pylist()]


def encode_row(sample: Sample, codecs: ColumnCodecs) -> RawRow:
    """Check and code one sample; see `encode_batch`."""
    try:
        _check_text("key", sample.key)
        _check_text("split", sample.split)
        if not sample.key:
            raise ShardError("the key is empty; every sample needs a unique key")
        for i, caption in enumerate(sample.captions):
            _check_text(f"captions[{i}]", caption)
        image_units = None
        if sample.image_units is not None:
            image_units = _at("image_units", _encode_image, sample.image_units, codecs)
        speech = [np.asarray(units) for units in sample.speech_units]
        durations = sample.durations
        if durations is not None:
            durations = [np.asarray(runs) for runs in durations]
            if [runs.shape for runs in durations] != [units.shape for units in speech]:
                raise ShardError("durations and speech_units differ in number or length")
        return RawRow(
            key=sample.key,
            split=sample.split,
            image_units=image_units,
            speech_units=[
                _at(f"speech_units[{i}]", _encode_ids, units, codecs.speech_units)
                for i, units in enumerate(speech)
            ],
            durations=None
            if durations is None
            else [
                _at(f"durations[{i}]", _encode_ids, runs, codecs.durations)
                for i, runs in enumerate(durations)
            ],
            captions=list(sample.captions),
        )
    except ShardError as error:
        raise ShardError(f"sample {sample.key!r}: {error}") from None


def compact_json(content: object) -> str:
    """Canonical JSON: no blanks, sorted keys."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _encode_image(units: ArrayLike, codecs: ColumnCodecs) -> bytes:
    array = np.asarray(units)
    if array.shape != codecs.image_shape:
        raise ShardError(f"shape {array.shape}; this dataset's images are {codecs.image_shape}")
    return codecs.image_units.encode(array.reshape(-1))


def _encode_ids(ids: NDArray[Any], codec: Codec) -> bytes:
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise ShardError(f"{ids.dtype} of shape {ids.shape}; expected (S,) integers")
    return codec.encode(ids.astype(np.int64) if ids.size == 0 else ids)


def _at(place: str, function: Callable[..., bytes], *args: Any) -> bytes:
    """Call the function and prefix its `ShardError` with the place."""
    try:
        return function(*args)
    except ShardError as error:
        raise ShardError(f"{place}: {error}") from None


def _check_text(name: str, text: object) -> None:
    if not isinstance(text, str):
        raise ShardError(f"{name} is a {type(text).__name__}; expected a str")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ShardError(f"{name} is not valid Unicode: {error.reason} at {error.start}") from None


ARROW_SCHEMA = arrow_schema(DEFAULT_COLUMNS)
"""Arrow schema of a dataset with the default codecs."""
