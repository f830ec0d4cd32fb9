"""WebDataset shards: tar files whose members hold many samples each, or plain files per sample.

The tar is minimal: ustar headers, no extensions, time, owner and group 0, mode 0644.

Packed: member `000000256.arrow` is an Arrow IPC stream of one record batch, named by the number
of its first sample in the shard. Plain: sample 42 is one member per unit column and column of
bytes, and one for everything else, sorted by name:

    000000042.durations      all utterances' coded durations, concatenated
    000000042.image_units    the packed image units
    000000042.json           key, split, captions, own columns, sizes of the arrays, the columns
    000000042.speech_units   all utterances' coded units, concatenated
"""

import re
import tarfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import pyarrow as pa
from pyarrow import ipc

from im2sp.shards.columns.arrays import check_items
from im2sp.shards.columns.names import BUILT_IN, SIZES_SUFFIX
from im2sp.shards.columns.own import checked_value
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import ShardError, memory_limit
from im2sp.shards.files import parse_json
from im2sp.shards.layouts.arrow import WriteBatch, read_stream
from im2sp.shards.layouts.shard_info import BatchInfo
from im2sp.shards.layouts.sink import Sink
from im2sp.shards.schema import (
    Schema,
    batch_of_rows,
    compact_json,
    schema_of_arrow,
    schema_of_note,
)

BLOCK = 512
_STEM = re.compile(r"[0-9]{9,}")


@contextmanager
def packed_tar(sink: Sink, schema: Schema) -> Generator[WriteBatch]:
    """Open a tar with one member per batch; the range of a batch is its member's content."""
    first_row = 0

    def write(batch: pa.RecordBatch) -> BatchInfo:
        nonlocal first_row
        stream = pa.BufferOutputStream()
        with ipc.new_stream(stream, schema.arrow) as writer:
            writer.write_batch(batch)
        content = stream.getvalue().to_pybytes()
        offset = _write_member(sink, f"{first_row:09d}.arrow", content)
        first_row += batch.num_rows
        return sink.range_info(offset, len(content), batch.num_rows)

    yield write
    sink.write(bytes(2 * BLOCK))


@contextmanager
def plain_tar(sink: Sink, schema: Schema) -> Generator[WriteBatch]:
    """Open a tar with members for each sample; the range of a batch is its samples' members."""
    number = 0

    def write(batch: pa.RecordBatch) -> BatchInfo:
        nonlocal number
        start = sink.tell()
        for row in batch.to_pylist():
            for member, content in _members_of_row(row, schema).items():
                _write_member(sink, f"{number:09d}.{member}", content)
            number += 1
        return sink.range_info(start, sink.tell() - start, batch.num_rows)

    yield write
    sink.write(bytes(2 * BLOCK))


def read_packed(data: pa.Buffer, schema: Schema) -> pa.RecordBatch:
    """The record batch of a packed member's content; its buffers point into `data`."""
    found, batch = read_stream(data)
    if not found.equals(schema.arrow, check_metadata=True):
        raise ShardError("the member's Arrow schema differs from that in dataset.json")
    return batch


def read_plain(data: pa.Buffer, schema: Schema) -> pa.RecordBatch:
    """The record batch of a run of plain members."""
    rows: list[dict[str, Any]] = []
    members: dict[str, bytes] = {}
    stem = ""
    for name, content in _read_members(data):
        member_stem, _, member = name.partition(".")
        if members and member_stem != stem:
            rows.append(row_of_members(stem, members, schema))
            members = {}
        if member in members or not _STEM.fullmatch(member_stem):
            raise ShardError(f"tar member {name!r}: expected each NNNNNNNNN.COLUMN once")
        stem = member_stem
        members[member] = content
    rows.append(row_of_members(stem, members, schema))
    return _batch_of_rows(rows, schema, data.size)


def _batch_of_rows(rows: list[dict[str, Any]], schema: Schema, size_bytes: int) -> pa.RecordBatch:
    """Build a record batch; absent values of a fixed size take as much memory as present ones."""
    width = sum(schema.size_bytes(name) or 0 for name in schema.columns)
    if len(rows) * width > memory_limit(size_bytes):
        raise ShardError(
            f"{len(rows)} samples of {width} bytes each in {size_bytes} bytes; they would take more"
            f" than {memory_limit(size_bytes)} bytes of memory"
        )
    return batch_of_rows(rows, schema.arrow)


def batch_of_sample(
    stem: str, members: Mapping[str, Any], schema: Schema | None
) -> tuple[pa.RecordBatch, Schema]:
    """The record batch of a sample as read by the webdataset library, and its schema.

    Args:
        stem: Name of the member, for messages.
        members: Bytes by member suffix.
        schema: The schema; None for that in the member, without tables.

    Raises:
        ShardError: im2sp did not write it, or it is damaged.
    """
    if "arrow" in members:
        found, batch = read_stream(pa.py_buffer(members["arrow"]))
        schema = schema or schema_of_arrow(found)
        if not found.equals(schema.arrow):
            raise ShardError("its Arrow schema is not that of the format")
        return batch, schema
    if "json" not in members:
        raise ShardError("neither .arrow nor .json in it, so im2sp did not write it")
    row, schema = row_of_sample(stem, members, schema)
    size_bytes = sum(len(content) for content in members.values() if isinstance(content, bytes))
    return _batch_of_rows([row], schema, size_bytes), schema


def row_of_sample(
    stem: str, members: Mapping[str, Any], schema: Schema | None = None
) -> tuple[dict[str, Any], Schema]:
    """The row of a plain sample as read by the webdataset library, and its schema.

    Raises:
        ShardError: A member is missing or wrong.
    """
    schema = schema or schema_of_note(_load_json(stem, members["json"]).get("format"))
    ours = {name: members[name] for name in ("json", *schema.columns) if name in members}
    return row_of_members(stem, ours, schema), schema


def _is_member(name: str, schema: Schema) -> bool:
    """True for columns that are members; others are in the `.json`."""
    return name in schema.columns and (
        isinstance(schema.columns[name], UnitColumn) or schema.columns[name] == "bytes"
    )


def _members_of_row(row: Mapping[str, Any], schema: Schema) -> dict[str, bytes]:
    """Contents of the members of one sample by suffix, in the order of the suffixes."""
    info: dict[str, Any] = {"format": schema.note}
    members: dict[str, bytes] = {}
    for name, value in row.items():
        if not _is_member(name, schema):
            info[name] = value
        elif isinstance(value, list):
            arrays = cast(list[bytes], value)
            info[name + SIZES_SUFFIX] = [len(data) for data in arrays]
            if arrays or schema.version > 1:
                members[name] = b"".join(arrays)
        elif value is not None:
            members[name] = value
        elif _is_many(name, schema):
            info[name + SIZES_SUFFIX] = None
            if schema.version > 1:
                members[name] = b""
    members["json"] = compact_json(info).encode()
    return dict(sorted(members.items()))


def _is_many(name: str, schema: Schema) -> bool:
    column = schema.columns[name]
    return isinstance(column, UnitColumn) and column.many


def row_of_members(stem: str, members: Mapping[str, bytes], schema: Schema) -> dict[str, Any]:
    """The checked inverse of `_members_of_row`."""
    known = ["json", *(name for name in schema.columns if _is_member(name, schema))]
    if "json" not in members or set(members) - set(known):
        raise ShardError(f"sample {stem}: members {sorted(members)}; expected {sorted(known)}")
    info = _load_json(stem, members["json"])
    if info.get("format") != schema.note:
        raise ShardError(f"sample {stem}: its format note differs from that in dataset.json")
    row: dict[str, Any] = {}
    for name in schema.arrow.names:
        if not _is_member(name, schema):
            row[name] = _own_value(stem, name, info.get(name), schema)
            continue
        data = members.get(name)
        if not _is_many(name, schema):
            row[name] = data
            continue
        sizes = info.get(name + SIZES_SUFFIX)
        is_null = sizes is None and schema.is_nullable(name)
        row[name] = None if is_null else _cut(stem, name, data or b"", sizes)
    for name, size_bytes in ((name, schema.size_bytes(name)) for name in schema.columns):
        if size_bytes is not None and row[name] is not None and len(row[name]) != size_bytes:
            raise ShardError(
                f"sample {stem}: {name} has {len(row[name])} bytes, expected {size_bytes}"
            )
    return row


def _own_value(stem: str, name: str, value: Any, schema: Schema) -> Any:
    if value is None and schema.is_nullable(name):
        return None
    kind = BUILT_IN.get(name) or cast(str, schema.columns[name])
    try:
        return checked_value(kind, value)
    except ShardError as error:
        raise ShardError(f"sample {stem}: {name} of its .json is {error}") from None


def _load_json(stem: str, data: object) -> dict[str, Any]:
    """The object in a .json member; the webdataset library may have parsed it already."""
    if isinstance(data, bytes):
        try:
            data = parse_json(data)
        except ValueError as error:
            raise ShardError(f"sample {stem}: its .json is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ShardError(f"sample {stem}: its .json holds no object")
    return cast(dict[str, Any], data)


def _cut(stem: str, name: str, data: bytes, sizes: object) -> list[bytes]:
    """Split the concatenated arrays."""
    numbers = cast(list[Any], sizes) if isinstance(sizes, list) else [-1]
    if not all(type(n) is int and n >= 0 for n in numbers) or sum(numbers) != len(data):
        raise ShardError(f"sample {stem}: {name}_sizes do not add up to the member's {len(data)}")
    check_items(len(numbers))
    return [data[start:end] for start, end in pairwise(accumulate(numbers, initial=0))]


def _write_member(sink: Sink, name: str, content: bytes) -> int:
    """Write a tar member; return the offset of its content."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o644
    sink.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = sink.tell()
    sink.write(content)
    sink.write(bytes(-len(content) % BLOCK))
    return offset


@dataclass(frozen=True, kw_only=True)
class Member:
    """Position of a tar member: `size_bytes` of content at `offset`, padded to whole blocks."""

    name: str
    offset: int
    size_bytes: int

    @property
    def padded_size_bytes(self) -> int:
        """Size of the content with its padding."""
        return self.size_bytes + -self.size_bytes % BLOCK


def list_members(data: pa.Buffer) -> list[Member]:
    """The tar members in a range, up to its end or to a tar's final zero block.

    Raises:
        ShardError: The range contains anything but plain files, or a member is truncated.
    """
    raw = memoryview(data)
    members: list[Member] = []
    position = 0
    while position < len(raw):
        block = bytes(raw[position : position + BLOCK])
        if block == bytes(BLOCK):
            break
        try:
            header = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise ShardError(f"no tar header at byte {position} of the range: {error}") from None
        position += BLOCK
        member = Member(name=header.name, offset=position, size_bytes=header.size)
        position += member.padded_size_bytes
        if header.type != tarfile.REGTYPE or header.size < 0 or position > len(raw):
            raise ShardError(f"tar member {header.name!r}: not a plain file, or truncated")
        members.append(member)
    return members


def _read_members(data: pa.Buffer) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the tar members in a range."""
    raw = memoryview(data)
    for member in list_members(data):
        yield member.name, bytes(raw[member.offset : member.offset + member.size_bytes])
