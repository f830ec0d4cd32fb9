"""Bytes of a dataset by part, measured on its files; the parts add up to the bytes on disk."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

from im2sp.shards import Manifest, ShardError
from im2sp.shards.codebook import table_bytes
from im2sp.shards.files import read_regular
from im2sp.shards.manifest import MANIFEST_NAME, REJECTS_NAME
from im2sp.shards.stores.copies import DatasetFiles


def total_bytes(files: DatasetFiles, manifest: Manifest) -> int:
    """Bytes of the manifest, the shards, coding tables and the list of rejects.

    Raises:
        ShardError: A file is missing or of another size than in the manifest.
    """
    total = table_bytes(files, manifest)
    if files.is_copy:  # each copy was compared with the manifest
        total += len(manifest.text.encode()) + sum(s.size_bytes for s in manifest.shards)
    else:
        total += file_bytes(files.local(MANIFEST_NAME))
        total += sum(file_bytes(files.local(s.file), s.size_bytes) for s in manifest.shards)
    if manifest.num_rejects or manifest.rejects_sha256 is not None:
        total += file_bytes(files.local(REJECTS_NAME))
    return total


def codebook_bytes(files: DatasetFiles, manifest: Manifest) -> int:
    """Bytes of codebooks and of the tables of image units; 0 if there are none."""
    name = manifest.codebook_file
    return file_bytes(files.local(name)) - table_bytes(files, manifest) if name else 0


def part_bytes(files: DatasetFiles, manifest: Manifest, values: dict[str, int]) -> dict[str, int]:
    """Bytes by part: the columns' values, coding tables, checksums, and the rest as container.

    Args:
        files: The dataset's files.
        manifest: Its manifest.
        values: Bytes of the values of each column, over all samples.
    """
    checksums = checksum_bytes(json.loads(manifest.text))
    parts = values | {"tables": _table_bytes(files, manifest), "checksums": checksums}
    return parts | {"container": total_bytes(files, manifest) - sum(parts.values())}


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


def _table_bytes(files: DatasetFiles, manifest: Manifest) -> int:
    """Bytes of the coding tables; in version 1 in `dataset.json` and in each shard's metadata."""
    tables = {
        columns["lengths"].encode() for columns in manifest.columns.values() if "lengths" in columns
    }
    if not tables:
        return table_bytes(files, manifest)
    texts = (read_regular(files.local(shard.file)) for shard in manifest.shards)
    return sum(
        len(table) * data.count(table)
        for data in chain([manifest.text.encode()], texts)
        for table in tables
    )
