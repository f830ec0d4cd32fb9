"""Columns of the dataset that a job writes, and their coding."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from im2sp.pipeline.job.config import FITTED, PLAIN, JobError
from im2sp.shards import Layout, UnitColumn, fit_tables
from im2sp.shards.codebook import parse_tensors
from im2sp.shards.coding.grid_tables import MAX_CODES
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.schema import Schema, entries_of

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer

Columns = Mapping[str, UnitColumn]

IMAGE_SHAPE = (28, 28)
MAX_FITTED_UNITS = 1024
_NUM_DURATIONS = 65536
_IMAGE_TABLES = {
    "compact": Path(__file__).parents[1] / "image_tokenizer" / "compact_tables.safetensors"
}
_MIN_FITTED_IMAGES = 2000
_MIN_SAVED_BYTES = 300  # of the 1,274 bytes of an image


def image_tables(name: str) -> dict[str, Any]:
    """Return the coding tables bundled with an image tokenizer; empty if it has none."""
    path = _IMAGE_TABLES.get(name)
    if path is None:
        return {}
    tables = parse_tensors(path.read_bytes())
    return {f"image_units.{name}": tensor for name, tensor in tables.items()}


def image_coding(
    image_codec: str, layout: Layout, image_tokenizer: "ImageTokenizer", num_images: int | None
) -> str:
    """Return the coding of image units in the shards: `huffman` or `plain`.

    Few images get plain codes, since the tables would be larger than what they save.

    Args:
        image_codec: `huffman` or `plain`.
        layout: Layout of the shards; the plain one has no tables in its shards.
        image_tokenizer: The image tokenizer.
        num_images: Images in the source; None for many.
    """
    if layout.is_plain or image_codec == PLAIN or image_tokenizer.num_codes > MAX_CODES:
        return PLAIN
    if num_images is None:
        return FITTED
    tables = image_tables(image_tokenizer.name)
    if not tables:
        return FITTED if num_images >= _MIN_FITTED_IMAGES else PLAIN
    size_bytes = sum(table.nbytes for table in tables.values())
    return FITTED if num_images * _MIN_SAVED_BYTES >= size_bytes else PLAIN


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
    image_coding: str | None,
    coding: str | None,
) -> dict[str, UnitColumn]:
    """Return the columns for a job's tokenizers and the codings of images and speech."""
    columns: dict[str, UnitColumn] = {}
    if image_tokenizer is not None:
        columns["image_units"] = UnitColumn(
            IMAGE_SHAPE,
            image_tokenizer.num_codes,
            coding="coded" if image_coding == FITTED else "packed",
        )
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
        columns: Coded columns.
        batches: Samples, one chunk at a time.
        schema: Schema of the batches.
    """

    def rows() -> Iterable[dict[str, Any]]:
        for batch in batches:
            views = Batch(batch, schema)
            for i in range(views.num_samples):
                row = views.row(i)
                yield schema.decode_row({name: row[name] for name in ("key", *columns)})

    return fit_tables(columns, rows())


def schema_of(columns: Columns) -> Schema:
    """Return the schema of columns without coding tables."""
    return Schema(2, entries_of(columns))
