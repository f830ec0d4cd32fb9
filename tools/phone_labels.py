"""Phones of clips, from plain text, and the phone of each frame of 20 ms.

One phone a line, times in seconds from the clip's begin, in order and without overlap; what lies in
no interval has no phone. Empty lines and those that begin with `#` do not count.

    0.000 0.235 pau
    0.235 0.290 ax

- A folder holds such a file for each clip: the clip's name in its source with the suffix `.lab` or
  `.phones` (`a/b.wav` -> `a/b.lab`), or else its bare stem (`b.lab`). It may be the folder of the
  audio itself.
- One file for many clips has the clip's name before the times: `a/b.wav 0.000 0.235 pau`. The
  suffix, or all but the bare stem, may be left out.
"""

import os
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SUFFIXES = (".lab", ".phones")
NO_PHONE = -1
# Times are rounded where they are printed, so neighbours may overlap by this much.
OVERLAP_S = 0.0015


@dataclass(frozen=True, slots=True)
class Interval:
    """A phone from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    phone: str


class PhoneLabels:
    """The phones of all clips of a source.

    Attributes:
        phones: The phones met so far; a phone's number is its place here.

    Raises:
        ValueError: No such file or folder, or a file for many clips with a line that is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.phones: list[str] = []
        self._numbers: dict[str, int] = {}
        self._lines: dict[str, list[tuple[int, str]]] = {}
        if path.is_file():
            for number, line in _lines(path):
                parts = line.rsplit(maxsplit=3)
                if len(parts) != 4:
                    raise ValueError(
                        f"{path}:{number}: {line[:80]!r}, expected `<clip> <start_s> <end_s>"
                        " <phone>`"
                    )
                self._lines.setdefault(parts[0], []).append((number, " ".join(parts[1:])))
        elif not path.is_dir():
            raise ValueError(f"{path}: no such file or folder of phone labels")

    def has(self, name: str) -> bool:
        """Whether there are labels for the clip of this name."""
        return self._find(name) is not None

    def of_frames(self, name: str, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """The phone's number at each time; NO_PHONE where there is none.

        Args:
            name: The clip's name in its source.
            times_s: (n,) seconds from the clip's begin.

        Raises:
            ValueError: The clip's labels are damaged; says where.
        """
        intervals = self.intervals(name)
        starts = [interval.start_s for interval in intervals]
        found = np.full(len(times_s), NO_PHONE, np.int64)
        for i, time_s in enumerate(times_s):
            place = bisect_right(starts, time_s) - 1
            if place >= 0 and time_s < intervals[place].end_s:
                found[i] = self._number(intervals[place].phone)
        return found

    def intervals(self, name: str) -> list[Interval]:
        """The clip's phones in order; [] where it has no labels. Errors as `of_frames`."""
        place = self._find(name)
        if place is None:
            return []
        is_file = isinstance(place, Path)
        path, lines = (place, _lines(place)) if is_file else (self.path, self._lines[place])
        intervals: list[Interval] = []
        for number, line in lines:
            interval = _parsed(f"{path.name}:{number}", line)
            if intervals and interval.start_s < intervals[-1].end_s - OVERLAP_S:
                raise ValueError(
                    f"{path.name}:{number}: {line[:80]!r} begins before the phone before it has"
                    f" ended, at {intervals[-1].end_s:g}; expected phones in order"
                )
            intervals.append(interval)
        return intervals

    def _find(self, name: str) -> Path | str | None:
        stem = os.path.splitext(name)[0]
        bare = os.path.basename(stem)
        if self._lines or not self.path.is_dir():
            names = (name, stem, os.path.basename(name), bare)
            return next((key for key in names if key in self._lines), None)
        paths = (self.path / f"{key}{suffix}" for key in (stem, bare) for suffix in SUFFIXES)
        return next((path for path in paths if path.is_file()), None)

    def _number(self, phone: str) -> int:
        number = self._numbers.setdefault(phone, len(self.phones))
        if number == len(self.phones):
            self.phones.append(phone)
        return number


def _lines(path: Path) -> list[tuple[int, str]]:
    """Number and content of the lines that count."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: no UTF-8 text, expected phone labels") from None
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def _parsed(place: str, line: str) -> Interval:
    parts = line.split()
    try:
        start_s, end_s = (float(part) for part in parts[:2])
    except ValueError:
        start_s = end_s = float("nan")
    if len(parts) != 3 or not 0 <= start_s < end_s < float("inf"):
        raise ValueError(f"{place}: {line[:80]!r}, expected `<start_s> <end_s> <phone>`")
    return Interval(start_s, end_s, parts[2])
