"""The shard format: packing, schema, manifest, writers, readers, verification.

`docs/FORMAT.md` is the normative text. Importing this does not import torch; the loader's names are
imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from im2sp.shards.codebook import CODEBOOK_NAME, write_codebook
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.errors import ShardError
from im2sp.shards.huffman_fit import fit_durations_codec, fit_speech_codec
from im2sp.shards.manifest import (
    MANIFEST_NAME,
    REJECTS_NAME,
    BatchInfo,
    Layout,
    Manifest,
    ShardInfo,
)
from im2sp.shards.packing import deduplicate, pack_units, unpack_units
from im2sp.shards.schema import ARROW_SCHEMA, DEFAULT_COLUMNS, Sample, encode_batch
from im2sp.shards.verify import Problem, verify_dataset
from im2sp.shards.webdataset import expand_members
from im2sp.shards.writer import write_shard

if TYPE_CHECKING:
    from im2sp.shards.loader import LoaderBatch, ShardLoader, unpack_units_on_device

__all__ = [
    "ARROW_SCHEMA",
    "CODEBOOK_NAME",
    "DEFAULT_COLUMNS",
    "MANIFEST_NAME",
    "REJECTS_NAME",
    "BatchInfo",
    "Layout",
    "LoaderBatch",
    "Manifest",
    "Problem",
    "Sample",
    "ShardDataset",
    "ShardError",
    "ShardInfo",
    "ShardLoader",
    "deduplicate",
    "encode_batch",
    "expand_members",
    "fit_durations_codec",
    "fit_speech_codec",
    "pack_units",
    "unpack_units",
    "unpack_units_on_device",
    "verify_dataset",
    "write_codebook",
    "write_shard",
]

_LOADER_NAMES = ("LoaderBatch", "ShardLoader", "unpack_units_on_device")


def __getattr__(name: str) -> Any:
    """Import the loader, and with it torch, when one of its names is asked for."""
    if name in _LOADER_NAMES:
        return getattr(import_module("im2sp.shards.loader"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
