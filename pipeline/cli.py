"""`im2sp-tokenize`: images and speech in, token-only shards out."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from im2sp.pipeline.job.config import JobConfig
from im2sp.shards.command_line import UsageError, check_folder, print_message, run_command
from im2sp.shards.errors import counted, log
from im2sp.shards.stores import is_url

if TYPE_CHECKING:
    from im2sp.pipeline.image_tokenizer.tokenizer import ImageTokenizer
    from im2sp.pipeline.speech_tokenizer.tokenizer import SpeechTokenizer

PROGRAM = "im2sp-tokenize"
_RESUME = "run the same command again to resume"


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig(JobConfig):
    """Convert images and speech to discrete units, packed into shards.

    Run the same command again to resume an interrupted job. Exit code: 0 done, even if inputs were
    refused; 1 failed, or all inputs or more than --max-rejects were refused; 2 wrong usage.
    """

    source: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE [SOURCE ...]")
    ]
    dataset_dir: Annotated[Path, tyro.conf.arg(name="out")]
    image_tokenizer: str = "compact"
    """ViT-VQGAN: compact (bundled), a path, or a hub id (thuanz123/vitvqgan-imagenet-base)."""
    codebook: Path | None = None
    """Codebook of the image tokenizer, if it is a separate file (SeiT)."""
    speech_tokenizer: str = "compact"
    """HuBERT: compact (bundled), a path, or a hub id (facebook/hubert-base-ls960). Not loaded if
    the source has no speech."""
    kmeans: Path | None = None
    """k-means centroids of the speech tokenizer (km.bin), if they are a separate file."""
    speech_layer: int | None = None
    """HuBERT layer that the centroids were fitted to; by default 6, or the layer recorded in the
    weights."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of the encoders. tf32 (on a GPU) and bf16 are faster and change a small share of
    the units."""
    device: str | None = None
    """torch device of the encoders, such as cuda:1; by default CUDA if available."""
    engine: Literal["local", "ray"] = "local"
    """Processes that encode:
    - local: this one
    - ray: workers of the Ray cluster at RAY_ADDRESS, or of one that is started on this machine; one
      a GPU, or --num-workers on CPUs"""
    part: str | None = None
    """Encode only one part of the job, I/N with I from 0 to N - 1, beside other parts that share
    --out, on any number of machines. The same command without --part encodes what is left and
    writes the dataset. With --out URL they share --work-dir."""
    max_rejects: int | None = None
    """Exit with 1 if more inputs than this were refused; the dataset is written anyway."""
    json: bool = False
    """Print the summary as one JSON object."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, for a value that cannot be used."""
        super().__post_init__()
        if self.speech_layer is not None and self.speech_layer < 1:
            raise ValueError(f"--speech-layer is {self.speech_layer}; expected at least 1")
        if self.max_rejects is not None and self.max_rejects < 0:
            raise ValueError(f"--max-rejects is {self.max_rejects}; expected at least 0")
        if self.part is not None:
            self.part_numbers(self.part)
            if self.engine != "local":
                raise ValueError(
                    f"--part is encoded by this process, not by --engine {self.engine}"
                )
            if self.url is not None and self.work_dir is None:
                raise ValueError(
                    f"--part with --out {self.shown_out} needs --work-dir, a folder that all parts "
                    "share"
                )
            if self.overwrite:
                raise ValueError(
                    "--overwrite cannot be used with --part, as other parts may have begun; remove "
                    "the job in --out first"
                )

    @staticmethod
    def part_numbers(part: str) -> tuple[int, int]:
        """Return number and count of a part, such as (0, 4) for `0/4`."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", part, re.ASCII)
        index, num_parts = (int(found[1]), int(found[2])) if found else (0, 0)
        if index >= num_parts:
            raise ValueError(f"--part is {part}; expected I/N with I from 0 to N - 1, such as 0/4")
        return index, num_parts

    def check_paths(self) -> None:
        """Raise `UsageError` for a path that does not exist."""
        for path in (self.image_root, self.audio_root, self.codebook, self.kmeans):
            if path is not None and not is_url(path) and not path.exists():
                raise UsageError(f"{path}: no such file or folder")
        # Imported here, as it imports numpy and Pillow, which --help does not need.
        from im2sp.pipeline.sources.several import SourceError, expand_sources

        if not self.sources:
            raise UsageError("no source; name a folder, a .tar, a source list, an image or a clip")
        try:
            expand_sources(self.sources)
        except SourceError as error:
            raise UsageError(str(error)) from None
        check_folder(self.local_dir)


def main(args: list[str] | None = None) -> None:
    """Run the command; always exits through SystemExit."""
    sys.exit(run_command(PROGRAM, TokenizeConfig, _run, args, resume=_RESUME))


def _run(config: TokenizeConfig) -> int:
    config.check_paths()
    _log(config, f"reading {config.sources_name} ...")
    from im2sp.pipeline.job.run import run_job, run_part
    from im2sp.pipeline.summary import part_json, part_summary, summary, summary_json

    if config.url is not None:
        _log(config, f"working in {config.local_dir}")
    tokenizers = (lambda: _load_image_tokenizer(config), lambda: _load_speech_tokenizer(config))
    if config.part is not None:
        part = run_part(config, config.part_numbers(config.part), *tokenizers)
        if config.json:
            print(part_json(config.shown_out, config.part, part))
        elif not config.quiet:
            print(part_summary(config.sources_name, config.part, part))
        return 0
    if config.engine == "ray":
        from im2sp.pipeline.ray_engine import RayCluster

        result = run_job(config, *tokenizers, cluster=RayCluster)
    else:
        result = run_job(config, *tokenizers)
    out = config.url or config.dataset_dir
    if config.json:
        print(summary_json(out, result))
    elif not config.quiet:
        print(summary(config.sources_name, out, result))
    num_rejects = result.manifest.num_rejects
    if num_rejects and not result.manifest.num_samples:
        print_message(
            PROGRAM,
            f"every input of {config.sources_name} was refused; see "
            f"{config.shown_file('rejects.jsonl')} for the reasons",
        )
        return 1
    if config.max_rejects is not None and num_rejects > config.max_rejects:
        print_message(
            PROGRAM,
            f"{counted(num_rejects, 'input')} refused, --max-rejects allows "
            f"{config.max_rejects}; see {config.shown_file('rejects.jsonl')}",
        )
        return 1
    return 0


def _load_image_tokenizer(config: TokenizeConfig) -> "ImageTokenizer":
    """Load the image tokenizer and log which one is used."""
    _log(config, f"loading the image tokenizer {config.image_tokenizer} ...")
    from im2sp.pipeline.image_tokenizer.tokenizer import load_image_tokenizer

    with _device_errors(config):
        tokenizer = load_image_tokenizer(
            config.image_tokenizer,
            config.codebook,
            device=config.device,
            precision=config.precision,
        )
    _log_tokenizer(config, "image", tokenizer, f"view {config.view_name}")
    return tokenizer


def _load_speech_tokenizer(config: TokenizeConfig) -> "SpeechTokenizer":
    """Load the speech tokenizer and log which one is used."""
    _log(config, f"loading the speech tokenizer {config.speech_tokenizer} ...")
    from im2sp.pipeline.speech_tokenizer.tokenizer import load_speech_tokenizer

    with _device_errors(config):
        tokenizer = load_speech_tokenizer(
            config.speech_tokenizer,
            config.kmeans,
            device=config.device,
            precision=config.precision,
            layer=config.speech_layer,
        )
    units = f"layer {tokenizer.layer}, {tokenizer.num_units:,} units"
    _log_tokenizer(config, "speech", tokenizer, units)
    return tokenizer


@contextmanager
def _device_errors(config: TokenizeConfig) -> Iterator[None]:
    """Report a device that is unknown to torch or not available as wrong usage."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if config.device is None:
            raise
        raise UsageError(f"--device {config.device}: {error}") from None


def _log_tokenizer(
    config: TokenizeConfig, kind: str, tokenizer: "ImageTokenizer | SpeechTokenizer", more: str
) -> None:
    """Log a tokenizer on stderr."""
    _log(
        config,
        f"{kind} tokenizer {tokenizer.name}: {tokenizer.precision} on {tokenizer.device}, "
        f"fingerprint {tokenizer.fingerprint[:12]}, {more}",
    )


def _log(config: TokenizeConfig, line: str) -> None:
    if not config.quiet:
        log(line)


if __name__ == "__main__":
    main()
