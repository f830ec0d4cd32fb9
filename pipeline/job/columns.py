"""Columns of the dataset that a job writes, and the coding of its speech."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from im2sp.pipeline.job.config import FITTED, PLAIN, JobError
from im2sp.shards import Layout, UnitColumn, fit_tables
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.schema import Schema, entries_of

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer

Columns = Mapping[str, UnitColumn]

IMAGE_SHAPE = (28, 28)
MAX_FITTED_UNITS = 1024
_NUM_DURATIONS = 65536


def speech_coding(speech_codec: str, layout: Layout, num_units: int) -> str:
    """Return the coding of speech in the shards: `huffman` or `plain`.

    The plain layout has no tables in its shards, so it gets plain codes.

    Args:
        speech_codec: `huffman` or `plain`.
        layout: Layout of the shards.
        num_units: Size of the speech tokenizer's vocabulary.

    Raises:
        JobError: The codec cannot hold the units.
    """
    if layout.is_plain or speech_codec == PLAIN:
        return PLAIN
    if num_units > MAX_FITTED_UNITS:
        raise JobError(
            f"--speech-codec {FITTED}: codes at most {MAX_FITTED_UNITS:,} units, the speech "
            f"tokenizer has {num_units:,}; use --speech-codec {PLAIN}"
        )
    return FITTED


def columns_of_job(
    image_tokenizer: "ImageTokenizer | None",
    speech_tokenizer: "SpeechTokenizer | None",
    coding: str | None,
) -> dict[str, UnitColumn]:
    """Return the columns for a job's tokenizers and the coding of its speech."""
    columns: dict[str, UnitColumn] = {}
    if image_tokenizer is not None:
        columns["image_units"] = UnitColumn(IMAGE_SHAPE, image_tokenizer.num_codes)
    if speech_tokenizer is not None:
        codings = ("coded", "coded") if coding == FITTED else ("packed", "varint")
        for name, num_codes, how in zip(
            ("speech_units", "durations"),
            (speech_tokenizer.num_units, _NUM_DURATIONS),
            codings,
            strict=True,
        ):
            columns[name] = UnitColumn((None,), num_codes, many=True, coding=how)
    return columns


def tables_of(
    columns: Columns, batches: Iterable[pa.RecordBatch], schema: Schema
) -> dict[str, Any]:
    """Return coding tables fitted to batches; the result depends only on the batches.

    Args:
        columns: Columns of the shards.
        batches: Samples, one chunk at a time.
        schema: Schema of the batches.
    """
    coded = [name for name, column in columns.items() if column.coding == "coded"]

    def rows() -> Iterable[dict[str, Any]]:
        for batch in batches:
            views = Batch(batch, schema)
            for i in range(views.num_samples):
                row = views.row(i)
                yield schema.decode_row({name: row[name] for name in ("key", *coded)})

    return fit_tables({name: columns[name] for name in coded}, rows())


def schema_of(columns: Columns) -> Schema:
    """Return the schema of columns without coding tables."""
    return Schema(2, entries_of(columns))
