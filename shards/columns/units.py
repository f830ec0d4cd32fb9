"""`UnitColumn`: integer arrays of a given shape, and `StoredUnits`: their bytes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.coding import MAX_AXES, MAX_COUNT
from im2sp.shards.errors import ShardError, check_int

Coding = Literal["packed", "varint", "coded"]
MAX_CODES = 1 << 32
_MAX_LENGTH = (1 << 31) - 1


@dataclass(frozen=True)
class UnitColumn:
    """A column of units: integers below `num_codes` in arrays of a given shape.

    >>> UnitColumn(shape=(8, None), num_codes=2048).bits
    11
    """

    shape: tuple[int | None, ...]
    """Shape of one array; an axis of None varies from array to array."""
    num_codes: int
    """Units are below it; 1 to 2**32."""
    many: bool = False
    """A sample has a list of arrays, such as utterances, instead of one."""
    coding: Coding = "packed"
    """`packed`: fixed width. `varint`: small numbers in one byte, up to 65,535. `coded`: with
    tables fitted to the data, the smallest."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        object.__setattr__(self, "shape", tuple(self.shape))  # a list if it comes from JSON
        axes: Sequence[object] = self.shape
        if not 1 <= len(axes) <= MAX_AXES:
            raise ShardError(f"shape is {self.shape}; expected 1 to {MAX_AXES} axes")
        for size in axes:
            if size is not None:
                check_int("an axis of shape", size, 1, MAX_COUNT)
        if self.num_fixed > MAX_COUNT:
            raise ShardError(f"shape is {self.shape}; expected at most {MAX_COUNT} units")
        check_int("num_codes", self.num_codes, 1, MAX_CODES)
        if type(self.many) is not bool:
            raise ShardError(f"many is {self.many!r}; expected True or False")
        if self.coding not in get_args(Coding):
            raise ShardError(f"coding is {self.coding!r}; expected one of {get_args(Coding)}")
        if self.coding != "packed" and self.num_codes > 1 << 16:
            raise ShardError(
                f"num_codes is {self.num_codes}; coding {self.coding!r} takes at most 65536, "
                "use 'packed'"
            )

    @property
    def bits(self) -> int:
        """Bits of a packed unit: 1 to 32."""
        return max(1, (self.num_codes - 1).bit_length())

    @property
    def dtype(self) -> type[np.uint16] | type[np.uint32]:
        """Type of the arrays: uint16, or uint32 for more than 65,536 codes."""
        return np.uint16 if self.num_codes <= 1 << 16 else np.uint32

    @property
    def num_variable(self) -> int:
        """Number of axes that vary."""
        return self.shape.count(None)

    @cached_property
    def num_fixed(self) -> int:
        """Product of the fixed axes: the units of an array whose variable axes are 1."""
        return math.prod(size for size in self.shape if size is not None)

    def checked(self, value: object) -> NDArray[np.uint16 | np.uint32]:
        """The array of a value, of type `dtype`.

        Raises:
            ShardError: Its shape, type or a code does not fit; states found and expected.
        """
        try:
            array: NDArray[Any] = np.asarray(value)
        except (ValueError, TypeError) as error:
            raise ShardError(f"not an array ({error}), expected shape {self.shape}") from None
        if array.size == 0 and array.dtype.kind == "f":  # of an empty list
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            raise ShardError(f"dtype {array.dtype}, expected integers")
        fits = array.ndim == len(self.shape) and all(
            size in (None, found) for size, found in zip(self.shape, array.shape, strict=True)
        )
        if not fits:
            raise ShardError(f"shape {array.shape}, expected {self.shape}")
        if array.size and not (int(array.min()) >= 0 and int(array.max()) < self.num_codes):
            place = tuple(np.argwhere((array < 0) | (array >= self.num_codes))[0].tolist())
            raise ShardError(f"code {array[place]} at {place}, expected 0 to {self.num_codes - 1}")
        return array.astype(self.dtype, copy=False)


def column_of_json(
    entry: Mapping[str, Any], check_params: Callable[[Mapping[str, Any]], object]
) -> tuple[UnitColumn, dict[str, Any]]:
    """The unit column of an entry of the manifest, and the codec's parameters, `codec` included.

    Args:
        entry: The entry.
        check_params: Refuses parameters that no codec has.

    Raises:
        ShardError: A field is missing or has a wrong value.
    """
    params = dict(entry)
    try:
        shape, num_codes, many = (params.pop(name) for name in ("shape", "num_codes", "many"))
    except KeyError as error:
        raise ShardError(f"has no {error}") from None
    check_params(params)
    if not isinstance(shape, list):
        raise ShardError(f"shape is {shape!r}; expected a list")
    coding = params.get("codec")
    column = UnitColumn(
        shape=tuple(cast(list[int | None], shape)),
        num_codes=num_codes,
        many=many,
        coding=coding if coding in ("packed", "varint") else "coded",
    )
    return column, params


def column_to_json(column: UnitColumn, params: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `column_of_json`."""
    return {
        "shape": list(column.shape),
        "num_codes": column.num_codes,
        "many": column.many,
        **params,
    }
