"""Measure `ShardLoader` next to other readers of the same samples, in samples a second.

    python tools/bench_loader.py --dir build/bench-loader [--num-threads 1 2]

Makes 100,000 samples (an image, 5 utterances of about 110 units with durations, 5 captions; some
600 MB in all) in the folder, once. Everything is shuffled, in batches of 256, in one process. A
sample of ours is delivered as torch tensors: a packed image row (1,274 bytes, as it goes to the
device) and its 5 utterances decoded, padded with -1 to the batch's longest as int16, with lengths
and owners; the cases `+ texts` also read all captions and keys as `str`, `text` gives the captions
in place of the speech. What the others deliver is said in `bench_loader_rivals.py`: most of them
leave the speech as bytes; `padded` is what ours is. Contenders take turns; the figure is the median
over the rounds. Each round of a contender starts where its last one stopped. Libraries that cannot
be imported are left out.

The last figure is the time from imports to the first batch, in a process of its own, with the files
in the page cache and the kernels in numba's cache: opening, checksums and index included.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import torch

from im2sp.shards import DEFAULT_COLUMNS, ShardDataset, ShardLoader
from im2sp.shards.command_line import run_command
from im2sp.tools import bench_loader_rivals as rivals
from im2sp.tools.bench_loader_data import fitted_columns, write_dataset
from im2sp.tools.bench_turns import markdown_table

_COLD = """
import sys, time
import torch
from im2sp.shards import ShardLoader
start = time.perf_counter()
batch = next(iter(ShardLoader(sys.argv[1], batch_size=256)))
print(time.perf_counter() - start)
"""


def ours(
    dataset: ShardDataset, num_threads: int, with_texts: bool = False, **options: Any
) -> rivals.Batches:
    """Sizes of the batches of a loader."""
    loader = ShardLoader(
        dataset, batch_size=rivals.BATCH_SIZE, num_threads=num_threads, epochs=None, drop_last=True,
        **options,
    )  # fmt: skip
    for batch in loader:
        if with_texts:
            assert len(batch.keys) <= len(batch.captions)
        yield len(batch.images_packed)


def our_cases(
    packed: ShardDataset, huffman: ShardDataset, threads: Sequence[int]
) -> dict[str, Callable[[], rivals.Batches]]:
    """Our contenders by name."""
    cases: dict[str, Callable[[], rivals.Batches]] = {}
    for num in threads:
        name = f"ours, {num} thread{'s' * (num != 1)}" if num else "ours, no thread"
        cases[f"{name}, packed"] = lambda num=num: ours(packed, num)
        cases[f"{name}, huffman"] = lambda num=num: ours(huffman, num)
    num = threads[0]
    cases["ours, packed + texts"] = lambda: ours(packed, num, with_texts=True)
    cases["ours, text"] = lambda: ours(packed, num, target="text")
    cases["ours, packed, buckets"] = lambda: ours(packed, num, bucket_window=50)
    return cases


def rival_cases(
    dir_path: Path, packed_dir: Path, num_samples: int
) -> dict[str, Callable[[], rivals.Batches]]:
    """The other contenders by name."""
    table = rivals.arrow_table(packed_dir)
    return {
        "pyarrow take, bytes": lambda: rivals.arrow_take(table),
        "pyarrow take, padded": lambda: rivals.arrow_take(table, pads=True),
        "datasets, bytes": lambda: rivals.hf_datasets(table),
        "datasets, padded": lambda: rivals.hf_datasets(table, pads=True),
        "webdataset, 256 a member": lambda: rivals.webdataset_packed(dir_path, num_samples),
        "webdataset, 1 a member": lambda: rivals.webdataset_plain(dir_path, num_samples),
        "mosaicml-streaming": lambda: rivals.mosaicml_streaming(dir_path, num_samples),
        "litdata": lambda: rivals.litdata_streaming(dir_path, num_samples),
    }


def started(
    cases: dict[str, Callable[[], rivals.Batches]],
) -> tuple[dict[str, rivals.Batches], dict[str, str]]:
    """The contenders after their first batch, and why the others are left out."""
    running: dict[str, rivals.Batches] = {}
    left_out: dict[str, str] = {}
    for name, make in cases.items():
        try:
            batches = make()
            next(batches)
        except ImportError as error:
            left_out[name] = str(error)
        else:
            running[name] = batches
    return running, left_out


def rate(batches: rivals.Batches, seconds: float) -> float:
    """Samples a second over at least so many seconds; the first batch restarts idle threads."""
    next(batches)
    num = 0
    start = time.perf_counter()
    while True:
        num += next(batches)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return num / elapsed


def cold_start_s(dataset_dir: Path) -> float:
    """Seconds from the imports to the first batch in a fresh process."""
    command = [sys.executable, "-c", _COLD, str(dataset_dir)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


@dataclass(frozen=True, kw_only=True)
class BenchLoaderConfig:
    """Measure `ShardLoader` next to other readers of the same samples."""

    dir: Path
    """Folder for the generated data."""
    num_samples: int = 100_000
    """Samples to generate."""
    num_rival_samples: int = 20_000
    """Samples in the copies for other formats."""
    num_threads: tuple[int, ...] = (1, 2)
    """Threads of the loader."""
    num_rounds: int = 9
    """Rounds per case."""
    seconds: float = 0.5
    """Duration of a round."""
    only_ours: bool = False
    """Leave the other readers out."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_loader", BenchLoaderConfig, _run, args)


def _run(config: BenchLoaderConfig) -> None:
    torch.set_num_threads(1)
    packed_dir, huffman_dir = config.dir / "packed", config.dir / "huffman"
    write_dataset(packed_dir, config.num_samples, DEFAULT_COLUMNS)
    write_dataset(huffman_dir, config.num_samples, fitted_columns())
    cases = our_cases(ShardDataset(packed_dir), ShardDataset(huffman_dir), config.num_threads)
    if not config.only_ours:
        cases |= rival_cases(config.dir, packed_dir, config.num_rival_samples)
    running, left_out = started(cases)
    rates: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(config.num_rounds):
        for name, batches in running.items():
            rates[name].append(rate(batches, config.seconds))
    rows: list[dict[str, object]] = []
    for name, found in rates.items():
        picks = {"samples_a_s": statistics.median(found), "slowest": min(found)}
        picks["fastest"] = max(found)
        rows.append({"case": name, **{key: round(value) for key, value in picks.items()}})
    for row in rows:
        print(json.dumps(row))
    for name, reason in left_out.items():
        print(json.dumps({"case": name, "left_out": reason}))
    for path in (packed_dir, huffman_dir):
        times = sorted(cold_start_s(path) for _ in range(3))
        print(json.dumps({"case": f"first batch, {path.name}", "seconds": round(times[1], 3)}))
    print(
        f"\n{config.num_samples} samples, {config.num_rounds} rounds of {config.seconds} s; "
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, numpy "
        f"{np.__version__}, numba {numba.__version__}, pyarrow {pa.__version__}, torch "
        f"{torch.__version__}\n"
    )
    print(markdown_table(rows))


if __name__ == "__main__":
    sys.exit(main())
