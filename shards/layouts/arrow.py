"""Arrow shards: IPC files whose record batch messages are read in place by byte range."""

import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pyarrow as pa
from pyarrow import ipc

from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.shard_info import BatchInfo
from im2sp.shards.layouts.sink import Sink
from im2sp.shards.schema import Schema

WriteBatch = Callable[[pa.RecordBatch], BatchInfo]
"""Write a batch to an open shard; returns its byte range."""


@contextmanager
def arrow_file(sink: Sink, schema: Schema) -> Generator[WriteBatch]:
    """Open an Arrow IPC file; the range of a batch is its message."""
    with pa.PythonFile(sink, "w") as file, ipc.new_file(file, schema.arrow) as writer:

        def write(batch: pa.RecordBatch) -> BatchInfo:
            writer.write_batch(batch)
            # The first call writes the schema before the message, so count from the end.
            size_bytes = ipc.get_record_batch_size(batch)
            return sink.range_info(sink.tell() - size_bytes, size_bytes, batch.num_rows)

        yield write


def read_message(data: pa.Buffer, schema: Schema) -> pa.RecordBatch:
    """The record batch of one IPC message; its buffers point into `data`.

    Raises:
        ShardError: Arrow rejects the bytes, or their body is compressed.
    """
    with arrow_errors("not a sound Arrow record batch"):
        return _batch_of_message(ipc.read_message(data), schema.arrow)


def read_stream(data: pa.Buffer) -> tuple[pa.Schema, pa.RecordBatch]:
    """Schema and record batch of an IPC stream; the buffers point into `data`.

    Raises:
        ShardError: It is not a stream with a record batch, or the batch is compressed.
    """
    with arrow_errors("not an Arrow stream"):
        messages = ipc.MessageReader.open_stream(data)
        schema = ipc.read_schema(messages.read_next_message())
        return schema, _batch_of_message(messages.read_next_message(), schema)


@contextmanager
def arrow_errors(what: str) -> Generator[None]:
    """Raise Arrow's exceptions as `ShardError`, with `what` in front."""
    try:
        yield
    except ShardError:
        raise
    except StopIteration:
        raise ShardError(f"{what}: it ends without a record batch") from None
    except (pa.ArrowException, OSError, ValueError, EOFError, struct.error) as error:
        raise ShardError(f"{what}: {error}") from None


def _batch_of_message(message: ipc.Message, schema: pa.Schema) -> pa.RecordBatch:
    """Read and validate: offsets inside buffers, valid UTF-8.

    A compressed body is refused before it is read, as it may expand to any size.
    """
    if message.type != "record batch":
        raise ShardError(f"an Arrow {message.type}, expected a record batch")
    if is_compressed(message):
        raise ShardError("a compressed Arrow record batch; the format has uncompressed ones only")
    batch = ipc.read_record_batch(message, schema)
    batch.validate(full=True)
    return batch


def is_compressed(message: ipc.Message) -> bool:
    """True if the body of a record batch or dictionary is compressed, which Arrow expands unasked.

    Arrow has verified the metadata, a flatbuffer: a `Message` whose field 2 is a `RecordBatch`, or
    a `DictionaryBatch` whose field 1 is one. Field 3 of a `RecordBatch` is the compression.
    """
    metadata = message.metadata.to_pybytes()
    batch = _table(metadata, _field(metadata, _table(metadata, 0), 2))
    if message.type == "dictionary":
        batch = _table(metadata, _field(metadata, batch, 1))
    return _field(metadata, batch, 3) != batch or b"ARROW:experimental_compression" in metadata


def _table(metadata: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", metadata, place)[0]


def _field(metadata: bytes, table: int, number: int) -> int:
    """Position of a field of a flatbuffer's table; that of the table if the field is absent."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    (size_bytes,) = struct.unpack_from("<H", metadata, vtable)
    if 4 + 2 * number >= size_bytes:
        return table
    return table + struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)[0]
