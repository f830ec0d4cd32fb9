"""What a tokenize job is told, and what of it decides the bytes of the dataset."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from im2sp.pipeline.audio import DEFAULT_MAX_SECONDS
from im2sp.pipeline.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job_codecs import FITTED, PLAIN, SpeechCoding
from im2sp.pipeline.job_media import Only
from im2sp.pipeline.job_state import JobError
from im2sp.pipeline.source_items import SourceListing
from im2sp.pipeline.views import VIEWS
from im2sp.shards import Layout

if TYPE_CHECKING:
    from im2sp.pipeline.hubert_units import SpeechTokenizer
    from im2sp.pipeline.image_tokenizer import ImageTokenizer

CHUNK_SIZE = 256
"""Inputs whose samples are kept on disk together while the job runs."""


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What to tokenize and how; everything that decides the content of the dataset."""

    source: Path
    """Folder, tar, Karpathy file or manifest."""
    dataset_dir: Path
    """Folder to write into; other files in it are left alone."""
    image_root: Path | None = None
    """Where the image paths of a Karpathy file or manifest begin."""
    audio_root: Path | None = None
    """Where the audio paths begin, or the folder whose audio belongs to the images."""
    only: Only | None = None
    """Take the source's images alone, or its audio alone."""
    view: str = "squash-224"
    """How a picture becomes a square; a name of `VIEWS`."""
    layout: Layout = Layout()
    """How samples lie in the shards."""
    samples_per_shard: int = 16384
    """Inputs that go into one shard file, rounded up to a multiple of 256."""
    speech_codec: str = FITTED
    """How shards code speech: `huffman`, fitted to the first shard's worth, or `plain`."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest picture that is decoded."""
    max_audio_s: float = DEFAULT_MAX_SECONDS
    """Longest clip that is decoded."""
    num_workers: int = 2
    """Processes that decode."""
    overwrite: bool = False
    """Remove the dataset or unfinished job that is there and start anew."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.view not in VIEWS:
            raise ValueError(f"view {self.view!r}; expected one of {', '.join(VIEWS)}")
        if self.only not in (None, *get_args(Only)):
            raise ValueError(f"only {self.only!r}; expected one of {', '.join(get_args(Only))}")
        for name in ("samples_per_shard", "max_pixels", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not self.max_audio_s > 0:
            raise ValueError(f"max_audio_s is {self.max_audio_s}; expected more than 0")
        if self.speech_codec not in (FITTED, PLAIN):
            raise ValueError(f"speech_codec {self.speech_codec!r}; expected {FITTED} or {PLAIN}")

    @property
    def chunks_per_shard(self) -> int:
        """Chunks of `CHUNK_SIZE` inputs that make one shard."""
        return -(-self.samples_per_shard // CHUNK_SIZE)


def describe_job(
    config: JobConfig,
    listing: SourceListing,
    image_tokenizer: "ImageTokenizer | None",
    speech_tokenizer: "SpeechTokenizer | None",
    coding: SpeechCoding | None,
) -> dict[str, Any]:
    """All that decides the bytes of the dataset; no clock, host name or path of this machine."""
    tokenizers = [one for one in (image_tokenizer, speech_tokenizer) if one is not None]
    job: dict[str, Any] = {
        "image_tokenizer": None,
        "layout": {
            "kind": config.layout.kind,
            "samples_per_member": config.layout.samples_per_member,
        },
        "settings": {
            "source": listing.describe(),
            "device": tokenizers[0].device.type,
            "max_pixels": config.max_pixels,
            "samples_per_shard": config.chunks_per_shard * CHUNK_SIZE,
        },
    }
    if image_tokenizer is not None:
        job["image_tokenizer"] = {
            "name": image_tokenizer.name,
            "fingerprint": image_tokenizer.fingerprint,
            "precision": image_tokenizer.precision,
            "view": config.view,
        }
    if speech_tokenizer is not None and coding is not None:
        job["speech_tokenizer"] = {
            "name": speech_tokenizer.name,
            "fingerprint": speech_tokenizer.fingerprint,
            "precision": speech_tokenizer.precision,
            "layer": speech_tokenizer.layer,
            "num_units": speech_tokenizer.num_units,
        }
        job["settings"]["max_audio_s"] = float(config.max_audio_s)
        job["settings"]["speech_codec"] = coding.label
    return job


def check_image_tokenizer(config: JobConfig, tokenizer: "ImageTokenizer") -> None:
    """Raise `JobError` where shards cannot hold what the tokenizer gives."""
    patch_px = tokenizer.patch_size_px
    if patch_px != 8:
        raise JobError(
            f"image tokenizer {tokenizer.name}: one unit covers {patch_px}x{patch_px} pixels; "
            f"shards hold 28x28 units of views such as {config.view}, which need 8x8"
        )
    if tokenizer.num_codes > 8192:
        raise JobError(
            f"image tokenizer {tokenizer.name}: has {tokenizer.num_codes} codes; shards hold ids "
            "of 13 bits, at most 8192"
        )
