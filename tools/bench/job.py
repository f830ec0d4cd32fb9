"""Time the tokenize job against its encoder alone, and measure its memory.

    python tools/bench/job.py photographs.tar --weights compact --num-images 512
    python tools/bench/job.py photographs.tar --memory 1000 7000 --size tiny
    python tools/bench/job.py photographs.tar --weights compact --num-images 2000 --engines

The first alternates `--repeats` times between the job on the first `--num-images` files of the
source and `ImageTokenizer.encode` on the same images, decoded beforehand. The job's time is that of
its summary: from the first decoding task to the last shard written, without loading the tokenizer.
The second runs the job for each number of images and prints the peak memory of its main process.
The third alternates between the engines, with one and two workers of Ray on this machine, and
prints the time of the whole command and the CPU time of the machine meanwhile, which should do
nothing else. All run the command as a user would. Prints one JSON row per case, then a table.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import Tensor

from im2sp.pipeline.decoding.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.decoding.media import read_bytes
from im2sp.pipeline.image_tokenizer.tokenizer import load_image_tokenizer
from im2sp.pipeline.image_tokenizer.weights import image_tokenizer_bytes
from im2sp.pipeline.job.decode_pool import decode
from im2sp.pipeline.job.encode import MIN_CPU_BATCH_INPUTS
from im2sp.pipeline.sources import list_source
from im2sp.shards.command_line import run_command
from im2sp.tools.bench.encode import SIZES, Settings, make_network, photographs
from im2sp.tools.bench.timing import table


def copy_images(sources: Sequence[Path], num_images: int, folder: Path) -> None:
    """Copy the first image files of the sources into a folder."""
    items = [item for source in sources for item in list_source(source).items if item.image]
    if len(items) < num_images:
        raise ValueError(f"the sources have {len(items)} images, expected {num_images}")
    for i, item in enumerate(items[:num_images]):
        assert item.image is not None
        (folder / f"{i:06d}{Path(item.name).suffix}").write_bytes(read_bytes(item.image))


def weights_file(size: str, weights: str, folder: Path) -> str:
    """Value of --image-tokenizer: the given weights, or a file with random ones of a size."""
    if weights:
        return weights
    assert size in SIZES
    settings = Settings(size=size, num_images=1)  # pyright: ignore[reportArgumentType] # checked above
    path = folder / f"{size}.safetensors"
    path.write_bytes(image_tokenizer_bytes(make_network(settings, photographs(settings))))
    return str(path)


ENGINES = {
    "local": ("--engine", "local"),
    "ray, 1 worker": ("--engine", "ray", "--num-workers", "1"),
    "ray, 2 workers": ("--engine", "ray", "--num-workers", "2"),
}


def run_once(
    folder: Path, weights: str, precision: str, device: str | None = None, flags: Sequence[str] = ()
) -> dict[str, Any]:
    """Run the command on a folder, discard the output; return its summary and peak memory."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "im2sp.pipeline.cli", str(folder), "--json", "--quiet"]
        command += ["--out", f"{out}/shards", "--image-tokenizer", weights]
        command += ["--precision", precision, *([] if device is None else ["--device", device])]
        command += flags
        with subprocess.Popen(command, stdout=subprocess.PIPE) as job:
            assert job.stdout is not None
            text = job.stdout.read()
            _, status, usage = os.wait4(job.pid, 0)
            job.returncode = os.waitstatus_to_exitcode(status)
        if job.returncode:
            raise ValueError(f"im2sp-tokenize failed with exit code {job.returncode}")
        return {**json.loads(text), "peak_bytes": usage.ru_maxrss * 1024}


def decoded_pixels(folder: Path) -> list[Tensor]:
    """Images of a folder in the form that the job passes to the encoder: float32 batches."""
    items = list_source(folder).items
    batches = []
    for start in range(0, len(items), MIN_CPU_BATCH_INPUTS):
        rows = (
            decode(item, "squash-224", DEFAULT_MAX_PIXELS).pixels
            for item in items[start : start + MIN_CPU_BATCH_INPUTS]
        )
        pixels = torch.stack([torch.from_numpy(row) for row in rows if row is not None])
        batches.append(pixels.permute(0, 3, 1, 2).contiguous().float() / 255)
    return batches


def time_job(folder: Path, weights: str, precision: str, repeats: int) -> list[dict[str, Any]]:
    """Time the encoder alone and the job; return one row each."""
    kind = "bf16" if precision == "bf16" else "fp32"
    tokenizer = load_image_tokenizer(weights, precision=kind)
    batches = decoded_pixels(folder)
    num_images = sum(len(batch) for batch in batches)
    tokenizer.encode(batches[0])
    rates: dict[str, list[float]] = {"encoder": [], "job": []}
    for _ in range(repeats):
        start = time.perf_counter()
        for batch in batches:
            tokenizer.encode(batch)
        rates["encoder"].append(num_images / (time.perf_counter() - start))
        result = run_once(folder, weights, precision)
        rates["job"].append(result["num_encoded"] / result["encode_s"])
    shares = [job / encoder for job, encoder in zip(rates["job"], rates["encoder"], strict=True)]
    return [
        {
            "case": f"{name}, {tokenizer.name}, {precision}",
            "images_per_s": round(statistics.median(values), 2),
            "share": round(statistics.median(shares), 3) if name == "job" else 1.0,
            "slowest": round(min(values), 2),
            "fastest": round(max(values), 2),
            "num_images": num_images,
            "repeats": repeats,
            "threads": torch.get_num_threads(),
        }
        for name, values in rates.items()
    ]


def time_engines(folder: Path, weights: str, precision: str, repeats: int) -> list[dict[str, Any]]:
    """Time the whole command with each engine; return one row each."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ENGINES}
    for _ in range(repeats):
        for name, flags in ENGINES.items():
            before_s, start_s = _cpu_s(), time.perf_counter()
            result = run_once(folder, weights, precision, flags=flags)
            result["wall_s"] = time.perf_counter() - start_s
            found[name].append({**result, "cpu_s": _cpu_s() - before_s})
    return [
        {"case": f"{name}, {precision}", "num_images": runs[0]["num_encoded"], "repeats": repeats}
        | {
            f"{key}{suffix}": round(of(run[key] for run in runs), 1)
            for key in ("cpu_s", "wall_s", "encode_s")
            for suffix, of in (("", statistics.median), ("_min", min), ("_max", max))
        }
        for name, runs in found.items()
    ]


def _cpu_s() -> float:
    """CPU seconds of the machine since it started: Ray's processes are not children of ours."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def run(config: "BenchJobConfig") -> list[dict[str, Any]]:
    """Run the selected measurements; return their rows."""
    rows: list[dict[str, Any]] = []
    for num_images in config.memory or [config.num_images]:
        with tempfile.TemporaryDirectory() as name:
            weights = weights_file(config.size, config.weights, Path(name))
            folder = Path(name) / "images"
            folder.mkdir()
            copy_images(config.sources, num_images, folder)
            if config.memory:
                peak_mb = run_once(folder, weights, "fp32")["peak_bytes"] / 1e6
                case = f"memory, {num_images} images"
                rows.append({"case": case, "peak_mb": round(peak_mb, 1)})
                continue
            for precision in config.precisions:
                timed = time_engines if config.engines else time_job
                rows += timed(folder, weights, precision, config.repeats)
    return rows


@dataclass(frozen=True, kw_only=True)
class BenchJobConfig:
    """Time the tokenize job against its encoder, or measure its memory."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Folders or .tar files of images."""
    size: Literal["tiny", "small", "base"] = "base"
    """Size of the encoder, with random weights."""
    weights: str = ""
    """Weights to use instead, such as compact."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32",)
    """Precisions to time."""
    num_images: int = 256
    """Images to tokenize."""
    repeats: int = 3
    """Runs of each case."""
    engines: bool = False
    """Compare the engines `local` and `ray` instead."""
    memory: tuple[int, ...] = ()
    """Measure the peak memory for these numbers of images instead of timing."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_job", BenchJobConfig, _run, args)


def _run(config: BenchJobConfig) -> None:
    rows = run(config)
    for row in rows:
        print(json.dumps(row))
    columns = ("case", "images_per_s", "share")
    if config.memory:
        columns = ("case", "peak_mb")
    elif config.engines:
        columns = ("case", "cpu_s", "wall_s", "encode_s")
    print(table(rows, columns))


if __name__ == "__main__":
    sys.exit(main())
