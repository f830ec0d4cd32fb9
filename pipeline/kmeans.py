"""Centres of k-means: which feature vector stands for which unit."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from im2sp.pipeline.weights import describe, read_weights
from im2sp.shards.pickles import Record, WeightsError

# Names of the table in a file that holds more than one array, best first.
CENTRE_NAMES = ("centres", "cluster_centers_")
MAX_UNITS = 2**16


def load_centres(source: str | Path | Tensor | np.ndarray) -> Tensor:
    """(K, D) float32 from a table or its file.

    Args:
        source: The table; or the published `km.bin` (scikit-learn's k-means as joblib writes it,
            read without running anything in it); or a safetensors, `.npy` or torch file of one
            table or with one named `centres`.

    Raises:
        WeightsError: Anything but one table of finite numbers.
    """
    if not isinstance(source, str | Path):
        return _checked("centres", torch.as_tensor(source))
    weights = read_weights(source)
    tensors, content = weights.tensors(), weights.content
    if isinstance(content, Record):
        table = content.state.get("cluster_centers_")
        if isinstance(table, np.ndarray) and table.dtype.kind == "f":
            native = np.ascontiguousarray(table, dtype=table.dtype.newbyteorder("="))
            tensors = {"cluster_centers_": torch.from_numpy(native)}
    for name in (*CENTRE_NAMES, *(tensors if len(tensors) == 1 else ())):
        if name in tensors:
            return _checked(str(source), tensors[name])
    raise WeightsError(
        f"{source}: holds {describe(content)}, expected the k-means centres [units, width] as"
        " joblib's km.bin, safetensors with a table `centres`, or .npy"
    )


def _checked(name: str, table: Tensor) -> Tensor:
    is_table = table.ndim == 2 and table.is_floating_point() and 0 not in table.shape
    if not is_table or len(table) > MAX_UNITS:
        raise WeightsError(
            f"{name}: the centres are {table.dtype} of shape {list(table.shape)}, expected real"
            f" numbers of shape [units, width] with at most {MAX_UNITS} units"
        )
    rows = table.detach().to("cpu", torch.float32).clone()
    if not torch.isfinite(rows).all():
        raise WeightsError(f"{name}: a centre is not finite")
    return rows.contiguous()
