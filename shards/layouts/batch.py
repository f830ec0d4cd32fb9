"""A record batch as numpy views of its buffers, for fast row access without Arrow calls."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from im2sp.shards.columns.arrays import Lists, Rows, Values, View, view_of
from im2sp.shards.columns.names import BUILT_IN
from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.errors import ShardError
from im2sp.shards.schema import Sample, Schema, sample_of


class Batch:
    """Views of a record batch that passed `validate(full=True)`.

    Attributes:
        num_samples: Number of rows.
        views: Column -> views of its buffers.
    """

    __slots__ = ("_schema", "num_samples", "views")

    def __init__(self, batch: pa.RecordBatch, schema: Schema) -> None:
        self._schema = schema
        self.num_samples: int = batch.num_rows
        self.views: dict[str, Any] = {}
        for name in schema.arrow.names:
            column = batch.column(name)
            if column.offset or (column.null_count and not schema.is_nullable(name)):
                raise ShardError(f"column {name}: nulls where the format has none")
            try:
                self.views[name] = view_of(column)
            except ShardError as error:
                raise ShardError(f"column {name}: {error}") from None

    @property
    def keys(self) -> Values:
        """Keys."""
        return self.views["key"]

    @property
    def splits(self) -> Values:
        """Splits."""
        return self.views["split"]

    @property
    def captions(self) -> Lists:
        """Captions as UTF-8."""
        return self.views["captions"]

    def sample(self, i: int) -> Sample:
        """Decode row i.

        Raises:
            ShardError: A value is invalid for its codec.
        """
        values: dict[str, Any] = {}
        for name, view in self.views.items():
            try:
                values[name] = self._value(name, view, i)
            except ShardError as error:
                key = self.keys.text(i)
                raise ShardError(f"sample {key!r}: column {name}: {error}") from None
        return sample_of(values)

    def row(self, i: int) -> dict[str, Any]:
        """Row i with units as stored; see `Schema.decode_row`."""
        units = self._schema.units
        return {
            name: _stored(view, i) if name in units else self._own_value(name, view, i)
            for name, view in self.views.items()
        }

    def own_values(self, i: int) -> dict[str, Any]:
        """Values of row i that are no units: key, split, captions and own columns."""
        units = self._schema.units
        return {n: self._own_value(n, v, i) for n, v in self.views.items() if n not in units}

    def _value(self, name: str, view: View, i: int) -> Any:
        stored = self._schema.units.get(name)
        if stored is None:
            return self._own_value(name, view, i)
        if view.valid is not None and not view.valid[i]:
            return None
        return _arrays(stored, view, i)

    def _own_value(self, name: str, view: View, i: int) -> Any:
        if view.valid is not None and not view.valid[i]:
            return None
        if isinstance(view, Rows):
            return view.data[i].item()
        kind = BUILT_IN.get(name) or self._schema.columns[name]
        if isinstance(view, Lists):
            return [view.values.text(j) for j in view.range(i)]
        return view.text(i) if kind == "string" else view[i].tobytes()


def _stored(view: View, i: int) -> Any:
    """Bytes of a unit value, or a list of them; None for null."""
    if view.valid is not None and not view.valid[i]:
        return None
    if isinstance(view, Lists):
        return [view.values[j].tobytes() for j in view.range(i)]
    return view.data[i].tobytes() if isinstance(view, Rows) else view[i].tobytes()


def _arrays(stored: StoredUnits, view: View, i: int) -> Any:
    if isinstance(view, Lists):
        return [stored.decode(view.values[j]) for j in view.range(i)]
    data: NDArray[np.uint8] = view.data[i] if isinstance(view, Rows) else view[i]
    return stored.decode(data)
