"""Initial weights of an image tokenizer, from PCA and k-means of patches.

A ViT-VQGAN trained from random weights spends hours on a CPU before it beats plain vector
quantisation of patches. These weights start *at* vector quantisation, to a few hundredths of a dB:

1. Patches of 8x8 pixels are projected to their first C - 1 principal components; k-means of the
   projections gives the codebook. A constant is appended to each projection, so that the
   L2-normalised code (the published quantiser compares directions) keeps its length.
2. The encoder's patch embedding writes those C numbers into directions of the residual stream that
   are orthogonal to all positions, `pre_quant` reads them, and every block initially adds nothing
   (its last Linear is zero). The decoder is the same in reverse.
3. Heads of the first three blocks initially attend to the eight neighbours and to patches two steps
   away. With sin-cos positions, a grid shift is a rotation, which a head can represent exactly.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from im2sp.pipeline.image_tokenizer.network import Attention, FeedForward, Transformer, ViTVQGAN
from im2sp.tools.fitting.kmeans import fit_kmeans

PATCH_PX = 8
# Length of the constant beside the projections, in units of their root mean square length.
CONSTANT = 4.0
# Residual stream: length of the projections and of the constant direction.
ENCODER_SCALE, ENCODER_CONSTANT = 4.0, 14.0
DECODER_SCALE, DECODER_CONSTANT = 1.0, 20.0
# Sharpness of the neighbour heads, and how many of the fastest frequencies they use.
SHARPNESS, NUM_FREQUENCIES = 5.0, 16
NEIGHBOURS = (
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, -1), (1, -1), (-1, 1)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
)


@dataclass(frozen=True, kw_only=True)
class PatchStatistics:
    """PCA and k-means of 8x8 patches."""

    mean: Tensor
    """(192,) float32, mean patch in [0, 1], channels first."""
    components: Tensor
    """(192, C - 1) float32, orthonormal, by decreasing variance."""
    centroids: Tensor
    """(codes, C - 1) float32, k-means centroids of the projections."""
    scale: float
    """Root mean square length of a projection."""


def sample_patches(images: np.ndarray, num_patches: int, generator: np.random.Generator) -> Tensor:
    """Draw aligned patches from uint8 [n, S, S, 3] -> (num_patches, 192) float32 in [0, 1]."""
    side = images.shape[1] // PATCH_PX
    chosen = np.sort(generator.integers(0, len(images), num_patches))
    corners = generator.integers(0, side, (num_patches, 2)) * PATCH_PX
    patches = np.empty((num_patches, 3 * PATCH_PX**2), np.float32)
    for row, (image, (y, x)) in enumerate(zip(chosen, corners, strict=True)):
        patch = images[image, y : y + PATCH_PX, x : x + PATCH_PX]
        patches[row] = patch.transpose(2, 0, 1).reshape(-1)
    return torch.from_numpy(patches) / 255


def fit_patches(
    patches: Tensor, *, num_codes: int, code_width: int, num_rounds: int, seed: int
) -> PatchStatistics:
    """Fit PCA, then k-means of the projections.

    Args:
        patches: (n, 192) float32.
        num_codes: Number of centroids.
        code_width: C, including the constant.
        num_rounds: Maximum iterations of k-means.
        seed: Random seed of the first centroids.

    Raises:
        ValueError: Fewer patches than centroids, or scikit-learn is not installed.
    """
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    components = torch.linalg.eigh(covariance)[1].flip(1)[:, : code_width - 1].contiguous()
    points = (patches - mean) @ components
    fit = fit_kmeans(
        points,
        num_codes,
        seed=seed,
        max_rounds=num_rounds,
        init="random",
        allow_duplicates=True,
        quiet=False,
    )
    scale = points.square().sum(1).mean().sqrt().item()
    return PatchStatistics(mean=mean, components=components, centroids=fit.centroids, scale=scale)


@torch.no_grad()
def start_network(network: ViTVQGAN, statistics: PatchStatistics, *, seed: int) -> None:
    """Initialise a network to compute the vector quantisation of `statistics`.

    Args:
        network: Network; both stacks at least C wider than the rank of their positions.
        statistics: Statistics with the network's number of codes, C - 1 wide.
        seed: Random seed of the directions and of the blocks' Linears.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(
        F.pad(statistics.centroids / statistics.scale, (0, 1), value=CONSTANT), dim=1
    )
    network.quantizer.embedding.weight.copy_(rows)
    _start_encoder(network, statistics, generator)
    _start_decoder(network, statistics, generator)


def _start_encoder(
    network: ViTVQGAN, statistics: PatchStatistics, generator: torch.Generator
) -> None:
    encoder, code_width = network.encoder, network.config.code_width
    basis = free_directions(encoder.positions(encoder.grid)[0], code_width, generator)
    scale = ENCODER_SCALE / statistics.scale
    convolution = encoder.to_patch_embedding[0]
    assert isinstance(convolution, nn.Conv2d)
    assert convolution.bias is not None
    into = basis[:-1].T @ (statistics.components.T * scale)  # (D, 192)
    convolution.weight.copy_(into.view_as(convolution.weight))
    convolution.bias.copy_(basis[-1] * ENCODER_CONSTANT - into @ statistics.mean)
    network.pre_quant.weight[:-1] = basis[:-1] / ENCODER_SCALE
    network.pre_quant.weight[-1] = basis[-1] * (CONSTANT / ENCODER_CONSTANT)
    network.pre_quant.bias.zero_()
    _start_blocks(encoder.transformer, generator)


def _start_decoder(
    network: ViTVQGAN, statistics: PatchStatistics, generator: torch.Generator
) -> None:
    decoder, post_quant = network.decoder, network.post_quant
    assert decoder is not None
    assert post_quant is not None
    positions = decoder.positions(decoder.grid)[0]
    basis = free_directions(positions, network.config.code_width, generator)
    projections = basis[:-1] * (CONSTANT * DECODER_SCALE)
    post_quant.weight.copy_(torch.cat([projections, basis[-1:] * DECODER_CONSTANT]).T)
    post_quant.bias.zero_()
    _start_blocks(decoder.transformer, generator)
    # The final LayerNorm changes lengths slightly, so the map to pixels is fitted, not derived.
    codes = network.quantizer.embedding.weight
    place = torch.randint(0, len(positions), (len(codes),), generator=generator)
    normed = decoder.transformer.norm(post_quant(codes) + positions[place])
    inputs = torch.cat([normed @ basis.T, torch.ones(len(codes), 1)], dim=1).double()
    patches = statistics.centroids @ statistics.components.T + statistics.mean
    solution = torch.linalg.lstsq(inputs, patches.double()).solution.float()  # (C + 1, 192)
    bias = solution[-1].view(3, -1)
    convolution = decoder.to_pixel[1]
    assert isinstance(convolution, nn.ConvTranspose2d)
    assert convolution.bias is not None
    convolution.bias.copy_(bias.mean(1))
    # Parts that a bias per channel cannot represent use the constant direction.
    constant = inputs[:, -2].mean().float()
    solution[-2] += (bias - bias.mean(1, keepdim=True)).flatten() / constant
    convolution.weight.copy_((basis.T @ solution[:-1]).view_as(convolution.weight))


def free_directions(positions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Orthonormal (count, D), orthogonal to all positions (N, D) and to the mean of channels.

    Raises:
        ValueError: The positions leave fewer free directions.
    """
    width = positions.shape[1]
    taken = torch.cat([positions.double(), torch.ones(1, width, dtype=torch.double)])
    _, sizes, directions = torch.linalg.svd(taken, full_matrices=True)
    free = directions[int((sizes > sizes[0] * 1e-6).sum()) :]
    if len(free) < count:
        raise ValueError(f"width {width} leaves {len(free)} free directions; expected {count}")
    mix = torch.randn(len(free), count, generator=generator, dtype=torch.double)
    return (free.T @ torch.linalg.qr(mix)[0]).T.float()


def _start_blocks(transformer: Transformer, generator: torch.Generator) -> None:
    width = transformer.norm.normalized_shape[0]
    for index, layer in enumerate(transformer.layers):
        attention, mlp = (part.fn for part in layer.children())
        assert isinstance(attention, Attention)
        assert isinstance(mlp, FeedForward)
        first, last = mlp.net[0], mlp.net[2]
        for linear in (attention.to_qkv, first):
            linear.weight.normal_(std=width**-0.5, generator=generator)  # pyright: ignore[reportCallIssue] # Linear
        first.bias.zero_()  # pyright: ignore[reportCallIssue] # Linear
        for linear in (attention.to_out, last):
            nn.init.zeros_(linear.weight)  # pyright: ignore[reportArgumentType] # Linear
            nn.init.zeros_(linear.bias)  # pyright: ignore[reportArgumentType] # Linear
        if index < len(NEIGHBOURS):
            _look_at_neighbours(attention, NEIGHBOURS[index])


def _look_at_neighbours(attention: Attention, offsets: tuple[tuple[int, int], ...]) -> None:
    """Make each head attend to the patch `offset` (columns, rows) away.

    A key consists of the fastest sines and cosines of its position, a query of those of its
    position plus the offset (a rotation). Their product is largest if the two agree.
    """
    width = attention.to_qkv.in_features
    quarter = width // 4
    used = min(NUM_FREQUENCIES, quarter, attention.head_width // 4)
    frequencies = 1.0 / 10000 ** (np.arange(used) / quarter)
    weight = attention.to_qkv.weight.view(3, attention.heads, attention.head_width, width)
    gain = math.sqrt(SHARPNESS)
    for head, offset in zip(range(attention.heads), offsets, strict=False):
        query, key = weight[0, head], weight[1, head]
        query.zero_()
        key.zero_()
        for axis, step in enumerate(offset):
            for i, frequency in enumerate(frequencies):
                sine = axis * 2 * quarter + i
                cosine = sine + quarter
                row = 2 * (axis * used + i)
                turn = frequency * step
                key[row, sine] = key[row + 1, cosine] = gain
                query[row, sine] = query[row + 1, cosine] = gain * math.cos(turn)
                query[row, cosine] = gain * math.sin(turn)
                query[row + 1, sine] = -gain * math.sin(turn)
