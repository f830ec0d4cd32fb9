"""Report what a dataset holds: columns, codes used, entropy, lengths, bytes, rejects, settings.

    im2sp-info DATASET [--json] [--html page.html]

`--html` writes one self-contained page, with images decoded from their units beside the captions,
and the sound of speech units. Exit codes: 0 reported, 1 the dataset is missing or damaged, 2 usage.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from im2sp.shards.command_line import run_command
from im2sp.shards.errors import log

if TYPE_CHECKING:
    from im2sp.shards import ShardDataset


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Report what a dataset holds: columns, codes used, entropy, lengths, bytes, rejects, settings.

    Exit code: 0 reported; 1 the dataset is missing or damaged; 2 wrong usage.
    """

    dataset: tyro.conf.Positional[Path]
    """Folder or URL (s3://..) with dataset.json."""
    max_samples: int | None = None
    """Read only this many samples, in record batches evenly spaced over the dataset."""
    html: Path | None = None
    """Write a self-contained page: images decoded from their units beside the captions, sound of
    speech units, histograms."""
    num_samples: int = 24
    """Samples on the page, spaced evenly over the dataset."""
    image_tokenizer: str | None = None
    """Image tokenizer of the page: name, hub id or path; by default the recorded one."""
    codebook: Path | None = None
    """Codebook of the image tokenizer, if it is a separate file."""
    vocoder: str | None = None
    """Vocoder of the page: name or path; by default the bundled one, if it is for these units."""
    device: str | None = None
    """Device of the vocoder, such as cpu; by default a GPU if there is one."""
    json: bool = False
    """Print one JSON object instead of text."""
    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"--max-samples is {self.max_samples}; expected at least 1")
        if self.num_samples < 1:
            raise ValueError(f"--num-samples is {self.num_samples}; expected at least 1")
        if self.html is not None and self.html.is_dir():
            raise ValueError(f"--html {self.html}: is a folder; expected the name of a file")


def main(args: list[str] | None = None) -> None:
    """Run the command; always ends with SystemExit."""
    sys.exit(run_command("im2sp-info", InfoConfig, _run, args))


def _run(config: InfoConfig) -> None:
    from tqdm import tqdm

    from im2sp.shards import ShardDataset
    from im2sp.tools.inspection.report import as_text, report

    dataset = ShardDataset(config.dataset)
    start_s = time.perf_counter()
    with tqdm(
        total=min(len(dataset), config.max_samples or len(dataset)),
        desc="read",
        unit=" samples",
        disable=config.quiet,
        file=sys.stderr,
    ) as bar:
        found = report(dataset, config.max_samples, bar.update)
    elapsed_s = time.perf_counter() - start_s
    if config.html is not None:
        _write_page(config, config.html, dataset, found)
    if config.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    print(as_text(found))
    num_read = found["num_samples_read"]
    print(f"read          {num_read:,} samples in {elapsed_s:.1f} s, {num_read / elapsed_s:,.0f}/s")


def _write_page(
    config: InfoConfig, path: Path, dataset: "ShardDataset", found: dict[str, Any]
) -> None:
    from im2sp.shards.files import atomic_file
    from im2sp.tools.inspection.media import MediaConfig, show_samples
    from im2sp.tools.inspection.page import page

    report = (lambda _: None) if config.quiet else log
    media = show_samples(
        dataset,
        MediaConfig(
            num_samples=config.num_samples,
            image_tokenizer=config.image_tokenizer,
            codebook=config.codebook,
            vocoder=config.vocoder,
            device=config.device,
        ),
        report,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(page(found, media).encode())
    report(f"{path}: {len(media.shown)} samples")


if __name__ == "__main__":
    main()
