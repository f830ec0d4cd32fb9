"""Quality of speech units: information about phones, edit distances, robustness to noise.

The first three figures are those of the HuBERT paper (Hsu et al. 2021, arXiv 2106.07447, section
V.A), over frames of 20 ms with a phone `y` and a unit `z`:

- PNMI, I(y; z) / H(y): share of the phone entropy that the unit explains.
- Phone purity: share of frames with the most frequent phone of their unit.
- Cluster purity: share of frames with the most frequent unit of their phone; falls with more units.

`PhoneLabels` reads phone timings from plain text: one phone per line, times in seconds from the
start of the clip, in order and without overlap. Frames outside all intervals have no phone. Empty
lines and lines that start with `#` are ignored.

    0.000 0.235 pau
    0.235 0.290 ax

- A folder contains one file per clip: the clip's name in its source with the suffix `.lab` or
  `.phones` (`a/b.wav` -> `a/b.lab`), or else its bare stem (`b.lab`). It may be the folder of the
  audio itself.
- A single file for many clips has the clip's name before the times: `a/b.wav 0.000 0.235 pau`. The
  suffix, or all but the bare stem, may be omitted.
"""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer
from im2sp.shards.files import read_text
from im2sp.tools.engines.asr import edits

PIECE_FRAMES = 4096
SUFFIXES = (".lab", ".phones")
NO_PHONE = -1
# Tolerated overlap of neighbours, whose printed times are rounded.
OVERLAP_S = 0.0015


def pnmi(labels: ArrayLike, units: ArrayLike) -> float:
    """Phone-normalised mutual information of frames, 0 to 1.

    Args:
        labels: (n,) phone of each frame, numbers or text.
        units: (n,) integers, unit of each frame.

    Raises:
        ValueError: Other shapes, no frames, or only one phone, whose entropy is 0.
    """
    joint = joint_counts(labels, units) / np.size(labels)
    of_phones, of_units = joint.sum(1), joint.sum(0)
    phone_entropy = _entropy(of_phones)
    if phone_entropy == 0:
        raise ValueError(f"all {np.size(labels)} frames have one phone, expected two or more")
    information = phone_entropy + _entropy(of_units) - _entropy(joint)
    return float(min(1.0, max(0.0, information / phone_entropy)))


def phone_purity(labels: ArrayLike, units: ArrayLike) -> float:
    """Share of frames whose phone is the most frequent one of their unit; see `pnmi`."""
    return float(joint_counts(labels, units).max(0).sum() / np.size(labels))


def cluster_purity(labels: ArrayLike, units: ArrayLike) -> float:
    """Share of frames whose unit is the most frequent one of their phone; see `pnmi`."""
    return float(joint_counts(labels, units).max(1).sum() / np.size(labels))


def joint_counts(labels: ArrayLike, units: ArrayLike) -> NDArray[np.int64]:
    """(phones, units) int64 frame counts of the pairs that occur; errors as `pnmi`."""
    phones, clusters = np.asarray(labels), np.asarray(units)
    if phones.ndim != 1 or phones.shape != clusters.shape or not len(phones):
        raise ValueError(
            f"labels of shape {list(phones.shape)} and units of shape {list(clusters.shape)},"
            " expected one per frame: the same [frames], at least one"
        )
    names, rows = np.unique(phones, return_inverse=True)
    ids, columns = np.unique(clusters, return_inverse=True)
    flat = np.bincount(rows * len(ids) + columns, minlength=len(names) * len(ids))
    return flat.reshape(len(names), len(ids))


def perplexity(counts: ArrayLike) -> float:
    """Number of equally frequent units with the same entropy as these counts.

    perplexity([5, 5, 0]) == 2.0.

    Raises:
        ValueError: All counts are 0.
    """
    frequencies = np.asarray(counts, np.float64)
    if not frequencies.sum() > 0:
        raise ValueError("no units were counted, expected at least one")
    return float(np.exp(_entropy(frequencies / frequencies.sum())))


def _entropy(shares: NDArray[np.float64]) -> float:
    """Entropy in nats."""
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())


def unit_edit_distance(a: Sequence[int] | NDArray[Any], b: Sequence[int] | NDArray[Any]) -> float:
    """Edit distance of two unit sequences over the length of the longer one, 0 to 1.

    Collapse repeats first to compare content regardless of tempo. Two empty clips are equal.

    Raises:
        ValueError: Not one row of integers each.
    """
    first, second = _one_row(a), _one_row(b)
    longer = max(len(first), len(second))
    return edits(first.tolist(), second.tolist()) / longer if longer else 0.0


def unit_survival(clean: ArrayLike, noisy: ArrayLike) -> float:
    """Share of frames whose unit stays the same, 0 to 1.

    Args:
        clean: (n,) integers, unit of each frame, repeats kept.
        noisy: (n,) units of the same clip with noise.

    Raises:
        ValueError: Other shapes or no frames.
    """
    before, after = _one_row(clean), _one_row(noisy)
    if len(before) != len(after) or not len(before):
        raise ValueError(
            f"{len(before)} and {len(after)} units, expected equal numbers and at least one;"
            " compare clips of the same length before repeats are collapsed"
        )
    return float((before == after).mean())


def _one_row(units: ArrayLike) -> NDArray[np.int64]:
    row = np.asarray(units)
    if row.ndim != 1 or (len(row) and row.dtype.kind not in "iu"):
        raise ValueError(f"{row.dtype} of shape {list(row.shape)}, expected one row of integers")
    return np.ascontiguousarray(row, np.int64)


class UnitMeter:
    """Accumulator of unit counts, distances from the centroids, and phones.

    Memory: eight bytes per labelled frame.
    """

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        self._tokenizer = tokenizer
        self._counts = np.zeros(tokenizer.num_units, np.int64)
        self._sums = np.zeros(tokenizer.centroids.shape[1])
        self._squares = self._inertia = 0.0
        self._phones: list[NDArray[np.int32]] = []
        self._units: list[NDArray[np.int32]] = []

    def add(self, features: NDArray[np.float32], phones: NDArray[np.int64]) -> None:
        """Add frames: features (T, D), and phone numbers or NO_PHONE (T,)."""
        tokenizer = self._tokenizer
        for start in range(0, len(features), PIECE_FRAMES):
            rows = torch.from_numpy(features[start : start + PIECE_FRAMES])
            units = tokenizer.nearest(rows.to(tokenizer.device)).cpu()
            errors = rows - tokenizer.centroids[units]
            self._inertia += float(errors.double().square().sum())
            self._squares += float(rows.double().square().sum())
            self._sums += rows.double().sum(0).numpy()
            self._counts += np.bincount(units.numpy(), minlength=len(self._counts))
            known = phones[start : start + PIECE_FRAMES] != NO_PHONE
            self._phones.append(phones[start : start + PIECE_FRAMES][known].astype(np.int32))
            self._units.append(units.numpy()[known].astype(np.int32))

    def figures(self) -> dict[str, float | int]:
        """Return all figures; those about phones only if at least two occurred.

        `inertia` is the mean squared distance of a frame from its centroid, `unexplained` its share
        of the mean squared distance from the mean of all frames.

        Raises:
            ValueError: No frames.
        """
        num_frames = int(self._counts.sum())
        if not num_frames:
            raise ValueError("no frames to measure, expected at least one")
        variance = self._squares / num_frames - float(np.square(self._sums / num_frames).sum())
        inertia = self._inertia / num_frames
        figures: dict[str, float | int] = {
            "num_frames": num_frames,
            "inertia": _rounded(inertia),
            "unexplained": _rounded(inertia / variance) if variance > 0 else 0.0,
            "units_used": int((self._counts > 0).sum()),
            "perplexity": _rounded(perplexity(self._counts)),
        }
        phones, units = np.concatenate(self._phones), np.concatenate(self._units)
        num_phones = len(np.unique(phones))
        if num_phones > 1:
            figures |= {
                "num_labelled_frames": len(phones),
                "num_phones": num_phones,
                "pnmi": _rounded(pnmi(phones, units)),
                "phone_purity": _rounded(phone_purity(phones, units)),
                "cluster_purity": _rounded(cluster_purity(phones, units)),
            }
        return figures


def _rounded(value: float) -> float:
    """Round to five significant digits."""
    return float(f"{value:.5g}")


@dataclass(frozen=True, slots=True)
class Interval:
    """Phone from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    phone: str


class PhoneLabels:
    """Phone labels of the clips of a source.

    Attributes:
        phones: Phones seen so far; a phone's number is its index here.

    Raises:
        ValueError: No such file or folder, or an invalid line in a file for many clips.
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
        """Return True if the clip of this name has labels."""
        return self._find(name) is not None

    def of_frames(self, name: str, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """(n,) phone number at each time; NO_PHONE outside all intervals.

        Args:
            name: Name of the clip in its source.
            times_s: (n,) seconds from the start of the clip.

        Raises:
            ValueError: The clip's labels are damaged; names file and line.
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
        """Phones of a clip in order; [] if it has no labels. Errors as `of_frames`."""
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
                    f"{path.name}:{number}: {line[:80]!r} starts before the previous phone"
                    f" ends, at {intervals[-1].end_s:g}; expected phones in order"
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
    """Numbers and contents of the lines that are not ignored."""
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path.name}: not UTF-8 text, expected phone labels") from None
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
