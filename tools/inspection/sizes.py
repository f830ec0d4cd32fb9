"""Bytes of a dataset by part, measured on its files; the parts add up to the bytes on disk."""

import json
from pathlib import Path
from typing import Any

from im2sp.shards import Manifest, ShardError
from im2sp.shards.codebook import table_bytes
from im2sp.shards.files import read_json, read_regular
from im2sp.shards.manifest import MANIFEST_NAME, REJECTS_NAME


def total_bytes(dataset_dir: Path, manifest: Manifest) -> int:
    """Bytes of the manifest, the shards, coding tables and the list of rejects.

    Raises:
        ShardError: A file is missing or of another size than in the manifest.
    """
    total = file_bytes(dataset_dir / MANIFEST_NAME) + table_bytes(dataset_dir, manifest)
    total += sum(file_bytes(dataset_dir / s.file, s.size_bytes) for s in manifest.shards)
    if manifest.num_rejects or manifest.rejects_sha256 is not None:
        total += file_bytes(dataset_dir / REJECTS_NAME)
    return total


def codebook_bytes(dataset_dir: Path, manifest: Manifest) -> int:
    """Bytes of codebooks and of the tables of image units; 0 if there are none."""
    name = manifest.codebook_file
    return file_bytes(dataset_dir / name) - table_bytes(dataset_dir, manifest) if name else 0


def part_bytes(dataset_dir: Path, manifest: Manifest, values: dict[str, int]) -> dict[str, int]:
    """Bytes by part: the columns' values, coding tables, checksums, and the rest as container.

    Args:
        dataset_dir: The dataset's folder.
        manifest: Its manifest.
        values: Bytes of the values of each column, over all samples.
    """
    checksums = checksum_bytes(read_json(dataset_dir / MANIFEST_NAME))
    parts = values | {"tables": _table_bytes(dataset_dir, manifest), "checksums": checksums}
    return parts | {"container": total_bytes(dataset_dir, manifest) - sum(parts.values())}


def file_bytes(path: Path, expected: int | None = None) -> int:
    """Size of a dataset's file; ShardError if the manifest records another size."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ShardError(f"{path}: missing, but {MANIFEST_NAME} lists it") from None
    if expected is not None and size != expected:
        raise ShardError(
            f"{path}: {size:,} bytes, {MANIFEST_NAME} says {expected:,}; run im2sp-verify"
        )
    return size


def checksum_bytes(node: Any) -> int:
    """Bytes of all checksums below a JSON node, as JSON text with quotes."""
    if isinstance(node, list):
        return sum(checksum_bytes(child) for child in node)
    if not isinstance(node, dict):
        return 0
    return sum(
        len(json.dumps(value))
        if any(word in name for word in ("sha256", "crc32", "checksum"))
        and isinstance(value, str | int)
        else checksum_bytes(value)
        for name, value in node.items()
    )


def _table_bytes(dataset_dir: Path, manifest: Manifest) -> int:
    """Bytes of the coding tables; in version 1 in `dataset.json` and in each shard's metadata."""
    tables = {
        columns["lengths"].encode() for columns in manifest.columns.values() if "lengths" in columns
    }
    if not tables:
        return table_bytes(dataset_dir, manifest)
    total = 0
    for name in (MANIFEST_NAME, *(shard.file for shard in manifest.shards)):
        data = read_regular(dataset_dir / name)
        total += sum(len(table) * data.count(table) for table in tables)
    return total
