"""Show the information in image units: original and decoded images side by side on one sheet.

    python tools/reconstruct.py SHARDS --out sheet.png [--images SOURCE]

The image tokenizer is the one recorded in the dataset; another one (other weights, another
codebook) is refused by its fingerprint. With `--images` (the tokenized source), each decoded image
is to the right of its original, and the mean PSNR is printed. Exit codes: 0 written, 1 not
possible, 2 usage.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from im2sp.shards import Sample, ShardDataset, ShardError
from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file

TILE_PX = 224
MARGIN_PX = 8
LABEL_PX = 20


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two uint8 images of one shape, in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def decode_samples(
    samples: Sequence[Sample], tokenizer_record: Mapping[str, str], name: str, codebook: Path | None
) -> list[NDArray[np.uint8]]:
    """Decode each sample's image units to uint8 [224, 224, 3].

    Raises:
        ValueError: The tokenizer is not the one that made the units.
    """
    import torch

    from im2sp.pipeline import load_image_tokenizer

    tokenizer = load_image_tokenizer(
        name, codebook, precision="bf16" if tokenizer_record.get("precision") == "bf16" else "fp32"
    )
    if tokenizer.fingerprint != tokenizer_record["fingerprint"]:
        raise ValueError(
            f"{name}: its fingerprint is {tokenizer.fingerprint[:16]}.., the units were made with"
            f" {tokenizer_record['name']}, {tokenizer_record['fingerprint'][:16]}..;"
            " name that one with --image-tokenizer (and --codebook)"
        )
    images = []
    with torch.inference_mode():
        for sample in samples:
            assert sample.image_units is not None
            units = torch.from_numpy(sample.image_units.astype(np.int64))[None]
            pixels = tokenizer.decode(units)[0].float().clamp(0, 1).permute(1, 2, 0)
            images.append((pixels * 255).round().to(torch.uint8).cpu().numpy())
    return images


def read_originals(
    source: Path, image_root: Path | None, view_name: str, keys: Sequence[str]
) -> list[NDArray[np.uint8]]:
    """Read the images of given keys in the view in which they were tokenized.

    Raises:
        ValueError: The source has no image with a key.
    """
    from im2sp.pipeline.decoding.images import read_image
    from im2sp.pipeline.decoding.views import VIEWS
    from im2sp.pipeline.sources import list_source

    view = VIEWS[view_name]
    items = {item.key: item for item in list_source(source, image_root=image_root).items}
    images = []
    for key in keys:
        item = items.get(key)
        if item is None or item.image is None:
            raise ValueError(f"{source}: no image for the key {key!r}; is it the tokenized source?")
        pixels = view.apply(read_image(item.image, name=item.name))
        image = Image.fromarray(pixels)
        edge = (pixels.shape[1] - TILE_PX) // 2  # a view that crops units has a wider image
        box = (edge, edge, edge + TILE_PX, edge + TILE_PX)
        images.append(np.asarray(image.crop(box) if edge else image))
    return images


def sheet(
    keys: Sequence[str],
    decoded: Sequence[NDArray[np.uint8]],
    originals: Sequence[NDArray[np.uint8]] | None,
    num_columns: int = 3,
) -> Image.Image:
    """Arrange labelled images, each original to the left of the decoded one."""
    per_cell = 1 if originals is None else 2
    cell_width = per_cell * TILE_PX + MARGIN_PX
    cell_height = TILE_PX + LABEL_PX + MARGIN_PX
    num_rows = -(-len(keys) // num_columns)
    size = (num_columns * cell_width + MARGIN_PX, num_rows * cell_height + MARGIN_PX)
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for i, key in enumerate(keys):
        left = MARGIN_PX + (i % num_columns) * cell_width
        top = MARGIN_PX + (i // num_columns) * cell_height
        pair = [decoded[i]] if originals is None else [originals[i], decoded[i]]
        for j, pixels in enumerate(pair):
            page.paste(Image.fromarray(pixels), (left + j * TILE_PX, top))
        pen.text((left, top + TILE_PX + 2), key[-60:], fill="black", font=font)
    return page


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Decode the first images of a dataset onto one sheet, beside the originals.

    Exit code: 0 written; 1 failed; 2 wrong usage.
    """

    shards: tyro.conf.Positional[Path]
    """Folder or URL (s3://..) with dataset.json."""
    out: Path
    """Image file to write."""
    images: Path | None = None
    """Source that was tokenized; adds the originals on the left and prints the PSNR."""
    image_root: Path | None = None
    """Folder or .tar that the image paths of a source list are relative to."""
    num_images: int = 12
    """Number of images."""
    image_tokenizer: str | None = None
    """Image tokenizer: name, hub id or path; by default the recorded one."""
    codebook: Path | None = None
    """Codebook of the image tokenizer, if it is a separate file."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        if self.num_images < 1:
            raise ValueError(f"--num-images is {self.num_images}; expected at least 1")
        if _format_of(self.out) is None:
            raise ValueError(f"--out {self.out}: not an image format; give a name such as a.png")


def _format_of(path: Path) -> str | None:
    return Image.registered_extensions().get(path.suffix.lower())


def make_sheet(config: ReconstructConfig) -> str:
    """Write the sheet and return the line to print."""
    dataset = ShardDataset(config.shards)
    record = dataset.manifest.image_tokenizer
    with_units = (s for s in dataset if s.image_units is not None)
    samples = list(itertools.islice(with_units, config.num_images))
    if not samples:
        raise ShardError(f"{dataset.path}: holds no image units")
    if record is None or "fingerprint" not in record or "view" not in record:
        made_by = (record or {}).get("name", "no known tokenizer")
        raise ShardError(
            f"{dataset.path}: its image units are of {made_by},"
            " which im2sp cannot decode to pixels; expected a dataset of im2sp-tokenize"
        )
    keys = [sample.key for sample in samples]
    name = config.image_tokenizer or record["name"]
    decoded = decode_samples(samples, record, name, config.codebook)
    originals = None
    found = f"{len(keys)} images decoded"
    if config.images is not None:
        originals = read_originals(config.images, config.image_root, record["view"], keys)
        mean = np.mean([psnr(a, b) for a, b in zip(originals, decoded, strict=True)])
        found += f", mean PSNR {mean:.2f} dB"
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(config.out) as file:
        sheet(keys, decoded, originals).save(file, _format_of(config.out))
    return f"{config.out}: {found}"


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("reconstruct", ReconstructConfig, lambda c: print(make_sheet(c)), args)


if __name__ == "__main__":
    sys.exit(main())
