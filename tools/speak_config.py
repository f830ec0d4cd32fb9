"""The flags of im2sp-speak."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from im2sp.tools.asr import POCKETSPHINX

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


BUNDLED = "compact"
BUNDLED_BEAMS = 4


class UsageError(ValueError):
    """The command line asks for what cannot be."""


@dataclass(frozen=True, kw_only=True)
class SpeakConfig:
    """Speak what a captioner says of pictures, or speech units.

    Writes a wav file each (16 kHz, 16 bit), spoken.jsonl with key, units and text, rejects.jsonl,
    and index.html, a page to look at and listen to. Exit status: 0 done, also when inputs were
    refused; 1 failed, or nothing could be spoken; 2 wrong usage.
    """

    pictures: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Picture files; or one folder, .tar, Karpathy dataset_*.json, .jsonl, .csv or .parquet list,
    as im2sp-tokenize takes them."""
    out: Path
    """Folder to write into; created if need be. Files of others in it are left alone."""
    run: str | None = None
    """What describes the pictures: a run of im2sp-train (its best step), one of its steps, or what
    tools/export_captioner.py made of one; the bundled captioner unless given."""
    units: Path | None = None
    """Speak these units instead: a .jsonl with key, units and, if it likes, durations; a .npy of
    one clip; or a dataset."""
    vocoder: str = "compact"
    """A bundled name, or a path: a folder with g_* and config.json, one such file, or our own."""
    speaker: int | None = None
    """Voice of a vocoder that has several; its first one unless given."""
    num_beams: int | None = None
    """Beams of the search for the best description; 1 is greedy, as in the paper. Unless given 4
    for the bundled captioner, which scores better with them, and 1 for others."""
    max_tokens: int = 511
    """Most speech units of a description."""
    play_text: Flag = False
    """Print and record what a recognizer hears."""
    asr: str = POCKETSPHINX
    """The recognizer of --play-text: pocketsphinx, or the path or hub id of transformers' model."""
    image_tokenizer: str | None = None
    """Where the image tokenizer of the run lies now; by default the name that the run tells."""
    codebook: Path | None = None
    """Its codebook, where it is a file of its own (SeiT)."""
    image_root: Path | None = None
    """Folder or .tar in which the image paths of a Karpathy file or list begin."""
    split: str | None = None
    """Take this split of a list or dataset only."""
    limit: int | None = None
    """Take so many inputs at most, from the first on."""
    device: str | None = None
    """Where everything runs, as torch names it; CUDA where there is one."""
    quiet: Flag = False
    """Print errors only."""
    json: Flag = False
    """Print the summary as one JSON object."""

    def check(self) -> None:
        """Raise `UsageError`, naming the flag, where a value cannot be used."""
        for name, least in (("num_beams", 1), ("max_tokens", 1), ("limit", 1), ("speaker", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} is {value}; expected at least {least}")
        if bool(self.pictures) == (self.units is not None):
            what = "both" if self.pictures else "neither"
            raise UsageError(f"expected pictures or --units, got {what}")
        if self.units is not None:
            for name in ("run", "image_tokenizer", "codebook", "image_root"):
                if getattr(self, name) is not None:
                    flag = name.replace("_", "-")
                    raise UsageError(f"--{flag} goes with pictures, not with --units")
        if self.asr != POCKETSPHINX and not self.play_text:
            raise UsageError("--asr goes with --play-text")
        run = None if self.run in (None, BUNDLED) else Path(self.run)
        paths = [*self.pictures, run, self.units, self.codebook, self.image_root]
        for path in paths:
            if path is not None and not path.exists():
                raise UsageError(f"{path}: no such file or folder")
        if self.out.exists() and not self.out.is_dir():
            raise UsageError(f"--out {self.out}: not a folder")
