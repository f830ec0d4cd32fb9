"""Configuration of a tokenize job, and the part of it that determines the output."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from im2sp.pipeline.audio import DEFAULT_MAX_SECONDS
from im2sp.pipeline.images import DEFAULT_MAX_PIXELS
from im2sp.pipeline.job_codecs import FITTED, PLAIN, SpeechCoding
from im2sp.pipeline.job_state import JobError
from im2sp.pipeline.source_items import SourceError, SourceItem, SourceListing, Utterance
from im2sp.pipeline.views import VIEWS
from im2sp.shards import Layout

if TYPE_CHECKING:
    from im2sp.pipeline.hubert_units import SpeechTokenizer
    from im2sp.pipeline.image_tokenizer import ImageTokenizer

Only = Literal["images", "audio"]

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
    """How shards code speech: `huffman`, fitted to the first shard's worth; `plain`; or the folder
    of a dataset whose tables are taken over."""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Largest picture that is decoded."""
    max_audio_s: float = DEFAULT_MAX_SECONDS
    """Longest clip that is decoded."""
    decode_timeout_s: float = 60.0
    """Time limit of decoding one input."""
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
        for name in ("max_audio_s", "decode_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        if self.layout.is_plain and self.speech_codec not in (FITTED, PLAIN):
            raise ValueError(
                f"speech_codec is {self.speech_codec}; one sample a member goes with {PLAIN} codecs"
            )

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


def narrowed(listing: SourceListing, only: Only | None, name: object) -> SourceListing:
    """The listing as if the source held images alone, or audio alone; as it is for None.

    Without audio, transcripts are captions like any other. Inputs of which nothing is left are
    left out; those that cannot be used stay, and are refused.

    Args:
        listing: What the source holds.
        only: What to keep.
        name: What the message calls the source.

    Raises:
        SourceError: Nothing is left.
    """
    if only is None:
        return listing
    items: list[SourceItem] = []
    for item in listing.items:
        if item.error is not None:
            items.append(replace(item, utterances=()))
        elif only == "images" and item.image is not None:
            captions = (*texts_of(item.utterances), *item.captions)
            items.append(replace(item, utterances=(), captions=captions))
        elif only == "audio" and item.utterances:
            items.append(replace(item, image=None))
    if not items:
        raise SourceError(f"{name}: holds no {only}; leave --only {only} out")
    return replace(listing, items=items)


def has_speech(items: Sequence[SourceItem]) -> bool:
    """True where a speech tokenizer is needed: there is a clip that may be good."""
    return any(
        utterance.error is None
        for item in items
        if item.error is None
        for utterance in item.utterances
    )


def has_images(items: Sequence[SourceItem]) -> bool:
    """True where an image tokenizer is needed.

    It is for a source of neither, all of whose inputs cannot be used: those are missing images.
    """
    return any(item.error is None and item.image is not None for item in items) or not any(
        item.error is None and item.utterances for item in items
    )


def texts_of(utterances: Sequence[Utterance]) -> list[str]:
    """Transcripts of the clips that have one."""
    return [utterance.text for utterance in utterances if utterance.text]
