"""Datasets with shards of any bytes and matching checksums, as an attacker would write them."""

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

from im2sp.shards import DEFAULT_COLUMNS

ARROW = {"kind": "arrow"}
PACKED = {"kind": "webdataset", "samples_per_member": 2}
PLAIN = {"kind": "webdataset", "samples_per_member": 1}


def signed(content: dict[str, Any]) -> bytes:
    """Text of a `dataset.json` with its checksum."""
    rest = {name: value for name, value in content.items() if name != "manifest_sha256"}
    text = json.dumps({"manifest_sha256": "0" * 64, **rest}, separators=(",", ":")).encode()
    return text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)


def craft(
    folder: Path,
    data: bytes,
    ranges: list[tuple[int, int, int]],
    *,
    layout: dict[str, Any] = ARROW,
    columns: Any = DEFAULT_COLUMNS,
    **fields: Any,
) -> None:
    """Write a dataset with one shard.

    Args:
        folder: Folder of the dataset.
        data: Bytes of the shard.
        ranges: Offset, size and samples of each batch.
        layout: Layout in the manifest.
        columns: Columns in the manifest.
        fields: Other fields of the manifest.
    """
    name = "00000.arrow" if layout == ARROW else "00000.tar"
    (folder / name).write_bytes(data)
    num_samples = sum(num for _, _, num in ranges)
    shard = {
        "file": name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
        "num_samples": num_samples,
        "splits": {"": num_samples},
        "batches": [
            {
                "offset": start,
                "size_bytes": size,
                "num_samples": num,
                "crc32": zlib.crc32(data[start : start + size]),
            }
            for start, size, num in ranges
        ],
    }
    content = {
        "format": "im2sp",
        "format_version": 1,
        "num_samples": num_samples,
        "splits": {"": num_samples},
        "layout": layout,
        "columns": columns,
        "image_tokenizer": None,
        "speech_tokenizer": None,
        "raw": {},
        "num_rejects": 0,
        "rejects_sha256": None,
        "settings": {},
        "shards": [shard],
    }
    (folder / "dataset.json").write_bytes(signed(content | fields))


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    """Members of a tar, without its end."""
    found = io.BytesIO()
    for name, content in members:
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(content), 0o644
        found.write(header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512))
    return found.getvalue()


def craft_plain(
    folder: Path, members: list[tuple[str, bytes]], num_samples: int, columns: Any = DEFAULT_COLUMNS
) -> None:
    """Write a dataset of the plain layout whose only batch is these members."""
    data = tar_of(members)
    ranges = [(0, len(data), num_samples)]
    craft(folder, data + bytes(1024), ranges, layout=PLAIN, columns=columns)


def craft_packed(folder: Path, contents: list[bytes], num_samples: int) -> None:
    """Write a dataset of the packed layout with members of this content."""
    data, ranges = b"", []
    for number, content in enumerate(contents):
        member = tar_of([(f"{number * num_samples:09d}.arrow", content)])
        ranges.append((len(data) + 512, len(content), num_samples))
        data += member
    craft(folder, data + bytes(1024), ranges, layout=PACKED)


def plain_json(number: int, columns: Any = DEFAULT_COLUMNS, **changes: Any) -> bytes:
    """The `.json` of a plain sample without image, with other values."""
    info = {
        "key": f"k{number}",
        "split": "",
        "captions": [],
        "speech_units_sizes": [],
        "durations_sizes": None,
        "format": {"columns": columns, "format_version": 1},
    }
    return json.dumps(info | changes).encode()
