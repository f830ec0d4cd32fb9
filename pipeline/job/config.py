"""Configuration of a tokenize job, and the part of it that determines the output.

`im2sp-tokenize --help` imports this module, so it imports neither torch nor numpy nor Pillow.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from im2sp.pipeline.decoding.media import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SECONDS
from im2sp.pipeline.decoding.views import RANDOM, ViewName
from im2sp.shards.errors import counted
from im2sp.shards.files import user_cache_dir
from im2sp.shards.stores import as_url, is_url, shown_url
from im2sp.shards.stores.writing import check_writable

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer
    from im2sp.shards import Layout

CHUNK_SIZE = 256
"""Inputs per chunk, the unit in which a running job stores samples on disk."""
FITTED, PLAIN = "huffman", "plain"
"""Codings of speech in the shards that need no other dataset."""
MAX_WORKERS = 16

Only = Literal["images", "audio"]


class JobError(ValueError):
    """The job cannot start or resume; the message says what to do."""


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Settings of a tokenize job. Field docstrings are the help of `im2sp-tokenize`."""

    source: Path | str | tuple[Path | str, ...]
    """Folder with images and audio (searched recursively), .tar, image, clip, Karpathy
    dataset_*.json, LJSpeech folder, source list (.jsonl, .csv or .parquet with key, image, audio,
    caption, split), or .parquet and .arrow files that contain images or audio. Several are allowed,
    and ranges such as {00000..00099}.tar and wildcards; keys then start with the source's name."""
    dataset_dir: Path
    """Folder of the dataset; created if it does not exist. Other files in it are not touched. Or a
    URL (s3://, gs://), to which shards are put as they are finished."""
    work_dir: Path | None = None
    """Folder of the unfinished job, for --out URL; by default one in ~/.cache/im2sp/jobs. It holds
    the shards until they are put to the store."""
    image_root: Path | None = None
    """Folder or .tar that the image paths of a Karpathy file or source list are relative to; by
    default the folder of that file."""
    audio_root: Path | None = None
    """Folder or .tar that the audio paths are relative to; for a Karpathy file, the folder of
    Flickr8kAudio or SpokenCOCO."""
    columns: tuple[str, ...] = ()
    """Columns of a source list as FIELD=COLUMN, such as caption=text image=url; fields are key,
    image, audio, caption, captions, split. Usual names are found without it."""
    only: Only | None = None
    """Tokenize the images alone, or the audio alone, of a source that has both."""
    per_container: Literal["auto", "yes", "no"] = "auto"
    """Listing of tars, and of tables that contain media, one by one where they are encoded:
    - auto: from 32 of them on and where one is a URL, unless there are other sources, an image root
      or an audio root
    - yes, no: always, never; for millions of inputs, which one listing would hold in memory"""
    view: ViewName = "squash-224"
    """Conversion of an image to the square that is encoded:
    - squash-224: resized to 224 x 224; the aspect ratio changes
    - squash-256-crop: resized to 256 x 256, central 28 x 28 of 32 x 32 units kept; the paper's code
    - center-224: central square, resized to 224 x 224; the aspect ratio is kept
    - ...-mirrored: flipped left to right; an augmented copy for im2sp-train --other-view
    - random-224: random crop, colour jitter and flip by --view-seed; also for --other-view"""
    view_seed: int | None = None
    """Random seed of --view random-224, from 1 (the default); each gives another view, which
    depends on the image and the seed alone."""
    layout: Literal["arrow", "webdataset"] = "arrow"
    """Kind of shard files:
    - arrow: memory-mapped Arrow files with random access; use this for im2sp-train
    - webdataset: tar files; use this to stream with the webdataset library"""
    samples_per_member: int = 256
    """Samples in one tar member, 1 to 256; webdataset only. 1 gives one file per sample and field,
    which any webdataset tool reads, and is larger."""
    samples_per_shard: int = 16384
    """Inputs per shard file, rounded up to a multiple of 256."""
    image_codec: Literal["huffman", "plain"] = FITTED
    """Coding of the image units:
    - huffman: tables of the image tokenizer, or fitted to the first shard's worth of images; plain
      if there are few images, for which the tables do not pay (under 929 with compact, else 2,000)
    - plain: fixed width"""
    speech_codec: Literal["huffman", "plain"] = FITTED
    """Coding of the speech units:
    - huffman: tables fitted to the first shard's worth of speech; smallest from about 100 clips
    - plain: fixed width"""
    max_pixels: int = DEFAULT_MAX_PIXELS
    """Images with more pixels are refused without being decoded."""
    max_audio_s: float = DEFAULT_MAX_SECONDS
    """Clips longer than this many seconds are refused without being decoded."""
    decode_timeout_s: float = 60.0
    """Time limit of decoding one input; an input that takes longer twice is refused."""
    num_workers: int = field(default_factory=lambda: min(MAX_WORKERS, num_cores()))
    """Processes that decode; by default one per core, at most 16."""
    overwrite: bool = False
    """Remove the dataset or unfinished job in --out first. Other files are not touched."""
    allow_mixed: bool = False
    """Resume a job that was begun with another version of torch or on another kind of device, with
    which units may differ in a few places."""
    take_over: bool = False
    """Continue an output at a URL that another command began and left for good."""
    quiet: bool = False
    """Print errors only."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, for a value that cannot be used."""
        self.column_names()
        if self.url is not None:
            check_writable(self.url)
        for name in ("work_dir", "take_over") if self.url is None else ():
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} applies to --out URL only")
        choices = {"view": get_args(ViewName), "only": (None, *get_args(Only))}
        choices["per_container"] = ("auto", "yes", "no")
        codecs = ("image_codec", "speech_codec")
        for name, known in (choices | dict.fromkeys(codecs, (FITTED, PLAIN))).items():
            if getattr(self, name) not in known:
                expected = ", ".join(filter(None, known))
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}; expected one of {expected}")
        for name in ("samples_per_member", "samples_per_shard", "max_pixels", "num_workers"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}; expected at least 1")
        if self.view_seed is not None:
            if self.view != RANDOM:
                raise ValueError(f"--view-seed applies to --view {RANDOM}, not to {self.view}")
            if not 1 <= self.view_seed < 10**9:
                raise ValueError(f"--view-seed is {self.view_seed}; expected 1 to 999,999,999")
        for name in ("max_audio_s", "decode_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                flag = name.replace("_", "-")
                raise ValueError(
                    f"--{flag} is {getattr(self, name)}; expected more than 0 s, not infinite"
                )
        if self.samples_per_member > 256:
            raise ValueError(f"--samples-per-member is {self.samples_per_member}; at most 256")
        if self.layout == "arrow" and self.samples_per_member != 256:
            raise ValueError("--samples-per-member applies to --layout webdataset only")

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources as they are given."""
        given = self.source if isinstance(self.source, tuple) else (self.source,)
        return tuple(map(str, given))

    @property
    def sources_name(self) -> str:
        """Name of the sources in messages."""
        more = len(self.sources) - 1
        return self.sources[0] + (f" and {counted(more, 'more source')}" if more else "")

    @property
    def url(self) -> str | None:
        """URL of the dataset; None for a folder."""
        return as_url(self.dataset_dir).rstrip("/") if is_url(self.dataset_dir) else None

    @property
    def local_dir(self) -> Path:
        """Folder in which the job works: of the dataset, or for a URL the work folder."""
        if self.url is None or self.work_dir is not None:
            return self.work_dir or self.dataset_dir
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return user_cache_dir() / "jobs" / name

    @property
    def shown_out(self) -> str:
        """Folder or URL of the dataset in messages."""
        return str(self.dataset_dir) if self.url is None else shown_url(self.url)

    def shown_file(self, name: str) -> str:
        """Path or URL of a file of the dataset in messages."""
        return str(self.dataset_dir / name) if self.url is None else f"{self.shown_out}/{name}"

    def column_names(self) -> dict[str, str]:
        """Columns of a source list by their fields, as `columns` gives them."""
        parts = [text.partition("=") for text in self.columns]
        names = {field_name: column for field_name, _, column in parts}
        for field_name, column in names.items():
            if not column:
                raise ValueError(f"--columns {field_name}; expected FIELD=COLUMN")
        return names

    @property
    def view_name(self) -> str:
        """Name of the view in `VIEWS` and in manifests."""
        return f"{RANDOM}-{self.view_seed or 1}" if self.view == RANDOM else self.view

    @property
    def shard_layout(self) -> "Layout":
        """Layout of the samples in the shards."""
        from im2sp.shards import Layout

        return Layout(kind=self.layout, samples_per_member=self.samples_per_member)

    @property
    def chunks_per_shard(self) -> int:
        """Chunks of `CHUNK_SIZE` inputs per shard."""
        return -(-self.samples_per_shard // CHUNK_SIZE)


def describe_job(
    config: JobConfig,
    source: dict[str, Any],
    image_tokenizer: "ImageTokenizer | None",
    speech_tokenizer: "SpeechTokenizer | None",
    codings: tuple[str | None, str | None],
) -> dict[str, Any]:
    """Return all that determines the bytes of the dataset; no time, host name or local path.

    Args:
        config: Settings of the job.
        source: Description of the source.
        image_tokenizer: The image tokenizer, if there are images.
        speech_tokenizer: The speech tokenizer, if there is speech.
        codings: Coding of images and of speech, or None.
    """
    image_coding, coding = codings
    tokenizers = [one for one in (image_tokenizer, speech_tokenizer) if one is not None]
    job: dict[str, Any] = {
        "format_version": 2,
        "image_tokenizer": None,
        "layout": {
            "kind": config.layout,
            "samples_per_member": config.samples_per_member,
        },
        "settings": {
            "source": source,
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
            "view": config.view_name,
        }
        job["settings"]["image_codec"] = image_coding
    if speech_tokenizer is not None and coding is not None:
        job["speech_tokenizer"] = {
            "name": speech_tokenizer.name,
            "fingerprint": speech_tokenizer.fingerprint,
            "precision": speech_tokenizer.precision,
            "layer": speech_tokenizer.layer,
            "num_units": speech_tokenizer.num_units,
        }
        if speech_tokenizer.waveform_eps is not None:
            job["speech_tokenizer"]["waveform_eps"] = speech_tokenizer.waveform_eps
        job["settings"]["max_audio_s"] = float(config.max_audio_s)
        job["settings"]["speech_codec"] = coding
    return job


def check_image_tokenizer(config: JobConfig, tokenizer: "ImageTokenizer") -> None:
    """Raise `JobError` if shards cannot hold the units of this tokenizer."""
    patch_px = tokenizer.patch_size_px
    if patch_px != 8:
        raise JobError(
            f"image tokenizer {tokenizer.name}: one unit covers {patch_px}x{patch_px} pixels; "
            f"shards hold 28x28 units of views such as {config.view}, which need 8x8"
        )
    if tokenizer.num_codes > 65536:
        raise JobError(
            f"image tokenizer {tokenizer.name}: has {tokenizer.num_codes} codes; im2sp-tokenize "
            "encodes to at most 65,536"
        )
