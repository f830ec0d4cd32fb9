"""Linears through oneDNN for generation on a CPU.

torch runs a float32 Linear through MKL, which on AMD processors has less than half the speed of
oneDNN. `packed_linears` converts each weight to oneDNN's layout and uses oneDNN within its block;
the converted weight is cached until the weight changes. Results differ by rounding only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

# Linear -> address and version of its weight, and that weight in oneDNN's layout.
_kept: "WeakKeyDictionary[nn.Linear, tuple[tuple[int, int], Tensor]]" = WeakKeyDictionary()


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[None]:
    """Run the model's Linears through oneDNN within the block, if available; no gradients.

    No effect under autocast, which computes in another precision. Changes of weights within the
    block are ignored.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    is_autocast = torch.is_autocast_enabled("cpu")
    packed = [linear for linear in linears if _can_pack(linear) and not is_autocast]
    try:
        for linear in packed:
            # Takes precedence over the `forward` of the class.
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
