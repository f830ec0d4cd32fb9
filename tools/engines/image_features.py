"""Features of the images of datasets, computed once by a frozen image encoder and kept in a folder.

`im2sp-train --input pixels` writes them before it trains (form: `trainer.features`). Images that
the folder lacks are added in parts of 512, so an interrupted pass resumes, and further splits or
datasets are added to the same folder.
"""

import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from im2sp.pipeline.decoding.media import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job.decode_pool import DecodePool
from im2sp.pipeline.sources import list_source
from im2sp.pipeline.sources.items import SourceItem
from im2sp.shards.files import file_lock
from im2sp.tools.engines.image_encoders import VIEW_PX, load_image_encoder
from im2sp.trainer.cli import is_first
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.data import image_keys
from im2sp.trainer.features import (
    IMAGE_FEATURES,
    PART_FILES,
    STATES,
    ImageFeatures,
    part_path,
    write_part,
)
from im2sp.trainer.sources import open_train, open_val

BATCH_SIZE, PART_BATCHES = 16, 32
_MAX_WORKERS = 8
_LOCK = ".im2sp-features"
_POLL_S = 1.0


def prepare_features(config: TrainConfig, log: Callable[[str], object]) -> None:
    """Write the features of a run's images that its folder lacks.

    On several processes one of them writes, the others wait for it.

    Raises:
        ValueError: The images or the encoder cannot be read, an image is missing, or the folder
            holds features of another encoder.
        OSError: The disk has too little space.
    """
    train = open_train(config)
    keys = image_keys([*train, *open_val(config, train[0])], config.image_column)
    folder = config.features_dir
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        with file_lock(folder / _LOCK) as is_ours:
            if is_ours:
                _write_missing(config, folder, list(dict.fromkeys(keys)), log)
                return
        time.sleep(_POLL_S)


def items_by_key(images: Sequence[str], image_root: Path | None) -> dict[str, SourceItem]:
    """The images of a source that can be decoded, by their keys.

    Raises:
        ValueError: The source cannot be listed.
    """
    items = list_source(images, image_root=image_root).items
    return {item.key: item for item in items if item.error is None and item.image is not None}


def image_batches(
    pool: DecodePool, items: Sequence[SourceItem], batch_size: int, refused: list[str]
) -> Iterator[tuple[list[str], Tensor]]:
    """Keys and (B, S, S, 3) uint8 pixels of images; reasons of refusals are added to `refused`."""
    decoded = zip(items, pool.decode(items), strict=True)

    def read() -> Iterator[tuple[str, np.ndarray]]:
        for item, one in decoded:
            if one.pixels is None:
                refused.append(f"{item.name}: {one.reason}")
            else:
                yield item.key, one.pixels

    images = read()
    while batch := list(itertools.islice(images, batch_size)):
        yield [key for key, _ in batch], torch.from_numpy(np.stack([x for _, x in batch]))


def _write_missing(
    config: TrainConfig, folder: Path, keys: Sequence[str], log: Callable[[str], object]
) -> None:
    assert config.image_encoder is not None
    parts = sorted(folder.glob(PART_FILES))
    found = ImageFeatures(folder, config.image_encoder) if parts else None
    missing = [key for key in keys if found is None or key not in found]
    if not missing:
        return
    if not config.images:
        raise ValueError(
            f"--images is missing: {folder} lacks the features of {len(missing):,} images, such as"
            f" {missing[0]}"
        )
    items = items_by_key(config.images, config.image_root)
    absent = [key for key in missing if key not in items]
    if absent:
        raise ValueError(
            f"--images {' '.join(config.images)}: lacks {len(absent):,} of {len(keys):,} images of"
            f" the shards, such as {absent[0]}; give the source that the shards were made from"
        )
    encoder = load_image_encoder(config.image_encoder, config.device)
    if found is not None and found.record != encoder.record:
        raise ValueError(
            f"--features {folder}: features of the encoder {found.record['fingerprint'][:12]}..,"
            f" {encoder.name} is {encoder.record['fingerprint'][:12]}..; give another folder"
        )
    shape = encoder.states(torch.zeros(1, VIEW_PX, VIEW_PX, 3, dtype=torch.uint8)).shape[1:]
    size_bytes, free = len(missing) * shape.numel() * 2, shutil.disk_usage(folder).free
    if size_bytes > free:
        raise ValueError(
            f"--features {folder}: needs {size_bytes / 1e9:.1f} GB for {len(missing):,} images, and"
            f" {free / 1e9:.1f} GB are free; name another folder"
        )
    log(
        f"features of {len(missing):,} images by {encoder.name}, {size_bytes / 1e9:.2f} GB, view"
        f" {encoder.view}"
    )
    first = 1 + int(parts[-1].stem.partition("-")[2]) if parts else 0
    refused: list[str] = []
    with DecodePool(
        num_workers=min(_MAX_WORKERS, os.cpu_count() or 1),
        view=encoder.view,
        max_pixels=DEFAULT_MAX_PIXELS,
    ) as pool:
        batches = image_batches(pool, [items[key] for key in missing], BATCH_SIZE, refused)
        hidden = config.quiet or not is_first()
        bar = tqdm(total=len(missing), desc="features", unit=" images", disable=hidden)
        for number in itertools.count(first):
            part_keys: list[str] = []
            states: list[Tensor] = []
            for batch_keys, pixels in itertools.islice(batches, PART_BATCHES):
                part_keys += batch_keys
                states.append(encoder.states(pixels))
                bar.update(len(batch_keys))
            if not part_keys:
                break
            path = part_path(folder, number)
            write_part(path, IMAGE_FEATURES, part_keys, encoder.record, {STATES: torch.cat(states)})
        bar.close()
    if refused:
        raise ValueError(
            f"--images: {len(refused):,} of {len(keys):,} images of the shards are refused, such as"
            f" {refused[0]}; restore them, and run the same command again"
        )
