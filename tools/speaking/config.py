"""Settings of im2sp-speak."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

BUNDLED = "compact"
BUNDLED_BEAMS = 4


@dataclass(frozen=True, kw_only=True)
class SpeakConfig:
    """Describe images in speech, or synthesize speech units.

    Writes one wav file per input (16 kHz, 16 bit), spoken.jsonl with key, units and transcript,
    rejects.jsonl, and index.html, a page with images and audio. Exit code: 0 done, even if inputs
    were refused; 1 failed, or every input was refused; 2 wrong usage.
    """

    pictures: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(name="images", metavar="[IMAGE ...]")
    ] = ()
    """Image files; or one folder, .tar, Karpathy dataset_*.json, or .jsonl, .csv or .parquet source
    list, as for im2sp-tokenize."""
    out: Path
    """Folder for the output; created if it does not exist. Files that im2sp-speak did not write are
    not touched."""
    run: str | None = None
    """Captioner: a run of im2sp-train --target speech (its best checkpoint is used), one of its
    checkpoints, or a file of tools/export_captioner.py; by default the bundled captioner."""
    units: Path | None = None
    """Synthesize these units instead of describing images: a .jsonl file with key, units and
    optional durations; a .npy file with one clip; or a dataset."""
    vocoder: str = "compact"
    """Vocoder: compact (bundled), a folder with g_* and config.json, or one such file."""
    speaker: int | None = None
    """Speaker id of a multi-speaker vocoder; by default 0."""
    num_beams: int | None = None
    """Beams of beam search; 1 is greedy decoding, as in the paper. By default 4 with the bundled
    captioner and 1 with others."""
    max_tokens: int = 511
    """Maximum length of a description in speech units."""
    transcribe: bool = False
    """Transcribe the generated speech with --asr; print and record the transcripts."""
    asr: str = "pocketsphinx"
    """Speech recognizer for --transcribe: pocketsphinx, or the path or hub id of a transformers
    model."""
    image_tokenizer: str | None = None
    """Image tokenizer: name, path or hub id; by default the one recorded in the run."""
    codebook: Path | None = None
    """Codebook of the image tokenizer, if it is a separate file (SeiT)."""
    image_root: Path | None = None
    """Folder or .tar that the image paths of a Karpathy file or source list are relative to."""
    split: str | None = None
    """Use only this split of a source list or dataset."""
    limit: int | None = None
    """Process at most this many inputs."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the summary as one JSON object."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        for name, least in (("num_beams", 1), ("max_tokens", 1), ("limit", 1), ("speaker", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {value}; expected at least {least}")
        if bool(self.pictures) == (self.units is not None):
            what = "both" if self.pictures else "neither"
            raise ValueError(f"expected images or --units, got {what}")
        if self.units is not None:
            for name in ("run", "image_tokenizer", "codebook", "image_root"):
                if getattr(self, name) is not None:
                    flag = name.replace("_", "-")
                    raise ValueError(f"--{flag} applies to images, not to --units")
        if self.asr != "pocketsphinx" and not self.transcribe:
            raise ValueError("--asr needs --transcribe")
        run = None if self.run in (None, BUNDLED) else Path(self.run)
        paths = [*self.pictures, run, self.units, self.codebook, self.image_root]
        for path in paths:
            if path is not None and not path.exists():
                raise ValueError(f"{path}: no such file or folder")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out}: not a folder")
