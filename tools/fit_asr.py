"""Fit a language model of captions for the recognizer pocketsphinx.

    python tools/fit_asr.py SHARDS --split train --out captions.arpa.gz
    im2sp-evaluate ... --asr pocketsphinx+captions.arpa.gz

Reads the captions of a dataset or of one of its splits, or the lines of a text file, and writes a
trigram model in the ARPA format. A recognizer with such a model expects sentences like them: fit it
to captions of the training split only, and compare scores of the same recognizer only. The bundled
`pocketsphinx+captions` was fitted by this tool. Exit codes: 0 written, 1 not possible, 2 usage.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file
from im2sp.tools.engines.caption_lm import arpa, compressed, fit_lm
from im2sp.tools.fit_text import read_captions


@dataclass(frozen=True, kw_only=True)
class FitAsrConfig:
    """Fit a language model of captions for the recognizer pocketsphinx."""

    source: tyro.conf.Positional[Path]
    """Folder or URL of a dataset, or a text file with one caption per line."""
    out: Path
    """File to write, .arpa or .arpa.gz."""
    split: str | None = None
    """Split of the dataset; by default all samples."""
    min_count: int = 2
    """Occurrences of a sequence of three words to be kept."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        if self.min_count < 1:
            raise ValueError(f"--min-count is {self.min_count}; expected at least 1")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("fit_asr", FitAsrConfig, _run, args)


def _run(config: FitAsrConfig) -> None:
    model = fit_lm(read_captions(config.source, config.split), config.min_count)
    text = arpa(model)
    data = compressed(text) if config.out.suffix == ".gz" else text.encode()
    with atomic_file(config.out) as file:
        file.write(data)
    print(f"{config.out}: {len(model):,} n-grams, {len(data):,} bytes")


if __name__ == "__main__":
    sys.exit(main())
