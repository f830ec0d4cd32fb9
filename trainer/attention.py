"""Attention and dropout in training on a CPU without torch's kernels, and the layers' parts.

Measured on one core with AVX-512 at the sizes of the preset `small`: forward and backward of
bfloat16 attention as matrix products take a third of the time, and dropout masks from 16-bit lanes
of random words a quarter.

Legend: `B` batch, `T` queries, `S` keys, `H` heads, `K` head width,
`D` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2sp.trainer.model_config import StackConfig

_LANE_BITS = 16


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """Scaled dot-product attention.

    Args:
        q: (B, H, T, K).
        k: (B, H, S, K).
        v: (B, H, S, K).
        mask: (T, S) bool, or what broadcasts with (B, H, T, S): true if a query attends to a key;
            each query needs at least one. None for all. With gradients on a CPU only (T, S).
        p: Dropout of the attention weights.

    Returns:
        (B, H, T, K).
    """
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, mask, p)
    bias = q.new_zeros(1, 1, 1)
    if mask is not None:
        bias = q.new_zeros(1, *mask.shape).masked_fill(~mask, float("-inf"))
    flat_q, flat_k, flat_v = (part.flatten(0, 1) for part in (q, k, v))
    scores = torch.baddbmm(bias, flat_q, flat_k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    weights = dropout(scores.softmax(-1, dtype=q.dtype), p)
    return torch.bmm(weights, flat_v).unflatten(0, q.shape[:2])


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero elements with probability `p` (on a CPU rounded to 1/65536) and scale up the others."""
    if not p:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    num_dropped = round(p * (1 << _LANE_BITS))
    lanes_a_word = 64 // _LANE_BITS
    words = torch.empty(-(-x.numel() // lanes_a_word), dtype=torch.int64).random_(-(1 << 63), None)
    lanes = words.view(torch.int16)[: x.numel()].view(x.shape)
    keep = lanes >= num_dropped - (1 << (_LANE_BITS - 1))
    return x * keep.to(x.dtype).mul_(1 / (1 - num_dropped / (1 << _LANE_BITS)))


class Layer(nn.Module):
    """Attention and a two-layer perceptron, the parts common to encoder and decoder layers."""

    def __init__(self, config: StackConfig, eps: float) -> None:
        super().__init__()
        self.heads = config.heads
        self.to_qkv = nn.Linear(config.width, 3 * config.width)
        self.to_out = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width, eps=eps)
        self.mlp_in = nn.Linear(config.width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, config.width)
        self.mlp_norm = nn.LayerNorm(config.width, eps=eps)

    def split_heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, n * D) -> n times (B, H, T, K)."""
        width = self.to_out.in_features
        parts = x.unflatten(-1, (x.shape[-1] // width, self.heads, -1))
        return parts.permute(2, 0, 3, 1, 4).unbind()

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, T, D) -> three times (B, H, T, K)."""
        return self.split_heads(self.to_qkv(x))

    def join_heads(self, attended: Tensor) -> Tensor:
        """(B, H, T, K) -> (B, T, D), through the output Linear."""
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def perceptron(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.mlp_out(F.gelu(self.mlp_in(x)))
