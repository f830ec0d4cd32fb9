import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Sample,
    ShardDataset,
    ShardError,
    ShardLoader,
    encode_batch,
    expand_members,
    verify_dataset,
)
from im2sp.shards.layouts.arrow import read_message, read_stream
from im2sp.shards.schema import Schema
from support.crafted import craft, craft_packed

DEFAULT = Schema(1, DEFAULT_COLUMNS)
new_stream: Any = ipc.new_stream  # the stubs lack its options


def stream_of(batch: pa.RecordBatch, num: int = 1, compression: str | None = None) -> bytes:
    """An Arrow stream with a batch `num` times."""
    sink = pa.BufferOutputStream()
    options = ipc.IpcWriteOptions(compression=compression)
    with new_stream(sink, batch.schema, options=options) as writer:
        for _ in range(num):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def message_of(batch: pa.RecordBatch, compression: str | None = None) -> bytes:
    """The message of a record batch."""
    stream = stream_of(batch, 1, compression)
    return stream[8 + int.from_bytes(stream[4:8], "little") : -8]


@pytest.fixture
def batch() -> pa.RecordBatch:
    """Two samples; one has a caption of 8 MiB that compresses to some KB."""
    return encode_batch([Sample(key="a", captions=["a" * (1 << 23)]), Sample(key="b")])


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
@pytest.mark.parametrize("layout", ["arrow", "packed"])
def test_compressed_bodies_are_refused_before_they_are_expanded(
    tmp_path: Path, batch: pa.RecordBatch, compression: str, layout: str
) -> None:
    message, stream = message_of(batch, compression), stream_of(batch, 1, compression)
    assert len(message) < 100_000
    if layout == "arrow":
        craft(tmp_path, message, [(0, len(message), 2)])
    else:
        craft_packed(tmp_path, [stream], 2)
    text = "a compressed Arrow record batch; the format has uncompressed ones only"
    num_before = pa.total_allocated_bytes()
    tracemalloc.start()
    with pytest.raises(ShardError, match=rf"bytes \d+ to \d+: {text}; copy the file again"):
        ShardDataset(tmp_path)[0]
    with pytest.raises(ShardError, match=text):
        ShardLoader(tmp_path, batch_size=1, target="text")
    assert any(text in problem.found for problem in verify_dataset(tmp_path))
    with pytest.raises(ShardError, match=text):
        list(expand_members([{"__key__": "000000000", "arrow": stream}]))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pa.total_allocated_bytes() - num_before + peak_bytes < 4_000_000


def test_the_mark_of_compression_in_old_arrow_files(batch: pa.RecordBatch) -> None:
    sink = pa.BufferOutputStream()
    with new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    with pytest.raises(ShardError, match="a compressed Arrow record batch"):
        read_stream(sink.getvalue())


def test_other_messages_than_a_record_batch(batch: pa.RecordBatch) -> None:
    arrow: Any = batch.schema
    with pytest.raises(ShardError, match="an Arrow schema, expected a record batch"):
        read_message(arrow.serialize(), DEFAULT)
    for size in range(1, 600, 7):
        with pytest.raises(ShardError, match="not a sound Arrow record batch|expected a record"):
            read_message(pa.py_buffer(message_of(batch)[:size]), DEFAULT)
        with pytest.raises(ShardError, match="not an Arrow stream"):
            read_stream(pa.py_buffer(stream_of(batch)[:size]))


def test_a_member_without_record_batch_does_not_end_the_dataset_early(tmp_path: Path) -> None:
    first, last = (
        encode_batch([Sample(key=f"{name}{i}") for i in range(2)]) for name in ("a", "b")
    )
    craft_packed(tmp_path, [stream_of(first), stream_of(first, 0), stream_of(last)], 2)
    dataset = ShardDataset(tmp_path)
    text = "not an Arrow stream: it ends without a record batch"
    with pytest.raises(ShardError, match=rf"00000\.tar: bytes \d+ to \d+: {text}"):
        list(map(dataset.__getitem__, range(len(dataset))))
    assert [problem.found for problem in verify_dataset(tmp_path)] == [text]
    with pytest.raises(ShardError, match=text):
        list(expand_members([{"__key__": "0", "arrow": stream_of(first, 0)}]))
