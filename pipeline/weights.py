"""Weights files of every published form as torch's tensors; see `shards/weight_files.py`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2sp.shards import weight_files
from im2sp.shards.pickles import WeightsError
from im2sp.shards.rebuild import BFLOAT16
from im2sp.shards.weight_files import describe, named_arrays

__all__ = [
    "Weights",
    "as_tensor",
    "checked_tensor",
    "describe",
    "load_pickle_tensors",
    "named_tensors",
    "read_weights",
]


class Weights(weight_files.Weights):
    """What a file holds, with tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """See `weight_files.named_arrays`.

        Raises:
            WeightsError: A module nested without end.
        """
        return {name: as_tensor(array) for name, array in self.arrays().items()}


def as_tensor(array: np.ndarray) -> Tensor:
    """The same memory as a tensor."""
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def read_weights(path: str | Path) -> Weights:
    """Read a weights file of any known form.

    Raises:
        WeightsError: One line: no such file, no known form, damaged, or it holds something that is
            not data.
    """
    return Weights(**vars(weight_files.read_weights(path)))


def named_tensors(content: Any) -> dict[str, Tensor]:
    """The tensors in a file's content; see `weight_files.named_arrays`."""
    return {name: as_tensor(array) for name, array in named_arrays(content).items()}


def load_pickle_tensors(path: str | Path) -> Any:
    """The content of a pickled weights file; see `read_weights`."""
    return read_weights(path).content


def checked_tensor(
    path: Path, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], *, what: str
) -> Tensor:
    """A tensor of a model as contiguous float32 on the CPU.

    Args:
        path: The file, for messages.
        tensors: All tensors of the model.
        name: Of the one that is wanted.
        shape: The shape it must have.
        what: The kind of model, for messages, such as "a HuBERT".

    Raises:
        WeightsError: It is missing, of another shape, not real numbers, or not finite.
    """
    if name not in tensors:
        raise WeightsError(f"{path}: lacks {name} of {what}")
    tensor = tensors[name]
    if tuple(tensor.shape) != shape or not tensor.is_floating_point():
        raise WeightsError(
            f"{path}: {name} is {tensor.dtype} of shape {list(tensor.shape)}, expected numbers of"
            f" shape {list(shape)}"
        )
    tensor = tensor.detach().to("cpu", torch.float32).contiguous()
    if not torch.isfinite(tensor).all():
        raise WeightsError(f"{path}: {name} holds values that are not finite")
    return tensor
