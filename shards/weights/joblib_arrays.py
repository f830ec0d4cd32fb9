"""Arrays in a pickle written by joblib, such as a `km.bin` of scikit-learn.

joblib writes a pickle in which each numpy array is a `NumpyArrayWrapper` (shape, order, type). Its
numbers are embedded in the stream, right after the instruction that sets the wrapper's state:

    pickle up to BUILD | 1 byte n | n bytes of padding | the numbers | the rest of the pickle

Before joblib 1.2 there is no padding: the wrapper's state lacks `numpy_array_alignment_bytes`.
joblib, numpy.random and scikit-learn are never imported or called.
"""

# The content of a pickle has no static type.
# pyright: reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from im2sp.shards.weights.pickles import GlobalName, ReadableFile, Rebuilder, Record
from im2sp.shards.weights.rebuild import STATE_SETTERS, NumpyType, element_counts

_WRAPPERS = ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")
# A fitted model may contain its random generator, which is not needed: calls become records.
_GENERATORS = (
    ("numpy.random._pickle", "__randomstate_ctor"),
    ("numpy.random._pickle", "__bit_generator_ctor"),
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
)


@dataclass(eq=False)
class PendingJoblibArray:
    """A wrapper between its creation and its state."""


def _generator(module: str, name: str) -> Rebuilder:
    return lambda *_arguments: Record(GlobalName(module, name))


JOBLIB_REBUILDERS: Mapping[str, Rebuilder] = {
    **{f"{module}.NumpyArrayWrapper": PendingJoblibArray for module in _WRAPPERS},
    **{f"{module}.{name}": _generator(module, name) for module, name in _GENERATORS},
}


def joblib_setters(file: ReadableFile, mapped: np.ndarray) -> dict[type, Callable[[Any, Any], Any]]:
    """State setters for one pickle of joblib, including the plain ones.

    Args:
        file: The open pickle; arrays are read at its position.
        mapped: The whole file's bytes.
    """
    return {
        **STATE_SETTERS,
        PendingJoblibArray: lambda _pending, state: _read_array(file, mapped.size, state),
    }


def _read_array(file: ReadableFile, file_bytes: int, state: Any) -> np.ndarray:
    """Read the numbers at the file's position and advance past them.

    Raises:
        ValueError: No numbers, more numbers than the file contains, or an unknown layout.
    """
    if not isinstance(state, dict):
        raise TypeError("a joblib array without a description")
    kind, order = state.get("dtype"), state.get("order")
    if not isinstance(kind, NumpyType):
        raise ValueError("a joblib array of something other than numbers")
    if order not in ("C", "F"):
        raise ValueError("a joblib array in an unknown order, expected C or F")
    shape = element_counts(state.get("shape", ()), "shape")
    if state.get("numpy_array_alignment_bytes") is not None:
        (padding_bytes,) = file.read(1)
        file.read(padding_bytes)
    size_bytes = kind.dtype.itemsize
    for length in shape:
        size_bytes *= length
    left_bytes = file_bytes - file.tell()
    if size_bytes > left_bytes:
        raise ValueError(
            f"a joblib array of {size_bytes} bytes where the file has {left_bytes} left"
        )
    data = bytearray(file.read(size_bytes))
    return np.frombuffer(data, dtype=kind.dtype).reshape(shape, order=order)
