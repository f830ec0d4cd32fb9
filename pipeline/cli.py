"""`im2sp-tokenize`: pictures in, token-only shards out."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from im2sp.pipeline.job import JobConfig

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Turn pictures into units, packed into shards.

    Run the same command again to go on with an interrupted job. Exit status: 0 done, also when
    inputs were refused; 1 failed, or more than --max-rejects were refused; 2 wrong usage.
    """

    source: tyro.conf.Positional[Path]
    """Folder of pictures (with all below it), .tar, Karpathy dataset_*.json, or a .jsonl, .csv or
    .parquet list with key, image, caption, split."""
    out: Path
    """Folder of the dataset; created if need be. Other files in it are left alone."""
    image_tokenizer: str = "compact"
    """A bundled name, a path, or a hub id such as thuanz123/vitvqgan-imagenet-base."""
    codebook: Path | None = None
    """The tokenizer's codebook, where it is a file of its own (SeiT)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoder; bf16 is faster and gives other units for some patches."""
    device: str | None = None
    """Where the encoder runs, as torch names it; CUDA where there is one."""
    view: Literal["squash-224", "squash-256-crop", "center-224"] = "squash-224"
    """How a picture becomes the square that is encoded."""
    layout: Literal["arrow", "webdataset"] = "arrow"
    """Kind of shard files."""
    samples_per_member: int = 256
    """webdataset only: samples in one tar member, 1 to 256; 1 is the plain layout."""
    samples_per_shard: int = 16384
    """Inputs in one shard file, rounded up to a multiple of 256."""
    image_root: Path | None = None
    """Folder or .tar in which the image paths of a Karpathy file or list begin."""
    max_pixels: int = 89_478_485
    """Pictures that declare more pixels are refused unread."""
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
        """Raise ValueError, naming the flag, where a value is out of range."""
        for name in ("samples_per_member", "samples_per_shard", "max_pixels", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
        if self.samples_per_member > 256:
            raise ValueError(f"--samples-per-member is {self.samples_per_member}; at most 256")
        if self.layout == "arrow" and self.samples_per_member != 256:
            raise ValueError("--samples-per-member goes with --layout webdataset only")
        if self.max_rejects is not None and self.max_rejects < 0:
            raise ValueError(f"--max-rejects is {self.max_rejects}; expected at least 0")

    def job(self) -> "JobConfig":
        """The part of it that is the job's."""
        from im2sp.pipeline.job import JobConfig
        from im2sp.shards import Layout

        return JobConfig(
            source=self.source,
            dataset_dir=self.out,
            image_root=self.image_root,
            view=self.view,
            layout=Layout(kind=self.layout, samples_per_member=self.samples_per_member),
            samples_per_shard=self.samples_per_shard,
            max_pixels=self.max_pixels,
            num_workers=self.num_workers or min(16, os.cpu_count() or 1),
            overwrite=self.overwrite,
            quiet=self.quiet,
        )


def main(args: list[str] | None = None) -> None:
    """Run the command; always leaves by SystemExit."""
    try:
        config = tyro.cli(TokenizeConfig, prog="im2sp-tokenize", args=args)
        config.check()
    except ValueError as error:
        print(f"im2sp-tokenize: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(_run(config))
    except (ValueError, OSError) as error:
        _fail(" ".join(str(error).split()), status=1)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to go on", status=130)


def _run(config: TokenizeConfig) -> int:
    if not config.source.exists():
        _fail(f"{config.source}: no such file or folder", status=2)
    from im2sp.pipeline.image_tokenizer import load_image_tokenizer
    from im2sp.pipeline.job import run_job
    from im2sp.pipeline.job_summary import summary, summary_json

    tokenizer = load_image_tokenizer(
        config.image_tokenizer,
        config.codebook,
        device=config.device,
        precision=config.precision,
    )
    result = run_job(config.job(), tokenizer)
    if config.json:
        print(summary_json(config.out, result))
    elif not config.quiet:
        print(summary(config.source, config.out, result))
    num_rejects = result.manifest.num_rejects
    if config.max_rejects is not None and num_rejects > config.max_rejects:
        _fail(
            f"{num_rejects} inputs were refused, --max-rejects allows {config.max_rejects}; "
            f"see {config.out / 'rejects.jsonl'}",
            status=1,
        )
    return 0


def _fail(message: str, *, status: int) -> None:
    print(f"im2sp-tokenize: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
