"""Settings of im2sp-evaluate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Topline = Literal["units", "captions"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score image descriptions: generate, synthesize, transcribe, compare with the captions.

    A speech run goes through the vocoder and a speech recognizer; a text run is scored directly, or
    as speech with --cascade. Metrics: BLEU, METEOR, ROUGE-L and CIDEr of the COCO caption
    evaluation with 95 % bootstrap intervals; DNSMOS, unit BLEU and error rates for speech. They are
    printed beside the paper's Tables 2, 3 and 4, and written to --out as scores.json, tables.md,
    tables.json and tables.svg; --scores puts several evaluations into the same tables. Completed
    stages are kept in --out, so the same command resumes an interrupted evaluation. Exit code: 0
    scored, 1 failed, 2 wrong usage.
    """

    run: str | None = None
    """Model to score: folder of a run, one of its checkpoints, or published weights."""
    shards: Path | None = None
    """Dataset with the images to describe, a folder or URL; its captions are the references."""
    images: tuple[str, ...] = ()
    """Source of the images, for a run of im2sp-train --input pixels; by default that of the run."""
    image_root: Path | None = None
    """Folder or .tar of the images, as for im2sp-tokenize."""
    image_encoder: str | None = None
    """Image encoder of such a run: a path or hub id; by default the one recorded in the run."""
    split: str | None = None
    """Split of the dataset; by default all samples."""
    out: Path | None = None
    """Folder for the stages, the speech and scores.json; by default evaluate-SPLIT in the run's
    folder."""
    captions: Path | None = None
    """Score this JSON file instead: {"candidates": {id: text}, "references": {id: [text]}}."""
    scores: tuple[Path, ...] = ()
    """Score nothing, but put earlier results into one set of tables: runs, --out folders or
    scores.json files of im2sp-evaluate, and files of tools/listening_test.py score --out."""
    data: str | None = None
    """Name of the dataset in the tables, such as Flickr8k or COCO; by default the name of the
    folder of --shards."""
    topline: Literal["units", "captions"] | None = None
    """Score no model but an upper bound: the dataset's own speech units through the vocoder, or its
    first captions, spoken by flite or --cascade."""
    cascade: str | None = None
    """Synthesize the output of a text run, and score the transcripts: flite; or a text-to-unit
    model, compact (bundled) or a file of tools/fit_text_to_units.py, with --vocoder."""
    voice: str = "rms"
    """Voice of flite, for --cascade and --topline captions."""
    vocoder: str = "compact"
    """Vocoder of the speech units: compact (bundled), a folder or a file."""
    asr: str = "pocketsphinx"
    """Speech recognizer: pocketsphinx; pocketsphinx+captions, with a language model of captions
    (compare its scores with others of the same recognizer only, toplines included); or the path or
    hub id of a transformers model."""
    mos: tuple[str, ...] = ("dnsmos",)
    """Predictors of opinions: dnsmos; utmos22_strong, or the path of its weights; the path of
    MOSNet's weights, cnn_blstm.h5. One that cannot be loaded is reported as missing."""
    speech_lm: Path | None = None
    """Also report SpeechLMScore, the mean log-likelihood of a generated speech unit, under this
    language model: a run of tools/fit_unit_lm.py, or a folder with a checkpoint of fairseq's GSLM
    and its dict.txt."""
    codebook: Path | None = None
    """Codebook vectors of the image units, for published weights without them."""
    num_beams: int = 1
    """Beams of beam search; 1 is greedy decoding."""
    max_tokens: int = 511
    """Maximum length of a generation, EOS included."""
    limit: int | None = None
    """Score at most this many images."""
    resamples: int = 1000
    """Number of bootstrap resamples."""
    seed: int = 0
    """Random seed of the bootstrap."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the results as one JSON object instead of a table."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, where settings cannot be used together."""
        sources = (self.run, self.captions, self.topline, self.scores or None)
        num_sources = sum(x is not None for x in sources)
        if num_sources != 1:
            raise ValueError(
                "expected exactly one of --run, --topline, --captions and --scores, found"
                f" {num_sources or 'none'}"
            )
        if (self.run or self.topline) and self.shards is None:
            raise ValueError("--shards is missing: the dataset to describe")
        if self.topline is not None and self.out is None:
            raise ValueError("--out is missing: the folder of the stages")
        if self.cascade is not None and self.run is None and self.topline != "captions":
            raise ValueError("--cascade goes with --run or --topline captions")
        for name, least in (("limit", 1), ("resamples", 2), ("max_tokens", 1), ("num_beams", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {value}, expected at least {least}")
