"""Settings of im2sp-speak."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from im2sp.shards.stores import is_url

BUNDLED, BUNDLED_TEXT = "compact", "compact-text"
BUNDLED_T2U = "compact"


@dataclass(frozen=True, kw_only=True)
class SpeakConfig:
    """Describe images in speech and text, or synthesize speech units.

    Writes one wav file per input (16 kHz, 16 bit), spoken.jsonl with key, text, units and
    transcript, rejects.jsonl, and index.html, a page with images, sentences and audio. Exit code: 0
    done, even if inputs were refused; 1 failed, or every input was refused; 2 wrong usage.
    """

    pictures: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(name="images", metavar="[IMAGE ...]")
    ] = ()
    """Image files; or one folder, .tar, Karpathy dataset_*.json, or .jsonl, .csv or .parquet source
    list, as for im2sp-tokenize."""
    out: Path
    """Folder for the output; created if it does not exist. Files that im2sp-speak did not write are
    not touched."""
    run: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Captioner: a run of im2sp-train (its best checkpoint is used), one of its checkpoints, a file
    of tools/export_captioner.py, or a bundled one: compact, from image units to speech units, or
    compact-text. By default compact-text, whose sentence --t2u speaks. Without --t2u a run of text
    gives sentences and no sound; give the flag twice for a run of speech and one of text."""
    text: bool = False
    """Generate a sentence, too: with compact-text, unless --run names a run of text."""
    t2u: str | None = None
    """Text-to-unit model that speaks the sentences of a run of text: compact (bundled), or a file
    of tools/fit_text_to_units.py. By default compact if no --run is given, else none."""
    units: Path | None = None
    """Synthesize these units instead of describing images: a .jsonl file with key, units and
    optional durations; a .npy file with one clip; or a dataset, a folder or URL."""
    vocoder: str = "compact"
    """Vocoder: compact (bundled), a folder with g_* and config.json, or one such file."""
    speaker: int | None = None
    """Speaker id of a multi-speaker vocoder; by default 0."""
    num_beams: int | None = None
    """Beams of beam search; 1 is greedy decoding, as in the paper. By default 4 with compact and 1
    with others."""
    max_tokens: int = 511
    """Maximum length of a description in speech units or pieces."""
    transcribe: bool = False
    """Transcribe the generated speech with --asr; print and record the transcripts."""
    asr: str = "pocketsphinx"
    """Speech recognizer for --transcribe: pocketsphinx; pocketsphinx+captions, with a language
    model of captions; or the path or hub id of a transformers model."""
    image_tokenizer: str | None = None
    """Image tokenizer, or image encoder of a run on pixels: name, path or hub id; by default the
    recorded one."""
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
            for name in ("run", "text", "t2u", "image_tokenizer", "codebook", "image_root"):
                if getattr(self, name):
                    flag = name.replace("_", "-")
                    raise ValueError(f"--{flag} applies to images, not to --units")
        if self.asr != "pocketsphinx" and not self.transcribe:
            raise ValueError("--asr needs --transcribe")
        runs = [Path(run) for run in self.run if run not in (BUNDLED, BUNDLED_TEXT)]
        paths = [*self.pictures, *runs, self.codebook, self.image_root]
        if self.units is not None and not is_url(self.units):
            paths.append(self.units)
        for path in paths:
            if path is not None and not path.exists():
                raise ValueError(f"{path}: no such file or folder")
