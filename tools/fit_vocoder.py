"""Train a unit vocoder, such as the bundled `compact`.

    python tools/fit_vocoder.py --captions dataset_flickr8k.json --voice slt --out runs/vocoder
    python tools/fit_vocoder.py --audio LJSpeech-1.1 --out runs/lj \
        --speech-tokenizer facebook/hubert-base-ls960 --kmeans km.bin --minutes 4000 \
        --channels 512 --upsample-rates 5 4 4 2 2 --upsample-kernels 11 8 8 4 4 \
        --rate 2e-4 --adversary-rate 2e-4 --adversary-from 0 --discriminator-width 1 \
        --num-scales 3 --mel-windows 1024

    python tools/fit_vocoder.py --audio dataset_flickr8k.json --audio-root flickr_audio \
        --shards shards/spoken --out runs/ours

The second command uses the published sizes and losses. Clips are captions synthesized by flite in
one voice, or recordings of any source of `im2sp-tokenize`. They are tokenized once, or their units
and durations come from a dataset made from them (`--shards`). All files are in `--out`, with a
checkpoint every other minute; the same command resumes. Writes `vocoder.safetensors` with each
checkpoint, and at the end `g_*` with `config.json`, in the format of speech-resynthesis, and
`card.json` with measurements on held-out clips.
"""

import json
import pickle
import sys
import time
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from im2sp.pipeline.speech_tokenizer.tokenizer import load_speech_tokenizer
from im2sp.pipeline.vocoder.vocoder import load_vocoder
from im2sp.pipeline.vocoder.weights import RATE_HZ, vocoder_bytes
from im2sp.shards import ShardDataset
from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file
from im2sp.tools.fitting.speech_corpus import Corpus
from im2sp.tools.fitting.vocoder_corpus import (
    Segments,
    encode_corpus,
    read_recordings,
    read_texts,
    speak_captions,
    take_units,
    units_of_dataset,
)
from im2sp.tools.fitting.vocoder_network import NetworkSizes
from im2sp.tools.fitting.vocoder_quality import measure, pocketsphinx_recognizer
from im2sp.tools.fitting.vocoder_trainer import Recipe, Trainer

EVERY_STEPS = 50
CHECKPOINT_S = 120
# A longer step was interrupted: the process was stopped, or the machine was suspended.
MAX_STEP_S = 30
WEIGHTS_FILE = "vocoder.safetensors"
TOKENIZER_KEYS = ("name", "fingerprint", "num_units")
Watch = Callable[[Trainer, dict[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class FitVocoderConfig(Recipe, NetworkSizes):
    """Train a unit vocoder, such as the bundled `compact`."""

    num_units: tyro.conf.Suppress[int] = 200
    """Number of units; set by the tokenizer."""
    captions: Path | None = None
    """Karpathy .json; flite speaks its captions."""
    audio: Path | None = None
    """Recordings of one voice, such as LJSpeech, instead of --captions."""
    audio_root: Path | None = None
    """Folder or .tar that the audio paths of --audio are relative to."""
    shards: Path | None = None
    """Dataset made of --audio; its units and durations are used."""
    voice: Literal["slt", "rms", "awb", "kal16"] = "slt"
    """Voice of flite."""
    num_captions: int = 4000
    """Captions to speak for training."""
    num_val: int = 300
    """Clips held out for measuring."""
    out: Path
    """Folder for intermediate files and results."""
    speech_tokenizer: str = "compact"
    """HuBERT: compact (bundled), a path or a hub id."""
    kmeans: Path | None = None
    """k-means centroids of the speech tokenizer, if they are a separate file."""
    init_from: Path | None = None
    """checkpoint.pt of another run with the initial weights."""
    minutes: float = 60.0
    """Training time."""
    measure_clips: int = 100
    """Clips to count word errors of; 0 for none."""
    tensorboard: bool = False
    """Write losses and audio as TensorBoard events."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """torch device."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flags, if settings cannot be used together."""
        super().__post_init__()
        if (self.captions is None) == (self.audio is None):
            raise ValueError("expected one of --captions and --audio")
        if self.captions is not None and (self.shards or self.audio_root):
            raise ValueError("--shards and --audio-root need --audio, not --captions")


def open_corpora(config: FitVocoderConfig, names: Container[str] | None) -> tuple[Corpus, Corpus]:
    """Open the corpora for training and measuring, creating missing ones."""
    train_dir, val_dir = config.out / "train", config.out / "val"
    seed, num_val = config.seed, config.num_val
    if config.audio is not None:
        source, root = config.audio, config.audio_root
        return read_recordings(
            train_dir, val_dir, source, num_val, seed, audio_root=root, names=names
        )
    assert config.captions is not None
    voice, path = config.voice, config.captions
    train = speak_captions(train_dir, path, "train", voice, config.num_captions, seed)
    return train, speak_captions(val_dir, path, "val", voice, num_val, seed)


def write_weights(trainer: Trainer, path: Path, notes: dict[str, Any]) -> None:
    """Write the averaged weights in the format of im2sp."""
    with atomic_file(path) as file:
        file.write(vocoder_bytes(trainer.generator.weights(trainer.average), notes=notes))


def write_published(trainer: Trainer, out: Path) -> None:
    """Write the averaged weights in the format of speech-resynthesis."""
    with atomic_file(out / "config.json") as file:
        file.write(json.dumps(trainer.generator.sizes.as_published(), indent=4).encode() + b"\n")
    with atomic_file(out / f"g_{trainer.step:08d}") as file:
        torch.save({"generator": trainer.average}, file)


def restore_former(trainer: Trainer, path: Path, notes: dict[str, Any]) -> None:
    """Restore another run's checkpoint, including optimizers and steps.

    Raises:
        ValueError: It is not a checkpoint, or has other units or sizes.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        former = state["notes"]
    except (RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        raise ValueError(
            f"--init-from {path}: not a checkpoint of fit_vocoder; expected the checkpoint.pt"
            " in the --out of another run"
        ) from None
    for what in ("sizes", "speech_tokenizer"):
        if former[what] != notes[what]:
            raise ValueError(
                f"--init-from {path}: its {what} are {former[what]}, those of this run"
                f" {notes[what]}; units and sizes must be the same"
            )
    trainer.restore(state)


def train(
    trainer: Trainer,
    segments: Segments,
    out: Path,
    minutes: float,
    notes: dict[str, Any],
    watch: Watch | None = None,
    init_from: Path | None = None,
) -> float:
    """Train for `minutes`, including time before a restart; return the hours."""
    path, spent_s = out / "checkpoint.pt", 0.0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["notes"] != notes:
            raise ValueError(
                f"{path}: made with other settings ({state['notes']}); use another --out, or the"
                " settings it was made with"
            )
        trainer.restore(state)
        spent_s = state["spent_s"]
    elif init_from is not None:
        restore_former(trainer, init_from, notes)
    generator = np.random.default_rng((trainer.recipe.seed, trainer.step))
    means = dict[str, float]()
    kept_s = last_s = time.monotonic()

    def keep() -> None:
        with atomic_file(path) as file:
            torch.save({**trainer.state(), "spent_s": spent_s, "notes": notes}, file)
        write_weights(trainer, out / WEIGHTS_FILE, notes)

    while spent_s < 60 * minutes:
        progress = spent_s / (60 * minutes)
        found = trainer.train_step(segments.draw(generator), progress)
        means = {
            name: 0.98 * means.get(name, value) + 0.02 * value for name, value in found.items()
        }
        if trainer.step % EVERY_STEPS == 0:
            shown = {name: round(value, 3) for name, value in means.items()}
            print(f"step {trainer.step} {progress:.1%} {shown}", flush=True)
            if watch is not None:
                watch(trainer, means)
        now_s = time.monotonic()
        spent_s += min(now_s - last_s, MAX_STEP_S)
        last_s = now_s
        if now_s - kept_s > CHECKPOINT_S:
            keep()
            kept_s = now_s
    if trainer.step == 0:
        raise ValueError(f"no step finished within {minutes} minutes; increase --minutes")
    keep()
    return spent_s / 3600


def tensorboard(out: Path, val: Corpus, units: list[np.ndarray], every_steps: int) -> Watch:
    """Return a callback that writes losses, and at intervals three synthesized clips.

    Raises:
        ValueError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("--tensorboard needs TensorBoard: pip install tensorboard") from None
    writer = SummaryWriter(str(out / "tensorboard"))
    rows = range(min(3, len(units)))
    for row in rows:
        writer.add_audio(f"clip {row}/recorded", val.waveform(row)[None], 0, RATE_HZ)

    def watch(trainer: Trainer, means: dict[str, float]) -> None:
        for name, value in means.items():
            writer.add_scalar(name, value, trainer.step)
        if trainer.step % every_steps:
            return
        for row in rows:
            with torch.no_grad():
                frames = torch.from_numpy(units[row].astype(np.int64))[None].to(trainer.device)
                made = trainer.generator(frames)[0].cpu()
            writer.add_audio(f"clip {row}/made", made[None], trainer.step, RATE_HZ)
        writer.flush()

    return watch


def fit(config: FitVocoderConfig) -> None:
    """Synthesize, encode, train, measure and write the vocoder."""
    out, device = config.out, torch.device(config.device)
    # Loaded here so that a missing package fails before the training.
    recognize = pocketsphinx_recognizer() if config.measure_clips else None
    out.mkdir(parents=True, exist_ok=True)
    if config.shards is not None and config.audio is not None:
        dataset = ShardDataset(config.shards)
        whose = _described(dataset)
        kept = units_of_dataset(dataset, config.audio, config.audio_root)
        corpus, val = open_corpora(config, kept)
        units, val_units = take_units(corpus, kept), take_units(val, kept)
    else:
        tokenizer = load_speech_tokenizer(config.speech_tokenizer, config.kmeans)
        whose = {key: getattr(tokenizer, key) for key in TOKENIZER_KEYS}
        corpus, val = open_corpora(config, None)
        units, val_units = (
            encode_corpus(out / name, one, tokenizer)
            for name, one in (("train", corpus), ("val", val))
        )
    recipe = Recipe(**_chosen(config, Recipe))
    sizes = NetworkSizes(**_chosen(config, NetworkSizes) | {"num_units": whose["num_units"]})
    trainer = Trainer(recipe, sizes, device)
    notes = {
        "recipe": _as_json(recipe),
        "sizes": _as_json(sizes),
        "speech_tokenizer": whose,
    }
    watch = tensorboard(out, val, val_units, 20 * EVERY_STEPS) if config.tensorboard else None
    segments = Segments(corpus, units, recipe)
    hours = train(trainer, segments, out, config.minutes, notes, watch, config.init_from)
    write_published(trainer, out)
    chosen = slice(config.measure_clips or len(val))
    waveforms = [val.waveform(row) for row in range(len(val))][chosen]
    texts = read_texts(out / "val")[chosen]
    written = load_vocoder(out / WEIGHTS_FILE, device=device)
    card = {
        **notes,
        "voice": config.voice if config.captions else None,
        "num_train_clips": len(corpus),
        "train_hours_of_speech": round(corpus.hours, 2),
        "hours": round(hours, 3),
        "steps": trainer.step,
        "device": device.type,
        "torch": torch.__version__,
        "val": measure(written, waveforms, val_units[chosen], texts, recognize),
    }
    with atomic_file(out / "card.json") as file:
        file.write(json.dumps(card, indent=2).encode() + b"\n")
    print(json.dumps(card, indent=2))


def _described(dataset: ShardDataset) -> dict[str, Any]:
    recorded = dataset.manifest.speech_tokenizer or {}
    if missing := [key for key in TOKENIZER_KEYS if key not in recorded]:
        raise ValueError(
            f"--shards {dataset.path}: does not record the {missing[0]} of its speech tokenizer;"
            " expected a dataset with speech"
        )
    return {key: recorded[key] for key in TOKENIZER_KEYS}


def _as_json(settings: Recipe | NetworkSizes) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


def _chosen(config: FitVocoderConfig, kind: type[Recipe] | type[NetworkSizes]) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(kind)}


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("fit_vocoder", FitVocoderConfig, fit, args, out=lambda config: config.out)


if __name__ == "__main__":
    sys.exit(main())
