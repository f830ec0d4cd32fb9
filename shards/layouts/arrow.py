"""Arrow shards: IPC files whose record batch messages are read in place by byte range."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
from pyarrow import ipc

from im2sp.shards.errors import ShardError
from im2sp.shards.layouts.sink import Sink
from im2sp.shards.manifest import BatchInfo


def write_arrow(
    sink: Sink, batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[BatchInfo]:
    """Write an Arrow IPC file; yields the byte range of each batch's message."""
    with pa.PythonFile(sink, "w") as file, ipc.new_file(file, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            # The first call writes the schema before the message, so count from the end.
            size_bytes = ipc.get_record_batch_size(batch)
            yield sink.range_info(sink.tell() - size_bytes, size_bytes, batch.num_rows)


def read_message(data: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """The record batch of one IPC message; its buffers point into `data`."""
    return parse_arrow(lambda: ipc.read_record_batch(data, schema))


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
