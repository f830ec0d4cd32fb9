"""`codebook.safetensors`: the vectors of the image units, stored next to the shards."""

import hashlib
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.errors import ShardError
from im2sp.shards.files import atomic_file
from im2sp.shards.manifest import ADVICE

CODEBOOK_NAME = "codebook.safetensors"
_TENSOR = "codebook"


def write_codebook(dataset_dir: str | Path, codebook: ArrayLike) -> str:
    """Write (rows, width) vectors as float32.

    Returns:
        sha256 of the file in hex, for `image_tokenizer["codebook_sha256"]` of the manifest.
    """
    array = np.ascontiguousarray(codebook, np.float32)
    if array.ndim != 2:
        raise ShardError(f"codebook has shape {array.shape}; expected (rows, width)")
    data = safetensors.numpy.save({_TENSOR: array})
    with atomic_file(Path(dataset_dir) / CODEBOOK_NAME) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def read_codebook(path: Path, sha256: str) -> NDArray[np.float32]:
    """Read and check the (rows, width) float32 vectors.

    Raises:
        ShardError: The file is missing or not the one that the manifest names.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ShardError(f"{path}: missing, dataset.json lists it; {ADVICE}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ShardError(f"{path}: sha256 {found} != {sha256} in dataset.json; {ADVICE}")
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not a safetensors file: {error}; {ADVICE}") from None
    codebook = tensors.get(_TENSOR)
    if codebook is None or codebook.dtype != np.float32 or codebook.ndim != 2:
        raise ShardError(
            f'{path}: holds {sorted(tensors)}; expected "{_TENSOR}", float32 (rows, width)'
        )
    return codebook
