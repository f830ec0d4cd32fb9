"""The shard format: packing, schema, manifest, writers, readers, verification.

`docs/FORMAT.md` is the normative text. Names are imported on first use, so importing this
package is nearly free; only the loader's names import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from im2sp.shards.codebook import CODEBOOK_NAME, write_codebook
    from im2sp.shards.coding.huffman_fit import fit_durations_codec, fit_speech_codec
    from im2sp.shards.coding.packing import deduplicate, pack_units, unpack_units
    from im2sp.shards.columns.units import UnitColumn
    from im2sp.shards.dataset import ShardDataset
    from im2sp.shards.errors import ShardError
    from im2sp.shards.layouts.shard_info import BatchInfo, Layout, ShardInfo
    from im2sp.shards.loader import LoaderBatch, ShardLoader, unpack_units_on_device
    from im2sp.shards.loader.mixture import check_columns
    from im2sp.shards.manifest import MANIFEST_NAME, REJECTS_NAME, Manifest
    from im2sp.shards.rows import datasets_transform, decode_row, expand_members
    from im2sp.shards.schema import ARROW_SCHEMA, DEFAULT_COLUMNS, Sample, encode_batch
    from im2sp.shards.verify import Problem, verify_dataset
    from im2sp.shards.writing.dataset_writer import DatasetWriter, fit_tables
    from im2sp.shards.writing.edit import concatenate, filter_samples, split_samples
    from im2sp.shards.writing.parts import join_parts
    from im2sp.shards.writing.shard_file import write_shard

__all__ = [
    "ARROW_SCHEMA",
    "CODEBOOK_NAME",
    "DEFAULT_COLUMNS",
    "MANIFEST_NAME",
    "REJECTS_NAME",
    "BatchInfo",
    "DatasetWriter",
    "Layout",
    "LoaderBatch",
    "Manifest",
    "Problem",
    "Sample",
    "ShardDataset",
    "ShardError",
    "ShardInfo",
    "ShardLoader",
    "UnitColumn",
    "check_columns",
    "concatenate",
    "datasets_transform",
    "decode_row",
    "deduplicate",
    "encode_batch",
    "expand_members",
    "filter_samples",
    "fit_durations_codec",
    "fit_speech_codec",
    "fit_tables",
    "join_parts",
    "pack_units",
    "split_samples",
    "unpack_units",
    "unpack_units_on_device",
    "verify_dataset",
    "write_codebook",
    "write_shard",
]

_NAMES = {
    "codebook": ("CODEBOOK_NAME", "write_codebook"),
    "dataset": ("ShardDataset",),
    "errors": ("ShardError",),
    "coding.huffman_fit": ("fit_durations_codec", "fit_speech_codec"),
    "loader": ("LoaderBatch", "ShardLoader", "unpack_units_on_device"),
    "loader.mixture": ("check_columns",),
    "layouts.shard_info": ("BatchInfo", "Layout", "ShardInfo"),
    "manifest": ("MANIFEST_NAME", "Manifest", "REJECTS_NAME"),
    "columns.units": ("UnitColumn",),
    "coding.packing": ("deduplicate", "pack_units", "unpack_units"),
    "schema": ("ARROW_SCHEMA", "DEFAULT_COLUMNS", "Sample", "encode_batch"),
    "verify": ("Problem", "verify_dataset"),
    "rows": ("datasets_transform", "decode_row", "expand_members"),
    "writing.dataset_writer": ("DatasetWriter", "fit_tables"),
    "writing.edit": ("concatenate", "filter_samples", "split_samples"),
    "writing.parts": ("join_parts",),
    "writing.shard_file": ("write_shard",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOMES:
        return getattr(import_module(f"im2sp.shards.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
