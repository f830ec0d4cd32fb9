"""Fit the units of a HuBERT to a speech corpus: k-means of one layer's features.

    python tools/fit_units.py AUDIO --speech-tokenizer hubert_base_ls960.pt --out km.safetensors
    python tools/fit_units.py AUDIO --speech-tokenizer HUBERT --out km.safetensors --labels PHONES

All clips are encoded once. A seeded reservoir keeps a uniform sample of `--max-frames` of their
frames, so memory does not grow with the audio; k-means (scikit-learn, extra `fit`) runs on the
sample. The same audio, settings and machine give the same bytes.

Writes three files: the centroids (safetensors, table `centres`), which
`load_speech_tokenizer(HUBERT, kmeans="km.safetensors")` takes; `km.md`, their card; and
`km.rejects.jsonl`, unusable clips and labels. Prints the card's figures as JSON. `--labels` adds
measures of phone information (format: see `evaluation.unit_quality`). Exit codes:
0 written, 1 not possible, 2 usage.
"""

import hashlib
import importlib.metadata
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import save

from im2sp.pipeline.decoding.audio import DEFAULT_MAX_SECONDS, SAMPLE_RATE_HZ
from im2sp.pipeline.speech_tokenizer.encoder import HubertEncoder
from im2sp.pipeline.speech_tokenizer.tokenizer import DTYPES, Precision, SpeechTokenizer
from im2sp.pipeline.speech_tokenizer.weights import DEFAULT_LAYER, HubertWeights, load_hubert
from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file, output_lock
from im2sp.tools.evaluation.unit_quality import PhoneLabels, UnitMeter
from im2sp.tools.fitting.clip_features import Clips, FeatureReader
from im2sp.tools.fitting.kmeans import Reservoir, fit_kmeans

METADATA_KEY = "im2sp"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Fit k-means centroids to HuBERT features of a folder of audio."""

    source: tyro.conf.Positional[Path]
    """Folder of audio (recursive), or any other source of im2sp-tokenize."""
    speech_tokenizer: str
    """HuBERT: a folder of transformers, a file of fairseq, or a hub id."""
    out: Path
    """File to write, *.safetensors; its card and rejects are written beside it."""
    layer: int = DEFAULT_LAYER
    """Layer whose output is clustered, counted from 1."""
    num_units: int = 200
    """Number of centroids."""
    precision: Precision = "fp32"
    """Arithmetic of the encoder."""
    audio_root: Path | None = None
    """Folder that the audio paths of a Karpathy file or source list are relative to."""
    split: str | None = None
    """Fit only to clips of this split, such as train."""
    max_audio_s: float = DEFAULT_MAX_SECONDS
    """Maximum length of a clip in seconds; longer clips are rejects."""
    max_frames: int = 500_000
    """Maximum frames for k-means; 8 bytes x width each, 3 GB at 768."""
    restarts: int = 1
    """Number of starts of k-means; the best is kept."""
    max_rounds: int = 50
    """Maximum iterations of k-means."""
    seed: int = 0
    """Random seed of the frame sample and of k-means."""
    val: Path | None = None
    """Source of other clips to measure on; by default the fitted frames."""
    labels: Path | None = None
    """Phone timings: a folder of `<stem>.lab` files, or one file for all clips."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    quiet: bool = False
    """No progress bars."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out {self.out}: expected a file name that ends in .safetensors")
        if self.max_frames < self.num_units:
            raise ValueError(
                f"--max-frames is {self.max_frames}, expected at least --num-units,"
                f" {self.num_units}"
            )


def fit_units(config: FitConfig) -> dict[str, Any]:
    """Fit, measure and write; return the card as JSON values.

    Raises:
        ValueError: No such source or weights, no readable clip, or too few frames.
    """
    clips = Clips.of(config.source, audio_root=config.audio_root, split=config.split)
    val = Clips.of(config.val) if config.val is not None else None
    labels = _labels(config.labels, val or clips)
    weights = load_hubert(config.speech_tokenizer, config.layer)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoder = HubertEncoder(weights, DTYPES[config.precision], device)
    reader = _reader(encoder, config, labels, weights.settings.waveform_eps)
    reservoir = Reservoir(config.max_frames, seed=config.seed)
    for features, phones in reader.read(clips.utterances):
        reservoir.add(features, phones)
    if not reader.num_clips:
        first = (clips.rejects + reader.rejects)[0]
        raise ValueError(
            f"{config.source}: no readable clip, the first is {first['file']}: {first['reason']}"
        )
    fit = fit_kmeans(
        reservoir.rows,
        config.num_units,
        seed=config.seed,
        restarts=config.restarts,
        max_rounds=config.max_rounds,
        quiet=config.quiet,
    )
    tokenizer = _tokenizer(config, weights, fit.centroids, device)
    fitted = UnitMeter(tokenizer)
    fitted.add(reservoir.rows, reservoir.tags)
    card: dict[str, Any] = {
        "speech_tokenizer": {
            "name": tokenizer.name,
            "layer": tokenizer.layer,
            "num_units": tokenizer.num_units,
            "precision": tokenizer.precision,
            "fingerprint": tokenizer.fingerprint,
        },
        "data": _data(clips, reader),
        "recipe": {
            **{name: getattr(config, name) for name in ("max_frames", "restarts", "seed")},
            "num_frames_seen": reservoir.num_seen,
            "num_rounds": fit.num_rounds,
            "scikit_learn": importlib.metadata.version("scikit-learn"),
            "torch": torch.__version__.partition("+")[0],
        },
        "fitted": fitted.figures(),
    }
    rejects = clips.rejects + reader.rejects
    if val is not None:
        card["val_data"], card["val"], more = _measure(config, tokenizer, val, labels)
        rejects = rejects + more
    write(config.out, fit.centroids, card, rejects)
    return card


def _reader(
    encode: Any, config: FitConfig, labels: PhoneLabels | None, waveform_eps: float | None
) -> FeatureReader:
    return FeatureReader(
        encode,
        labels=labels,
        max_audio_s=config.max_audio_s,
        quiet=config.quiet,
        waveform_eps=waveform_eps,
    )


def _labels(path: Path | None, clips: Clips) -> PhoneLabels | None:
    """Read the labels; at least one must belong to a measured clip."""
    if path is None:
        return None
    labels = PhoneLabels(path)
    if not any(labels.has(utterance.name) for utterance in clips.utterances):
        raise ValueError(
            f"{path}: labels for none of the {len(clips.utterances)} clips to measure, the first is"
            f" {clips.utterances[0].name}; see tools/evaluation/unit_quality.py for the names"
        )
    return labels


def _tokenizer(
    config: FitConfig, weights: HubertWeights, centroids: torch.Tensor, device: torch.device
) -> SpeechTokenizer:
    """Speech tokenizer as loaded from the files."""
    path = Path(config.speech_tokenizer).expanduser()
    name = path.resolve().name if path.exists() else config.speech_tokenizer
    return SpeechTokenizer(weights, centroids, name=name, precision=config.precision, device=device)


def _measure(
    config: FitConfig, tokenizer: SpeechTokenizer, clips: Clips, labels: PhoneLabels | None
) -> tuple[dict[str, Any], dict[str, float | int], list[dict[str, str]]]:
    """Data, figures and rejects of the held-out clips."""
    reader = _reader(tokenizer.features, config, labels, tokenizer.waveform_eps)
    meter = UnitMeter(tokenizer)
    for features, phones in reader.read(clips.utterances):
        meter.add(features, phones)
    if not reader.num_clips:
        raise ValueError(f"{config.val}: no readable clip")
    return _data(clips, reader), meter.figures(), clips.rejects + reader.rejects


def _data(clips: Clips, reader: FeatureReader) -> dict[str, Any]:
    return {
        "kind": clips.kind,
        "split": clips.split,
        "num_clips": reader.num_clips,
        "num_rejects": len(clips.rejects) + len(reader.rejects),
        "num_labelled_clips": reader.num_labelled,
        "hours": round(reader.num_samples / SAMPLE_RATE_HZ / 3600, 4),
        "listing_sha256": clips.sha256,
    }


# Writing ------------------------------------------------------------------------------------------


def write(
    out: Path, centroids: torch.Tensor, card: dict[str, Any], rejects: list[dict[str, str]]
) -> None:
    """Write rejects, card and, last, the centroids, each atomically."""
    data = save({"centres": centroids}, {METADATA_KEY: json.dumps(card, sort_keys=True)})
    lines = "".join(json.dumps(row) + "\n" for row in rejects)
    files = {
        out.with_suffix(".rejects.jsonl"): lines.encode(),
        out.with_suffix(".md"): card_text(out.name, data, card).encode(),
        out: data,
    }
    for path, content in files.items():
        with atomic_file(path) as file:
            file.write(content)


FIGURES = {
    "num_frames": "frames of 20 ms",
    "inertia": "mean squared distance from the centroid",
    "unexplained": "its share of the variance",
    "units_used": "units used",
    "perplexity": "perplexity of the units",
    "num_labelled_frames": "frames with a phone",
    "num_phones": "phones",
    "pnmi": "PNMI",
    "phone_purity": "phone purity",
    "cluster_purity": "cluster purity",
}


def card_text(name: str, data: bytes, card: dict[str, Any]) -> str:
    """The card as markdown."""
    tokenizer, recipe = card["speech_tokenizer"], card["recipe"]
    heads = [key for key in ("fitted", "val") if key in card]
    rows = [
        f"| {text} | " + " | ".join(f"{card[head].get(key, ''):,}" for head in heads) + " |"
        for key, text in FIGURES.items()
        if any(key in card[head] for head in heads)
    ]
    parts = [
        f"# Card of `{name}`",
        f"{tokenizer['num_units']} k-means centroids of the features of layer {tokenizer['layer']}"
        f" of the HuBERT `{tokenizer['name']}` ({tokenizer['precision']}).",
        f"Fingerprint of the speech tokenizer: `{tokenizer['fingerprint']}`  \n"
        f"sha256 of `{name}`: `{hashlib.sha256(data).hexdigest()}`",
        "## Figures",
        "\n".join(
            [
                "| | " + " | ".join(_HEADS[head] for head in heads) + " |",
                "| --- " * (1 + len(heads)) + "|",
                *rows,
            ]
        ),
        "## Data",
        _data_text("Fitted to", card["data"]),
        *([_data_text("Measured on", card["val_data"])] if "val_data" in card else []),
        "## Recipe",
        f"`tools/fit_units.py` drew {card['fitted']['num_frames']:,} of"
        f" {recipe['num_frames_seen']:,} frames with seed {recipe['seed']} and ran k-means on"
        f" them (k-means++, best of {recipe['restarts']}, {recipe['num_rounds']} iterations;"
        f" scikit-learn {recipe['scikit_learn']}, torch {recipe['torch']}).",
    ]
    return "\n\n".join(parts) + "\n"


_HEADS = {"fitted": "fitted frames", "val": "other clips"}


def _data_text(what: str, data: dict[str, Any]) -> str:
    split = "" if data["split"] is None else f", split {data['split']}"
    return (
        f"{what} {data['num_clips']:,} clips, {data['hours']:g} hours, of a source of kind"
        f" {data['kind']}{split} (listing `{data['listing_sha256']}`); {data['num_rejects']:,}"
        f" rejects, {data['num_labelled_clips']:,} clips with phones."
    )


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("fit_units", FitConfig, _run, args)


def _run(config: FitConfig) -> None:
    with output_lock(config.out, is_folder=False):
        print(json.dumps(fit_units(config), indent=2))


if __name__ == "__main__":
    sys.exit(main())
