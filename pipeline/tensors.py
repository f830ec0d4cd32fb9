"""Tensors of weights files: reading, checks, precision and fingerprints.

`shards/weights/__init__.py` reads the files themselves.
"""

import hashlib
import json
import math
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from im2sp.shards import weights as weight_files
from im2sp.shards.weights import describe
from im2sp.shards.weights.pickles import WeightsError
from im2sp.shards.weights.rebuild import BFLOAT16

__all__ = [
    "DTYPES",
    "Precision",
    "Weights",
    "as_tensor",
    "check_precision",
    "checked_tensor",
    "describe",
    "finite_float32",
    "float32_products",
    "read_weights",
    "state_fingerprint",
    "tensors_fingerprint",
]

Precision = Literal["fp32", "tf32", "bf16"]
DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
}


def check_precision(precision: str, device: torch.device | None = None) -> None:
    """Refuse an unknown precision, and TF32 on a device other than a GPU.

    Raises:
        ValueError: `precision` is not a key of `DTYPES`, or the device does not support it.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r}, expected one of {', '.join(DTYPES)}")
    if precision == "tf32" and device is not None and device.type != "cuda":
        raise ValueError(f"precision 'tf32' needs a CUDA device, found {device.type}")


@contextmanager
def float32_products(precision: str, device: torch.device) -> Generator[None]:
    """Compute float32 products and convolutions on a GPU in TF32 if `precision` is "tf32".

    For any other precision they are exact to float32, whatever torch's defaults are.
    """
    if device.type != "cuda":
        yield
        return
    convolutions = torch.backends.cudnn.conv  # pyright: ignore[reportAttributeAccessIssue]
    backends = (torch.backends.cuda.matmul, convolutions)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


class Weights(weight_files.Weights):
    """Content of a weights file, with tensors."""

    def tensors(self, content: Any = None) -> dict[str, Tensor]:
        """See `weight_files.Weights.arrays`."""
        return {name: as_tensor(array) for name, array in self.arrays(content).items()}


def as_tensor(array: np.ndarray) -> Tensor:
    """View an array as a tensor that shares its memory.

    Duplicated in `trainer/weights.py`: trainer may not import pipeline, and shards may not import
    torch.
    """
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def read_weights(path: str | Path) -> Weights:
    """Read a weights file of any known form.

    Raises:
        WeightsError: One line: the file is missing, of no known form or damaged, or holds objects
            other than data.
    """
    return Weights(**vars(weight_files.read_weights(path)))


def checked_tensor(
    path: Path, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], *, what: str
) -> Tensor:
    """Return a tensor of a model as contiguous float32 on the CPU.

    Args:
        path: The file, for messages.
        tensors: All tensors of the model.
        name: Name of the tensor.
        shape: Shape that it must have.
        what: The kind of model, for messages, such as "a HuBERT".

    Raises:
        WeightsError: The tensor is missing, has another shape, or holds values that are not real
            or not finite.
    """
    if name not in tensors:
        raise WeightsError(f"{path}: lacks {name} of {what}")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape or 0 in shape or not tensor.is_floating_point():
        raise WeightsError(
            f"{path}: {name} is {tensor.dtype} of shape {list(tensor.shape)}, expected numbers of"
            f" shape {list(shape)}"
        )
    return finite_float32(tensor, f"{path}: {name}")


def finite_float32(tensor: Tensor, where: str) -> Tensor:
    """Return the tensor as contiguous float32 on the CPU.

    Raises:
        WeightsError: It holds NaN or infinity; the message starts with `where`.
    """
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    # One pass without a temporary: NaN and infinity propagate to the minimum or maximum.
    if tensor.numel() and not all(map(math.isfinite, map(float, tensor.aminmax()))):
        raise WeightsError(f"{where} holds values that are not finite")
    return tensor


def tensors_fingerprint(settings: Mapping[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 (hex) of settings, and of tensors as float32, sorted by name."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(values.reshape(-1).astype("<f4", copy=False).data)
    return digest.hexdigest()


def state_fingerprint(module: nn.Module) -> str:
    """sha256 (hex) of the names and values of a module's tensors, each in its own dtype."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
