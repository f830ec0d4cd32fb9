"""Train a small HuBERT and its 200 centroids, such as the bundled speech tokenizer `compact`.

    python tools/fit_speech_tokenizer.py --captions dataset_flickr8k.json --out runs/speech \
        --recordings DIGITS.tar MORE/

1. flite synthesizes training captions, each with a random voice, tempo, pitch and speed, and again
   in one reference voice (`fitting.speech_corpus`); recordings of real voices are added.
2. A HuBERT learns to predict MFCC clusters of masked frames from a distorted clip
   (`fitting.hubert_trainer`). The clusters are those of the reference voice, aligned by phones
   (`fitting.speech_targets`), so that units contain the content and little of the speaker.
3. The clusters of the network's own features are the next targets, once for each further entry of
   `--minutes`. The network is kept; its prediction head is re-initialised.
4. k-means on the features of `--layer` gives the centroids.

All files are in `--out`; the same command resumes. Writes `speech_tokenizer.safetensors` and
`card.json`.
"""

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2sp.pipeline.decoding.audio import AudioError, read_audio
from im2sp.pipeline.sources import list_source
from im2sp.pipeline.speech_tokenizer.tokenizer import load_speech_tokenizer
from im2sp.pipeline.speech_tokenizer.weights import HubertWeights, speech_tokenizer_bytes
from im2sp.shards.command_line import run_command
from im2sp.shards.errors import log
from im2sp.shards.files import atomic_file
from im2sp.tools.engines.flite import VOICES
from im2sp.tools.fitting.hubert_trainer import Crops, Recipe, Trainer
from im2sp.tools.fitting.kmeans import fit_kmeans
from im2sp.tools.fitting.speech_corpus import (
    Corpus,
    Manner,
    draw_manner,
    make_corpus,
    read_captions,
)
from im2sp.tools.fitting.speech_targets import (
    Cepstra,
    Features,
    features_of_clips,
    hubert_features,
    hubert_weights,
    make_targets,
    measure_units,
    measure_voices,
)

EVERY_STEPS = 100
CHECKPOINT_STEPS = 500
NUM_VAL_CAPTIONS = 200
# Number of clips to which the clusters of a stage and the final centroids are fitted.
CLUSTER_CLIPS = 1500
CENTROID_CLIPS = 1500
NUM_MFCC_CLUSTERS = 100
REFERENCE_VOICE = "slt"


def read_recordings(sources: Sequence[Path]) -> list[tuple[str, np.ndarray]]:
    """Read names and (S,) float32 waveforms at 16 kHz of all clips of folders or tars."""
    recordings: list[tuple[str, np.ndarray]] = []
    for source in sources:
        for item in list_source(source).items:
            for utterance in item.utterances:
                if utterance.audio is None:
                    continue
                try:
                    waveform = read_audio(utterance.audio, name=utterance.name)
                except AudioError as error:
                    log(f"skipped: {error}")
                    continue
                recordings.append((utterance.name, waveform))
    return recordings


@dataclass(frozen=True, kw_only=True)
class Corpora:
    """Corpora for training and measuring."""

    train: Corpus
    """Captions, each in its own manner, and recordings."""
    reference: Corpus
    """The same captions in the reference voice."""
    val: Corpus
    """Val captions, each in every voice of flite."""


@dataclass(frozen=True, kw_only=True)
class FitSpeechTokenizerConfig(Recipe):
    """Train a small HuBERT and its centroids, such as the bundled `compact`."""

    captions: Path
    """Karpathy .json; flite speaks its captions."""
    recordings: tuple[Path, ...] = ()
    """Folders or .tar files of recordings to add."""
    out: Path
    """Folder for intermediate files and results."""
    num_captions: int = 9000
    """Captions to speak for training."""
    minutes: tuple[float, ...] = (12.0, 18.0, 20.0)
    """Training time of each stage."""
    layer: int = 4
    """Layer whose features become units."""
    num_units: int = 200
    """Number of units."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """torch device."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        if self.width % 64 or not 1 <= self.layer <= self.num_layers:
            raise ValueError("--width must be a multiple of 64, --layer one of --num-layers")


def open_corpora(config: FitSpeechTokenizerConfig, seed: int) -> Corpora:
    """Open the corpora in `--out`, creating missing ones."""
    generator = np.random.default_rng(seed)
    train_dir, reference_dir, val_dir = (
        config.out / name for name in ("train", "reference", "val")
    )
    captions = read_captions(config.captions, "train")
    drawn = generator.permutation(len(captions))[: config.num_captions]
    captions = [captions[i] for i in drawn]
    manners = [draw_manner(generator) for _ in captions]
    if not (train_dir / "clips.json").exists():
        make_corpus(train_dir, captions, manners, read_recordings(config.recordings))
    if not (reference_dir / "clips.json").exists():
        make_corpus(reference_dir, captions, [Manner(voice=REFERENCE_VOICE) for _ in captions])
    captions = read_captions(config.captions, "val")
    captions = [captions[i] for i in generator.permutation(len(captions))[:NUM_VAL_CAPTIONS]]
    if not (val_dir / "clips.json").exists():
        texts = [caption for caption in captions for _ in VOICES]
        make_corpus(val_dir, texts, [Manner(voice=voice) for _ in captions for voice in VOICES])
    return Corpora(train=Corpus(train_dir), reference=Corpus(reference_dir), val=Corpus(val_dir))


def train_stage(trainer: Trainer, crops: Crops, stage: int, out: Path, minutes: float) -> None:
    """Train a stage for `minutes`, including time before a restart."""
    path = out / f"stage-{stage}.pt"
    spent_s = 0.0
    if path.exists():
        state = torch.load(path, map_location=trainer.device, weights_only=True)
        trainer.restore(state)
        spent_s = state["spent_s"]
    generator = np.random.default_rng((trainer.recipe.seed, stage, trainer.step))
    begin_s = time.monotonic() - spent_s
    means: dict[str, float] = {}

    def keep() -> None:
        with atomic_file(path) as file:
            torch.save({**trainer.state(), "spent_s": time.monotonic() - begin_s}, file)

    # Draw the next crops while a step runs.
    reader = ThreadPoolExecutor(1)
    drawn = reader.submit(crops.draw, generator)
    while (progress := (time.monotonic() - begin_s) / (60 * minutes)) < 1:
        batch, drawn = drawn.result(), reader.submit(crops.draw, generator)
        found = trainer.train_step(*batch, progress)
        means = {
            name: 0.98 * means.get(name, value) + 0.02 * value for name, value in found.items()
        }
        if trainer.step % EVERY_STEPS == 0:
            shown = {name: round(value, 3) for name, value in means.items()}
            print(f"stage {stage} step {trainer.step} {progress:.1%} {shown}", flush=True)
        if trainer.step % CHECKPOINT_STEPS == 0:
            keep()
    reader.shutdown()
    keep()


def train(config: FitSpeechTokenizerConfig, recipe: Recipe, corpora: Corpora) -> HubertWeights:
    """Train all stages; return the HuBERT up to `--layer`."""
    out, device = config.out, torch.device(config.device)
    features: Features = Cepstra()
    trainer: Trainer | None = None
    for stage, minutes in enumerate(config.minutes, start=1):
        num_clusters = NUM_MFCC_CLUSTERS if stage == 1 else config.num_units
        path = out / f"targets-{stage}.npy"
        if not path.exists():
            targets = make_targets(
                corpora.train,
                corpora.reference,
                features,
                num_clusters,
                num_sample_clips=CLUSTER_CLIPS,
                seed=recipe.seed + stage,
            )
            with atomic_file(path) as file:
                np.save(file, targets)
        next_trainer = Trainer(recipe, num_clusters, device)
        if trainer is not None:
            next_trainer.model.hubert.load_state_dict(trainer.model.hubert.state_dict())
        trainer = next_trainer
        train_stage(trainer, Crops(corpora.train, np.load(path), recipe), stage, out, minutes)
        features = hubert_features(hubert_weights(trainer.model, config.layer), device)
    assert trainer is not None
    return hubert_weights(trainer.model, config.layer)


def fit_centroids(corpus: Corpus, features: Features, num_units: int, seed: int) -> Tensor:
    """(units, D) float32: k-means centroids of the features of a sample of clips."""
    drawn = np.random.default_rng(seed).permutation(len(corpus))[:CENTROID_CLIPS]
    sample = torch.cat(list(features_of_clips(corpus, np.sort(drawn), features)))
    return fit_kmeans(sample, num_units, seed=seed).centroids


def measure(path: Path, corpus: Corpus) -> dict[str, Any]:
    """Measure the tokenizer, as users load it, on the val corpus."""
    tokenizer = load_speech_tokenizer(path, device="cpu")
    figures = measure_units(
        corpus, lambda samples: tokenizer.features(samples[None])[0], tokenizer.centroids
    )
    units = tokenizer.encode_batch([corpus.waveform(number) for number in range(len(corpus))])
    return {**figures.as_json(), "voices": measure_voices(units, len(VOICES)).as_json()}


def fit(config: FitSpeechTokenizerConfig) -> None:
    """Synthesize, train, fit centroids, measure and write the tokenizer."""
    names = Recipe.__dataclass_fields__
    recipe = Recipe(**{name: getattr(config, name) for name in names})
    config.out.mkdir(parents=True, exist_ok=True)
    corpora = open_corpora(config, recipe.seed)
    weights = train(config, recipe, corpora)
    features = hubert_features(weights, torch.device(config.device), torch.float32)
    centroids = fit_centroids(corpora.train, features, config.num_units, recipe.seed)
    path = config.out / "speech_tokenizer.safetensors"
    notes = {"recipe": asdict(recipe)}
    with atomic_file(path) as file:
        file.write(speech_tokenizer_bytes(replace(weights, centroids=centroids), notes=notes))
    card = {
        "recipe": asdict(recipe),
        "layer": config.layer,
        "minutes": config.minutes,
        "num_train_clips": len(corpora.train),
        "train_hours": round(corpora.train.hours, 2),
        "num_val_clips": len(corpora.val),
        "device": config.device,
        "torch": torch.__version__,
        "val": measure(path, corpora.val),
    }
    with atomic_file(config.out / "card.json") as file:
        file.write(json.dumps(card, indent=2).encode() + b"\n")
    print(json.dumps(card, indent=2))


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command(
        "fit_speech_tokenizer", FitSpeechTokenizerConfig, fit, args, out=lambda config: config.out
    )


if __name__ == "__main__":
    sys.exit(main())
