"""Mutated copies of a file or of a JSON value for as long as a fuzz target may run."""

import copy
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.5"))
"""Seconds of each target."""
MIN_CASES = 20
"""Cases of a target however slow the machine is."""
_INTERESTING = [0, 1, 0x7F, 0x80, 0xFE, 0xFF]
_WORDS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", bytes(4), bytes(8)]


_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 17, 1 << 16, 1 << 32, 1 << 63, 10**30, 1.5),
    *("", "x", "../x", "\ud800", "packed", "coded", "int", [], [[]], [1 << 31, 2], {}, {"a": None}),
)


def _generators(seed: int) -> Iterator[np.random.Generator]:
    """One generator, again and again while the target may run."""
    rng = np.random.default_rng(seed)
    end_s = time.monotonic() + FUZZ_SECONDS
    number = 0
    while number < MIN_CASES or time.monotonic() < end_s:
        number += 1
        yield rng


def mutations(whole: bytes, seed: int) -> Iterator[bytes]:
    """Mutated copies, the same sequence for the same seed: bytes, words, cuts, repeats, moves."""
    for rng in _generators(seed):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            _mutate(data, rng)
        yield bytes(data)


def _mutate(data: bytearray, rng: np.random.Generator) -> None:
    # Headers decide most, so half of the mutations are near the start.
    limit = len(data) if rng.random() < 0.5 else min(len(data), 256)
    at = int(rng.integers(0, max(1, limit)))
    kind = rng.integers(0, 7)
    if kind == 0:
        data[at : at + 1] = bytes([rng.choice(_INTERESTING)])
    elif kind == 1:
        data[at : at + 1] = bytes([rng.integers(0, 256)])
    elif kind == 2:
        word = _WORDS[rng.integers(0, len(_WORDS))]
        data[at : at + len(word)] = word
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        del data[at : at + int(rng.integers(1, 32))]
    elif kind == 5:
        data[at:at] = data[at : at + int(rng.integers(1, 64))] * int(rng.integers(1, 9))
    else:
        other = int(rng.integers(0, max(1, len(data))))
        data[at : at + 8] = data[other : other + 8]


def edits(content: Any, seed: int) -> Iterator[Any]:
    """Copies of an object of JSON with parts replaced, removed, repeated, nested or counted on."""
    for rng in _generators(seed):
        edited = copy.deepcopy(content)
        for _ in range(rng.integers(1, 4)):
            _edit(edited, rng)
        yield edited


def _edit(place: Any, rng: np.random.Generator) -> None:
    while place:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = keys[int(rng.integers(0, len(keys)))]
        part = place[key]
        if isinstance(part, dict | list) and part and rng.random() < 0.8:
            place = part
            continue
        kind = rng.integers(0, 5)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, list):
            place.append(copy.deepcopy(part))
        elif kind == 1:
            place[f"{key}_"] = copy.deepcopy(part)
        elif kind == 2:
            place[key] = [part]
        elif kind == 3 and type(part) is int:
            place[key] = part + int(rng.choice([-1, 1, 256]))
        else:
            place[key] = copy.deepcopy(_VALUES[int(rng.integers(0, len(_VALUES)))])
        return


def refusal(read: Callable[[], object], *errors: type[Exception]) -> str:
    """Message of a refusal, "" if there is none; other errors are raised."""
    try:
        read()
    except errors as error:
        return str(error)
    return ""
