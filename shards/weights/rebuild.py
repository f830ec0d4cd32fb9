"""Replacements for the torch, numpy and container globals that a pickle may call.

Each function replaces one global, checks its arguments and raises ValueError (or TypeError for a
wrong number or type of arguments). Tensors become arrays: views of bytes in memory or mapped from
the file; a view that exceeds its storage or repeats elements is refused. torch is not needed;
bfloat16, which numpy lacks, is `BFLOAT16`, an opaque type of two bytes.
"""

# The content of a pickle has no static type.
# pyright: reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from im2sp.shards.weights.pickles import GlobalName, Rebuilder, check_key, make_set

BFLOAT16 = np.dtype("V2")
STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "UntypedStorage": np.dtype("u1"),
}
STORAGE_MODULES = frozenset({"torch", "torch.cuda", "torch.storage"})
_ALIASES = {"double": "f8", "float": "f4", "half": "f2", "long": "i8", "int": "i4", "short": "i2"}
DTYPES = {
    **{f"torch.{name}": np.dtype(f"<{code}") for name, code in _ALIASES.items()},
    **{f"torch.{dtype.name}": dtype for dtype in STORAGE_DTYPES.values() if dtype != BFLOAT16},
    "torch.bfloat16": BFLOAT16,
}
_NUMPY_TYPE = re.compile(r"[<>|=]?[biufc]\d{1,2}")
MAX_DIMENSIONS = 32


@dataclass(frozen=True, eq=False)
class Storage:
    """Elements that tensors are views of. `data` is one-dimensional."""

    data: np.ndarray


@dataclass(eq=False)
class PendingArray:
    """A numpy array between its creation and its state."""


@dataclass(frozen=True)
class NumpyType:
    """A numpy element type, `str` as numpy spells it."""

    code: str

    @property
    def dtype(self) -> np.dtype:
        """The numpy dtype."""
        return np.dtype(self.code)


def storage_dtype(kind: Any) -> np.dtype:
    """Element type of a storage class.

    Raises:
        ValueError: Unknown storage class.
    """
    if isinstance(kind, GlobalName) and kind.module in STORAGE_MODULES:
        dtype = STORAGE_DTYPES.get(kind.name)
        if dtype is not None:
            return dtype
    raise ValueError(f"storage of type {kind if isinstance(kind, GlobalName) else type(kind)}")


def element_counts(values: Any, what: str) -> tuple[int, ...]:
    """Check a tensor's size, stride or offset.

    Raises:
        ValueError: Too many numbers, or not all are counts.
    """
    values = tuple(values)
    if len(values) > MAX_DIMENSIONS or any(type(v) is not int or v < 0 for v in values):
        raise ValueError(f"a tensor's {what} is not a short list of counts")
    return values


def rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_unused: Any, dtype: Any = None
) -> np.ndarray:
    """View of a storage; gradients and hooks are dropped.

    Raises:
        ValueError: The view exceeds its storage or repeats elements.
    """
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without storage")
    data = storage.data
    if dtype is not None:
        if not isinstance(dtype, GlobalName) or str(dtype) not in DTYPES:
            raise TypeError("a tensor of an unknown number type")
        data = data.view(DTYPES[str(dtype)])
    (offset,) = element_counts([offset], "offset")
    size, stride = element_counts(size, "size"), element_counts(stride, "stride")
    if len(size) != len(stride):
        raise ValueError(f"a tensor of {len(size)} sizes and {len(stride)} strides")
    num_elements = 1
    for length in size:
        num_elements *= length
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if num_elements and last >= data.size:
        raise ValueError(
            f"a tensor that reaches element {last} of a storage of {data.size} elements"
        )
    if num_elements > data.size:
        raise ValueError(f"a tensor of {num_elements} elements in a storage of {data.size}")
    if not num_elements:
        return np.empty(size, data.dtype)
    steps = [step * data.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(data[offset:], size, steps)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> np.ndarray:
    return rebuild_tensor(storage, offset, size, stride, dtype=dtype)


def _rebuild_parameter(data: Any, *_unused: Any) -> np.ndarray:
    if not isinstance(data, np.ndarray):
        raise TypeError("a parameter without a tensor")
    return data


def _rebuild_from_type(function: Any, _kind: Any, arguments: Any, _state: Any) -> Any:
    """Tensor of a tensor subclass, or of a tensor with attributes."""
    if not isinstance(function, GlobalName) or str(function) not in TENSOR_REBUILDERS:
        raise TypeError("a tensor that is rebuilt in an unknown way")
    return TENSOR_REBUILDERS[str(function)](*arguments)


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    if isinstance(pairs, dict):
        return dict(pairs)
    found: dict[Any, Any] = {}
    for pair in pairs:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise TypeError("a dictionary of something other than pairs")
        check_key(pair[0])
        found[pair[0]] = pair[1]
    return found


def _default_dict(*_factory: Any) -> dict[Any, Any]:
    return {}


def _encode(text: Any, encoding: Any) -> bytes:
    """Bytes, as encoded by protocols before 3."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding other than latin1")
    return text.encode("latin-1")


def _path(*parts: Any) -> str:
    return "/".join(str(part) for part in parts if isinstance(part, str))


def _numpy_type(code: Any, *_flags: Any) -> NumpyType:
    if not isinstance(code, str) or not _NUMPY_TYPE.fullmatch(code):
        raise ValueError("a numpy array of something other than numbers")
    return NumpyType(code)


def _set_numpy_type(value: NumpyType, state: Any) -> NumpyType:
    """Apply the byte order from the state: (version, "<" or ">" or "|", ...)."""
    order = state[1]
    if order not in ("<", ">", "|", "="):
        raise ValueError("a numpy type of unknown byte order")
    return NumpyType(order + value.code.lstrip("<>|="))


def _numpy_scalar(kind: Any, data: Any) -> Any:
    return _numpy_array(kind, (), data, fortran=False)[()]


def _array_bytes(data: Any) -> bytes:
    return data.encode("latin-1") if isinstance(data, str) else bytes(memoryview(data))


def _numpy_array(kind: Any, shape: Any, data: Any, *, fortran: bool) -> np.ndarray:
    if not isinstance(kind, NumpyType):
        raise TypeError("an array without a number type")
    shape = element_counts(shape, "shape")
    flat = np.frombuffer(bytearray(_array_bytes(data)), dtype=kind.dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _set_array(_pending: PendingArray, state: Any) -> np.ndarray:
    """Build a numpy array from its state: (version, shape, type, is Fortran order, bytes)."""
    shape, kind, fortran, data = state[-4:]
    return _numpy_array(kind, shape, data, fortran=bool(fortran))


def _array_from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray:
    return _numpy_array(kind, shape, data, fortran=order == "F")


TENSOR_REBUILDERS: dict[str, Rebuilder] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
}
REBUILDERS: dict[str, Rebuilder] = {
    **TENSOR_REBUILDERS,
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _ordered_dict,
    "builtins.set": lambda values=(): make_set(values),
    "builtins.frozenset": lambda values=(): make_set(values),
    "_codecs.encode": _encode,
    "torch.Size": lambda size=(): element_counts(size, "size"),
    "torch.device": lambda kind, *_: kind,
    **{f"pathlib.{name}": _path for name in ("Path", "PosixPath", "PurePosixPath", "WindowsPath")},
    "numpy.dtype": _numpy_type,
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in (
            ("multiarray._reconstruct", lambda *_: PendingArray()),
            ("multiarray.scalar", _numpy_scalar),
            ("numeric._frombuffer", _array_from_buffer),
        )
    },
}
STATE_SETTERS: dict[type, Callable[[Any, Any], Any]] = {
    PendingArray: _set_array,
    NumpyType: _set_numpy_type,
    np.ndarray: lambda tensor, _state: tensor,
}
