"""WebDataset shards: tar files whose members hold many samples each, or plain files per sample.

The tar is minimal: ustar headers, no extensions, time, owner and group 0, mode 0644.

Packed: member `000000256.arrow` is an Arrow IPC stream of one record batch, named by the number
of its first sample in the shard. Plain: sample 42 is up to four members, sorted by name:

    000000042.durations      all utterances' coded durations, concatenated
    000000042.image_units    the packed image units
    000000042.json           key, split, captions, sizes of the coded utterances, the codecs
    000000042.speech_units   all utterances' coded units, concatenated
"""

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, cast

import pyarrow as pa
from pyarrow import ipc

from im2sp.shards.coding import make_codecs
from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.arrow import parse_arrow
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.layouts.sink import Sink
from im2sp.shards.manifest import BatchInfo
from im2sp.shards.schema import (
    RawRow,
    arrow_schema,
    batch_of_rows,
    columns_of_note,
    columns_of_schema,
    compact_json,
    note_of_schema,
    rows_of_batch,
)

BLOCK = 512
MEMBERS = ("durations", "image_units", "json", "speech_units")


def write_packed(
    sink: Sink, batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[BatchInfo]:
    """Write a tar with one member per batch; yields the byte range of each member's content."""
    first_row = 0
    for batch in batches:
        stream = pa.BufferOutputStream()
        with ipc.new_stream(stream, schema) as writer:
            writer.write_batch(batch)
        content = stream.getvalue().to_pybytes()
        offset = _write_member(sink, f"{first_row:09d}.arrow", content)
        yield sink.range_info(offset, len(content), batch.num_rows)
        first_row += batch.num_rows
    sink.write(bytes(2 * BLOCK))


def write_plain(
    sink: Sink, batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[BatchInfo]:
    """Write a tar with members for each sample; yields the byte range of each batch's members."""
    note = note_of_schema(schema)
    number = 0
    for batch in batches:
        start = sink.tell()
        for row in rows_of_batch(batch):
            for member, content in _members_of_row(row, note).items():
                _write_member(sink, f"{number:09d}.{member}", content)
            number += 1
        yield sink.range_info(start, sink.tell() - start, batch.num_rows)
    sink.write(bytes(2 * BLOCK))


def read_packed(data: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch of a packed member's content; its buffers point into `data`."""
    with _open_stream(data) as reader:
        if not reader.schema.equals(schema, check_metadata=True):
            raise ShardError("the member's Arrow schema differs from that in dataset.json")
        return parse_arrow(reader.read_next_batch)


def read_plain(data: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch of a run of plain members."""
    note = note_of_schema(schema)
    rows: list[RawRow] = []
    members: dict[str, bytes] = {}
    stem = ""
    for name, content in _read_members(data):
        member_stem, _, member = name.partition(".")
        if members and member_stem != stem:
            rows.append(_row_of_members(stem, members, note))
            members = {}
        stem = member_stem
        members[member] = content
    rows.append(_row_of_members(stem, members, note))
    return batch_of_rows(rows, schema)


def expand_members(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Convert samples read by the stock webdataset library into one dict per sample.

    >>> dataset = webdataset.WebDataset(urls).compose(expand_members)  # doctest: +SKIP

    Args:
        samples: Undecoded dicts of the library: `__key__`, and bytes by member suffix.

    Yields:
        Dicts with `__key__` (the key of the `Sample`), `__url__` if given, and the fields of
        `Sample` by name.

    Raises:
        ShardError: A member was not written by im2sp, or is damaged.
    """
    for members in samples:
        stem = str(members.get("__key__"))
        try:
            batch, columns = _batch_of_members(stem, members)
            codecs = make_codecs(columns)
            views = Batch(batch, codecs)
            decoded = [views.sample(i) for i in range(views.num_samples)]
        except ShardError as error:
            raise ShardError(f"{members.get('__url__', '')}: member {stem}: {error}") from None
        for sample in decoded:
            expanded = {"__key__": sample.key, **vars(sample)}
            if "__url__" in members:
                expanded["__url__"] = members["__url__"]
            yield expanded


def _batch_of_members(
    stem: str, members: dict[str, Any]
) -> tuple[pa.RecordBatch, dict[str, dict[str, Any]]]:
    if "arrow" in members:
        with _open_stream(pa.py_buffer(members["arrow"])) as reader:
            columns = columns_of_schema(reader.schema)
            if not reader.schema.equals(arrow_schema(columns)):
                raise ShardError("its Arrow schema is not that of the format")
            return parse_arrow(reader.read_next_batch), columns
    if "json" not in members:
        raise ShardError("neither .arrow nor .json in it, so im2sp did not write it")
    note = _load_json(stem, members["json"])
    columns = columns_of_note(note.get("format"))
    ours = {name: members[name] for name in MEMBERS if name in members}
    row = _row_of_members(stem, ours, note.get("format"))
    return batch_of_rows([row], arrow_schema(columns)), columns


def _open_stream(data: pa.Buffer) -> ipc.RecordBatchStreamReader:
    try:
        return ipc.open_stream(data)
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise ShardError(f"not an Arrow stream: {error}") from None


def _members_of_row(row: RawRow, note: dict[str, Any]) -> dict[str, bytes]:
    """Contents of the members of one sample by suffix, in the order of the suffixes."""
    durations = row.durations
    info = {
        "key": row.key,
        "split": row.split,
        "captions": row.captions,
        "speech_units_sizes": [len(data) for data in row.speech_units],
        "durations_sizes": None if durations is None else [len(data) for data in durations],
        "format": note,
    }
    members: dict[str, bytes] = {}
    if durations:
        members["durations"] = b"".join(durations)
    if row.image_units is not None:
        members["image_units"] = row.image_units
    members["json"] = compact_json(info).encode()
    if row.speech_units:
        members["speech_units"] = b"".join(row.speech_units)
    return members


def _row_of_members(stem: str, members: dict[str, bytes], note: object) -> RawRow:
    """The checked inverse of `_members_of_row`."""
    unknown = set(members) - set(MEMBERS)
    if "json" not in members or unknown:
        raise ShardError(f"sample {stem}: members {sorted(members)}; expected {MEMBERS}")
    info = _load_json(stem, members["json"])
    if info.get("format") != note:
        raise ShardError(f"sample {stem}: its format note differs from that in dataset.json")
    captions = info.get("captions")
    key, split = info.get("key"), info.get("split")
    if not (
        isinstance(key, str)
        and isinstance(split, str)
        and isinstance(captions, list)
        and all(isinstance(caption, str) for caption in cast(list[object], captions))
    ):
        raise ShardError(f"sample {stem}: key, split or captions of its .json have a wrong type")
    sizes = info.get("durations_sizes")
    return RawRow(
        key=key,
        split=split,
        image_units=members.get("image_units"),
        speech_units=_cut(
            stem, "speech_units", members.get("speech_units", b""), info.get("speech_units_sizes")
        ),
        durations=None
        if sizes is None
        else _cut(stem, "durations", members.get("durations", b""), sizes),
        captions=cast(list[str], captions),
    )


def _load_json(stem: str, data: object) -> dict[str, Any]:
    """The object in a .json member; the webdataset library may have parsed it already."""
    if isinstance(data, bytes):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"sample {stem}: its .json is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ShardError(f"sample {stem}: its .json holds no object")
    return cast(dict[str, Any], data)


def _cut(stem: str, name: str, data: bytes, sizes: object) -> list[bytes]:
    """Split the concatenated utterances."""
    numbers = cast(list[Any], sizes) if isinstance(sizes, list) else [-1]
    if not all(type(n) is int and n >= 0 for n in numbers) or sum(numbers) != len(data):
        raise ShardError(f"sample {stem}: {name}_sizes do not add up to the member's {len(data)}")
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
        if not header.isreg() or header.size < 0 or position > len(raw):
            raise ShardError(f"tar member {header.name!r}: not a plain file, or truncated")
        members.append(member)
    return members


def _read_members(data: pa.Buffer) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the tar members in a range."""
    raw = memoryview(data)
    for member in list_members(data):
        yield member.name, bytes(raw[member.offset : member.offset + member.size_bytes])
