"""Mutated copies of a file for as long as a fuzz target may run."""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.5"))
"""Seconds of each target."""
MIN_CASES = 20
"""Cases of a target however slow the machine is."""
_INTERESTING = [0, 1, 0x7F, 0x80, 0xFE, 0xFF]
_WORDS = [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", bytes(4), bytes(8)]


def mutations(whole: bytes, seed: int) -> Iterator[bytes]:
    """Mutated copies, the same sequence for the same seed: bytes, words, cuts, repeats, moves."""
    rng = np.random.default_rng(seed)
    end_s = time.monotonic() + FUZZ_SECONDS
    number = 0
    while number < MIN_CASES or time.monotonic() < end_s:
        number += 1
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


def refusal(read: Callable[[], object], *errors: type[Exception]) -> str:
    """Message of a refusal, "" if there is none; other errors are raised."""
    try:
        read()
    except errors as error:
        return str(error)
    return ""
