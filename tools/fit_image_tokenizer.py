"""Train a small ViT-VQGAN image tokenizer, such as the bundled `compact`.

    python tools/fit_image_tokenizer.py --images TRAIN [TRAIN ..] --val VAL --out runs/tokenizer

Starts from PCA and k-means (`fitting.image_start`) and trains encoder, codes and decoder jointly on
crops, and on whole images in the last part, in bfloat16. Codes are exponential moving averages of
their patches; unused codes are re-initialised at a patch of the batch. The quantiser's gradient is
straight-through: features and codes are within a few degrees of each other, because a constant
keeps their lengths, and there the rotation trick gives the same gradient.

The loss is the squared error of pixels and a commitment loss in the same units. Blocks are trained
by Muon, all else by AdamW; the learning rate falls to zero at `--minutes`. The same command resumes
from the checkpoint. Writes `tokenizer.safetensors` and `card.json` into `--out`.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from im2sp.pipeline.image_tokenizer.network import ViTVQGAN, from_patches, to_patches
from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer, load_image_tokenizer
from im2sp.pipeline.image_tokenizer.weights import image_tokenizer_bytes
from im2sp.pipeline.job.decode_pool import DecodePool
from im2sp.pipeline.sources import list_source
from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file
from im2sp.tools.evaluation.image_quality import Quality, QualityMeter
from im2sp.tools.fitting.image_start import (
    PATCH_PX,
    PatchStatistics,
    fit_patches,
    sample_patches,
)
from im2sp.tools.fitting.image_trainer import GRID, Recipe, Trainer, nearest_codes
from im2sp.tools.fitting.kmeans import nearest_centroids

EVERY_STEPS = 100


def read_images(sources: Sequence[Path]) -> np.ndarray:
    """Read all images of the sources in the view `squash-224`: uint8 [n, 224, 224, 3]."""
    images: list[np.ndarray] = []
    workers = min(16, os.cpu_count() or 1)
    with DecodePool(num_workers=workers, view="squash-224", max_pixels=2**27) as pool:
        for source in sources:
            decoded = pool.decode(list_source(source).items)
            images += [one.pixels for one in decoded if one.pixels is not None]
    if not images:
        raise ValueError(f"{', '.join(map(str, sources))}: no readable image")
    return np.stack(images)


@torch.inference_mode()
def measure(network: ViTVQGAN, images: np.ndarray, device: torch.device) -> Quality:
    """Quality of a network in float32 on whole images."""
    meter = QualityMeter(network.config.num_codes)
    codes = F.normalize(network.quantizer.embedding.weight, dim=-1)
    for start in range(0, len(images), 8):
        pixels = to_pixels(images[start : start + 8], device)
        features = F.normalize(network.encode_features(pixels), dim=-1)
        units = nearest_codes(features.flatten(0, 1), codes)
        decoded = network.decode_features(codes[units].view_as(features))
        meter.add(pixels.cpu(), decoded.cpu(), units)
    return meter.result()


def measure_tokenizer(tokenizer: ImageTokenizer, images: np.ndarray) -> Quality:
    """Quality of a tokenizer as users load it, on whole images."""
    meter = QualityMeter(tokenizer.num_codes)
    for start in range(0, len(images), 8):
        pixels = to_pixels(images[start : start + 8], torch.device("cpu"))
        units = tokenizer.encode(pixels)
        meter.add(pixels, tokenizer.decode(units), units)
    return meter.result()


def measure_kmeans(statistics: PatchStatistics, images: np.ndarray) -> Quality:
    """Quality of plain k-means of projected patches, the baseline."""
    meter = QualityMeter(len(statistics.centroids))
    for start in range(0, len(images), 8):
        pixels = to_pixels(images[start : start + 8], torch.device("cpu"))
        patches = to_patches(pixels, PATCH_PX)
        points = (patches - statistics.mean) @ statistics.components
        units, _ = nearest_centroids(points.flatten(0, 1), statistics.centroids)
        decoded = statistics.centroids[units] @ statistics.components.T + statistics.mean
        decoded = decoded.view(*points.shape[:2], -1)
        meter.add(pixels, from_patches(decoded, (GRID, GRID), PATCH_PX), units)
    return meter.result()


def to_pixels(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [B, S, S, 3] -> float32 (B, 3, S, S) in [0, 1]."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return torch.from_numpy(planes).to(device).float() / 255


def draw_crops(
    images: np.ndarray, recipe: Recipe, *, whole: bool, generator: np.random.Generator
) -> tuple[np.ndarray, tuple[int, int]]:
    """Draw a batch of crops, half of them mirrored, and their position in the grid."""
    side = GRID if whole else recipe.crop_patches
    count = max(1, recipe.batch_size * recipe.crop_patches**2 // side**2)
    origin = generator.integers(0, GRID - side + 1, 2)
    size = side * PATCH_PX
    crops = np.empty((count, size, size, 3), np.uint8)
    for i in range(count):
        y, x = generator.integers(0, GRID * PATCH_PX - size + 1, 2)
        crop = images[generator.integers(len(images)), y : y + size, x : x + size]
        crops[i] = crop[:, ::-1] if generator.random() < 0.5 else crop
    return crops, (int(origin[0]), int(origin[1]))


def train(
    trainer: Trainer, images: np.ndarray, val: np.ndarray, out: Path, minutes: float
) -> float:
    """Train for `minutes`, including time before a restart; return the hours."""
    recipe, path = trainer.recipe, out / "checkpoint.pt"
    spent_s = 0.0
    if path.exists():
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        trainer.restore(state)
        spent_s = state["spent_s"]
    generator = np.random.default_rng((recipe.seed, trainer.step))
    begin_s = time.monotonic() - spent_s
    mean = 0.0
    # On a CPU, attention's fused backward is slower than plain matrix products.
    backend = SDPBackend.MATH if trainer.device.type == "cpu" else SDPBackend.FLASH_ATTENTION
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    while (progress := (time.monotonic() - begin_s) / (60 * minutes)) < 1:
        crops, origin = draw_crops(
            images, recipe, whole=progress > 1 - recipe.whole_share, generator=generator
        )
        with sdpa_kernel(backend):
            error = trainer.train_step(to_pixels(crops, trainer.device), origin, progress)
        mean = error if mean == 0 else 0.98 * mean + 0.02 * error
        if trainer.step % EVERY_STEPS == 0:
            quality = ""
            if trainer.step % (10 * EVERY_STEPS) == 0:
                found = measure(trainer.network, val[:: max(1, len(val) // 64)], trainer.device)
                quality = json.dumps(found.as_json())
            print(f"step {trainer.step} {progress:.1%} mse {mean:.5f} {quality}", flush=True)
            spent_s = time.monotonic() - begin_s
            with atomic_file(path) as file:
                torch.save({**trainer.state(), "spent_s": spent_s}, file)
    return (time.monotonic() - begin_s) / 3600


@dataclass(frozen=True, kw_only=True)
class FitImageTokenizerConfig(Recipe):
    """Train a small ViT-VQGAN image tokenizer, such as the bundled `compact`."""

    images: tuple[Path, ...]
    """Folders or .tar files of training images."""
    val: Path
    """Folder or .tar of validation images."""
    out: Path
    """Folder for the checkpoint and the results."""
    minutes: float = 90.0
    """Training time."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    num_patches: int = 1_500_000
    """Patches for PCA and k-means."""
    width: int = 256
    encoder_depth: int = 3
    decoder_depth: int = 5
    batch_size: int = 32
    crop_patches: int = 14
    block_rate: float = 1.5e-4
    encoder_rate_factor: float = 0.4
    other_rate: float = 1e-5
    commitment: float = 1.0
    decay: float = 0.99
    whole_share: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        if self.width % 64 or not 1 <= self.crop_patches <= GRID:
            raise ValueError(f"--width must be a multiple of 64, --crop-patches at most {GRID}")


def fit(config: FitImageTokenizerConfig) -> None:
    """Read images, initialise, train, measure and write the tokenizer."""
    names = Recipe.__dataclass_fields__
    recipe = Recipe(**{name: getattr(config, name) for name in names})
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config.out.mkdir(parents=True, exist_ok=True)
    images, val = read_images(config.images), read_images([config.val])
    patches = sample_patches(images, config.num_patches, np.random.default_rng(recipe.seed))
    statistics = fit_patches(
        patches, num_codes=8192, code_width=32, num_rounds=14, seed=recipe.seed
    )
    kmeans = measure_kmeans(statistics, val)
    print(f"k-means {json.dumps(kmeans.as_json())}", flush=True)
    trainer = Trainer(recipe, statistics, device)
    hours = train(trainer, images, val, config.out, config.minutes)
    recipe_json = {name: getattr(recipe, name) for name in names}
    weights_path = config.out / "tokenizer.safetensors"
    with atomic_file(weights_path) as file:
        file.write(image_tokenizer_bytes(trainer.network, settings={"recipe": recipe_json}))
    written = load_image_tokenizer(weights_path, device=device)
    card = {
        "recipe": recipe_json,
        "num_train_images": len(images),
        "hours": round(hours, 3),
        "steps": trainer.step,
        "device": device.type,
        "torch": torch.__version__,
        "val": measure_tokenizer(written, val).as_json(),
        "val_kmeans": kmeans.as_json(),
    }
    with atomic_file(config.out / "card.json") as file:
        file.write(json.dumps(card, indent=2).encode() + b"\n")
    print(json.dumps(card, indent=2))


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(
        "fit_image_tokenizer", FitImageTokenizerConfig, fit, args, out=lambda config: config.out
    )


if __name__ == "__main__":
    sys.exit(main())
