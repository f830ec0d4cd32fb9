"""Samples with columns of all kinds, as for `DatasetWriter.write`."""

from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards import DatasetWriter, ShardDataset, UnitColumn

COLUMNS: dict[str, UnitColumn | str] = {
    "image_units": UnitColumn(shape=(4, 4), num_codes=16384),
    "audio_units": UnitColumn(shape=(8, None), num_codes=2048),
    "speech_units": UnitColumn(shape=(None,), num_codes=200, many=True, coding="coded"),
    "durations": UnitColumn(shape=(None,), num_codes=65536, many=True, coding="varint"),
    "line": UnitColumn(shape=(32,), num_codes=1 << 18),
    "clip": UnitColumn(shape=(None, 2, None), num_codes=2),
    "wide": UnitColumn(shape=(3,), num_codes=1 << 32, many=True),
    "small": UnitColumn(shape=(2, 2), num_codes=30, coding="coded"),
    "url": "string",
    "is_free": "bool",
    "number": "int",
    "score": "float",
    "data": "bytes",
    "tags": "list of string",
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "arrow": {"layout": "arrow"},
    "packed": {"layout": "webdataset", "samples_per_member": 3},
    "plain": {"layout": "webdataset", "samples_per_member": 1},
}


def make_rows(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows in which each value is None somewhere."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i in range(num):
        speech = [rng.integers(0, 200, rng.integers(0, 9)) for _ in range(i % 3)]
        row: dict[str, Any] = {
            "key": f"dir.{i % 7}/image {i}.é",
            "split": ("train", "val", "")[i % 3],
            "captions": [f"caption {j}: ünï" for j in range(i % 3)],
            "image_units": rng.integers(0, 16384, (4, 4)),
            "audio_units": rng.integers(0, 2048, (8, i % 5)).astype(np.uint16),
            "speech_units": speech,
            "durations": [rng.integers(1, 400, units.size) for units in speech],
            "line": rng.integers(0, 1 << 18, 32),
            "clip": rng.integers(0, 2, (i % 4, 2, i % 3 * 70)),
            "wide": [rng.integers(0, 1 << 32, 3) for _ in range(i % 2 + 1)],
            "small": rng.integers(0, 30, (2, 2)),
            "url": f"https://x/{i}",
            "is_free": i % 2 == 0,
            "number": i - (1 << 62),
            "score": i / 7,
            "data": bytes([i % 256, 0, 255]),
            "tags": ["a", "b"][: i % 3],
        }
        for k, name in enumerate(COLUMNS):
            if i % 17 == k and name not in ("speech_units", "durations"):
                row[name] = None
        if i % 17 == 16:
            row["durations"] = None
        rows.append(row)
    return rows


def write_rows(out: Path, rows: list[dict[str, Any]], **options: Any) -> ShardDataset:
    """Write a dataset of rows, with `COLUMNS` unless others are given."""
    with DatasetWriter(out, **{"columns": COLUMNS, "samples_per_shard": 40, **options}) as writer:
        for row in rows:
            writer.write(**row)
    return ShardDataset(out)


def assert_same_row(
    found: Any, expected: dict[str, Any], columns: dict[str, UnitColumn | str] = COLUMNS
) -> None:
    """Compare a sample, or a dict of columns, with a row that was written."""
    for name, value in expected.items():
        one = found[name]
        column = columns.get(name)
        if value is None or not isinstance(column, UnitColumn):
            assert one == value, name
            assert type(one) is type(value), name
            continue
        pairs = zip(one, value, strict=True) if column.many else [(one, value)]
        for ours, theirs in pairs:
            assert ours.dtype == column.dtype, name
            np.testing.assert_array_equal(ours, theirs)
