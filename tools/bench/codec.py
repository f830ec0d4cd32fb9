"""Measure the codecs of speech units and durations: bits per id, and millions of ids per second.

    python tools/bench/codec.py [UNITS.jsonl.gz ...]

Each line of a file is `{"units": [...]}` with one unit per frame of 20 ms; repeats are collapsed.
Without a file, units are synthetic: a Markov chain with few likely successors of each unit. The
tables are fitted to three of four clips; every fourth clip is measured, including byte alignment.
Everything runs on one core. A call includes allocating the result; `values` is the number of clips
that a call decodes.

    python -m im2sp.tools.bench.codec --images VAL/ [--train TRAIN/ ...]

measures the codec of image units instead, on at most 1,000 images of a dataset: with the tables of
`compact`, and with tables of several sizes fitted to the images of other datasets. Cases take
turns; figures are images per second of processor time, all images in one call.

    python -m im2sp.tools.bench.codec --packing

measures the packing of random image units at 13 bits each against plain numpy, which makes the same
bytes. A call includes, for packing, the range check of every id.
"""

import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from im2sp.pipeline.job.columns import image_tables
from im2sp.shards import (
    DEFAULT_COLUMNS,
    ShardDataset,
    deduplicate,
    fit_durations_codec,
    fit_speech_codec,
    pack_units,
    unpack_units,
)
from im2sp.shards.coding import Codec, make_codecs
from im2sp.shards.coding.grid import GridHuffmanCodec
from im2sp.shards.coding.grid_fit import GridSizes, fit_grid_tables, mean_bits
from im2sp.shards.coding.grid_tables import TABLE_NAMES, GridTables
from im2sp.shards.coding.huffman import HuffmanCodec
from im2sp.shards.coding.packing import small_work
from im2sp.shards.command_line import run_command
from im2sp.tools.bench.timing import machine, table, take_turns, use_one_core

SIZES = {
    "small": GridSizes(
        left_classes=64, above_classes=31, joint_classes=24, contexts=64, member_contexts=256
    ),
    "default": GridSizes(),
    "large": GridSizes(
        left_classes=512,
        above_classes=255,
        joint_classes=128,
        contexts=1024,
        member_contexts=4096,
        cluster_codes=16,
        member_codes=32,
    ),
}
"""Sizes of the tables that are compared."""
Clip = tuple[NDArray[np.uint16], NDArray[np.uint16]]
"""Units and durations of one clip."""


def read_clips(paths: Sequence[Path]) -> list[Clip]:
    """Read the collapsed clips of all files."""
    clips: list[Clip] = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            clips += [deduplicate(json.loads(line)["units"]) for line in lines]
    return clips


def synthetic_clips(num_clips: int = 1000, num_units: int = 200) -> list[Clip]:
    """Synthetic clips of 150 units; each unit has 16 successors, the first most likely."""
    rng = np.random.default_rng(0)
    followers = rng.integers(1, num_units, (num_units, 16))
    clips: list[Clip] = []
    for _ in range(num_clips):
        units = [int(rng.integers(num_units))]
        for choice in np.minimum(rng.geometric(0.25, 149) - 1, 15):
            units.append(int(units[-1] + followers[units[-1], choice]) % num_units)
        runs = rng.geometric(0.5, 150)
        clips.append((np.array(units, np.uint16), runs.astype(np.uint16)))
    return clips


def rate(call: Callable[[], object], num_ids: int, num_rounds: int) -> dict[str, int]:
    """Median, slowest and fastest in millions of ids per second."""
    times = take_turns({"": call}, num_rounds, num_warmups=1)[""]
    picks = {"million_a_s": statistics.median(times), "slowest": max(times), "fastest": min(times)}
    return {name: round(num_ids / seconds / 1e6) for name, seconds in picks.items()}


def measure(
    name: str, codec: Codec, table_bytes: int, arrays: list[NDArray[np.uint16]], num_rounds: int
) -> list[dict[str, object]]:
    """Rows of figures for one codec: many clips per call, if supported, and one clip per call."""
    values = [codec.encode(array) for array in arrays]
    pieces = [np.frombuffer(value, np.uint8) for value in values]
    num_ids = sum(array.size for array in arrays)
    size_bytes = sum(map(len, values))
    for array, piece in zip(arrays, pieces, strict=True):
        np.testing.assert_array_equal(codec.decode(piece), array)
    calls: dict[int, Callable[[], object]] = {1: lambda: [codec.decode(piece) for piece in pieces]}
    if isinstance(codec, HuffmanCodec):
        data, offsets = np.concatenate(pieces), np.cumsum([0, *map(len, values)])
        calls = {len(values): lambda: codec.decode_values(data, offsets)} | calls
    rows: list[dict[str, object]] = []
    for num_values, call in calls.items():
        bits = round(8 * size_bytes / num_ids, 3)
        row: dict[str, object] = {"case": name, "bits_an_id": bits, "table_bytes": table_bytes}
        rows.append({**row, "values": num_values, **rate(call, num_ids, num_rounds)})
    return rows


def compare_images(images: Path, train: Sequence[Path], num_rounds: int) -> list[dict[str, object]]:
    """Rows of figures for the codec of image units."""
    grids = grids_of([images])[:1000]
    bundled = {k.removeprefix("image_units."): v for k, v in image_tables("compact").items()}
    tables = {"tables of compact": GridTables(**bundled)}
    if train:
        fitted_to = grids_of(train)
        for name, sizes in SIZES.items():
            tables[f"fitted, {name}"] = fit_grid_tables(fitted_to, 8192, sizes)
    packed = pack_units(grids.reshape(len(grids), -1))
    runs: dict[str, Callable[[], object]] = {"packed": lambda: unpack_units(packed)}
    rows: dict[str, dict[str, object]] = {"packed": {"case": "packed", "bits_a_unit": 13.0}}
    for name, one in tables.items():
        codec = GridHuffmanCodec(shape=(28, 28), tables=one)
        values = [codec.encode(grid.reshape(-1)) for grid in grids]
        data, offsets = np.frombuffer(b"".join(values), np.uint8), np.cumsum([0, *map(len, values)])
        np.testing.assert_array_equal(codec.decode_values(data, offsets)[0], grids.reshape(-1))
        runs[name] = partial(codec.decode_values, data, offsets)
        rows[name] = {
            "case": name,
            "bits_a_unit": round(mean_bits(grids, one), 3),
            "bytes_an_image": round(data.size / len(grids), 1),
            "table_bytes": sum(getattr(one, table).nbytes for table in TABLE_NAMES),
        }
    small_work.takes(1 << 62)  # later calls use compiled kernels
    for name, times in take_turns(runs, num_rounds, clock=time.process_time, num_warmups=2).items():
        picks = {"images_a_s": statistics.median(times), "slowest": max(times)}
        picks["fastest"] = min(times)
        rows[name] |= {key: round(len(grids) / seconds) for key, seconds in picks.items()}
    return list(rows.values())


def numpy_pack(units: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Pack by spreading each id into its 13 bits."""
    if units.max() >= 1 << 13:
        raise ValueError("an id does not fit")
    bits = units[..., None] >> np.arange(13, dtype=np.uint16) & np.uint16(1)
    return np.packbits(bits.astype(np.uint8).reshape(len(units), -1), axis=1, bitorder="little")


def numpy_unpack(packed: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Unpack by spreading bytes into bits and weighting them."""
    bits = np.unpackbits(packed, axis=1, count=13 * 784, bitorder="little")
    weights = np.uint16(1) << np.arange(13, dtype=np.uint16)
    return bits.reshape(len(packed), 784, 13).astype(np.uint16) @ weights


def compare_packing(num_rounds: int, sizes: Sequence[int] = (1, 256, 4096)) -> list[dict[str, Any]]:
    """Rows of figures for packing 784 units of 13 bits per image, for several numbers of images."""
    small_work.takes(1 << 62)  # later calls use compiled kernels
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for num_rows in sizes:
        units = rng.integers(0, 1 << 13, (num_rows, 784)).astype(np.uint16)
        packed = pack_units(units)
        np.testing.assert_array_equal(numpy_pack(units), packed)
        np.testing.assert_array_equal(numpy_unpack(packed), unpack_units(packed))
        calls: dict[str, Callable[[], object]] = {
            "pack_units": partial(pack_units, units),
            "pack_units, numpy": partial(numpy_pack, units),
            "unpack_units": partial(unpack_units, packed),
            "unpack_units, numpy": partial(numpy_unpack, packed),
        }
        for name, times in take_turns(calls, num_rounds, num_warmups=1).items():
            picks = {"million_a_s": statistics.median(times)}
            picks |= {"slowest": max(times), "fastest": min(times)}
            rates = {key: round(units.size / seconds / 1e6) for key, seconds in picks.items()}
            rows.append({"case": name, "images": num_rows, **rates})
    return rows


def grids_of(datasets: Sequence[Path]) -> NDArray[np.uint16]:
    """(n, 28, 28) image units of all datasets."""
    found = [sample.image_units for path in datasets for sample in ShardDataset(path)]
    return np.stack([grid for grid in found if grid is not None])


def compare(clips: list[Clip], num_units: int, num_rounds: int) -> list[dict[str, object]]:
    """Measure the default codecs and the fitted ones."""
    train = [clip for i, clip in enumerate(clips) if i % 4]
    fitted = DEFAULT_COLUMNS | {
        "speech_units": fit_speech_codec([units for units, _ in train], num_units),
        "durations": fit_durations_codec([runs for _, runs in train]),
    }
    rows: list[dict[str, object]] = []
    for which, column in enumerate(("speech_units", "durations")):
        arrays = [clip[which] for clip in clips[::4]]
        for columns in (DEFAULT_COLUMNS, fitted):
            codec: Codec = getattr(make_codecs(columns), column)
            name = f"{column}, {columns[column]['codec']}"
            table_bytes = len(columns[column].get("lengths", ""))
            rows += measure(name, codec, table_bytes, arrays, num_rounds)
    return rows


@dataclass(frozen=True, kw_only=True)
class BenchCodecConfig:
    """Measure the codecs and the packing of units on one core."""

    units: tyro.conf.Positional[tuple[Path, ...]] = ()
    """.jsonl.gz files with {"units": [...]} per line, one unit per frame; by default synthetic."""
    images: Path | None = None
    """Dataset with image units of compact, to measure their codec instead."""
    train: tuple[Path, ...] = ()
    """Datasets to fit tables of several sizes to."""
    packing: bool = False
    """Measure the packing of image units instead."""
    num_units: int = 200
    """Vocabulary size."""
    num_rounds: int = 25
    """Rounds per case."""
    json: bool = False
    """Print JSON rows only, no table."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_codec", BenchCodecConfig, _run, args)


def _run(config: BenchCodecConfig) -> None:
    use_one_core()
    if config.images is not None or config.packing:
        if config.images is not None:
            rows = compare_images(config.images, config.train, config.num_rounds)
        else:
            rows = compare_packing(config.num_rounds)
        for row in rows:
            print(json.dumps(row))
        if not config.json:
            print(f"\none core of {machine('numpy', 'numba')}\n")
            print(table([{**dict.fromkeys(rows[-1], ""), **row} for row in rows]))
        return
    clips = read_clips(config.units) if config.units else synthetic_clips()
    rows = compare(clips, config.num_units, config.num_rounds)
    for row in rows:
        print(json.dumps(row))
    if config.json:
        return
    print(
        f"\n{len(clips[::4])} clips, {sum(u.size for u, _ in clips[::4])} units; "
        f"one core of {machine('numpy', 'numba')}\n"
    )
    print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
