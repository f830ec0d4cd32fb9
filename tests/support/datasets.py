"""Small datasets of random units, written without a tokenizer, for tests of tools."""

import hashlib

import numpy as np

from im2sp.shards import (
    DatasetWriter,
    Layout,
    Manifest,
    Sample,
    UnitColumn,
    encode_batch,
    write_shard,
)
from im2sp.shards.schema import DEFAULT_COLUMNS


def make_samples(num, *, speech=False, durations=True, images=True):
    """Samples with units of a fixed seed; keys and captions of several lengths, not all ASCII."""
    rng = np.random.default_rng(5)
    samples = []
    for i in range(num):
        units = [rng.integers(0, 200, 5 + i, dtype=np.uint16) for _ in range(speech * 2)]
        runs = [rng.integers(1, 300, 5 + i, dtype=np.uint16) for _ in units]
        samples.append(
            Sample(
                key=f"ordner/bild-{i}-ä",
                split=("train", "val")[i % 2],
                image_units=rng.integers(0, 8192, (28, 28), dtype=np.uint16) if images else None,
                speech_units=units,
                durations=runs if durations else None,
                captions=["ein Bild", "noch eins: schön"][: i % 3],
            )
        )
    return samples


def write_dataset(
    folder, samples, layout=None, rejects=b"", raw=None, columns=DEFAULT_COLUMNS, **fields
):
    """A finished dataset of two shards, with a codebook and perhaps rejects.

    `fields` are fields of the manifest.
    """
    layout = layout or Layout()
    if raw is None:
        raw = {"num_images": len(samples), "image_file_bytes": 10_000 * len(samples)}
    half = len(samples) // 2 + 1
    shards = [
        write_shard(folder / f"{i:05d}{layout.suffix}", [encode_batch(part, columns)], layout)
        for i, part in enumerate([samples[:half], samples[half:]])
    ]
    codebook = b"c" * 5000
    (folder / "codebook.safetensors").write_bytes(codebook)
    if rejects:
        (folder / "rejects.jsonl").write_bytes(rejects)
    splits = [sample.split for sample in samples]
    tokenizer = {
        "name": "compact",
        "fingerprint": "f" * 64,
        "view": "squash-224",
        "precision": "fp32",
        "codebook_file": "codebook.safetensors",
        "codebook_sha256": hashlib.sha256(codebook).hexdigest(),
    }
    Manifest(
        num_samples=len(samples),
        splits={split: splits.count(split) for split in sorted(set(splits))},
        layout=layout,
        columns=columns,
        raw=raw,
        num_rejects=rejects.count(b"\n"),
        rejects_sha256=hashlib.sha256(rejects).hexdigest() if rejects else None,
        shards=shards,
        **{"image_tokenizer": tokenizer} | fields,
    ).write(folder)
    return folder


COLUMNS = {
    "image_units": UnitColumn((16, 16), 16384),
    "audio_units": UnitColumn((8, None), 2048),
    "speech_units": UnitColumn((None,), 1000, many=True, coding="coded"),
    "wide_units": UnitColumn((4,), 2**32),
    "url": "string",
    "score": "float",
    "tables": "int",
    "is_new": "bool",
    "blob": "bytes",
    "tags": "list of string",
}
"""Columns of version 2: every kind, and a name that is also a part of the storage table."""


def make_rows(num=12, seed=0):
    """Values of `COLUMNS` for `DatasetWriter.write`, some of them None."""
    rng = np.random.default_rng(seed)
    return [
        {
            "key": f"row/{i}",
            "split": "val" if i % 4 == 3 else "train",
            "captions": [f"caption {i}"] * (i % 3),
            "image_units": None if i % 5 == 4 else rng.integers(0, 16384, (16, 16), np.uint16),
            "audio_units": None if i % 3 == 2 else rng.integers(0, 2048, (8, 3 + i), np.uint16),
            "speech_units": [rng.integers(0, 1000, 5 + i, np.uint16) for _ in range(i % 3)],
            "wide_units": rng.integers(0, 2**32, 4, np.uint32),
            "url": f"https://example.org/{i}" if i % 2 else None,
            "score": i / 4,
            "tables": i - 3,
            "is_new": i < 3,
            "blob": b"x" * i,
            "tags": ["a", "b"][: i % 3],
        }
        for i in range(num)
    ]


def write_rows(folder, rows, columns=COLUMNS, **settings):
    """A dataset of version 2."""
    with DatasetWriter(folder, columns=columns, **settings) as writer:
        for row in rows:
            writer.write(
                **{k: v for k, v in row.items() if k in {*columns, "key", "split", "captions"}}
            )
    return folder
