"""Timing of rivals in turns, so that what disturbs the machine disturbs all of them."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleaved_seconds(
    calls: Mapping[str, Callable[[], object]], num_rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each call, after one round that is not counted.

    On a CPU, seconds of processor time of this process, which runs on one thread: other work on
    the machine then counts for little. On a GPU, seconds of the clock, with the GPU waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(1 + num_rounds):
        for name, call in calls.items():
            start = _now(device)
            call()
            times[name].append(_now(device) - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    import transformers

    is_cpu = device.type == "cpu"
    return {
        "device": f"{platform.machine()}, one thread"
        if is_cpu
        else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows of the same names as a table in Markdown."""
    print("| " + " | ".join(rows[0]) + " |")
    print("| --- " * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
