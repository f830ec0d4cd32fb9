"""Train a unit vocoder, such as the bundled `compact`.

    python tools/fit_vocoder.py --captions dataset_flickr8k.json --voice slt --out runs/vocoder
    python tools/fit_vocoder.py --audio LJSpeech-1.1 --out runs/lj \
        --speech-tokenizer facebook/hubert-base-ls960 --kmeans km.bin --minutes 4000 \
        --channels 512 --upsample-rates 5 4 4 2 2 --upsample-kernels 11 8 8 4 4 \
        --rate 2e-4 --adversary-rate 2e-4 --adversary-from 0 --discriminator-width 1 \
        --num-scales 3 --mel-windows 1024

    python tools/fit_vocoder.py --audio dataset_flickr8k.json --audio-root flickr_audio \
        --shards shards/spoken --out runs/ours

The second has the published sizes and losses. Clips are either captions that flite speaks in one
voice or recordings of any source that `im2sp-tokenize` reads; they are turned into units once, or
taken with their durations from a dataset that was made of them (`--shards`).
Everything is kept in `--out`, with a checkpoint every other minute; the same command goes on where
it was. Writes `vocoder.safetensors` with each checkpoint, and in the end `g_*` with `config.json`,
as speech-resynthesis has them, and `card.json` with figures on clips that were held back.
"""

import argparse
import json
import pickle
import sys
import time
from collections.abc import Callable, Container
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from im2sp.pipeline.hubert_units import load_speech_tokenizer
from im2sp.pipeline.vocoder import load_vocoder
from im2sp.pipeline.vocoder_weights import RATE_HZ, vocoder_bytes
from im2sp.shards import ShardDataset
from im2sp.shards.files import atomic_file
from im2sp.tools.flite import VOICES
from im2sp.tools.speech_corpus import Corpus
from im2sp.tools.vocoder_corpus import (
    Segments,
    encode_corpus,
    read_recordings,
    read_texts,
    speak_captions,
    take_units,
    units_of_dataset,
)
from im2sp.tools.vocoder_network import NetworkSizes
from im2sp.tools.vocoder_quality import measure, pocketsphinx_ears
from im2sp.tools.vocoder_trainer import Recipe, Trainer

EVERY_STEPS = 50
CHECKPOINT_S = 120
# A step that took longer was interrupted: its process was stopped, or its machine slept.
MAX_STEP_S = 30
WEIGHTS_FILE = "vocoder.safetensors"
TOKENIZER_KEYS = ("name", "fingerprint", "num_units")
Watch = Callable[[Trainer, dict[str, float]], None]


def open_corpora(
    arguments: argparse.Namespace, names: Container[str] | None
) -> tuple[Corpus, Corpus]:
    """The corpora to train and to measure with, made if they are not there yet."""
    train_dir, val_dir = arguments.out / "train", arguments.out / "val"
    seed, num_val = arguments.seed, arguments.num_val
    if arguments.captions is None:
        source, root = arguments.audio, arguments.audio_root
        return read_recordings(
            train_dir, val_dir, source, num_val, seed, audio_root=root, names=names
        )
    voice, path = arguments.voice, arguments.captions
    train = speak_captions(train_dir, path, "train", voice, arguments.num_captions, seed)
    return train, speak_captions(val_dir, path, "val", voice, num_val, seed)


def write_weights(trainer: Trainer, path: Path, notes: dict[str, Any]) -> None:
    """The averaged weights in our own form."""
    with atomic_file(path) as file:
        file.write(vocoder_bytes(trainer.generator.weights(trainer.average), notes=notes))


def write_published(trainer: Trainer, out: Path) -> None:
    """The averaged weights as speech-resynthesis keeps them."""
    with atomic_file(out / "config.json") as file:
        file.write(json.dumps(trainer.generator.sizes.as_published(), indent=4).encode() + b"\n")
    with atomic_file(out / f"g_{trainer.step:08d}") as file:
        torch.save({"generator": trainer.average}, file)


def restore_former(trainer: Trainer, path: Path, notes: dict[str, Any]) -> None:
    """Take over what another run's checkpoint holds, its optimizers and steps, too.

    Raises:
        ValueError: It is no checkpoint, or of other units, or of another size.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        former = state["notes"]
    except (RuntimeError, EOFError, LookupError, TypeError, pickle.UnpicklingError):
        raise ValueError(
            f"--init-from {path}: no checkpoint of fit_vocoder; expected the checkpoint.pt in the"
            " --out of another run"
        ) from None
    for what in ("sizes", "speech_tokenizer"):
        if former[what] != notes[what]:
            raise ValueError(
                f"--init-from {path}: its {what} are {former[what]}, those of this run"
                f" {notes[what]}; a vocoder goes on with the same units and sizes only"
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
    """Train until `minutes` are spent, those before a restart counted in; returns the hours."""
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
        raise ValueError(f"{minutes} minutes were over before the first step; raise --minutes")
    keep()
    return spent_s / 3600


def tensorboard(out: Path, val: Corpus, units: list[np.ndarray], every_steps: int) -> Watch:
    """Writes losses, and now and then what three clips sound like.

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


def fit(arguments: argparse.Namespace) -> None:
    """Do all of it: speak, encode, train, measure, write."""
    out, device = arguments.out, torch.device(arguments.device)
    # What is missing is to be told now, not after the training.
    hear = pocketsphinx_ears() if arguments.measure_clips else None
    out.mkdir(parents=True, exist_ok=True)
    if arguments.shards is not None:
        dataset = ShardDataset(arguments.shards)
        whose = _described(dataset)
        kept = units_of_dataset(dataset, arguments.audio, arguments.audio_root)
        corpus, val = open_corpora(arguments, kept)
        units, val_units = take_units(corpus, kept), take_units(val, kept)
    else:
        tokenizer = load_speech_tokenizer(arguments.speech_tokenizer, arguments.kmeans)
        whose = {key: getattr(tokenizer, key) for key in TOKENIZER_KEYS}
        corpus, val = open_corpora(arguments, None)
        units, val_units = (
            encode_corpus(out / name, one, tokenizer)
            for name, one in (("train", corpus), ("val", val))
        )
    recipe = Recipe(**_chosen(arguments, Recipe))
    sizes = NetworkSizes(num_units=whose["num_units"], **_chosen(arguments, NetworkSizes))
    trainer = Trainer(recipe, sizes, device)
    notes = {
        "recipe": _as_json(recipe),
        "sizes": _as_json(sizes),
        "speech_tokenizer": whose,
    }
    watch = tensorboard(out, val, val_units, 20 * EVERY_STEPS) if arguments.tensorboard else None
    segments = Segments(corpus, units, recipe)
    hours = train(trainer, segments, out, arguments.minutes, notes, watch, arguments.init_from)
    write_published(trainer, out)
    chosen = slice(arguments.measure_clips or len(val))
    waveforms = [val.waveform(row) for row in range(len(val))][chosen]
    texts = read_texts(out / "val")[chosen]
    written = load_vocoder(out / WEIGHTS_FILE, device=device)
    card = {
        **notes,
        "voice": arguments.voice if arguments.captions else None,
        "num_train_clips": len(corpus),
        "train_hours_of_speech": round(corpus.hours, 2),
        "hours": round(hours, 3),
        "steps": trainer.step,
        "device": device.type,
        "torch": torch.__version__,
        "val": measure(written, waveforms, val_units[chosen], texts, hear),
    }
    with atomic_file(out / "card.json") as file:
        file.write(json.dumps(card, indent=2).encode() + b"\n")
    print(json.dumps(card, indent=2))


def _described(dataset: ShardDataset) -> dict[str, Any]:
    told = dataset.manifest.speech_tokenizer or {}
    if missing := [key for key in TOKENIZER_KEYS if key not in told]:
        raise ValueError(
            f"--shards {dataset.path}: does not tell the {missing[0]} of its speech tokenizer;"
            " expected a dataset with speech"
        )
    return {key: told[key] for key in TOKENIZER_KEYS}


def _as_json(settings: Recipe | NetworkSizes) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


def _chosen(arguments: argparse.Namespace, kind: type[Recipe] | type[NetworkSizes]) -> dict:
    values = {field.name: getattr(arguments, field.name, None) for field in fields(kind)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }


def _add_fields(parser: argparse.ArgumentParser, kind: type[Recipe] | type[NetworkSizes]) -> None:
    for field in fields(kind):
        if field.name == "num_units":  # the tokenizer tells them
            continue
        flag, default = f"--{field.name.replace('_', '-')}", field.default
        if isinstance(default, tuple):
            parser.add_argument(flag, type=int, nargs="+", default=list(default))
        else:
            parser.add_argument(flag, type=type(default), default=default)


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description="Train a unit vocoder.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--captions", type=Path, help="a Karpathy .json for flite to speak")
    source.add_argument("--audio", type=Path, help="recordings of one voice, such as LJSpeech")
    parser.add_argument("--audio-root", type=Path, help="of --audio, as im2sp-tokenize takes it")
    parser.add_argument(
        "--shards", type=Path, help="dataset made of --audio: take its units and durations"
    )
    parser.add_argument("--voice", choices=VOICES, default="slt", help="of flite")
    parser.add_argument("--num-captions", type=int, default=4000, help="to speak for training")
    parser.add_argument("--num-val", type=int, default=300, help="clips to measure with")
    parser.add_argument("--out", type=Path, required=True, help="folder to work and write in")
    parser.add_argument("--speech-tokenizer", default="compact", help="as im2sp-tokenize takes it")
    parser.add_argument("--kmeans", type=Path, help="its centres, where it brings none")
    parser.add_argument(
        "--init-from", type=Path, help="checkpoint.pt of another run, to begin with what it learned"
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument(
        "--measure-clips", type=int, default=100, help="to count word errors of; 0 for none"
    )
    parser.add_argument("--tensorboard", action="store_true", help="losses and sounds")
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default_device, help="as torch names it")
    for kind in (NetworkSizes, Recipe):
        _add_fields(parser, kind)
    arguments = parser.parse_args(argv)
    if arguments.captions is not None and (arguments.shards or arguments.audio_root):
        parser.error("--shards and --audio-root go with --audio, not with --captions")
    try:
        fit(arguments)
    except (ValueError, OSError) as error:
        print(f"fit_vocoder: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
