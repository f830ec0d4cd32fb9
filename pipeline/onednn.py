"""Linear layers and attention for inference on a CPU, through oneDNN.

torch sends a float32 `Linear` to MKL, which on AMD processors runs at less than half the speed of
oneDNN, and its fused attention reaches a third of the peak bfloat16 throughput. The operations are
private ones of torch, called here and in `trainer/packed.py`: trainer may not import pipeline, and
shards, which both may import, does not use torch.

Legend: `B` batch, `N` positions, `H` heads, `K` head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# exp() of scores within this bound neither overflows nor underflows, so softmax need not subtract
# the maximum.
SAFE_SCORE = 60.0
# Rows of ones appended to the values; 16 keep the rows of the product aligned.
SUM_ROWS = 16


class PackedLinear:
    """Linear layer through oneDNN, with an optional Tanh, GELU or residual sum in the same pass."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(
            weight.detach().to(dtype).contiguous(), None
        )
        self.bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        """Apply the layer; `activation` is "none", "tanh" or "gelu" (exact, not approximated)."""
        algorithm = "none" if activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, activation, [], algorithm
        )

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Apply the layer to `x` and add `residual`."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


@dataclass(frozen=True, kw_only=True)
class PackedNorm:
    """Parameters of a LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Product (M, K), (N, K) -> (M, N) through oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def packed_attention(qkv: Tensor) -> Tensor:
    """Attention computed head by head, so that the scores stay in the cache.

    Args:
        qkv: (B, N, 3, H, K); the queries are already scaled by K ** -0.5.

    Returns:
        (B, N, H * K).
    """
    batch, num_patches, _, heads, head_width = qkv.shape
    out = qkv.new_empty(batch, num_patches, heads, head_width)
    for image, mixed in zip(qkv, out, strict=True):
        q, k = image[:, :2].permute(1, 2, 0, 3).contiguous().unbind(0)  # (H, N, K) each
        values = image[:, 2].permute(1, 2, 0)  # (H, K, N)
        if qkv.dtype == torch.bfloat16 and largest_score(q, k) <= SAFE_SCORE:
            _mix_bounded(q, k, values, mixed)
        else:
            values = values.contiguous()
            for head in range(heads):
                weights = torch.softmax(multiply(q[head], k[head]), dim=-1)
                mixed[:, head] = multiply(weights, values[head])
    return out.flatten(2)


def largest_score(q: Tensor, k: Tensor) -> float:
    """Upper bound of the scores of all pairs of patches; NaN if a feature is NaN."""
    q_norm = torch.linalg.vector_norm(q, dim=-1).amax(-1)
    k_norm = torch.linalg.vector_norm(k, dim=-1).amax(-1)
    return float((q_norm * k_norm).max())


def _mix_bounded(q: Tensor, k: Tensor, values: Tensor, mixed: Tensor) -> None:
    """Attend without subtracting the maximum; normalise after the product with the values.

    Rows of ones appended to the values make the product yield the sums of the weights too, which
    saves two of three passes over the weights.
    """
    heads, head_width, num_patches = values.shape
    rows = values.new_ones(heads, head_width + SUM_ROWS, num_patches)
    rows[:, :head_width] = values
    for head in range(heads):
        sums = multiply(multiply(q[head], k[head]).exp_(), rows[head])
        torch.div(sums[:, :head_width], sums[:, head_width, None], out=mixed[:, head])


def is_supported(dtype: torch.dtype) -> bool:
    """True if this build of torch and this CPU support the operations of `PackedLinear`."""
    try:
        linear = PackedLinear(torch.ones(16, 16), torch.ones(16), dtype)
        x = torch.ones(2, 16, dtype=dtype)
        summed = linear.plus(linear(linear(x, "tanh"), "gelu"), linear(x))
    except (AttributeError, RuntimeError):
        return False
    return bool((summed > 30).all())
