"""Which frames of two readings of one text belong together."""

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from im2sp.shards.kernels import compiled

# A frame of another phone costs 1; of the same phone, up to this for another place in it.
PLACE_COST = 0.2


def align_frames(labels: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    """For each frame of a reading, a frame of another reading of the same text.

    The path through both that goes forward only and pairs frames of the same phone, each at about
    the same place in it, as far as the phones agree (dynamic time warping).

    Args:
        labels: (T,) the phone of each frame, T at least 1.
        others: (U,) those of the other reading, U at least 1.

    Returns:
        (T,) ascending, each in [0, U): of the frames that a frame is paired with, the likest one.
    """
    if not len(labels) or not len(others):
        raise ValueError(f"readings of {len(labels)} and {len(others)} frames; expected at least 1")
    return _align(
        np.ascontiguousarray(labels, np.uint8),
        _places(labels),
        np.ascontiguousarray(others, np.uint8),
        _places(others),
        PLACE_COST,
    )


def _places(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(T,) where in its phone each frame lies: 0 to 1."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] + np.uint8(1)))
    lengths = np.diff(starts, append=len(labels))
    within = np.arange(len(labels)) - np.repeat(starts, lengths)
    return ((within + 0.5) / np.repeat(lengths, lengths)).astype(np.float32)


_LABELS = types.Array(types.uint8, 1, "C", readonly=True)
_PLACES = types.Array(types.float32, 1, "C", readonly=True)


@compiled(
    types.float64(_LABELS, _PLACES, _LABELS, _PLACES, types.float64, types.int64, types.int64)
)
def _cost(a: Any, a_places: Any, b: Any, b_places: Any, place_cost: Any, i: Any, j: Any) -> Any:
    """Of pairing frame i with frame j."""
    if a[i] != b[j]:
        return 1.0
    return place_cost * abs(a_places[i] - b_places[j])


@compiled(types.int64[::1](_LABELS, _PLACES, _LABELS, _PLACES, types.float64))
def _align(a: Any, a_places: Any, b: Any, b_places: Any, place_cost: Any) -> Any:
    """For each frame of the first reading, the likest of those it is paired with."""
    rows, columns = len(a), len(b)
    sums = np.empty((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            before = 0.0
            if i and j:
                before = min(sums[i - 1, j - 1], sums[i - 1, j], sums[i, j - 1])
            elif i:
                before = sums[i - 1, 0]
            elif j:
                before = sums[0, j - 1]
            sums[i, j] = before + _cost(a, a_places, b, b_places, place_cost, i, j)
    likest = np.zeros(rows, np.int64)
    lowest = np.full(rows, 2.0)
    i, j = rows - 1, columns - 1
    while True:
        cost = _cost(a, a_places, b, b_places, place_cost, i, j)
        if cost < lowest[i]:
            likest[i], lowest[i] = j, cost
        if i == 0 and j == 0:
            return likest
        if i and j and sums[i - 1, j - 1] <= min(sums[i - 1, j], sums[i, j - 1]):
            i, j = i - 1, j - 1
        elif i and (j == 0 or sums[i - 1, j] <= sums[i, j - 1]):
            i -= 1
        else:
            j -= 1
