"""Helpers of the benchmarks: interleaved timing, tables of rows, description of the machine.

Runs of the cases are interleaved, so that other load on the machine affects all cases.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import version

# Baseline of all comparisons.
BASELINE = "plain-fp32"


def check_cases(names: Sequence[str], known: Collection[str]) -> None:
    """Refuse unknown cases.

    Raises:
        ValueError: A case is unknown; names the first.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown case {unknown[0]!r}, expected some of {', '.join(known)}")


def take_turns(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    num_warmups: int = 0,
) -> dict[str, list[float]]:
    """Seconds of each run of each case: all cases one after the other, `repeats` times.

    Args:
        runs: Functions of the cases, by name.
        repeats: Timed rounds.
        clock: Clock in seconds; see `clock_of`.
        num_warmups: Untimed rounds before.
    """
    times_s: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(num_warmups + repeats):
        for name, run_once in runs.items():
            start = clock()
            run_once()
            times_s[name].append(clock() - start)
    return {name: times[num_warmups:] for name, times in times_s.items()}


def medians(times_s: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median of each case."""
    return {name: statistics.median(times) for name, times in times_s.items()}


def clock_of(device: str) -> Callable[[], float]:
    """Clock for work on a device.

    On a CPU, processor time of this process, which runs on one thread, so that other load on the
    machine matters little. On a GPU, wall-clock seconds after waiting for the GPU.
    """
    if not device.startswith("cuda"):
        return time.process_time

    def synchronized() -> float:
        import torch

        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


def use_one_core() -> None:
    """Pin this process to one core, if the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def machine(*packages: str, device: str = "cpu") -> str:
    """Hardware and package versions as one line."""
    hardware = f"{platform.machine()}, {os.cpu_count()} cores"
    if device.startswith("cuda"):
        import torch

        hardware = torch.cuda.get_device_name(device)
    versions = [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
    return f"{hardware}; {', '.join(versions)}"


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """Format rows as a Markdown table with aligned columns, the first left-aligned.

    Args:
        rows: Rows; missing names become empty cells.
        columns: Columns to show; by default those of the first row.
    """
    names = [*(columns or rows[0])]
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    cells = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:]))
