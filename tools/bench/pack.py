"""Measure the packing of image units against plain numpy, on one core.

    python tools/bench/pack.py

Prints one JSON row per case, then a table. Cases take turns, so that other load affects all of them
equally; figures are medians over the rounds. A call includes allocating the result, and for packing
the range check of every id. Our kernels and numpy give the same bytes.
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import pack_units, unpack_units
from im2sp.shards.coding.packing import small_work
from im2sp.shards.command_line import run_command
from im2sp.tools.bench.timing import machine, table, take_turns, use_one_core

NUM_UNITS = 784
BITS = 13


def numpy_pack(units: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Pack by spreading each id into its bits."""
    if units.max() >= 1 << BITS:
        raise ValueError("an id does not fit")
    bits = units[..., None] >> np.arange(BITS, dtype=np.uint16) & np.uint16(1)
    return np.packbits(bits.astype(np.uint8).reshape(len(units), -1), axis=1, bitorder="little")


def numpy_unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Unpack by spreading bytes into bits and weighting them."""
    bits = np.unpackbits(packed, axis=1, count=BITS * NUM_UNITS, bitorder="little")
    weights = np.uint16(1) << np.arange(BITS, dtype=np.uint16)
    return bits.reshape(len(packed), NUM_UNITS, BITS).astype(np.uint16) @ weights


def measure(num_rows: int, num_rounds: int) -> list[dict[str, object]]:
    """Measure all cases on (num_rows, 784) random units; return one row each."""
    small_work.takes(2**40)  # later calls use compiled kernels
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
        for name, times in take_turns(calls, num_rounds, num_warmups=1).items()
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
    use_one_core()
    rows = [row for num_rows in (1, 256, 4096) for row in measure(num_rows, config.num_rounds)]
    for row in rows:
        print(json.dumps(row))
    if config.json:
        return
    print(f"\none core of {machine('numpy', 'numba')}\n")
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
