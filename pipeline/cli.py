"""`im2sp-tokenize`: pictures and speech in, token-only shards out."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import tyro

if TYPE_CHECKING:
    from im2sp.pipeline.hubert_units import SpeechTokenizer
    from im2sp.pipeline.image_tokenizer import ImageTokenizer
    from im2sp.pipeline.job import JobConfig

_GO_ON = "run the same command again to go on"
_COUNTS = ("samples_per_member", "samples_per_shard", "max_pixels", "speech_layer", "num_workers")
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Turn pictures and speech into units, packed into shards.

    Run the same command again to go on with an interrupted job. Exit status: 0 done, also when
    inputs were refused; 1 failed, or more than --max-rejects were refused; 2 wrong usage.
    """

    source: tyro.conf.Positional[Path]
    """Folder of pictures and sound (with all below it), .tar, Karpathy dataset_*.json, LJSpeech, or
    a .jsonl, .csv or .parquet list with key, image, audio, caption, split."""
    out: Path
    """Folder of the dataset; created if need be. Other files in it are left alone."""
    image_tokenizer: str = "compact"
    """A bundled name, a path, or a hub id such as thuanz123/vitvqgan-imagenet-base."""
    codebook: Path | None = None
    """The image tokenizer's codebook, where it is a file of its own (SeiT)."""
    speech_tokenizer: str = "compact"
    """A bundled name, a path, or a hub id such as facebook/hubert-base-ls960; read where the source
    has speech."""
    kmeans: Path | None = None
    """The speech tokenizer's k-means centres (km.bin), where its own file does not hold them."""
    speech_layer: int | None = None
    """Layer of the speech tokenizer that the centres were fitted to; by default 6, or what its own
    file says."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoders; bf16 is faster and gives other units for some places."""
    device: str | None = None
    """Where the encoders run, as torch names it; CUDA where there is one."""
    only: Literal["images", "audio"] | None = None
    """Take the pictures alone, or the sound alone, of a source that has both."""
    view: Literal[
        "squash-224",
        "squash-256-crop",
        "center-224",
        "squash-224-mirrored",
        "squash-256-crop-mirrored",
        "center-224-mirrored",
        "random-224-1",
        "random-224-2",
        "random-224-3",
        "random-224-4",
        "random-224-5",
        "random-224-6",
        "random-224-7",
        "random-224-8",
    ] = "squash-224"
    """How a picture becomes the square that is encoded."""
    layout: Literal["arrow", "webdataset"] = "arrow"
    """Kind of shard files."""
    samples_per_member: int = 256
    """webdataset only: samples in one tar member, 1 to 256; 1 is the plain layout."""
    samples_per_shard: int = 16384
    """Inputs in one shard file, rounded up to a multiple of 256."""
    image_root: Path | None = None
    """Folder or .tar in which the image paths of a Karpathy file or list begin."""
    audio_root: Path | None = None
    """Folder or .tar in which the audio paths begin; for a Karpathy file, Flickr8kAudio's or
    SpokenCOCO's folder."""
    speech_codec: Literal["huffman", "plain"] = "huffman"
    """How shards code speech: huffman, with tables fitted to the first shard's worth; or plain."""
    max_pixels: int = 89_478_485
    """Pictures that declare more pixels are refused unread."""
    max_audio_s: float = 3600.0
    """Clips that declare more seconds are refused unread."""
    max_rejects: int | None = None
    """Exit with 1 if more inputs than this were refused; the dataset is written all the same."""
    num_workers: int | None = None
    """Processes that decode; by default as many as there are cores, 16 at most."""
    overwrite: Flag = False
    """Remove the dataset or unfinished job in --out and start anew."""
    quiet: Flag = False
    """Print errors only."""
    json: Flag = False
    """Print the summary as one JSON object."""

    def check(self) -> None:
        """Raise `_UsageError`, naming the flag, where a value cannot be used."""
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise _UsageError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
        if not self.max_audio_s > 0:
            raise _UsageError(f"--max-audio-s is {self.max_audio_s}; expected more than 0")
        if self.samples_per_member > 256:
            raise _UsageError(f"--samples-per-member is {self.samples_per_member}; at most 256")
        if self.layout == "arrow" and self.samples_per_member != 256:
            raise _UsageError("--samples-per-member goes with --layout webdataset only")
        if self.max_rejects is not None and self.max_rejects < 0:
            raise _UsageError(f"--max-rejects is {self.max_rejects}; expected at least 0")
        paths = [self.source, self.image_root, self.audio_root, self.codebook, self.kmeans]
        for path in paths:
            if path is not None and not path.exists():
                raise _UsageError(f"{path}: no such file or folder")
        if self.out.exists() and not self.out.is_dir():
            raise _UsageError(f"--out {self.out}: not a folder")

    def job(self) -> "JobConfig":
        """The part of it that is the job's."""
        from im2sp.pipeline.job import JobConfig
        from im2sp.shards import Layout

        return JobConfig(
            source=self.source,
            dataset_dir=self.out,
            image_root=self.image_root,
            audio_root=self.audio_root,
            only=self.only,
            view=self.view,
            layout=Layout(kind=self.layout, samples_per_member=self.samples_per_member),
            samples_per_shard=self.samples_per_shard,
            speech_codec=self.speech_codec,
            max_pixels=self.max_pixels,
            max_audio_s=self.max_audio_s,
            num_workers=self.num_workers or min(16, _num_cores()),
            overwrite=self.overwrite,
            quiet=self.quiet,
        )


class _UsageError(ValueError):
    """The command line asks for what cannot be."""


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Terminated(BaseException):
    """SIGTERM arrived."""


def main(args: list[str] | None = None) -> None:
    """Run the command; always leaves by SystemExit."""
    try:
        signal.signal(signal.SIGTERM, _terminate)
        config = tyro.cli(TokenizeConfig, prog="im2sp-tokenize", args=args)
        sys.exit(_run(config))
    except _UsageError as error:
        _fail(str(error), status=2)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        _fail(what, status=1)
    except (ValueError, MemoryError) as error:
        _fail(str(error) or "no memory left", status=1)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
            raise
        _fail(f"no memory left on the device: {error}", status=1)
    except KeyboardInterrupt:
        _fail(f"interrupted; {_GO_ON}", status=130)
    except _Terminated:
        _fail(f"terminated; {_GO_ON}", status=143)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> None:
    raise _Terminated


def _run(config: TokenizeConfig) -> int:
    config.check()
    from im2sp.pipeline.job import run_job
    from im2sp.pipeline.job_summary import counted, summary, summary_json

    result = run_job(
        config.job(), lambda: _load_image_tokenizer(config), lambda: _load_speech_tokenizer(config)
    )
    if config.json:
        print(summary_json(config.out, result))
    elif not config.quiet:
        print(summary(config.source, config.out, result))
    num_rejects = result.manifest.num_rejects
    if config.max_rejects is not None and num_rejects > config.max_rejects:
        _fail(
            f"{counted(num_rejects, 'input')} refused, --max-rejects allows "
            f"{config.max_rejects}; see {config.out / 'rejects.jsonl'}",
            status=1,
        )
    return 0


def _load_image_tokenizer(config: TokenizeConfig) -> "ImageTokenizer":
    """Load the image tokenizer and say on stderr which one is used."""
    from im2sp.pipeline.image_tokenizer import load_image_tokenizer

    with _told_device(config):
        tokenizer = load_image_tokenizer(
            config.image_tokenizer,
            config.codebook,
            device=config.device,
            precision=config.precision,
        )
    _tell(config, "image", tokenizer, f"view {config.view}")
    return tokenizer


def _load_speech_tokenizer(config: TokenizeConfig) -> "SpeechTokenizer":
    """The same for speech."""
    from im2sp.pipeline.hubert_units import load_speech_tokenizer

    with _told_device(config):
        tokenizer = load_speech_tokenizer(
            config.speech_tokenizer,
            config.kmeans,
            device=config.device,
            precision=config.precision,
            layer=config.speech_layer,
        )
    units = f"layer {tokenizer.layer}, {tokenizer.num_units:,} units"
    _tell(config, "speech", tokenizer, units)
    return tokenizer


@contextmanager
def _told_device(config: TokenizeConfig) -> Iterator[None]:
    """Turn what torch says of a device that it does not know, or does not have, into usage."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if config.device is None:
            raise
        raise _UsageError(f"--device {config.device}: {error}") from None


def _tell(
    config: TokenizeConfig, kind: str, tokenizer: "ImageTokenizer | SpeechTokenizer", more: str
) -> None:
    if not config.quiet:
        print(
            f"{kind} tokenizer {tokenizer.name}: {tokenizer.precision} on {tokenizer.device}, "
            f"fingerprint {tokenizer.fingerprint[:12]}, {more}",
            file=sys.stderr,
        )


def _fail(message: str, *, status: int) -> NoReturn:
    print(f"im2sp-tokenize: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
