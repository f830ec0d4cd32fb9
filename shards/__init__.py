"""The shard format: packing, schema, manifest, writers, readers, verification.

`docs/FORMAT.md` is the normative text. Importing this does not import torch.
"""

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

__all__ = [
    "ARROW_SCHEMA",
    "CODEBOOK_NAME",
    "DEFAULT_COLUMNS",
    "MANIFEST_NAME",
    "REJECTS_NAME",
    "BatchInfo",
    "Layout",
    "Manifest",
    "Problem",
    "Sample",
    "ShardDataset",
    "ShardError",
    "ShardInfo",
    "deduplicate",
    "encode_batch",
    "expand_members",
    "fit_durations_codec",
    "fit_speech_codec",
    "pack_units",
    "unpack_units",
    "verify_dataset",
    "write_codebook",
    "write_shard",
]
