"""A uniform draw of rows from a stream whose length nobody knows before its end."""

import numpy as np
from numpy.typing import NDArray


class Reservoir:
    """At most `capacity` rows of all that pass, each equally likely to be among them.

    Algorithm R: the rows fill it first; then row i replaces a drawn one with a chance of
    `capacity / (i + 1)`. The draw depends on the seed and the order of the rows, not on how they
    are split into calls of `add`. Memory is taken once, as it fills.

    Attributes:
        num_seen: Rows that passed.
    """

    def __init__(self, capacity: int, *, seed: int) -> None:
        if capacity < 1:
            raise ValueError(f"a reservoir of {capacity} rows, expected at least 1")
        self.capacity = capacity
        self.num_seen = 0
        self._random = np.random.default_rng(seed)
        self._rows: NDArray[np.float32] | None = None
        self._tags = np.empty(capacity, np.int64)

    def add(self, rows: NDArray[np.float32], tags: NDArray[np.int64] | None = None) -> None:
        """Let rows pass.

        Args:
            rows: (n, D) float32, finite; copied where they are kept.
            tags: (n,) int64, a number that stays with each row; -1 by default.

        Raises:
            ValueError: Another shape or type than the rows before, or values that are not finite.
        """
        if self._rows is None and rows.ndim == 2:
            self._rows = np.empty((self.capacity, rows.shape[1]), np.float32)
        if self._rows is None or rows.ndim != 2 or rows.shape[1] != self._rows.shape[1]:
            width = "width" if self._rows is None else self._rows.shape[1]
            raise ValueError(f"features of shape {list(rows.shape)}, expected [frames, {width}]")
        if rows.dtype != np.float32:
            raise ValueError(f"features are {rows.dtype}, expected float32")
        if not np.isfinite(rows).all():
            raise ValueError("features hold values that are not finite")
        places = self._places(len(rows))
        kept = places < self.capacity
        # Of several rows for one place the last stays, as numpy assigns.
        self._rows[places[kept]] = rows[kept]
        self._tags[places[kept]] = -1 if tags is None else tags[kept]
        self.num_seen += len(rows)

    def _places(self, num_rows: int) -> NDArray[np.int64]:
        """Where each row goes; `capacity` and more means nowhere."""
        numbers = np.arange(self.num_seen, self.num_seen + num_rows)
        late = numbers >= self.capacity
        numbers[late] = self._random.integers(0, numbers[late] + 1)
        return numbers

    @property
    def rows(self) -> NDArray[np.float32]:
        """(min(num_seen, capacity), D) float32, a view."""
        if self._rows is None:
            return np.empty((0, 0), np.float32)
        return self._rows[: self.num_seen]

    @property
    def tags(self) -> NDArray[np.int64]:
        """The number of each of `rows`, a view."""
        return self._tags[: self.num_seen]
