"""Samples of an evaluation; of a run on pixels with their images, encoded by its image encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from im2sp.pipeline.decoding.media import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job.decode_pool import decode
from im2sp.shards import Sample, ShardDataset
from im2sp.shards.files import read_toml
from im2sp.tools.engines.image_features import items_by_key
from im2sp.tools.evaluation.config import EvaluateConfig, Topline
from im2sp.tools.speaking.image_input import load_input, sees_pixels
from im2sp.trainer.checkpoint import named_checkpoint
from im2sp.trainer.config import CONFIG_NAME
from im2sp.trainer.transfer import former_state


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A sample with its references."""

    sample: Sample
    references: list[str]
    text: str | None
    """Text of a topline's speech, the reference of the word error rate."""


class PixelImages:
    """Images of a source by the keys of samples, as input of a run's model."""

    def __init__(self, config: EvaluateConfig, record: Mapping[str, Any]) -> None:
        """List the images of `--images`, or of those that the run was trained on.

        Args:
            config: Settings of the evaluation.
            record: The run's record of its image encoder.

        Raises:
            ValueError: There are none, or the run's image encoder cannot be loaded.
        """
        assert config.run is not None
        images, image_root = config.images, config.image_root
        if not images and (found := named_checkpoint(Path(config.run))) is not None:
            trained = read_toml(found.path / CONFIG_NAME)
            images = tuple(trained.get("images", ()))
            root = trained.get("image_root")
            image_root = None if root is None else Path(root)
        if not images:
            raise ValueError(f"--images is missing: {config.run} describes pixels")
        self._items = items_by_key(images, image_root)
        self._view: str = record["view"]
        self._input = load_input(
            Path(config.run).name,
            record,
            record["fingerprint"],
            config.image_encoder,
            None,
            config.device,
            flag="--image-encoder",
        )
        self.name = self._input.name

    def __contains__(self, key: str) -> bool:
        """True if the source has the image of a sample."""
        return key in self._items

    def encode(self, keys: Sequence[str]) -> Tensor:
        """(B, P, C) float16 features.

        Raises:
            ValueError: An image cannot be decoded.
        """
        pixels = []
        for key in keys:
            item = self._items[key]
            found = decode(item, self._view, DEFAULT_MAX_PIXELS)
            if found.pixels is None:
                raise ValueError(f"--images: {item.name}: {found.reason}; restore it")
            pixels.append(found.pixels)
        return self._input.encode(pixels)[0]


def find_images(config: EvaluateConfig) -> PixelImages | None:
    """The images of a run on pixels; None for a run on image units.

    Raises:
        ValueError: See `PixelImages`; or the flags of images are given for image units.
    """
    record = former_state(config.run).get("tokenizers", {}).get("image") or {}
    if sees_pixels(record):
        return PixelImages(config, record)
    if config.images or config.image_encoder:
        flag = "--images" if config.images else "--image-encoder"
        raise ValueError(f"{flag} applies to runs of im2sp-train --input pixels only")
    return None


def judged_samples(
    dataset: ShardDataset,
    topline: Topline | None,
    limit: int | None,
    image_column: str,
    images: PixelImages | None = None,
) -> tuple[list[Judged], int]:
    """Samples that can be scored, and the number of the others.

    A model needs an image and a caption. A topline speaks the first caption and is scored against
    the others; the topline of units needs an utterance, whose text is the first caption.
    """
    kept: list[Judged] = []
    num_without = 0
    for sample in dataset:
        if limit is not None and len(kept) == limit:
            break
        captions = [caption for caption in sample.captions if caption.strip()]
        if topline is None:
            if images is not None:
                has_image = sample.key in images
            else:
                has_image = image_column in dataset.columns and sample[image_column] is not None
            is_whole, text = has_image and len(captions) > 0, None
        else:
            text = sample.captions[0] if sample.captions else ""
            captions = [caption for caption in sample.captions[1:] if caption.strip()]
            has_speech = topline == "captions" or len(sample.speech_units) > 0
            is_whole = bool(text.strip()) and len(captions) > 0 and has_speech
        if is_whole:
            kept.append(Judged(sample=sample, references=captions, text=text))
        else:
            num_without += 1
    return kept, num_without
