"""Measure the codecs of speech units and durations: bits per id, and millions of ids per second.

    python tools/bench/codec.py [UNITS.jsonl.gz ...]

Each line of a file is `{"units": [...]}` with one unit per frame of 20 ms; repeats are collapsed.
Without a file, units are synthetic: a Markov chain with few likely successors of each unit. The
tables are fitted to three of four clips; every fourth clip is measured, including byte alignment.
Everything runs on one core. A call includes allocating the result; `values` is the number of clips
that a call decodes.
"""

import gzip
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from im2sp.shards import DEFAULT_COLUMNS, deduplicate, fit_durations_codec, fit_speech_codec
from im2sp.shards.coding import Codec, make_codecs
from im2sp.shards.coding.huffman import HuffmanCodec
from im2sp.shards.command_line import run_command
from im2sp.tools.bench.timing import machine, table, take_turns, use_one_core

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
    """Measure the codecs of speech units and durations on one core."""

    units: tyro.conf.Positional[tuple[Path, ...]] = ()
    """.jsonl.gz files with {"units": [...]} per line, one unit per frame; by default synthetic."""
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
