"""Coding of speech in a job: in its chunks, in its shards, and the tables fitted for it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from im2sp.pipeline.job.config import FITTED, PLAIN, JobError
from im2sp.shards import (
    DEFAULT_COLUMNS,
    Layout,
    fit_durations_codec,
    fit_speech_codec,
)
from im2sp.shards.coding import make_codecs
from im2sp.shards.schema import Schema, schema_of_arrow

CodedColumns = dict[str, dict[str, Any]]

MAX_FITTED_UNITS = 1024


@dataclass(frozen=True, kw_only=True)
class SpeechCoding:
    """Coding of speech in a job."""

    label: str
    """Name in the job's description: `huffman` or `plain`."""
    chunk_columns: CodedColumns
    """Codecs of the chunks stored while the job runs: plain ones."""
    columns: CodedColumns | None
    """Codecs of the shards; None if they are fitted later, to the first speech."""


def speech_coding(speech_codec: str, layout: Layout, num_units: int) -> SpeechCoding:
    """Return the coding for a job's settings and the size of its vocabulary.

    The plain layout stores its codecs in every sample, so it gets no tables.

    Args:
        speech_codec: `huffman` or `plain`.
        layout: Layout of the shards.
        num_units: Size of the speech tokenizer's vocabulary.

    Raises:
        JobError: The codec cannot hold the units.
    """
    chunk_columns = _plain_columns(num_units)
    if layout.is_plain or speech_codec == PLAIN:
        return SpeechCoding(label=PLAIN, chunk_columns=chunk_columns, columns=chunk_columns)
    if num_units > MAX_FITTED_UNITS:
        raise JobError(
            f"--speech-codec {FITTED}: codes at most {MAX_FITTED_UNITS:,} units, the speech "
            f"tokenizer has {num_units:,}; use --speech-codec {PLAIN}"
        )
    return SpeechCoding(label=FITTED, chunk_columns=chunk_columns, columns=None)


def _plain_columns(num_units: int) -> CodedColumns:
    bits = max(8, (num_units - 1).bit_length())
    return DEFAULT_COLUMNS | {"speech_units": {"codec": "packed", "bits": bits}}


def fit_columns(
    read_batches: Callable[[], Iterable[pa.RecordBatch]], num_units: int
) -> CodedColumns:
    """Return codecs fitted to batches; the result depends only on the batches.

    Args:
        read_batches: Returns the batches, one at a time; called once per column.
        num_units: Size of the vocabulary.
    """
    return DEFAULT_COLUMNS | {
        "speech_units": fit_speech_codec(_values(read_batches(), "speech_units"), num_units),
        "durations": fit_durations_codec(_values(read_batches(), "durations")),
    }


def _values(batches: Iterable[pa.RecordBatch], column: str) -> Iterator[np.ndarray]:
    for batch in batches:
        codec = getattr(make_codecs(schema_of_arrow(batch.schema).entries), column)
        for values in batch.column(column).to_pylist():
            for value in values or []:
                yield codec.decode(np.frombuffer(value, np.uint8))


def recode(batch: pa.RecordBatch, columns: CodedColumns) -> pa.RecordBatch:
    """Return the same samples with other codecs for speech."""
    before = schema_of_arrow(batch.schema).entries
    if before == columns:
        return batch
    old, new, schema = make_codecs(before), make_codecs(columns), Schema(1, columns).arrow
    arrays = {name: batch.column(name) for name in batch.schema.names}
    for name in ("speech_units", "durations"):
        decode, encode = getattr(old, name).decode, getattr(new, name).encode
        recoded = [
            None
            if values is None
            else [encode(decode(np.frombuffer(value, np.uint8))) for value in values]
            for values in batch.column(name).to_pylist()
        ]
        arrays[name] = pa.array(recoded, type=schema.field(name).type)
    return pa.RecordBatch.from_arrays(list(arrays.values()), schema=schema)
