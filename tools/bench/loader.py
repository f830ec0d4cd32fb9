"""Measure `ShardLoader` and other readers of the same samples, in samples per second.

    python tools/bench/loader.py --dir build/bench-loader [--num-threads 1 2]

Generates 100,000 samples (an image, 5 utterances of about 110 units with durations, 5 captions;
about 600 MB in all) in the folder, once. Everything is shuffled, in batches of 256, in one process.
Our samples are torch tensors: a packed image row (1,274 bytes, as copied to the device) and 5
decoded utterances, padded with -1 to the batch's longest as int16, with lengths and image indices;
cases with `+ texts` also read all captions and keys as `str`, and `text` reads captions instead of
speech. `tools/readers/rivals.py` describes the output of the others: most keep the speech as bytes;
`padded` is equivalent to ours. Readers take turns; figures are medians over the rounds. Each round
of a reader continues where its last one stopped. Libraries that cannot be imported are skipped.

With `--cold`, the shards are dropped from the page cache before each round, as if the data were
larger than memory; only the readers that map the shards are compared, on `--num-threads`.

The last figure is the time from imports to the first batch in a new process, including opening,
checksums and index, with the files in the page cache and the kernels in numba's cache.
"""

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from im2sp.shards import DEFAULT_COLUMNS, MANIFEST_NAME, ShardDataset, ShardLoader
from im2sp.shards.command_line import run_command
from im2sp.tools.bench.timing import machine, table
from im2sp.tools.readers import rivals
from im2sp.tools.readers.data import fitted_columns, write_dataset, write_images

_MADV_DONTNEED = 4  # of Linux
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
    """Iterator over the batch sizes of a loader; the loader is created at once."""
    loader = ShardLoader(
        dataset, batch_size=rivals.BATCH_SIZE, num_threads=num_threads, epochs=None, drop_last=True,
        **options,
    )  # fmt: skip

    def sizes() -> rivals.Batches:
        for batch in loader:
            if with_texts:
                assert len(batch.keys) <= len(batch.captions)
            yield len(batch.images_packed)

    return sizes()


def our_cases(
    packed: ShardDataset, huffman: ShardDataset, threads: Sequence[int]
) -> dict[str, Callable[[], rivals.Batches]]:
    """Cases of `ShardLoader` by name."""
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


def image_cases(dir_path: Path, num_samples: int) -> dict[str, Callable[[], rivals.Batches]]:
    """Cases of images of 13 bits a unit and of coded images, alone and with packed speech."""
    cases: dict[str, Callable[[], rivals.Batches]] = {}
    for coding in ("packed", "coded"):
        path = dir_path / f"images-{coding}"
        if not (path / MANIFEST_NAME).exists():
            write_images(path, num_samples, coding)
        dataset = ShardDataset(path)
        name = f"ours, no thread, {coding} images"
        cases[name] = lambda dataset=dataset: ours(dataset, 0, target="images")
        cases[f"{name} + speech"] = lambda dataset=dataset: ours(dataset, 0)
    return cases


def rival_cases(
    dir_path: Path, packed_dir: Path, num_samples: int
) -> dict[str, Callable[[], rivals.Batches]]:
    """Cases of the other readers by name."""
    table = rivals.arrow_table(packed_dir)
    return {
        "pyarrow take, bytes": lambda: rivals.arrow_take(table),
        "pyarrow take, padded": lambda: rivals.arrow_take(table, pads=True),
        "numpy views": lambda: rivals.numpy_views(ShardDataset(packed_dir), 0),
        "datasets, bytes": lambda: rivals.hf_datasets(table),
        "datasets, padded": lambda: rivals.hf_datasets(table, pads=True),
        "webdataset, 256 a member": lambda: rivals.webdataset_packed(dir_path, num_samples),
        "webdataset, 1 a member": lambda: rivals.webdataset_plain(dir_path, num_samples),
        "mosaicml-streaming": lambda: rivals.mosaicml_streaming(dir_path, num_samples),
        "litdata": lambda: rivals.litdata_streaming(dir_path, num_samples),
    }


def mapped_cases(
    packed: ShardDataset, huffman: ShardDataset, threads: Sequence[int]
) -> dict[str, Callable[[], rivals.Batches]]:
    """Cases of the readers that map the shards, by name and number of threads."""
    cases: dict[str, Callable[[], rivals.Batches]] = {}
    for num in threads:
        cases[f"ours, {num} threads, images"] = lambda num=num: ours(packed, num, target="images")
        cases[f"ours, {num} threads, packed"] = lambda num=num: ours(packed, num)
        cases[f"numpy views, {num} threads"] = lambda num=num: rivals.numpy_views(packed, num)
        cases[f"ours, {num} threads, huffman"] = lambda num=num: ours(huffman, num)
        cases[f"ours, {num} threads, text"] = lambda num=num: ours(packed, num, target="text")
    return cases


def drop_from_cache(dataset: ShardDataset) -> None:
    """Unmap the pages of all shards from this process, and drop them from the page cache."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    for place in [fields[0] for fields in maps if fields[-1].startswith(str(dataset.files.folder))]:
        start, end = (int(address, 16) for address in place.split("-"))
        sizes = (ctypes.c_void_p(start), ctypes.c_size_t(end - start))
        ctypes.CDLL(None).madvise(*sizes, _MADV_DONTNEED)
    for shard in dataset.manifest.shards:
        with open(dataset.files.local(shard.file), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def started(
    cases: dict[str, Callable[[], rivals.Batches]],
) -> tuple[dict[str, rivals.Batches], dict[str, str]]:
    """Start the readers up to their first batch; return them and the errors of the others."""
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
    """Samples per second over at least `seconds`; the first batch restarts idle threads."""
    next(batches)
    num = 0
    start = time.perf_counter()
    while True:
        num += next(batches)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return num / elapsed


def cold_rate(
    make: Callable[[], rivals.Batches], datasets: Iterable[ShardDataset], num_batches: int = 16
) -> float:
    """Samples per second of the first batches after the shards left the page cache."""
    batches = make()
    for dataset in datasets:
        drop_from_cache(dataset)
    start = time.perf_counter()
    num = sum(islice(batches, num_batches))
    elapsed = time.perf_counter() - start
    batches.close()
    return num / elapsed


def cold_start_s(dataset_dir: Path) -> float:
    """Seconds from the imports to the first batch in a fresh process."""
    command = [sys.executable, "-c", _COLD, str(dataset_dir)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


@dataclass(frozen=True, kw_only=True)
class BenchLoaderConfig:
    """Measure `ShardLoader` and other readers of the same samples."""

    dir: Path
    """Folder for the generated data."""
    num_samples: int = 100_000
    """Samples to generate."""
    num_rival_samples: int = 20_000
    """Samples in the copies for other formats."""
    num_image_samples: int = 20_000
    """Samples of the cases that compare packed and coded images."""
    num_threads: tuple[int, ...] = (1, 2)
    """Threads of the loader."""
    num_rounds: int = 9
    """Rounds per case."""
    seconds: float = 0.5
    """Duration of a round."""
    cold: bool = False
    """Drop the page cache before each round."""
    only_ours: bool = False
    """Skip the other readers."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_loader", BenchLoaderConfig, _run, args)


def _run(config: BenchLoaderConfig) -> None:
    torch.set_num_threads(1)
    packed_dir, huffman_dir = config.dir / "packed", config.dir / "huffman"
    write_dataset(packed_dir, config.num_samples, DEFAULT_COLUMNS)
    write_dataset(huffman_dir, config.num_samples, fitted_columns())
    datasets = ShardDataset(packed_dir), ShardDataset(huffman_dir)
    make_cases = mapped_cases if config.cold else our_cases
    cases = make_cases(*datasets, config.num_threads)
    if not config.cold:
        cases |= image_cases(config.dir, config.num_image_samples)
    if not (config.only_ours or config.cold):
        cases |= rival_cases(config.dir, packed_dir, config.num_rival_samples)
    running, left_out = ({}, {}) if config.cold else started(cases)
    rates: dict[str, list[float]] = {name: [] for name in (cases if config.cold else running)}
    for _ in range(config.num_rounds):
        for name in rates:
            found = (
                cold_rate(cases[name], datasets)
                if config.cold
                else rate(running[name], config.seconds)
            )
            rates[name].append(found)
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
        f"{machine('numpy', 'numba', 'pyarrow', 'torch')}\n"
    )
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
