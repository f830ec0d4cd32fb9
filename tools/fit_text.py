"""Fit a sentencepiece model on captions, for `im2sp-train --target text --text-model`.

    python tools/fit_text.py SHARDS --out text.model [--split train] [--pieces 4000]
    python tools/fit_text.py captions.txt --out text.model

Reads the captions of a dataset or of one of its splits, or the lines of a text file. Pieces are
lower-case. `im2sp-train` fits such a model itself if none is given; fit one here to use it for
several datasets or runs. Exit codes: 0 written, 1 not possible, 2 usage.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from im2sp.shards import MANIFEST_NAME, ShardDataset
from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file, read_text
from im2sp.shards.stores import is_url
from im2sp.trainer.text import fit_text_model


def read_captions(source: Path, split: str | None) -> Iterator[str]:
    """Read the captions of a dataset, or the non-empty lines of a text file.

    Raises:
        ShardError: The dataset is damaged, or has no such split.
        ValueError: It is neither, or a split is given for a text file.
    """
    if is_url(source) or (source / MANIFEST_NAME).is_file():
        for sample in ShardDataset(source, split):
            yield from (caption for caption in sample.captions if caption)
        return
    if not source.is_file():
        raise ValueError(f"{source}: neither a dataset's folder nor a text file")
    if split is not None:
        raise ValueError(f"{source}: a text file has no splits; leave out --split")
    try:
        text = read_text(source)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 text ({error.reason} at {error.start})") from None
    yield from (line.strip() for line in text.splitlines() if line.strip())


@dataclass(frozen=True, kw_only=True)
class FitTextConfig:
    """Fit a sentencepiece model on captions, for im2sp-train --target text --text-model."""

    source: tyro.conf.Positional[Path]
    """Folder or URL of a dataset, or a text file with one caption per line."""
    out: Path
    """File to write."""
    split: str | None = None
    """Split of the dataset; by default all samples."""
    pieces: int = 4000
    """Maximum number of pieces."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("fit_text", FitTextConfig, _run, args)


def _run(config: FitTextConfig) -> None:
    model = fit_text_model(read_captions(config.source, config.split), config.pieces)
    with atomic_file(config.out) as file:
        file.write(model.data)
    print(f"{config.out}: {model.vocabulary.num_ids:,} pieces")


if __name__ == "__main__":
    sys.exit(main())
