"""Train the decoder of an image tokenizer further, its units left as they are.

    python tools/fit_image_decoder.py --images TRAIN [TRAIN ..] --val VAL --out runs/decoder

Encoder and codes stay, and with them the fingerprint: shards and captioners made with the tokenizer
go on working, and their pictures look better. All pictures are encoded once, as they are and
mirrored; then the decoder learns the squared error of pixels, on crops and in the end on whole
pictures, at a third of what a step of `fit_image_tokenizer` costs. The rate falls to zero at
`--minutes`. A checkpoint is kept; the same command goes on from it. Writes `tokenizer.safetensors`
and `card.json` into `--out`.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from im2sp.pipeline.image_tokenizer import ImageTokenizer, load_image_tokenizer
from im2sp.pipeline.vitvqgan import ViTVQGAN
from im2sp.pipeline.vitvqgan_weights import image_tokenizer_bytes
from im2sp.shards.files import atomic_file
from im2sp.tools.fit_image_tokenizer import measure_tokenizer, read_pictures, to_pixels
from im2sp.tools.image_tokenizer_trainer import GRID, make_optimizers, set_rates

ENCODE_IMAGES = 64
EVERY_STEPS = 100
VAL_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a decoder is trained; kept in the card and in the weights' metadata."""

    batch_size: int = 32
    """Crops a step; whole pictures come in batches of the same number of patches."""
    crop_patches: int = 14
    """Side of a crop."""
    block_rate: float = 1.5e-4
    """Highest learning rate of Muon, for the blocks."""
    other_rate: float = 1e-5
    """Highest rate of AdamW, for the last layer; norms and biases get ten times."""
    whole_share: float = 0.15
    """Share of the time, at the end, in which whole pictures are seen."""
    seed: int = 0
    """Of what is drawn."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pictures and what the tokenizer makes of them."""

    pictures: NDArray[np.uint8]
    """(n, 224, 224, 3)."""
    units: NDArray[np.uint16]
    """(2, n, 28, 28): of the pictures, and of their mirror images."""

    def draw(
        self, recipe: Recipe, *, whole: bool, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """A batch of crops at one place.

        Returns:
            (B, 3, S, S) float32 pixels, (B, S / 8, S / 8) int64 units, and row and column of the
            first patch.
        """
        side = GRID if whole else recipe.crop_patches
        count = max(1, recipe.batch_size * recipe.crop_patches**2 // side**2)
        y, x = (int(place) for place in generator.integers(0, GRID - side + 1, 2))
        rows = generator.integers(len(self.pictures), size=count)
        mirrored = generator.integers(2, size=count)
        size = self.pictures.shape[1] // GRID
        crops = np.empty((count, side * size, side * size, 3), np.uint8)
        for crop, row, flip in zip(crops, rows, mirrored, strict=True):
            picture = self.pictures[row, :, ::-1] if flip else self.pictures[row]
            crop[:] = picture[y * size : (y + side) * size, x * size : (x + side) * size]
        units = self.units[mirrored, rows, y : y + side, x : x + side].astype(np.int64)
        return to_pixels(crops, torch.device("cpu")), torch.from_numpy(units), (y, x)


def encode_pictures(
    tokenizer: ImageTokenizer, pictures: NDArray[np.uint8], path: Path
) -> NDArray[np.uint16]:
    """(2, n, 28, 28) units of pictures and their mirror images, kept in `path`."""
    if not path.exists():
        found = np.empty((2, len(pictures), GRID, GRID), np.uint16)
        views = (pictures, pictures[:, :, ::-1])
        with tqdm(total=2 * len(pictures), desc="encode", unit=" images") as bar:
            for mirrored, view in enumerate(views):
                for start in range(0, len(view), ENCODE_IMAGES):
                    part = view[start : start + ENCODE_IMAGES]
                    units = tokenizer.encode(to_pixels(part, torch.device("cpu")))
                    found[mirrored, start : start + len(part)] = units.numpy()
                    bar.update(len(part))
        with atomic_file(path) as file:
            np.save(file, found)
    units = np.load(path)
    if units.shape != (2, len(pictures), GRID, GRID):
        raise ValueError(
            f"{path}: units of shape {units.shape}, expected {(2, len(pictures), GRID, GRID)};"
            " it is of other pictures: remove it, or give another --out"
        )
    return units


class Trainer:
    """The decoder and its optimizers."""

    def __init__(self, tokenizer: ImageTokenizer, recipe: Recipe, device: torch.device) -> None:
        if tokenizer.network.decoder is None:
            raise ValueError(f"{tokenizer.name}: these weights hold no decoder to train")
        self.recipe, self.device = recipe, device
        self.network = tokenizer.network.to(device).requires_grad_(False)
        for part in (self.network.decoder, self.network.post_quant):
            if part is not None:
                part.requires_grad_(True)
        rows = self.network.quantizer.embedding.weight.detach().float()
        self.codes = F.normalize(rows, dim=-1)
        self.optimizers = make_optimizers(
            self.network,
            block_rate=recipe.block_rate,
            encoder_rate=0.0,
            other_rate=recipe.other_rate,
        )
        self.step = 0

    def train_step(
        self, pixels: Tensor, units: Tensor, origin: tuple[int, int], progress: float
    ) -> float:
        """One step; returns the mean squared error.

        Args:
            pixels: (B, 3, S, S) float32.
            units: (B, S / 8, S / 8) int64.
            origin: Row and column of the first patch.
            progress: Share of the time that is gone.
        """
        set_rates(self.optimizers, self.step, progress)
        pixels, units = pixels.to(self.device), units.to(self.device)
        decoded = self.network.decode_features(
            self.codes[units.flatten(1)], None, origin, torch.bfloat16
        )
        loss = (decoded - pixels).square().mean()
        loss.backward()
        value = loss.item()
        if not np.isfinite(value):
            raise ValueError(f"the loss is {value} at step {self.step}; lower the rates")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return value

    def state(self) -> dict[str, Any]:
        """All that a later run needs to go on."""
        return {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take a `state()` over."""
        self.network.load_state_dict(state["network"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.step = state["step"]


def train(trainer: Trainer, pairs: Pairs, out: Path, minutes: float) -> float:
    """Train until `minutes` are spent, those before a restart counted in; returns the hours."""
    recipe, path, spent_s = trainer.recipe, out / "checkpoint.pt", 0.0
    if path.exists():
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise ValueError(
                f"{path}: made with {state['recipe']}; use those settings, or another --out"
            )
        trainer.restore(state)
        spent_s = state["spent_s"]
    generator = np.random.default_rng((recipe.seed, trainer.step))
    begin_s = time.monotonic() - spent_s
    mean = 0.0
    while (progress := (time.monotonic() - begin_s) / (60 * minutes)) < 1:
        is_whole = progress > 1 - recipe.whole_share
        error = trainer.train_step(
            *pairs.draw(recipe, whole=is_whole, generator=generator), progress
        )
        mean = error if mean == 0 else 0.98 * mean + 0.02 * error
        if trainer.step % EVERY_STEPS == 0:
            print(f"step {trainer.step} {progress:.1%} mse {mean:.5f}", flush=True)
            state = {**trainer.state(), "spent_s": time.monotonic() - begin_s}
            with atomic_file(path) as file:
                torch.save({**state, "recipe": asdict(recipe)}, file)
    return (time.monotonic() - begin_s) / 3600


def stored_type(network: ViTVQGAN) -> torch.dtype:
    """float16 where it keeps what is not trained, and with it the units; else float32."""
    kept = [tensor for tensor in network.parameters() if not tensor.requires_grad]
    is_half = all(torch.equal(tensor.half().float(), tensor) for tensor in kept)
    return torch.float16 if is_half else torch.float32


def fit(arguments: argparse.Namespace) -> None:
    """Do all of it: read, encode, train, measure, write."""
    recipe = Recipe(**{field.name: getattr(arguments, field.name) for field in fields(Recipe)})
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    out, tokenizer = arguments.out, load_image_tokenizer(arguments.tokenizer, device=device)
    out.mkdir(parents=True, exist_ok=True)
    pictures, val = read_pictures(arguments.images), read_pictures([arguments.val])
    before = measure_tokenizer(tokenizer, val).as_json()
    print(f"before {json.dumps(before)}", flush=True)
    path = out / f"units-{tokenizer.fingerprint[:16]}.npy"
    pairs = Pairs(pictures=pictures, units=encode_pictures(tokenizer, pictures, path))
    trainer = Trainer(tokenizer, recipe, device)
    hours = train(trainer, pairs, out, arguments.minutes)
    weights_path = out / "tokenizer.safetensors"
    with atomic_file(weights_path) as file:
        settings = {"decoder_recipe": asdict(recipe)}
        dtype = stored_type(trainer.network)
        file.write(image_tokenizer_bytes(trainer.network, dtype, settings=settings))
    written = load_image_tokenizer(weights_path, device=device)
    card = {
        "tokenizer": arguments.tokenizer,
        "fingerprint": written.fingerprint,
        "recipe": asdict(recipe),
        "num_train_images": len(pictures),
        "hours": round(hours, 3),
        "steps": trainer.step,
        "device": device.type,
        "torch": torch.__version__,
        "val_before": before,
        "val": measure_tokenizer(written, val).as_json(),
    }
    with atomic_file(out / "card.json") as file:
        file.write(json.dumps(card, indent=2).encode() + b"\n")
    print(json.dumps(card, indent=2))


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description="Train an image tokenizer's decoder further.")
    parser.add_argument("--tokenizer", default="compact", help="as im2sp-tokenize takes it")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders or tars")
    parser.add_argument("--val", type=Path, required=True, help="folder or tar to measure with")
    parser.add_argument("--out", type=Path, required=True, help="folder to work and write in")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument("--device", help="as torch names it; CUDA where there is one")
    for field in fields(Recipe):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default)
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.crop_patches <= GRID:
        parser.error(f"--crop-patches is {arguments.crop_patches}; expected 1 to {GRID}")
    try:
        fit(arguments)
    except (ValueError, OSError) as error:
        print(f"fit_image_decoder: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
