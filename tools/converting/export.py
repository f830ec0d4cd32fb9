"""Datasets to files: a `.npy` per array and a `.json` per sample, which `convert.py npy` reads."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards import Sample, ShardDataset, UnitColumn
from im2sp.shards.files import atomic_dir


def export(dataset: ShardDataset, out: Path) -> int:
    """Write the samples of a dataset as files; return the number of `.npy` files.

    Sample N is `N.COLUMN.npy` for each array (`N.COLUMN.0.npy`, .. where a sample has many), and
    `N.json` with key, split, captions and own columns (bytes in base64).

    Args:
        dataset: The dataset.
        out: Folder to create.

    Raises:
        ValueError: The folder exists and is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: exists and is not empty; choose another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    num_files = 0
    with atomic_dir(out) as folder:
        for i, sample in enumerate(dataset):
            about: dict[str, Any] = {
                "key": sample.key,
                "split": sample.split,
                "captions": list(sample.captions),
            }
            for name, kind in dataset.columns.items():
                if isinstance(kind, UnitColumn):
                    num_files += _write_arrays(folder / f"{i:09d}.{name}", sample, name)
                else:
                    about[name] = _plain(sample[name])
            text = json.dumps(about, ensure_ascii=False)
            (folder / f"{i:09d}.json").write_text(text, "utf-8")
    return num_files


def _write_arrays(stem: Path, sample: Sample, name: str) -> int:
    value = sample[name]
    if value is None:
        return 0
    if not isinstance(value, list):
        np.save(stem.with_name(f"{stem.name}.npy"), value)
        return 1
    for number, array in enumerate(value):
        np.save(stem.with_name(f"{stem.name}.{number}.npy"), array)
    return len(value)


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
