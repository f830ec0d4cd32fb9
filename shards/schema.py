"""`Sample`, the `Schema` of a dataset's columns, and encoding of samples.

Version 1 has six fixed columns. In version 2 a dataset declares its columns; `key`, `split` and
`captions` are always there.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from im2sp.shards.coding import Columns, HuffmanCodec, PackedCodec, make_codecs
from im2sp.shards.columns.arrays import array_of, check_items
from im2sp.shards.columns.codecs import TABLES, Tables, check_params, choose, make
from im2sp.shards.columns.names import BUILT_IN, check_column_name, check_meaning
from im2sp.shards.columns.own import OWN_TYPES, checked_value
from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.columns.units import UnitColumn, column_of_json, column_to_json
from im2sp.shards.errors import ShardError
from im2sp.shards.files import parse_json

FORMAT_VERSIONS = (1, 2)
MAX_BATCH_ROWS = 256
METADATA_KEY = b"im2sp"

DEFAULT_COLUMNS: dict[str, dict[str, Any]] = {
    "image_units": {"codec": "packed", "bits": 13, "count": 784, "shape": [28, 28]},
    "speech_units": {"codec": "packed", "bits": 8},
    "durations": {"codec": "varint", "minimum": 1},
}
"""Default codecs of the coded columns in version 1."""

_V1_NAMES = ("key", "split", "image_units", "speech_units", "durations", "captions")
_V1_NULLABLE = ("image_units", "durations")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with its speech units, captions and other columns.

    `sample["audio_units"]` is the value of any column, and `writer.write(**sample)` copies a
    sample that was read.
    """

    key: str
    """Name of the sample, unique in its dataset, not empty."""
    split: str = ""
    """Part of the dataset, such as train or val; "" if it has no splits."""
    image_units: NDArray[np.uint16] | None = None
    """(28, 28) uint16, each in [0, 8192), or what the dataset declares; or None."""
    speech_units: list[NDArray[np.uint16]] = field(default_factory=list[NDArray[np.uint16]])
    """Collapsed units, one (S,) uint16 array per utterance."""
    durations: list[NDArray[np.uint16]] | None = None
    """Run lengths in frames, each at least 1, one (S,) uint16 array per utterance; or None."""
    captions: list[str] = field(default_factory=list[str])
    """Texts: none, or first one per utterance in the same order ("" if unknown), then those
    without speech."""
    columns: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values of the columns that the dataset declares; empty for a sample that was not read."""

    def __getitem__(self, name: str) -> Any:
        """Value of a column: an array, a list of arrays, or an own value; None if it has none."""
        if name in self.columns:
            return self.columns[name]
        if name in _V1_NAMES:
            return getattr(self, name)
        raise KeyError(f"sample {self.key!r} has no column {name!r}, only {sorted(self.columns)}")

    def keys(self) -> list[str]:
        """Names of the columns."""
        return [*BUILT_IN, *self.columns]


class Schema:
    """Columns of a dataset, how they are stored, and encoding of rows.

    Attributes:
        version: Version of the format.
        entries: Columns as in the manifest.
        columns: Declared column -> `UnitColumn`, or the type of an own column.
        arrow: The Arrow schema; its metadata repeats `entries` and, in version 1, the tables.
    """

    def __init__(
        self, version: int, entries: Columns, tables: Mapping[str, NDArray[Any]] | None = None
    ) -> None:
        """Check the columns.

        Args:
            version: Version of the format.
            entries: Columns as in the manifest.
            tables: Tables of coded columns, `COLUMN.TABLE` -> array. They are needed to encode
                and decode only.

        Raises:
            ShardError: The version is unknown, or an entry is invalid.
        """
        if type(version) is not int or version not in FORMAT_VERSIONS:
            known = " and ".join(map(str, FORMAT_VERSIONS))
            raise ShardError(f"format version {version!r}, this im2sp reads {known}; update im2sp")
        self.version, self.entries = version, entries
        self._tables = tables or {}
        self._params: dict[str, Mapping[str, Any]] = {}
        self.columns: dict[str, UnitColumn | str] = {}
        if version == 1:
            self.columns |= {name: stored.column for name, stored in self.units.items()}
        else:
            for name in sorted(entries):
                self.columns[name] = self._parsed(name, entries[name])
        names = _V1_NAMES if version == 1 else (*BUILT_IN, *self.columns)
        self._types = BUILT_IN | self.columns
        self.arrow = pa.schema(
            [pa.field(name, self._arrow_type(name)) for name in names],
            metadata={METADATA_KEY: compact_json(self.note).encode()},
        )

    def _parsed(self, name: str, entry: Mapping[str, Any]) -> UnitColumn | str:
        check_column_name(name)
        column: UnitColumn | str
        if "type" in entry:
            column = entry["type"]
            if not isinstance(column, str) or column not in OWN_TYPES or len(entry) > 1:
                raise ShardError(
                    f"column {name}: type {column!r}, expected one of {', '.join(OWN_TYPES)}"
                )
        else:
            try:
                column, self._params[name] = column_of_json(entry, check_params)
            except ShardError as error:
                raise ShardError(f"column {name}: {error}") from None
        check_meaning(name, column)
        return column

    @property
    def note(self) -> dict[str, Any]:
        """JSON object that is stored in each shard."""
        return {"columns": self.entries, "format_version": self.version}

    @cached_property
    def units(self) -> dict[str, StoredUnits]:
        """Codecs of the unit columns.

        Raises:
            ShardError: The tables of a coded column are missing or invalid.
        """
        if self.version == 1:
            return _v1_units(self.entries)
        units: dict[str, StoredUnits] = {}
        for name, params in self._params.items():
            tables = {
                table: self._tables[f"{name}.{table}"]
                for table in TABLES[params["codec"]]
                if f"{name}.{table}" in self._tables
            }
            try:
                units[name] = make(cast(UnitColumn, self.columns[name]), params, tables)
            except ShardError as error:
                raise ShardError(f"column {name}: {error}") from None
        return units

    @property
    def needs_tables(self) -> bool:
        """True if a column is coded with tables outside of the manifest."""
        return any(TABLES[params["codec"]] for params in self._params.values())

    def with_tables(self, tables: Tables) -> "Schema":
        """The schema with the tables of its coded columns."""
        return Schema(self.version, self.entries, tables)

    def is_nullable(self, name: str) -> bool:
        """True if a sample may lack the column."""
        return name not in BUILT_IN if self.version > 1 else name in _V1_NULLABLE

    def size_bytes(self, name: str) -> int | None:
        """Bytes of each value of a unit column that is stored with a fixed size; else None."""
        column = self.columns[name]
        if not isinstance(column, UnitColumn) or column.many or column.num_variable:
            return None
        is_packed = self.version == 1 or self._params[name]["codec"] == "packed"
        return (column.num_fixed * column.bits + 7) // 8 if is_packed else None

    def _arrow_type(self, name: str) -> pa.DataType:
        kind = self._types[name]
        if not isinstance(kind, UnitColumn):
            return OWN_TYPES[kind]
        if kind.many:
            return pa.list_(pa.binary())
        return pa.binary(self.size_bytes(name) or -1)

    def encode_row(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Check one sample's values and code them to a row as stored.

        Args:
            values: Column -> value, for every column; None for none.

        Raises:
            ShardError: A value is missing, unknown or does not fit; names sample and column.
        """
        place = f"sample {values.get('key')!r}"
        unknown = sorted(set(values) - set(self.arrow.names))
        if unknown:
            raise ShardError(
                f"{place}: unknown column {unknown[0]!r}, expected only {self.arrow.names}"
            )
        row: dict[str, Any] = {}
        for name in self.arrow.names:
            try:
                if name not in values:
                    raise ShardError("missing; give None for a sample without it")
                row[name] = self._encoded(name, values[name])
            except ShardError as error:
                raise ShardError(f"{place}: column {name}: {error}") from None
        if not row["key"]:
            raise ShardError(f"{place}: the key is empty; every sample needs a unique key")
        if "durations" in self.columns and "speech_units" in self.columns:
            try:
                check_durations(values["speech_units"], values["durations"])
            except ShardError as error:
                raise ShardError(f"{place}: {error}") from None
        return row

    def _encoded(self, name: str, value: Any) -> Any:
        if value is None and self.is_nullable(name):
            return None
        kind = self._types[name]
        if not isinstance(kind, UnitColumn):
            checked: Any = checked_value(kind, value)
            if isinstance(checked, list):
                check_items(len(cast(list[str], checked)))
            return cast(Any, checked)
        stored = self.units[name]
        if not kind.many:
            return stored.encode(value)
        if not isinstance(value, Iterable) or isinstance(value, str | bytes):
            raise ShardError(f"a {type(value).__name__}, expected a list of arrays")
        coded: list[bytes] = []
        for number, array in enumerate(cast(Iterable[object], value)):
            try:
                coded.append(stored.encode(array))
            except ShardError as error:
                raise ShardError(f"array {number}: {error}") from None
        check_items(len(coded))
        return coded

    def decode_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Values of a row as stored, the inverse of `encode_row`; a row may lack columns.

        Raises:
            ShardError: A value is invalid; names sample and column.
        """
        values: dict[str, Any] = {}
        units = self.units
        for name, value in row.items():
            try:
                values[name] = _decoded(units[name], value) if name in units else value
            except (ShardError, TypeError) as error:
                raise ShardError(f"sample {row.get('key')!r}: column {name}: {error}") from None
        return values


def _decoded(stored: StoredUnits, value: Any) -> Any:
    if value is None:
        return None
    if stored.column.many:
        return [stored.decode(np.frombuffer(one, np.uint8)) for one in value]
    return stored.decode(np.frombuffer(value, np.uint8))


def sample_of(values: Mapping[str, Any]) -> Sample:
    """The sample of a dataset with these values of its columns."""
    columns = {name: value for name, value in values.items() if name not in BUILT_IN}
    return Sample(
        key=values["key"],
        split=values["split"],
        captions=values["captions"],
        image_units=columns.get("image_units"),
        speech_units=columns.get("speech_units") or [],
        durations=columns.get("durations"),
        columns=columns,
    )


def entries_of(columns: Mapping[str, UnitColumn | str]) -> dict[str, dict[str, Any]]:
    """Entries of the manifest for declared columns, in version 2."""
    return {
        name: column_to_json(column, choose(column))
        if isinstance(column, UnitColumn)
        else {"type": column}
        for name, column in columns.items()
    }


def check_durations(speech_units: Any, durations: Any) -> None:
    """Refuse durations that are not one positive number for each speech unit."""
    if durations is None:
        return
    units = [np.shape(one) for one in speech_units or ()]
    runs = [np.asarray(one) for one in durations]
    if [one.shape for one in runs] != units:
        raise ShardError("durations and speech_units differ in number or length")
    if any(one.size and int(one.min()) == 0 for one in runs):
        raise ShardError("a duration of 0, expected at least one frame")


def _v1_units(entries: Columns) -> dict[str, StoredUnits]:
    codecs = make_codecs(entries)
    units: dict[str, StoredUnits] = {}
    for name in ("image_units", "speech_units", "durations"):
        codec = getattr(codecs, name)
        num_codes = 1 << 16
        if isinstance(codec, HuffmanCodec):
            num_codes = codec.num_ids
        elif isinstance(codec, PackedCodec):
            num_codes = codec.num_units or 1 << codec.bits
        shape = codecs.image_shape if name == "image_units" else (None,)
        coding = "packed" if isinstance(codec, PackedCodec) else "varint"
        if isinstance(codec, HuffmanCodec):
            coding = "coded"
        column = UnitColumn(shape, num_codes, name != "image_units", coding)
        units[name] = StoredUnits(column, codec, has_lengths=False)
    return units


def schema_of_arrow(arrow: pa.Schema) -> Schema:
    """The schema from the metadata of a shard, without tables outside of the shard.

    Raises:
        ShardError: The metadata is missing, not from im2sp, or of another format version.
    """
    return schema_of_note(note_of_arrow(arrow))


def note_of_arrow(arrow: pa.Schema) -> Any:
    """Parsed JSON note from the metadata of an Arrow schema, None if there is none."""
    try:
        return parse_json((arrow.metadata or {}).get(METADATA_KEY, b""))
    except ValueError:
        return None


def schema_of_note(note: Any) -> Schema:
    """The schema from the parsed JSON note of a shard; see `schema_of_arrow`."""
    try:
        version, entries = note["format_version"], note["columns"]
    except (TypeError, KeyError):
        raise ShardError("its im2sp format note is missing; did im2sp write it?") from None
    return Schema(version, entries)


def encode_batch(samples: Sequence[Sample], columns: Columns = DEFAULT_COLUMNS) -> pa.RecordBatch:
    """Code samples into one record batch of version 1, for `write_shard`.

    Args:
        samples: The samples.
        columns: Coded columns of version 1: column -> its codec and parameters.

    Raises:
        ShardError: A sample violates the format; names its key and the problem.
    """
    schema = Schema(1, columns)
    rows = [
        schema.encode_row({name: getattr(sample, name) for name in _V1_NAMES}) for sample in samples
    ]
    return batch_of_rows(rows, schema.arrow)


def batch_of_rows(rows: Sequence[Mapping[str, Any]], arrow: pa.Schema) -> pa.RecordBatch:
    """Build a record batch; the same rows always give the same buffers."""
    arrays = [array_of([row[name] for row in rows], arrow.field(name).type) for name in arrow.names]
    return pa.RecordBatch.from_arrays(arrays, schema=arrow)


def compact_json(content: object) -> str:
    """Canonical JSON: no blanks, sorted keys."""
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except RecursionError:
        raise ShardError("JSON nested too deeply") from None


ARROW_SCHEMA = Schema(1, DEFAULT_COLUMNS).arrow
"""Arrow schema of version 1 with the default codecs."""
