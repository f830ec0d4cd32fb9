"""What `im2sp-train` can be told: one dataclass, whose fields are its flags and the keys of a TOML.

Order: defaults < recipe < `--config run.toml` < flags. Recipe and file become flags before the
command line is parsed (`flags_of`), so a misspelt key fails as a misspelt flag does.
"""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from im2sp.shards.files import atomic_file

CONFIG_NAME = "config.toml"
MAX_TOKENS = 1024
"""Positions of the decoder: BOS and a text's ids."""
MAX_CHARACTERS = 512

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {
        "preset": "base",
        "items": "one",
        "freeze": "image",
        "steps": 100_000,
        "batch_size": 64,
        "learning_rate": 5e-5,
        "warmup_steps": 10_000,
        "schedule_steps": 100_000,
        "weight_decay": 1e-5,
        "betas": (0.9, 0.999),
        "clip_norm": 0.0,
        "label_smoothing": 0.0,
        "dropout": 0.1,
        "precision": "fp32",
        "best_by": "bleu",
    },
}
"""Settings that a recipe stands for: the paper's code draws one utterance an image and batch."""

# What a run that goes on may be told anew: it changes how the run is watched and kept, where it
# computes and for how long, not what a step does.
CHANGEABLE = frozenset(
    {
        "shards", "val_shards", "out", "config", "init_from", "encoder_from", "text_model", "steps",
        "batch_size", "grad_accumulation", "checkpoint_every", "eval_every", "log_every",
        "keep_last", "best_by", "val_images", "device", "loader_threads", "tensorboard", "quiet",
        "json",
    }
)  # fmt: skip
_PLAIN_FLAGS = frozenset({"quiet", "json"})
"""Flags without an opposite."""
_UNSAVED = frozenset({"config", *_PLAIN_FLAGS})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a captioner from shards: image units to speech units, or to text.

    Run the same command again to go on with an interrupted run. For several GPUs:
    torchrun --nproc-per-node 8 --no-python im2sp-train .. Exit status: 0 done; 1 failed; 2 wrong
    usage.
    """

    shards: Path
    """Dataset to learn from, as im2sp-tokenize writes it."""
    out: Path
    """Folder of the run; created if need be."""
    config: Path | None = None
    """TOML file with settings named as the flags are; flags come before it."""
    recipe: Literal["paper"] | None = None
    """Settings to begin with; the file and the flags come before them."""

    target: Literal["speech", "text", "words"] = "speech"
    """What is said of an image: speech units, the captions' text, or only which words the captions
    hold. The last is no captioner: it teaches an image encoder to look, at a fraction of the cost,
    for --init-from to begin with."""
    split: str | None = None
    """Split to learn from; train, or all samples where the dataset has no splits."""
    val_shards: Path | None = None
    """Dataset to validate on; --shards unless given."""
    val_split: str | None = None
    """Split to validate on; val where there is one."""
    val_images: int | None = None
    """Validate on so many images at most, from the split's first on."""
    other_view: tuple[Path, ...] = ()
    """Datasets of the same images seen otherwise, mirrored or cut at random (im2sp-tokenize --view
    squash-224-mirrored, random-224-1 and so on): each epoch an image comes in one of its views, by
    chance."""
    items: Literal["all", "one"] = "all"
    """All utterances or captions of an image, or one that is drawn anew each epoch."""
    max_length: int | None = None
    """Longest utterance in units (1023 unless given) or caption in characters (512); longer ones
    are left out and counted."""
    bucket_window: int = 16
    """Batches among which items are sorted by length, which saves padding; 0 for none."""
    loader_threads: int = 1
    """Threads that read ahead; any number gives the same batches."""
    text_model: Path | None = None
    """Sentencepiece model, or tokenizer.json of a GIT, of --target text. Unless given it is that of
    --init-from, or one is fitted on the captions of --shards."""
    text_pieces: int = 4000
    """Most pieces of a text model that is fitted here; most words of --target words."""

    unit_pieces: int = 0
    """Join speech units to so many pieces at most, fitted here or those of --init-from: utterances
    are a third as long. 0 for units as they are, as in the paper."""

    preset: Literal["tiny", "mini", "small", "base"] | None = None
    """Size of the model: that of --init-from, or small; base is the paper's."""
    init_from: str | None = None
    """Run, or anything else that load_model reads, whose weights to begin with. Where its
    vocabulary differs, embedding and output begin anew and the rest is kept."""
    encoder_from: Path | None = None
    """A run whose image encoder and projection to begin with, beside the decoder of --init-from or
    a new one; or SeiT's weights, with --init-from only where that is a GIT."""
    freeze: Literal["none", "encoder", "image"] = "none"
    """What is not trained: the image encoder, or that and the projection behind it."""
    dropout: float = 0.1
    """In the decoder, of sums and attention weights."""

    steps: int = 20_000
    """Steps of the optimizer in all."""
    batch_size: int = 64
    """Images of a batch on one process; with their captions. A step has batch_size x
    grad_accumulation x processes."""
    grad_accumulation: int = 1
    """Batches whose gradients are added up for one step."""
    learning_rate: float = 5e-4
    """The highest, at the end of the warm-up."""
    warmup_steps: int = 100
    """Steps over which the rate rises from 0."""
    schedule_steps: int | None = None
    """Step at which the rate has fallen back to 0, along a cosine; --steps unless given."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averages of gradients and their squares."""
    weight_decay: float = 0.01
    """AdamW's, on everything."""
    clip_norm: float = 1.0
    """Largest norm of the gradient, longer ones are shortened; 0 for no limit."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over the vocabulary, in training."""
    crop_area: float = 1.0
    """Smallest share of the code grid that is cropped, at random, and resized to the whole; 1 for
    no crops."""
    code_noise: float = 0.0
    """Share of image units that are replaced by random ones."""
    precision: Literal["bf16", "fp32"] | None = None
    """Arithmetic; bf16 on a GPU and fp32 on a CPU unless given. Weights are float32 in both."""
    seed: int = 0
    """Of weights, order, dropout and augmentation."""
    device: str | None = None
    """Where to compute, as torch names it; CUDA where there is one."""

    checkpoint_every: int = 1000
    """Steps between checkpoints; there is one at the end, too."""
    keep_last: int = 2
    """Checkpoints to keep, beside the best one."""
    eval_every: int | None = None
    """Steps between validations, beside those at the checkpoints."""
    best_by: Literal["loss", "bleu"] = "loss"
    """Validation score that decides which checkpoint is the best; bleu is that of greedy
    generations, which take their time."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    tensorboard: bool = True
    """Write events for TensorBoard, too."""
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the summary as one JSON object."""

    def __post_init__(self) -> None:
        """Refuse what cannot be, naming the flag."""
        for name in ("text_pieces", "steps", "batch_size", "grad_accumulation", "checkpoint_every",
                     "keep_last", "log_every", "max_length", "val_images", "eval_every",
                     "schedule_steps"):  # fmt: skip
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "at least 1")
        for name in ("unit_pieces", "bucket_window", "loader_threads", "warmup_steps", "seed"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("weight_decay", "clip_norm"):
            value = getattr(self, name)
            _check(name, value, 0 <= value < math.inf, "0 or more")
        for name in ("dropout", "label_smoothing"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 up to below 1")
        _check("code_noise", self.code_noise, 0 <= self.code_noise <= 1, "0 to 1")
        _check("crop_area", self.crop_area, 0 < self.crop_area <= 1, "above 0 up to 1")
        rate = self.learning_rate
        _check("learning_rate", rate, 0 < rate < math.inf, "more than 0")
        betas = self.betas
        _check("betas", betas, all(0 <= beta < 1 for beta in betas), "each 0 up to below 1")
        is_short = (self.max_length or 0) < MAX_TOKENS
        _check("max_length", self.max_length, is_short, f"{MAX_TOKENS - 1} at most")
        horizon = self.schedule_steps
        is_within = horizon is None or horizon >= self.steps
        _check("schedule_steps", horizon, is_within, f"at least --steps, {self.steps}")
        if self.text_model is not None and self.target != "text":
            raise ValueError("--text-model goes with --target text only")
        if self.unit_pieces and self.target != "speech":
            raise ValueError("--unit-pieces goes with --target speech only")
        if self.best_by == "bleu" and self.target == "words":
            raise ValueError("--best-by bleu: --target words writes nothing; leave it at loss")

    @property
    def longest(self) -> int:
        """Longest utterance in units, or caption in characters, that is taken."""
        if self.max_length is not None:
            return self.max_length
        return MAX_TOKENS - 1 if self.target == "speech" else MAX_CHARACTERS


def _check(name: str, value: object, is_sound: bool, expected: str) -> None:
    if not is_sound:
        raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {expected}")


def to_toml(config: TrainConfig) -> bytes:
    """The settings as `--config` reads them; those that are None are left out."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None and field.name not in _UNSAVED:
            values[field.name] = _plain(value)
    return tomli_w.dumps(values).encode()


def _plain(value: Any) -> Any:
    """A setting as TOML has it: paths are texts."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def write_config(config: TrainConfig, folder: Path) -> None:
    """Write `config.toml` into a folder, whole or not at all."""
    with atomic_file(folder / CONFIG_NAME) as file:
        file.write(to_toml(config))


def read_toml(path: Path) -> dict[str, Any]:
    """The settings in a TOML file.

    Raises:
        ValueError: There is no such file, or it is no TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"--config {path}: not TOML ({error})") from None


def flags_of(values: Mapping[str, Any]) -> list[str]:
    """Settings as the flags that say the same.

    Raises:
        ValueError: A value is of a kind that no flag takes.
    """
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            is_implied = not value and name in _PLAIN_FLAGS
            flags += [] if is_implied else [f"--{flag}" if value else f"--no-{flag}"]
        elif isinstance(value, str | int | float | Path):
            flags.append(f"--{flag}={value}")
        elif isinstance(value, list | tuple) and all(
            isinstance(one, str | int | float | Path) for one in value
        ):
            flags += [f"--{flag}", *map(str, value)] if value else []
        else:
            raise ValueError(f"{name} is {value!r}; expected a number, a text, true or false")
    return flags


def with_files(args: list[str]) -> list[str]:
    """A command line preceded by the flags of its recipe and of its `--config` file.

    Raises:
        ValueError: The file cannot be read, or there is no such recipe.
    """
    path = _last_value(args, "config")
    settings = read_toml(Path(path)) if path is not None else {}
    if "config" in settings:
        raise ValueError(f"--config {path}: names config; one file cannot name another")
    recipe = _last_value(args, "recipe") or settings.get("recipe")
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"--recipe is {recipe}; expected one of {', '.join(RECIPES)}")
    return [*flags_of(RECIPES.get(recipe or "", {})), *flags_of(settings), *args]


def _last_value(args: list[str], name: str) -> str | None:
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value


def differences(config: TrainConfig, former: Mapping[str, Any]) -> list[str]:
    """What a run that goes on may not change and does, as `seed was 1 and is 2`."""
    now = tomllib.loads(to_toml(config).decode())
    names = [field.name for field in dataclasses.fields(config) if field.name not in CHANGEABLE]
    return [
        f"{name} was {former.get(name)} and is {now.get(name)}"
        for name in names
        if former.get(name) != now.get(name)
    ]
