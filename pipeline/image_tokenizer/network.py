"""The ViT-VQGAN network: image -> features -> codes -> image.

The parameter names are those of the published checkpoints (enhancing-transformers), so that
`state_dict()` has the same names as those files. This module does not read files;
`load_image_tokenizer` does.

Legend: `B` batch, `N` patches = `h` x `w`, `D` width, `H` heads, `K` head width, `C` code width,
`P` patch size in pixels.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from vector_quantize_pytorch import VectorQuantize

HEAD_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of one stack of blocks. `heads * head_width` need not equal `width`."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    head_width: int = HEAD_WIDTH

    def __post_init__(self) -> None:
        """Raise ValueError for invalid sizes."""
        for name in ("width", "depth", "heads", "mlp_width", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.width % 4:
            raise ValueError(f"width is {self.width}, expected a multiple of 4 (sin-cos positions)")

    @property
    def inner_width(self) -> int:
        """Total width of all attention heads."""
        return self.heads * self.head_width

    @property
    def has_projection(self) -> bool:
        """True if attention ends in a Linear; the published code omits it for a single head."""
        return not (self.heads == 1 and self.head_width == self.width)


@dataclass(frozen=True, kw_only=True)
class ViTVQGANConfig:
    """Sizes of the whole network. A tokenizer-only checkpoint has no decoder."""

    encoder: TransformerConfig
    decoder: TransformerConfig | None
    num_codes: int = 8192
    code_width: int = 32
    patch_size_px: int = 8
    channels: int = 3


def position_table(
    grid: tuple[int, int], width: int, origin: tuple[int, int] = (0, 0)
) -> np.ndarray:
    """Fixed sin-cos positions of a grid of patches.

    The positions are the plain indices 0..n-1 of each axis, with no scaling, for any grid. The
    published code computes the same for the grid it is built with, so a 28x28 table is the top left
    part of a 32x32 one. The first half of the channels encodes the column (width axis), the second
    half the row; each half is all sines, then all cosines.

    Args:
        grid: Rows and columns of patches.
        width: Channels, a multiple of 4.
        origin: Row and column of the first patch, for a crop of a larger grid.

    Returns:
        (rows * columns, width) float32, in raster order.
    """
    rows, columns = grid
    quarter = width // 4
    frequencies = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    column_angles = np.outer(np.arange(columns) + origin[1], frequencies)
    row_angles = np.outer(np.arange(rows) + origin[0], frequencies)
    by_column = np.concatenate([np.sin(column_angles), np.cos(column_angles)], axis=1)
    by_row = np.concatenate([np.sin(row_angles), np.cos(row_angles)], axis=1)
    table = np.concatenate(
        [np.tile(by_column, (rows, 1)), np.repeat(by_row, columns, axis=0)], axis=1
    )
    return table.astype(np.float32)


def to_patches(pixels: Tensor, size_px: int) -> Tensor:
    """(B, channels, h * P, w * P) -> (B, N, channels * P * P), in a kernel's layout."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // size_px, width // size_px
    cells = pixels.reshape(batch, channels, rows, size_px, columns, size_px)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


def from_patches(patches: Tensor, grid: tuple[int, int], size_px: int) -> Tensor:
    """(B, N, channels * P * P) -> (B, channels, h * P, w * P); inverse of `to_patches`."""
    cells = patches.unflatten(2, (-1, size_px, size_px)).unflatten(1, grid)
    cells = cells.permute(0, 3, 1, 4, 2, 5)  # (B, channels, h, P, w, P)
    return cells.flatten(4, 5).flatten(2, 3)


class Positions(nn.Module):
    """Mixin for the positions of a stack at any grid; see `position_table`."""

    table_name: str
    grid: tuple[int, int]

    def init_positions(self, table_name: str, grid: tuple[int, int], width: int) -> None:
        """Register the table of the trained grid under its published name."""
        self.table_name = table_name
        self.grid = grid
        self.has_fixed_positions = True
        table = torch.from_numpy(position_table(grid, width))[None]
        self.register_buffer(table_name, table)
        self._computed: dict[tuple[int, ...], Tensor] = {}

    def positions(self, grid: tuple[int, int], origin: tuple[int, int] = (0, 0)) -> Tensor:
        """Positions (1, N, D): the stored table for its grid, the formula for another grid.

        Raises:
            ValueError: The stored table was learned (it is not the formula), so positions of
                another grid are unknown.
        """
        table: Tensor = getattr(self, self.table_name)
        if grid == self.grid and origin == (0, 0):
            return table
        if not self.has_fixed_positions:
            raise ValueError(
                f"grid of {grid[0]}x{grid[1]} patches from row {origin[0]}, column {origin[1]}, but"
                f" this tokenizer has learned positions for {self.grid[0]}x{self.grid[1]} only"
            )
        key = (*grid, *origin)
        cached = self._computed.get(key)
        if cached is None or cached.dtype != table.dtype or cached.device != table.device:
            computed = torch.from_numpy(position_table(grid, table.shape[-1], origin))[None]
            cached = computed.to(table.device, table.dtype)
            if len(self._computed) >= 1024:
                self._computed.clear()
            self._computed[key] = cached
        return cached


class Attention(nn.Module):
    """Multi-head attention over all patches; q, k and v come from one bias-free Linear."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.head_width = config.head_width
        self.to_qkv = nn.Linear(config.width, 3 * config.inner_width, bias=False)
        projection = nn.Linear(config.inner_width, config.width)
        self.to_out = projection if config.has_projection else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        batch, num_patches, _ = x.shape
        qkv = self.to_qkv(x).view(batch, num_patches, 3, self.heads, self.head_width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, K) each
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, H, N, K)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two Linears with a Tanh between them, as published (not GELU)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(config.width, config.mlp_width),
            nn.Tanh(),
            nn.Linear(config.mlp_width, config.width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.net(x)


class PreNorm(nn.Module):
    """LayerNorm followed by `fn`."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.fn(self.norm(x))


class Transformer(nn.Module):
    """Pre-norm blocks and a final LayerNorm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(config.width, Attention(config)),
                    PreNorm(config.width, FeedForward(config)),
                ]
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        for layer in self.layers:
            attention, feed_forward = layer  # pyright: ignore[reportGeneralTypeIssues] # ModuleList
            x = x + attention(x)
            x = x + feed_forward(x)
        return self.norm(x)


def reduced_blocks(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Context in which Linears and attention use `dtype`; residual sums stay float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


class Encoder(Positions):
    """Encoder from pixels to features.

    The patch embedding is computed as a Linear over patches: the result is the same, and float32 on
    every device (cuDNN rounds the inputs of convolutions to TF32).
    """

    def __init__(self, config: ViTVQGANConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        width, patch = config.encoder.width, config.patch_size_px
        self.patch_size_px = patch
        convolution = nn.Conv2d(config.channels, width, kernel_size=patch, stride=patch)
        self.to_patch_embedding = nn.Sequential(convolution)
        self.init_positions("en_pos_embedding", grid, width)
        self.transformer = Transformer(config.encoder)

    def forward(
        self,
        pixels: Tensor,
        origin: tuple[int, int] = (0, 0),
        block_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """(B, channels, h * P, w * P) -> (B, N, D); the blocks compute in `block_dtype`."""
        size = self.patch_size_px
        grid = (pixels.shape[2] // size, pixels.shape[3] // size)
        embed = cast(nn.Conv2d, self.to_patch_embedding[0])
        x = F.linear(to_patches(pixels, size), embed.weight.flatten(1), embed.bias)  # (B, N, D)
        with reduced_blocks(pixels.device, block_dtype):
            return self.transformer(x + self.positions(grid, origin)).float()


class Decoder(Positions):
    """Decoder from features to pixels; the transposed convolution is also computed as a Linear."""

    def __init__(self, config: ViTVQGANConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        assert config.decoder is not None
        width, patch = config.decoder.width, config.patch_size_px
        self.patch_size_px = patch
        self.transformer = Transformer(config.decoder)
        self.init_positions("de_pos_embedding", grid, width)
        convolution = nn.ConvTranspose2d(width, config.channels, kernel_size=patch, stride=patch)
        # The published Sequential reshapes in place of the Identity, which keeps the names equal.
        self.to_pixel = nn.Sequential(nn.Identity(), convolution)

    def forward(
        self,
        features: Tensor,
        grid: tuple[int, int],
        origin: tuple[int, int] = (0, 0),
        block_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """(B, N, D) -> (B, channels, h * P, w * P), not clamped."""
        with reduced_blocks(features.device, block_dtype):
            x = self.transformer(features + self.positions(grid, origin)).float()
        project = cast(nn.ConvTranspose2d, self.to_pixel[1])
        pixels = from_patches(x @ project.weight.flatten(1), grid, self.patch_size_px)
        return pixels if project.bias is None else pixels + project.bias[:, None, None]


class Codebook(nn.Module):
    """Raw codebook rows, with the published name `quantizer.embedding.weight`."""

    def __init__(self, num_codes: int, code_width: int) -> None:
        super().__init__()
        rows = torch.empty(num_codes, code_width)
        if not rows.is_meta:  # there it fills nothing, but imports all of torch._dynamo
            rows.normal_()
        self.embedding = nn.Embedding.from_pretrained(rows, freeze=False)


class ViTVQGAN(nn.Module):
    """Encoder, codebook and decoder, with the published parameter names.

    Args:
        config: Sizes of the network.
        grid: Rows and columns of patches of the training images; only the stored position tables
            depend on it.
    """

    def __init__(self, config: ViTVQGANConfig, grid: tuple[int, int] = (28, 28)) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, grid)
        self.pre_quant = nn.Linear(config.encoder.width, config.code_width)
        self.quantizer = Codebook(config.num_codes, config.code_width)
        self.decoder: Decoder | None = None
        self.post_quant: nn.Linear | None = None
        if config.decoder is not None:
            self.post_quant = nn.Linear(config.code_width, config.decoder.width)
            self.decoder = Decoder(config, grid)

    def encode_features(
        self,
        pixels: Tensor,
        origin: tuple[int, int] = (0, 0),
        block_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Features before quantisation, not normalised.

        Args:
            pixels: (B, channels, h * P, w * P) float, in [0, 1].
            origin: Row and column of the first patch when `pixels` is a crop of a larger image.
            block_dtype: Type of the blocks' Linears and attention; all else is float32.

        Returns:
            (B, N, C) in raster order.
        """
        return self.pre_quant(self.encoder(pixels, origin, block_dtype))

    def decode_features(
        self,
        codes: Tensor,
        grid: tuple[int, int] | None = None,
        origin: tuple[int, int] = (0, 0),
        block_dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Decode a grid of L2-normalised codes to pixels.

        Args:
            codes: (B, N, C), normalised, in raster order.
            grid: Rows and columns; None for a square one.
            origin: As for `encode_features`.
            block_dtype: As for `encode_features`.

        Returns:
            (B, channels, h * P, w * P), not clamped.
        """
        assert self.decoder is not None
        assert self.post_quant is not None
        side = round(codes.shape[1] ** 0.5)
        return self.decoder(self.post_quant(codes), grid or (side, side), origin, block_dtype)

    def vector_quantizer(self) -> "VectorQuantize":
        """Return vector-quantize-pytorch's quantiser with this network's projections and codes.

        Its `project_in` and `project_out` are the same objects as `pre_quant` and `post_quant`; its
        codebook is an L2-normalised copy of the rows, as the library expects for cosine similarity.
        `ImageTokenizer` does not need it.
        """
        # Imports torch._dynamo, which takes as long as torch itself.
        from vector_quantize_pytorch import VectorQuantize

        config = self.config
        quantizer = VectorQuantize(
            config.encoder.width,
            codebook_size=config.num_codes,
            codebook_dim=config.code_width,
            use_cosine_sim=True,
            freeze_codebook=True,
            rotation_trick=False,
        )
        quantizer.project_in = self.pre_quant
        quantizer.project_out = nn.Identity() if self.post_quant is None else self.post_quant
        rows = self.quantizer.embedding.weight.detach().float()
        quantizer.codebook = F.normalize(rows, dim=-1)
        return quantizer.to(rows.device).eval()
