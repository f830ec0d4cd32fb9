"""A reader written from docs/FORMAT.md alone, without pyarrow and im2sp, bit by bit.

It parses the Arrow flatbuffer directly; its only source besides FORMAT.md is Arrow's specification
(Message.fbs).
"""

import base64
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import Manifest, Sample
from support.columns import LAYOUTS, make_rows, write_rows
from support.grid import NaiveGrid
from support.huffman import naive_decode


def read_dataset(dataset_dir: Path) -> Iterator[dict[str, Any]]:
    text = (dataset_dir / "dataset.json").read_bytes()
    assert text.startswith(b'{"manifest_sha256":"')
    zeroed = text[:20] + b"0" * 64 + text[84:]
    assert hashlib.sha256(zeroed).hexdigest() == text[20:84].decode()
    manifest = json.loads(text)
    assert manifest["format"] == "im2sp"
    assert manifest["format_version"] in (1, 2)
    tables = {}
    if manifest.get("codebook") is not None:
        tables = read_tables(dataset_dir / manifest["codebook"]["file"])
    for shard in manifest["shards"]:
        data = (dataset_dir / shard["file"]).read_bytes()
        assert len(data) == shard["size_bytes"]
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        for batch in shard["batches"]:
            content = data[batch["offset"] : batch["offset"] + batch["size_bytes"]]
            assert zlib.crc32(content) == batch["crc32"]
            is_first = manifest["format_version"] == 1
            rows = list(
                read_batch(content, manifest)
                if is_first
                else read_batch_2(content, manifest, tables)
            )
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


def message_buffers(message: bytes) -> tuple[int, Iterator[bytes]]:
    """Number of rows and buffers of an encapsulated Arrow message with a RecordBatch."""
    marker, metadata_size_bytes = struct.unpack_from("<Ii", message)
    assert marker == 0xFFFFFFFF
    body = message[8 + metadata_size_bytes :]
    table = 8 + struct.unpack_from("<I", message, 8)[0]
    batch = follow(message, field_of(message, table, 2))  # Message.header
    num_rows = struct.unpack_from("<q", message, field_of(message, batch, 0))[0]
    at = follow(message, field_of(message, batch, 2))  # RecordBatch.buffers
    num_buffers = struct.unpack_from("<I", message, at)[0]
    places = [struct.unpack_from("<qq", message, at + 4 + 16 * i) for i in range(num_buffers)]
    return num_rows, iter([body[offset : offset + size] for offset, size in places])


def message_rows(message: bytes, manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of an encapsulated Arrow message with a RecordBatch."""
    num_rows, buffers = message_buffers(message)

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


def read_tables(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file."""
    data = path.read_bytes()
    start = 8 + struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8:start])
    return {
        name: np.frombuffer(
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            {"F32": "<f4", "U8": "u1", "U16": "<u2"}[entry["dtype"]],
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }


def read_batch_2(
    content: bytes, manifest: dict[str, Any], tensors: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    columns = manifest["columns"]
    if manifest["layout"]["kind"] == "arrow":
        coded = message_rows_2(content, columns)
    elif manifest["layout"]["samples_per_member"] > 1:
        _, schema_size_bytes = struct.unpack_from("<II", content)
        coded = message_rows_2(content[8 + schema_size_bytes :], columns)
    else:
        coded = plain_rows_2(content, columns)
    for row in coded:
        for name, column in columns.items():
            if "type" not in column and row[name] is not None:
                values = row[name] if column["many"] else [row[name]]
                tables = {
                    k.removeprefix(f"{name}."): t
                    for k, t in tensors.items()
                    if k.startswith(f"{name}.")
                }
                found = [decode_array(v, column, tables) for v in values]
                row[name] = found if column["many"] else found[0]
        yield row


def decode_array(value: bytes, column: dict[str, Any], tables: dict[str, np.ndarray]) -> Any:
    """Nested lists of the units of one array."""
    shape, num_varying = list(column["shape"]), column["shape"].count(None)
    if num_varying > (column["codec"] != "packed"):
        for axis in [k for k, size in enumerate(shape) if size is None]:
            size = 1 + next(i for i, byte in enumerate(value) if byte < 128)
            (shape[axis],) = varints(value[:size], {"codec": "varint"})
            value = value[size:]
    if column["codec"] == "packed":
        codec = {"codec": "packed", "bits": max(1, (column["num_codes"] - 1).bit_length())}
        assert None not in shape
        codec["count"] = math.prod(shape)
        assert len(value) == (codec["count"] * codec["bits"] + 7) // 8
        ids = unpack(value, codec)
    elif column["codec"] == "varint":
        ids = varints(value, column)
    elif column["codec"] == "grid-huffman":
        ids = NaiveGrid(tables).decode(value, *shape)
    else:
        lengths = base64.b64encode(tables["lengths"].tobytes()).decode()
        codec = {"num_ids": column["num_codes"], "order": column["order"], "lengths": lengths}
        ids = naive_decode(value, codec)
    if None in shape:
        fixed = math.prod(size for size in shape if size is not None)
        shape[shape.index(None)] = len(ids) // fixed
    assert len(ids) == math.prod(shape)
    return nested(ids, shape)


def nested(ids: list[int], shape: list[int]) -> Any:
    if len(shape) == 1:
        return ids
    step = math.prod(shape[1:])
    return [nested(ids[k * step : (k + 1) * step], shape[1:]) for k in range(shape[0])]


def message_rows_2(message: bytes, columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of an encapsulated Arrow message: all columns in the order of the format."""
    num_rows, buffers = message_buffers(message)
    types = {"key": "string", "split": "string", "captions": "list of string"}
    found: dict[str, list[Any]] = {}
    for name in [*types, *sorted(columns)]:
        column = columns.get(name, {})
        kind = types.get(name) or column.get("type")
        if kind is None:
            kind = "list of bytes" if column["many"] else "bytes"
            if column["codec"] == "packed" and not column["many"] and None not in column["shape"]:
                kind = "fixed"
        bits = next(buffers)
        valid = [not bits or bool(bits[i // 8] >> (i % 8) & 1) for i in range(num_rows)]
        if kind == "fixed":
            width = max(1, (column["num_codes"] - 1).bit_length())
            size = (math.prod(column["shape"]) * width + 7) // 8
            data = next(buffers)
            values: list[Any] = [data[size * i : size * (i + 1)] for i in range(num_rows)]
        elif kind == "bool":
            data = next(buffers)
            values = [bool(data[i // 8] >> (i % 8) & 1) for i in range(num_rows)]
        elif kind in ("int", "float"):
            form = "q" if kind == "int" else "d"
            values = list(struct.unpack(f"<{num_rows}{form}", next(buffers)[: 8 * num_rows]))
        elif kind.startswith("list"):
            offsets = [n for (n,) in struct.iter_unpack("<i", next(buffers))]
            assert not next(buffers)
            items = cut_values(buffers, kind == "list of string")
            values = [items[offsets[i] : offsets[i + 1]] for i in range(num_rows)]
        else:
            values = cut_values(buffers, kind == "string")
        found[name] = [value if is_there else None for value, is_there in zip(values, valid)]  # noqa: B905
    assert next(buffers, None) is None
    for i in range(num_rows):
        yield {name: values[i] for name, values in found.items()}


def cut_values(buffers: Iterator[bytes], is_text: bool) -> list[Any]:
    offsets = [n for (n,) in struct.iter_unpack("<i", next(buffers))]
    data = next(buffers)
    values = [data[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
    return [value.decode() for value in values] if is_text else values


def plain_rows_2(content: bytes, columns: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for members in plain_members(content):
        info = json.loads(members["json"])
        row = {name: info[name] for name in ("key", "split", "captions")}
        for name, column in columns.items():
            if "type" in column and column["type"] != "bytes":
                row[name] = info[name]
            elif column.get("many"):
                sizes = info[f"{name}_sizes"]
                row[name] = None if sizes is None else cut(members.get(name, b""), sizes)
            else:
                row[name] = members.get(name)
        yield row


def follow(data: bytes, at: int) -> int:
    return at + struct.unpack_from("<I", data, at)[0]


def field_of(data: bytes, table: int, number: int) -> int:
    vtable = table - struct.unpack_from("<i", data, table)[0]
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    assert offset
    return table + offset


def plain_members(content: bytes) -> list[dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    position = 0
    while position < len(content):
        name = content[position : position + 100].rstrip(b"\0").decode()
        size = int(content[position + 124 : position + 135], 8)
        stem, member = name.split(".")
        samples.setdefault(stem, {})[member] = content[position + 512 : position + 512 + size]
        position += 512 + -(-size // 512) * 512
    return list(samples.values())


def plain_rows(content: bytes) -> Iterator[dict[str, Any]]:
    for members in plain_members(content):
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


@pytest.mark.parametrize("name", ["2-arrow", "2-packed", "2-plain"])
def test_the_golden_datasets_of_version_2(name: str) -> None:
    golden_dir = Path(__file__).parent / "golden"
    content = json.loads((golden_dir / "content-2.json").read_text())
    for row in content:
        row["data"] = None if row["data"] is None else row["data"].encode()
    assert list(read_dataset(golden_dir / name)) == content


def test_the_golden_dataset_of_coded_grids() -> None:
    rows = read_dataset(Path(__file__).parent / "golden/2-grids")
    assert [row["image_units"] for row in rows] == [
        [[0, 1, 2], [3, 2, 1]], None, [[2, 1, 0], [1, 3, 2]],
    ]  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_version_2(tmp_path: Path, layout: str) -> None:
    rows = make_rows(30)
    write_rows(tmp_path, rows, **LAYOUTS[layout])
    for found, row in zip(read_dataset(tmp_path), rows, strict=True):
        for name, value in row.items():
            if isinstance(value, np.ndarray):
                expected: Any = value.tolist()
            elif isinstance(value, list):
                expected = [one if isinstance(one, str) else one.tolist() for one in value]
            else:
                expected = value
            assert found[name] == expected, name
