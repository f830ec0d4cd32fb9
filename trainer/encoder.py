"""The image encoder: SeiT's ViT over image units of any grid or line.

The vectors of the units form an image of `code_width` channels, which a ViT reads in place of
pixels. A line of units (TiTok's, say) is an image of one column. The vectors are those of the
dataset's codebook, or they are learned (`CodeEmbedding`).

Legend: `B` images, `P` image states, `D` width, `R` rows, `C` columns, `W` code width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2sp.trainer.attention import Layer, attention
from im2sp.trainer.model_config import ModelConfig, StackConfig

ENCODER_EPS = 1e-6
# Lower bound of a column's deviation, so that an almost constant column is not amplified.
CODE_STD_FLOOR = 1e-4
MAX_TABLE = 1 << 16
"""Most codes that have a learned vector each."""
MAX_PART_BITS = 12


class EncoderLayer(Layer):
    """A ViT layer as in timm (pre-norm)."""

    def __init__(self, config: StackConfig, eps: float, drop_p: float = 0.0) -> None:
        """`drop_p` is the probability that an image skips one of the two branches in training."""
        super().__init__(config, eps)
        self.drop_p = drop_p

    def forward(self, x: Tensor) -> Tensor:
        """(B, P, D) -> (B, P, D)."""
        q, k, v = self.queries_keys_values(self.attention_norm(x))
        x = x + self._kept(self.join_heads(attention(q, k, v, None, 0.0)))
        return x + self._kept(self.perceptron(self.mlp_norm(x)))

    def _kept(self, branch: Tensor) -> Tensor:
        """A branch (B, P, D), zero for some images in training, and scaled up for the others."""
        if not (self.training and self.drop_p):
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_p
        return branch * (kept / (1 - self.drop_p)).to(branch.dtype)


def conv_stem(code_width: int, width: int, stride: int) -> nn.Sequential:
    """Convolutions of 3x3 and GELU, then one of 1x1: (B, code_width, R, R) to (B, width, R/s, R/s).

    The first keeps the grid, each further one halves it; channels double up to `width`. A ViT
    behind such a stem needs less data and is easier to train (Xiao et al., "Early Convolutions
    Help Transformers See Better", 2021). The paper uses batch norms; two or three layers with He
    initialisation do not need them, and so an image's states do not depend on its batch.

    Args:
        code_width: Input channels.
        width: Output channels; at least `stride`.
        stride: A power of 2.
    """
    halvings = stride.bit_length() - 1
    channels, layers = code_width, list[nn.Module]()
    for number in range(halvings + 1):
        wider = width >> (halvings - number)
        layers += [nn.Conv2d(channels, wider, 3, 2 if number else 1, padding=1), nn.GELU()]
        channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, width, 1))


class CodeEmbedding(nn.Module):
    """Learned vectors of codes.

    Up to 65,536 codes, each has a vector. Above, the bits of a code are cut into equal parts of at
    most 12 bits, lowest first; each part has a table, and the vector of a code is the sum of those
    of its parts: 18 bits take 2 x 512 vectors instead of 262,144, of which most would hardly be
    trained. Codes of that size come from quantizers whose bits are independent dimensions (LFQ,
    BSQ), for which the sum loses nothing. See Luo et al., "Open-MAGVIT2" (2024).
    """

    def __init__(self, num_codes: int, width: int) -> None:
        super().__init__()
        bits = max(1, (num_codes - 1).bit_length())
        self.num_parts = 1 if num_codes <= MAX_TABLE else -(-bits // MAX_PART_BITS)
        self.part_bits = -(-bits // self.num_parts)
        rows = num_codes if self.num_parts == 1 else self.num_parts << self.part_bits
        self.table = nn.Embedding(rows, width)

    def reset(self) -> None:
        """Initialise so that vectors have deviation 1 in each dimension."""
        nn.init.normal_(self.table.weight, std=self.num_parts**-0.5)

    def forward(self, units: Tensor) -> Tensor:
        """(..., ) int64 -> (..., W)."""
        if self.num_parts == 1:
            return self.table(units)
        part = torch.arange(self.num_parts, device=units.device)
        rows = (units[..., None] >> self.part_bits * part) & ((1 << self.part_bits) - 1)
        return self.table(rows + (part << self.part_bits)).sum(-2)


class ImageEncoder(nn.Module):
    """SeiT's ViT over image units, without the final norm and the classifier head."""

    def __init__(self, config: ModelConfig, codebook: Tensor | None) -> None:
        super().__init__()
        stack = config.encoder
        self.grid = config.rows_columns
        self.normalise_codebook = config.normalise_codebook
        self.standardise_codebook = config.standardise_codebook
        if config.learned_codes:
            self.embedding = CodeEmbedding(config.num_codes, config.code_width)
        else:
            self.register_buffer("codebook", _checked_codebook(config, codebook))
        stride = config.stem_stride
        if config.conv_stem:
            self.stem = conv_stem(config.code_width, stack.width, stride)
        else:
            kernel = 1 if stride == 1 else 2 * stride
            self.stem = nn.Conv2d(
                config.code_width, stack.width, kernel, stride, padding=stride // 2
            )
        self.cls = nn.Parameter(torch.zeros(1, 1, stack.width))
        self.positions = nn.Parameter(torch.zeros(1, config.num_states, stack.width))
        # From 0 in the first layer to the full rate in the last.
        last = max(1, stack.depth - 1)
        drop_ps = [config.stochastic_depth * i / last for i in range(stack.depth)]
        self.layers = nn.ModuleList(EncoderLayer(stack, ENCODER_EPS, p) for p in drop_ps)

    def vectors(self) -> Tensor:
        """(num_codes, code_width) float32: the codebook after normalisation, if any."""
        rows = self.get_buffer("codebook")
        if self.normalise_codebook:
            rows = F.normalize(rows, dim=-1)
        if self.standardise_codebook:
            rows = (rows - rows.mean(0)) / rows.std(0).clamp(min=CODE_STD_FLOOR)
        return rows

    def forward(self, image_units: Tensor) -> Tensor:
        """(B, *shape) int64 -> (B, P, D)."""
        units = image_units.flatten(1).unflatten(1, self.grid)  # (B, R, C)
        if hasattr(self, "embedding"):
            codes = self.embedding(units)
        else:
            codes = F.embedding(units, self.vectors())
        patches = self.stem(codes.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.to(patches.dtype).expand(len(patches), -1, -1), patches), 1)
        x = x + self.positions
        for layer in self.layers:
            x = layer(x)
        return x


def _checked_codebook(config: ModelConfig, codebook: Tensor | None) -> Tensor:
    shape = None if codebook is None else tuple(codebook.shape)
    expected = (config.num_codes, config.code_width)
    if codebook is None or shape != expected:
        raise ValueError(f"the codebook has shape {shape}, expected {expected}")
    return codebook.detach().float().clone()
