"""Datasets of units of other tokenizers, as a newcomer writes them with `DatasetWriter`."""

from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards import DatasetWriter, UnitColumn

COLUMNS: dict[str, UnitColumn | str] = {
    "image_units": UnitColumn((16, 16), 1 << 14),
    "grid_18": UnitColumn((16, 16), 1 << 18),
    "line": UnitColumn((32,), 4096),
    "levels": UnitColumn((2, 4, 4), 512),
    "audio_units": UnitColumn((8, None), 64),
    "frames": UnitColumn((None, 3), 32),
    "speech_units": UnitColumn((None,), 50, many=True, coding="coded"),
    "clip": UnitColumn((None, 2, None), 2),
    "url": "string",
}


def make_row(key: str, split: str, rng: np.random.Generator) -> dict[str, Any]:
    """A sample with a caption for each of its two utterances."""
    return {
        "key": key,
        "split": split,
        "captions": [f"{'a red dog' if rng.integers(2) else 'two men'} runs", "a man jumps"],
        "image_units": rng.integers(0, 1 << 14, (16, 16)),
        "grid_18": rng.integers(0, 1 << 18, (16, 16)),
        "line": rng.integers(0, 4096, 32),
        "levels": rng.integers(0, 512, (2, 4, 4)),
        "audio_units": rng.integers(0, 64, (8, rng.integers(2, 6))),
        "frames": rng.integers(0, 32, (rng.integers(2, 6), 3)),
        "speech_units": [rng.integers(0, 50, rng.integers(3, 8)) for _ in range(2)],
        "clip": rng.integers(0, 2, (3, 2, 2)),
        "url": f"https://x/{key}",
    }


def write_any(
    folder: Path, num_train: int = 6, num_val: int = 2, seed: int = 0, **options: Any
) -> Path:
    """Write a dataset with `COLUMNS`; options are those of `DatasetWriter`."""
    rng = np.random.default_rng(seed)
    columns = options.setdefault("columns", COLUMNS)
    with DatasetWriter(folder, **options) as writer:
        for split, num in (("train", num_train), ("val", num_val)):
            for i in range(num):
                row = make_row(f"{split}{seed}-{i}", split, rng)
                writer.write(**{k: v for k, v in row.items() if k in (*columns, *BUILT_IN)})
    return folder


BUILT_IN = ("key", "split", "captions")
