"""`codebook.safetensors`: vectors of units and tables of coded columns, next to the shards."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.errors import ShardError
from im2sp.shards.files import atomic_file, read_regular
from im2sp.shards.manifest import ADVICE, Manifest
from im2sp.shards.stores.copies import DatasetFiles

CODEBOOK_NAME = "codebook.safetensors"
_TENSOR = "codebook"


def codebook_name(column: str) -> str:
    """Name of the tensor with the vectors of a column's units."""
    return _TENSOR if column == "image_units" else f"{column}.{_TENSOR}"


def write_codebook(dataset_dir: str | Path, codebook: ArrayLike) -> str:
    """Write the (rows, width) vectors of the image units as float32.

    Returns:
        sha256 of the file in hex, for `image_tokenizer["codebook_sha256"]` of the manifest.
    """
    array = np.ascontiguousarray(codebook, np.float32)
    if array.ndim != 2:
        raise ShardError(f"codebook has shape {array.shape}; expected (rows, width)")
    data = tensors_to_bytes({_TENSOR: array})
    with atomic_file(Path(dataset_dir) / CODEBOOK_NAME) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def tensors_to_bytes(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Content of the file."""
    return safetensors.numpy.save({name: np.ascontiguousarray(t) for name, t in tensors.items()})


def parse_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Undo `tensors_to_bytes`; raises `ShardError` if the bytes are damaged."""
    try:
        return safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"not a safetensors file: {error}") from None


def read_tensors(path: Path, sha256: str) -> dict[str, NDArray[Any]]:
    """Read and check all tensors.

    Raises:
        ShardError: The file is missing or not the one that the manifest names, or a codebook is
            not (rows, width) float32.
    """
    try:
        data = read_regular(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ShardError(f"{path}: missing, dataset.json lists it; {ADVICE}") from None
    except OSError as error:
        raise ShardError(f"{path}: {error.strerror}; {ADVICE}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ShardError(f"{path}: sha256 {found} != {sha256} in dataset.json; {ADVICE}")
    try:
        tensors = parse_tensors(data)
    except ShardError as error:
        raise ShardError(f"{path}: {error}; {ADVICE}") from None
    for name, tensor in tensors.items():
        if _is_codebook(name) and (tensor.dtype != np.float32 or tensor.ndim != 2):
            raise ShardError(
                f"{path}: {name} is {tensor.dtype} of shape {tensor.shape}; expected float32 "
                "(rows, width)"
            )
    return tensors


def table_bytes(files: DatasetFiles, manifest: Manifest) -> int:
    """Bytes of the coding tables in the file, without those of the image units.

    The latter count as part of the codebook: like it, they do not grow with the dataset and most
    often come with the tokenizer.

    Raises:
        ShardError: The file is missing or damaged.
    """
    name, sha256 = manifest.codebook_file, manifest.codebook_sha256
    if manifest.format_version == 1 or name is None or sha256 is None:
        return 0
    tensors = read_tensors(files.local(name), sha256)
    return sum(
        tensor.nbytes
        for name, tensor in tensors.items()
        if not _is_codebook(name) and not name.startswith("image_units.")
    )


def _is_codebook(name: str) -> bool:
    return name.rpartition(".")[2] == _TENSOR
