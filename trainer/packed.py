"""Linears through oneDNN while a model generates on a CPU.

torch sends a float32 Linear to MKL, which on AMD processors runs at less than half of oneDNN's
speed. Here each Linear's weight is laid out for oneDNN once and multiplied by it until the block
ends; it is kept for the next time, until the weight changes. Results differ by rounding only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Linear -> what its weight was (address and version) and how oneDNN has it.
_kept: "WeakKeyDictionary[nn.Linear, tuple[tuple[int, int], Tensor]]" = WeakKeyDictionary()


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Within it the model's Linears run through oneDNN, where torch can; without gradients only.

    Under autocast they are left as they are: it multiplies in another precision. Weights that are
    changed within it are not seen.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    is_autocast = torch.is_autocast_enabled("cpu")
    packed = [linear for linear in linears if _can_pack(linear) and not is_autocast]
    try:
        for linear in packed:
            # Found before the class's own `forward`.
            linear.__dict__["forward"] = partial(_multiply, _packed(linear), linear.bias)
        yield
    finally:
        for linear in packed:
            linear.__dict__.pop("forward", None)


def _can_pack(linear: nn.Linear) -> bool:
    weight = linear.weight
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
    )


def _packed(linear: nn.Linear) -> Tensor:
    weight = linear.weight.detach()
    now = (weight.data_ptr(), linear.weight._version)
    was, packed = _kept.get(linear, (None, weight))
    if was != now:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        _kept[linear] = (now, packed)
    return packed


def _multiply(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
