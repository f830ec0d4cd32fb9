"""Arrow shards: IPC files whose record batch messages are read in place by byte range."""

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
    """The record batch of one IPC message; its buffers point into `data`."""
    return parse_arrow(lambda: ipc.read_record_batch(data, schema.arrow))


def parse_arrow(read: Callable[[], pa.RecordBatch]) -> pa.RecordBatch:
    """Call `read` and validate the result: offsets inside buffers, valid UTF-8.

    Raises:
        ShardError: Arrow rejects the bytes.
    """
    try:
        batch = read()
        batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise ShardError(f"not a sound Arrow record batch: {error}") from None
    return batch
