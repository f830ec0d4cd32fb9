"""A reader written from docs/FORMAT.md alone, without pyarrow and im2sp, bit by bit.

It parses the Arrow flatbuffer directly; its only source besides FORMAT.md is Arrow's specification
(Message.fbs).
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from im2sp.shards import Manifest, Sample
from support.huffman import naive_decode


def read_dataset(dataset_dir: Path) -> Iterator[dict[str, Any]]:
    text = (dataset_dir / "dataset.json").read_bytes()
    assert text.startswith(b'{"manifest_sha256":"')
    zeroed = text[:20] + b"0" * 64 + text[84:]
    assert hashlib.sha256(zeroed).hexdigest() == text[20:84].decode()
    manifest = json.loads(text)
    assert (manifest["format"], manifest["format_version"]) == ("im2sp", 1)
    for shard in manifest["shards"]:
        data = (dataset_dir / shard["file"]).read_bytes()
        assert len(data) == shard["size_bytes"]
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        for batch in shard["batches"]:
            content = data[batch["offset"] : batch["offset"] + batch["size_bytes"]]
            assert zlib.crc32(content) == batch["crc32"]
            rows = list(read_batch(content, manifest))
            assert len(rows) == batch["num_samples"]
            yield from rows


def read_batch(content: bytes, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if manifest["layout"]["kind"] == "arrow":
        coded = message_rows(content, manifest)
    elif manifest["layout"]["samples_per_member"] > 1:
        _, schema_size_bytes = struct.unpack_from("<II", content)
        coded = message_rows(content[8 + schema_size_bytes :], manifest)  # a schema has no body
    else:
        coded = plain_rows(content)
    columns = manifest["columns"]
    for row in coded:
        if row["image_units"] is not None:
            row["image_units"] = unpack(row["image_units"], columns["image_units"])
        row["speech_units"] = [decode(v, columns["speech_units"]) for v in row["speech_units"]]
        if row["durations"] is not None:
            row["durations"] = [decode(v, columns["durations"]) for v in row["durations"]]
        yield row


def decode(value: bytes, codec: dict[str, Any]) -> list[int]:
    decoders = {"packed": unpack, "varint": varints, "huffman": naive_decode}
    return decoders[codec["codec"]](value, codec)


def unpack(value: bytes, codec: dict[str, Any]) -> list[int]:
    assert codec["codec"] == "packed"
    count = codec.get("count", 8 * len(value) // codec["bits"])
    ids = []
    for k in range(count):
        number = 0
        for b in range(codec["bits"]):
            j = codec["bits"] * k + b
            number += (value[j // 8] >> (j % 8) & 1) << b
        ids.append(number)
    return ids


def varints(value: bytes, codec: dict[str, Any]) -> list[int]:
    assert codec["codec"] == "varint"
    ids, number, shift = [], 0, 0
    for byte in value:
        number += (byte % 128) << shift
        shift += 7
        if byte < 128:
            ids.append(number + codec.get("minimum", 0))
            number = shift = 0
    return ids


def message_rows(message: bytes, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of an encapsulated Arrow message with a RecordBatch."""
    marker, metadata_size_bytes = struct.unpack_from("<Ii", message)
    assert marker == 0xFFFFFFFF
    body = message[8 + metadata_size_bytes :]
    table = 8 + struct.unpack_from("<I", message, 8)[0]
    batch = follow(message, field_of(message, table, 2))  # Message.header
    num_rows = struct.unpack_from("<q", message, field_of(message, batch, 0))[0]
    at = follow(message, field_of(message, batch, 2))  # RecordBatch.buffers
    num_buffers = struct.unpack_from("<I", message, at)[0]
    places = [struct.unpack_from("<qq", message, at + 4 + 16 * i) for i in range(num_buffers)]
    buffers = iter([body[offset : offset + size] for offset, size in places])

    def validity() -> list[bool]:
        bits = next(buffers)
        return [not bits or bool(bits[i // 8] >> (i % 8) & 1) for i in range(num_rows)]

    def values() -> list[bytes]:
        offsets = [n for (n,) in struct.iter_unpack("<i", next(buffers))]
        data = next(buffers)
        return [data[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]

    def lists() -> list[list[bytes] | None]:
        valid = validity()
        offsets = [n for (n,) in struct.iter_unpack("<i", next(buffers))]
        assert not next(buffers)
        items = values()
        return [items[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(num_rows)]

    assert all(validity())
    keys = values()
    assert all(validity())
    splits = values()
    has_image, images = validity(), next(buffers)
    codec = manifest["columns"]["image_units"]
    width = -(-codec["count"] * codec["bits"] // 8)
    speech, durations, captions = lists(), lists(), lists()
    assert next(buffers, None) is None
    for i in range(num_rows):
        yield {
            "key": keys[i].decode(),
            "split": splits[i].decode(),
            "image_units": images[width * i : width * (i + 1)] if has_image[i] else None,
            "speech_units": speech[i],
            "durations": durations[i],
            "captions": [caption.decode() for caption in captions[i] or []],
        }


def follow(data: bytes, at: int) -> int:
    return at + struct.unpack_from("<I", data, at)[0]


def field_of(data: bytes, table: int, number: int) -> int:
    vtable = table - struct.unpack_from("<i", data, table)[0]
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    assert offset
    return table + offset


def plain_rows(content: bytes) -> Iterator[dict[str, Any]]:
    samples: dict[str, dict[str, bytes]] = {}
    position = 0
    while position < len(content):
        name = content[position : position + 100].rstrip(b"\0").decode()
        size = int(content[position + 124 : position + 135], 8)
        stem, member = name.split(".")
        samples.setdefault(stem, {})[member] = content[position + 512 : position + 512 + size]
        position += 512 + -(-size // 512) * 512
    for members in samples.values():
        info = json.loads(members["json"])
        sizes = info["durations_sizes"]
        yield {
            "key": info["key"],
            "split": info["split"],
            "image_units": members.get("image_units"),
            "speech_units": cut(members.get("speech_units", b""), info["speech_units_sizes"]),
            "durations": None if sizes is None else cut(members.get("durations", b""), sizes),
            "captions": info["captions"],
        }


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    return [data[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]


def plain_numbers(sample: Sample) -> dict[str, Any]:
    image, durations = sample.image_units, sample.durations
    return {
        "key": sample.key,
        "split": sample.split,
        "image_units": None if image is None else image.ravel().tolist(),
        "speech_units": [units.tolist() for units in sample.speech_units],
        "durations": None if durations is None else [runs.tolist() for runs in durations],
        "captions": sample.captions,
    }


def test_a_reader_written_from_the_specification(
    tmp_path: Path,
    layout: str,
    make_samples: Callable[..., list[Sample]],
    write_dataset: Callable[..., Manifest],
) -> None:
    samples = make_samples(14)
    write_dataset(tmp_path, samples, layout)
    assert list(read_dataset(tmp_path)) == [plain_numbers(sample) for sample in samples]


@pytest.mark.parametrize("name", ["arrow", "packed", "plain", "huffman"])
def test_the_golden_datasets(name: str) -> None:
    golden_dir = Path(__file__).parent / "golden"
    content = json.loads((golden_dir / "content.json").read_text())
    assert list(read_dataset(golden_dir / name)) == content
