"""Measure the packing of image units against plain numpy, on one core.

    python tools/bench_pack.py

Prints one JSON row a case, then a table. Contenders take turns, so that a busy machine slows
all of them alike; the figure is the median over the rounds. A call includes everything: allocating
the result, and for packing the check that every id fits. Our kernels and numpy give the same bytes.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from im2sp.shards import pack_units, unpack_units
from im2sp.shards.command_line import run_command
from im2sp.shards.packing import small_work

NUM_UNITS = 784
BITS = 13


def numpy_pack(units: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Pack by spreading each id into its bits."""
    if units.max() >= 1 << BITS:
        raise ValueError("an id does not fit")
    bits = units[..., None] >> np.arange(BITS, dtype=np.uint16) & np.uint16(1)
    return np.packbits(bits.astype(np.uint8).reshape(len(units), -1), axis=1, bitorder="little")


def numpy_unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Unpack by spreading bytes into bits and weighing them."""
    bits = np.unpackbits(packed, axis=1, count=BITS * NUM_UNITS, bitorder="little")
    weights = np.uint16(1) << np.arange(BITS, dtype=np.uint16)
    return bits.reshape(len(packed), NUM_UNITS, BITS).astype(np.uint16) @ weights


def times_s(calls: dict[str, Callable[[], object]], num_rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in every round, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(num_rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def measure(num_rows: int, num_rounds: int) -> list[dict[str, object]]:
    """One row of figures a contender, for arrays of (num_rows, 784) random units."""
    small_work.takes(2**40)  # from here on compiled kernels do it
    units = np.random.default_rng(0).integers(0, 1 << BITS, (num_rows, NUM_UNITS)).astype(np.uint16)
    packed = pack_units(units)
    np.testing.assert_array_equal(numpy_pack(units), packed)
    np.testing.assert_array_equal(numpy_unpack(packed), unpack_units(packed))
    calls: dict[str, Callable[[], object]] = {
        "pack_units": lambda: pack_units(units),
        "pack_units, numpy": lambda: numpy_pack(units),
        "unpack_units": lambda: unpack_units(packed),
        "unpack_units, numpy": lambda: numpy_unpack(packed),
    }
    return [
        {
            "case": name,
            "num_rows": num_rows,
            "million_units_per_s": round(units.size / statistics.median(times) / 1e6),
            "slowest": round(units.size / max(times) / 1e6),
            "fastest": round(units.size / min(times) / 1e6),
            "num_rounds": num_rounds,
        }
        for name, times in times_s(calls, num_rounds).items()
    ]


@dataclass(frozen=True, kw_only=True)
class BenchPackConfig:
    """Measure the bit packing of image units on one core."""

    num_rounds: int = 15
    """Rounds per case."""
    json: bool = False
    """Print JSON rows only, no table."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_pack", BenchPackConfig, _run, args)


def _run(config: BenchPackConfig) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [row for num_rows in (1, 256, 4096) for row in measure(num_rows, config.num_rounds)]
    for row in rows:
        print(json.dumps(row))
    if config.json:
        return
    print(
        f"\n{platform.machine()}, one core; Python {platform.python_version()}, "
        f"numpy {np.__version__}, numba {numba.__version__}\n"
    )
    print("| case | rows of 784 units | million units/s | slowest | fastest |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in list(row)[:5]) + " |")


if __name__ == "__main__":
    sys.exit(main())
