"""Conversion of images to units and back with a ViT-VQGAN."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from im2sp.pipeline.core_threads import SingleCorePool
from im2sp.pipeline.image_tokenizer.cpu_encoder import CodeSearch, PackedEncoder
from im2sp.pipeline.image_tokenizer.network import ViTVQGAN
from im2sp.pipeline.image_tokenizer.weights import fingerprint, load_codebook, load_network
from im2sp.pipeline.onednn import is_supported
from im2sp.pipeline.tensors import (
    DTYPES,
    Precision,
    check_precision,
    float32_products,
    read_weights,
)
from im2sp.shards.weights.hub import find_weights

BUNDLED = {"compact": Path(__file__).parent / "compact.safetensors"}
# Images encoded or decoded at once on a GPU; bounds the memory of a batch of any size.
GPU_CHUNK_IMAGES = 64
DECODE_CHUNK_IMAGES = 4
_QUOTIENTS = torch.arange(256, dtype=torch.float32) / 255


class ImageTokenizer:
    """Converts pixels to image units and units to pixels.

    Attributes:
        name: Name that it was loaded by; for a path, only the file name.
        fingerprint: sha256 of the weights and settings; see `weights.fingerprint`.
        precision: "fp32", "tf32" (on a GPU) or "bf16", of the encoder. Distances to the codes and
            the decoder are always float32.
        codebook: (rows, C) float32, as stored (not normalised), on the CPU.
        patch_size_px: Side of the square of pixels that one unit covers.
        num_codes: Size of the codebook; units are in [0, num_codes).
    """

    def __init__(
        self,
        network: ViTVQGAN,
        *,
        name: str,
        precision: Precision = "fp32",
        device: str | torch.device | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        check_precision(precision, self.device)
        self.name = name
        self.precision = precision
        self.fingerprint = fingerprint(network, precision)
        self.network = network.eval().requires_grad_(False).to(self.device)
        rows = self.network.quantizer.embedding.weight.detach().float()
        self.codebook = rows.cpu().clone()
        self._codes = F.normalize(rows, dim=-1)
        self.patch_size_px = network.config.patch_size_px
        self.num_codes = network.config.num_codes
        dtype = DTYPES[precision]
        self._encoder = PackedEncoder(network, dtype) if self._packs(dtype) else None
        self._threads = SingleCorePool()
        self._search = None
        if self.device.type == "cpu":
            self._search = CodeSearch(self._codes)

    def _packs(self, dtype: torch.dtype) -> bool:
        return self.device.type == "cpu" and is_supported(dtype)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode a batch of any size to image units.

        An image's units do not depend on the others in its batch: on a CPU each image is encoded
        separately, on one core (see `core_threads`).

        Args:
            pixels: (B, 3, H, W) float32 in [0, 1]; H and W multiples of `patch_size_px`.

        Returns:
            (B, H / patch_size_px, W / patch_size_px) int64, on the CPU.

        Raises:
            ValueError: Wrong dtype, shape or range, or a value that is not finite.
        """
        self._check_pixels(pixels)
        return self._encode(pixels)

    @torch.no_grad()
    def encode_uint8(self, images: np.ndarray | Tensor) -> Tensor:
        """Encode decoded images; the units are those of `encode(images / 255)`.

        Args:
            images: (B, H, W, 3) uint8; H and W multiples of `patch_size_px`.

        Returns:
            (B, H / patch_size_px, W / patch_size_px) int64, on the CPU.

        Raises:
            ValueError: Wrong dtype or shape.
        """
        batch = torch.as_tensor(images)
        if batch.dtype != torch.uint8 or batch.ndim != 4:
            raise ValueError(
                f"images are {batch.dtype} of shape {list(batch.shape)}, expected torch.uint8"
                f" [B, H, W, {self.network.config.channels}]"
            )
        planes = batch.permute(0, 3, 1, 2)
        self._check_shape(planes)
        return self._encode(planes)

    def _encode(self, planes: Tensor) -> Tensor:
        """(B, channels, H, W), float32 in [0, 1] or uint8 -> units; see `encode`."""
        size = self.patch_size_px
        rows, columns = planes.shape[2] // size, planes.shape[3] // size
        if not len(planes):
            return torch.empty(0, rows, columns, dtype=torch.int64)
        if self.device.type == "cpu":
            found = self._threads.map(self._encode_chunk, planes.split(1))
        else:
            found = [self._encode_chunk(chunk) for chunk in planes.split(GPU_CHUNK_IMAGES)]
        return torch.cat(found).view(-1, rows, columns).cpu()

    @torch.no_grad()
    def _encode_chunk(self, planes: Tensor) -> Tensor:
        planes = planes.to(self.device)
        if planes.dtype == torch.uint8:
            planes = planes.contiguous()
            if self.device.type == "cpu":
                planes = planes.to(torch.float32) / 255
            else:  # its quotients may differ in the last bit from those of the CPU
                planes = _QUOTIENTS.to(self.device)[planes.int()]
        return self.nearest(self.features(planes))

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Features before quantisation, (B, N, C) float32; the batch must fit into memory."""
        if self._encoder is not None:
            return self._encoder(pixels)
        with float32_products(self.precision, self.device):
            return self.network.encode_features(pixels, block_dtype=DTYPES[self.precision])

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """(..., C) features -> (...) int64 ids of the nearest codes, both L2-normalised.

        Returns the same ids as `ViTVQGAN.vector_quantizer`, which materialises all distances and a
        second table.
        """
        flat = F.normalize(features.float().flatten(0, -2), dim=-1, eps=1e-6)
        if self._search is not None:
            return self._search(flat).view(features.shape[:-1])
        with float32_products("fp32", self.device):
            return (flat @ self._codes.t()).argmax(-1).view(features.shape[:-1])

    @torch.no_grad()
    def decode(self, units: Tensor) -> Tensor:
        """Decode grids of units of any size to pixels.

        Args:
            units: (B, h, w), integers in [0, num_codes).

        Returns:
            (B, 3, h * patch_size_px, w * patch_size_px) float32 in [0, 1], on the CPU.

        Raises:
            ValueError: Wrong shape or dtype, an id out of range, or the weights have no decoder.
        """
        if self.network.decoder is None:
            raise ValueError(f"{self.name}: the weights have no decoder for units")
        self._check_units(units)
        batch, rows, columns = units.shape
        size = self.patch_size_px
        pixels = torch.empty(batch, self.network.config.channels, rows * size, columns * size)
        chunk_images = DECODE_CHUNK_IMAGES if self.device.type == "cpu" else GPU_CHUNK_IMAGES
        for start in range(0, batch, chunk_images):
            chunk = units[start : start + chunk_images].to(self.device, torch.int64)
            with float32_products("fp32", self.device):
                found = self.network.decode_features(self._codes[chunk.flatten(1)], (rows, columns))
            pixels[start : start + chunk_images] = found.clamp(0, 1)
        return pixels

    def _check_pixels(self, pixels: Any) -> None:
        if not isinstance(pixels, Tensor) or pixels.dtype != torch.float32:
            found = pixels.dtype if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ValueError(f"pixels are {found}, expected a torch.float32 tensor in [0, 1]")
        self._check_shape(pixels)
        if not len(pixels):
            return
        low, high = (float(value) for value in torch.aminmax(pixels))
        if not torch.isfinite(torch.tensor([low, high])).all():
            raise ValueError("pixels hold values that are not finite, expected [0, 1]")
        if low < 0 or high > 1:
            raise ValueError(f"pixels reach from {low:.6g} to {high:.6g}, expected [0, 1]")

    def _check_shape(self, planes: Tensor) -> None:
        channels, size = self.network.config.channels, self.patch_size_px
        if planes.ndim != 4 or planes.shape[1] != channels:
            raise ValueError(
                f"pixels have shape {list(planes.shape)}, expected [B, {channels}, H, W]"
            )
        height, width = planes.shape[2:]
        if height % size or width % size or not height or not width:
            raise ValueError(f"pixels are {height}x{width}, expected multiples of {size}")

    def _check_units(self, units: Any) -> None:
        if not isinstance(units, Tensor) or units.is_floating_point() or units.dtype == torch.bool:
            found = units.dtype if isinstance(units, Tensor) else type(units).__name__
            raise ValueError(f"units are {found}, expected an integer tensor")
        if units.ndim != 3 or 0 in units.shape[1:]:
            raise ValueError(f"units have shape {list(units.shape)}, expected [B, h, w]")
        if not len(units):
            return
        low, high = (int(value) for value in torch.aminmax(units.to(torch.int64)))
        if low < 0 or high >= self.num_codes:
            raise ValueError(f"units reach from {low} to {high}, expected [0, {self.num_codes})")


def load_image_tokenizer(
    name_or_path: str | Path = "compact",
    codebook: str | Path | Tensor | None = None,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
) -> ImageTokenizer:
    """Load an image tokenizer of any published form; nothing in the file is executed.

    Args:
        name_or_path: "compact" (bundled), a path, or a hub id such as
            `thuanz123/vitvqgan-imagenet-base`, with `@revision` to pin it. Forms: a Lightning
            checkpoint of enhancing-transformers, SeiT's pickled `tokenizer.ckpt`, safetensors.
        codebook: Codebook or its file, if it is not in the weights (SeiT's `codebook.ckpt`);
            replaces the one in the weights.
        device: None for CUDA if available, else the CPU.
        precision: Arithmetic of the encoder. "bf16" is several times as fast on a CPU that supports
            it and gives other units for a few percent of the patches.

    Raises:
        WeightsError: (a ValueError) the weights are missing or not those of a ViT-VQGAN; one
            line.
    """
    check_precision(precision)
    path = find_weights(name_or_path, BUNDLED)
    rows = None if codebook is None else load_codebook(codebook)
    network = load_network(read_weights(path), rows)
    is_file = str(name_or_path) not in BUNDLED and Path(name_or_path).expanduser().exists()
    name = Path(name_or_path).name if is_file else str(name_or_path)
    return ImageTokenizer(network, name=name, precision=precision, device=device)
