"""Codecs of unit columns in version 2: choice, tables, fitting.

Each codec of `coded` columns has parameters, which the manifest holds, and tables, which
`codebook.safetensors` holds as tensors named `COLUMN.TABLE`. To add one, add it to `choose`, `fit`
and `make`.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding import Codec, HuffmanCodec, PackedCodec, VarintCodec
from im2sp.shards.coding.grid import GridHuffmanCodec
from im2sp.shards.coding.grid_tables import MAX_CODES, TABLE_NAMES, GridTables
from im2sp.shards.coding.huffman import MAX_COLUMNS
from im2sp.shards.coding.huffman_fit import fit_lengths
from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import ShardError

Params = Mapping[str, Any]
Tables = Mapping[str, NDArray[Any]]

_GRID = "grid-huffman"
TABLES: dict[str, tuple[str, ...]] = {
    "packed": (),
    "varint": (),
    "huffman": ("lengths",),
    _GRID: TABLE_NAMES,
}
"""Codec -> names of its tables."""
_PARAMS = {"packed": set[str](), "varint": set[str](), "huffman": {"order"}, _GRID: set[str]()}


def choose(column: UnitColumn) -> dict[str, Any]:
    """Parameters of the codec for a column: `codec` and what it needs besides tables."""
    if column.coding != "coded":
        return {"codec": column.coding}
    if _is_grid(column):
        return {"codec": _GRID}
    return {"codec": "huffman", "order": int(column.num_codes <= MAX_COLUMNS)}


def _is_grid(column: UnitColumn) -> bool:
    """True if the codec for grids takes the column."""
    return len(column.shape) == 2 and not column.num_variable and column.num_codes <= MAX_CODES


def check_params(params: Params) -> None:
    """Refuse an unknown codec or parameter."""
    codec = params.get("codec")
    if not isinstance(codec, str) or codec not in _PARAMS:
        raise ShardError(
            f"codec {codec!r} is unknown (known: {', '.join(_PARAMS)}); a newer im2sp may read it"
        )
    wrong = (set(params) - {"codec"}) ^ _PARAMS[codec]
    if wrong:
        raise ShardError(f"codec {codec} lacks or does not know {sorted(wrong)}")


def fit(column: UnitColumn, params: Params, arrays: Iterable[NDArray[Any]]) -> Tables:
    """Tables fitted to arrays of a column; the same arrays give the same tables."""
    if not TABLES[params["codec"]]:
        return {}
    if params["codec"] == _GRID:
        from im2sp.shards.coding.grid_fit import fit_grid_tables  # imports numba

        grids = np.array(list(arrays), column.dtype).reshape(-1, *_axes(column))
        tables = fit_grid_tables(grids, column.num_codes)
        return {name: getattr(tables, name) for name in TABLE_NAMES}
    values = (array.reshape(-1) for array in arrays)
    text = fit_lengths(values, column.num_codes, order=params["order"])
    return {"lengths": np.frombuffer(base64.b64decode(text), np.uint8)}


def make(column: UnitColumn, params: Params, tables: Tables) -> StoredUnits:
    """The codec of a column.

    Raises:
        ShardError: A parameter or table is missing or invalid.
    """
    check_params(params)
    name = params["codec"]
    for table in TABLES[name]:
        if table not in tables:
            raise ShardError(
                f"is coded, and its table {table!r} is not here; open the dataset, whose "
                "codebook.safetensors holds it"
            )
    return StoredUnits(
        column=column,
        codec=_codec(column, params, tables),
        has_lengths=column.num_variable > (name != "packed"),
    )


def _codec(column: UnitColumn, params: Params, tables: Tables) -> Codec:
    if params["codec"] == "packed":
        count = None if column.num_variable else column.num_fixed
        return PackedCodec(bits=column.bits, count=count, num_units=column.num_codes)
    if params["codec"] == "varint":
        return VarintCodec()
    if params["codec"] == _GRID:
        if not _is_grid(column):
            raise ShardError(
                f"codec {_GRID} with shape {column.shape} and {column.num_codes} codes; expected "
                f"two axes that do not vary, and at most {MAX_CODES} codes"
            )
        grid_tables = GridTables(**{name: tables[name] for name in TABLE_NAMES})
        if grid_tables.clusters.size != column.num_codes:
            raise ShardError(
                f"table clusters has {grid_tables.clusters.size} codes; expected "
                f"{column.num_codes}, as the column has"
            )
        num_rows, num_columns = _axes(column)
        return GridHuffmanCodec(shape=(num_rows, num_columns), tables=grid_tables)
    lengths = tables["lengths"]
    if lengths.dtype != np.uint8 or lengths.ndim != 1:
        raise ShardError(f"table lengths is {lengths.dtype} {lengths.shape}; expected (n,) uint8")
    text = base64.b64encode(lengths.tobytes()).decode("ascii")
    return HuffmanCodec(num_ids=column.num_codes, order=params["order"], lengths=text)


def _axes(column: UnitColumn) -> list[int]:
    """Sizes of the axes that do not vary."""
    return [size for size in column.shape if size is not None]
