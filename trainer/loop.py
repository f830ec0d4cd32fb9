"""Training run: steps, validation, checkpoints and log.

The state of a run is its weights, AdamW's moments and two positions (step and loader), so on one
CPU a resumed run equals an uninterrupted one bit for bit.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tqdm import tqdm

from im2sp.shards.codebook import codebook_name
from im2sp.trainer.checkpoint import (
    HEADS_NAME,
    MODEL_NAME,
    OPTIMIZER_NAME,
    TRAINED_NAME,
    Checkpoint,
    best_checkpoint,
    prune,
    write_checkpoint,
)
from im2sp.trainer.config import CONFIG_NAME, TrainConfig, to_toml, write_config
from im2sp.trainer.data import (
    TokenBatches,
    make_loader,
    make_val_loader,
    open_image_features,
    open_other_views,
    open_teacher,
    paths_of,
)
from im2sp.trainer.metrics import MetricsLog, draw_curves
from im2sp.trainer.ranks import Ranks, init_distributed, use_tf32
from im2sp.trainer.scoring import generated_bleu
from im2sp.trainer.setup import (
    check_grid,
    check_same_units,
    find_checkpoint,
    find_text_model,
    images_of_a_step,
    text_model_sha256,
)
from im2sp.trainer.sources import (
    copy_shards,
    fingerprints,
    longest_of,
    open_train,
    open_val,
    target_vocabulary,
    tokenizer_records,
)
from im2sp.trainer.step import StepRecord, TrainStep
from im2sp.trainer.teacher import TeacherHeads
from im2sp.trainer.text import WordBag
from im2sp.trainer.transfer import Units, first_model
from im2sp.trainer.weights import load_model, save_model

Log = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of a call of `train`."""

    out: Path
    """Folder of the run."""
    first_step: int
    """Steps completed before this call."""
    step: int
    """Steps completed in total."""
    num_images: int
    """Images trained on in this call on all processes, repetitions included."""
    num_tokens: int
    """Tokens predicted in this call."""
    train_s: float
    """Seconds spent in steps, without validation and writing."""
    loss: float | None
    """Mean loss of the last logging interval; None if no step was left to do."""
    best_step: int
    """Step of the best checkpoint."""
    scores: dict[str, float]
    """Validation scores of the best checkpoint."""
    skipped: dict[str, int]
    """Items skipped in every epoch: reason -> number."""
    is_first: bool
    """True on rank 0, the process that prints."""


def train(config: TrainConfig, log: Log = lambda _: None) -> TrainResult:
    """Start or resume training until `config.steps` steps are done.

    Args:
        config: Settings.
        log: Called with each message, on rank 0 only.

    Raises:
        ShardError: A dataset is missing or damaged.
        ValueError: A setting does not fit the data or the existing run.
        DivergedError: Loss or gradient became NaN or infinite.
    """
    with init_distributed(config.device) as ranks:
        precision = config.precision or ("bf16" if ranks.device.type == "cuda" else "fp32")
        config = dataclasses.replace(config, precision=precision)
        use_tf32(precision == "tf32", ranks.device)
        return _Run(config, ranks, log if ranks.is_first else lambda _: None).finish()


class _Stopwatch:
    """Loss, tokens and seconds of the steps since its creation."""

    def __init__(self) -> None:
        self.loss = 0.0
        self.num_steps = self.num_tokens = 0
        self.start_s = time.perf_counter()

    def add(self, record: StepRecord) -> None:
        """Add a step."""
        self.loss += float(record.loss)
        self.num_tokens += int(record.num_tokens)
        self.num_steps += 1

    def seconds(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self.start_s


class _Run:
    """State of a training run on one process."""

    def __init__(self, config: TrainConfig, ranks: Ranks, log: Log) -> None:
        self.config, self.ranks = config, ranks
        warn, log = log, (lambda _: None) if config.quiet else log
        config.out.mkdir(parents=True, exist_ok=True)
        datasets = open_train(config)
        copy_shards(datasets, is_quiet=config.quiet or not ranks.is_first)
        dataset = datasets[0]
        val = open_val(config, dataset)
        self.fingerprints = fingerprints(dataset, config.unit_columns)
        self.tokenizers = tokenizer_records(dataset, config.unit_columns)
        other_views = open_other_views(config, datasets)
        image_features = open_image_features(config, [*datasets, *val])
        if image_features is not None:
            self.tokenizers["image"] = image_features.record
            self.fingerprints["image"] = image_features.record["fingerprint"]
        checkpoint = find_checkpoint(config, ranks, warn)
        check_same_units(self.fingerprints, checkpoint, config)
        vocabulary = target_vocabulary(config, dataset)
        # Made before a text model is fitted, as they report missing captions.
        self.train_loader = make_loader(datasets, config, ranks, is_train=True)
        image_column = self.train_loader.image_column if "image" in config.unit_columns else None
        check_grid(config, image_column)
        val_loader = make_val_loader(val, config, ranks) if val else None
        text_model = find_text_model(config, datasets, checkpoint, ranks)
        self.text_model, self.text_model_sha256 = text_model, text_model_sha256(text_model)
        vocabulary = text_model.vocabulary if text_model else vocabulary
        assert vocabulary is not None
        units = Units(
            vocabulary,
            self.fingerprints,
            image_column,
            longest_of(config, dataset),
            self.text_model_sha256,
            text_model.log_odds if isinstance(text_model, WordBag) else None,
            None if image_features is None else image_features.states_shape,
        )
        teacher = open_teacher(config, datasets)
        self.train_batches = TokenBatches(
            self.train_loader, vocabulary, text_model, other_views, teacher, image_features
        )
        self.val_batches = None
        if val_loader is not None:
            self.val_batches = TokenBatches(
                val_loader, vocabulary, text_model, image_features=image_features
            )
        if checkpoint is None:
            codebook = None
            if "image" in config.unit_columns:
                codebook = dataset.tensors().get(codebook_name(config.image_column))
            rows = None if codebook is None else torch.from_numpy(codebook)
            model = first_model(config, units, rows, warn)
        else:
            trained = checkpoint.path / (TRAINED_NAME if config.ema else MODEL_NAME)
            model = load_model(trained)
        heads = None
        if teacher is not None:
            torch.manual_seed(config.seed)
            heads = TeacherHeads(model.config, teacher.first).to(ranks.device)
        self.train_step = TrainStep(model.to(ranks.device), config, ranks, heads)
        self.images_a_step = images_of_a_step(config, ranks)
        self.step = self.first_step = 0
        if checkpoint is not None:
            self._restore(checkpoint)
            log(f"resuming from {checkpoint.path}")
        if ranks.is_first:
            write_config(config, config.out)
        log(self._description(paths_of(datasets)))
        if not val:
            splits = sorted({name for one in datasets for name in one.manifest.splits if name})
            log(
                f"no validation: no split val in {paths_of(datasets)} (splits:"
                f" {', '.join(splits) or 'none'}); name another with --val-split"
            )
        if config.freeze != "none" and config.init_from is None and config.encoder_from is None:
            log(f"--freeze {config.freeze} keeps random weights: no weights were loaded")
        self.metrics = None
        if ranks.is_first:
            self.metrics = MetricsLog(config.out, self.step, config.tensorboard)
        self.watch = _Stopwatch()
        self.train_s, self.num_tokens = 0.0, 0
        self.last_loss: float | None = None

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Restore optimizer, loader and step from a checkpoint."""
        optimizer, device = self.train_step.optimizer, self.ranks.device
        path = checkpoint.path / OPTIMIZER_NAME
        optimizer.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        if self.train_step.heads is not None:
            heads = safetensors.torch.load_file(checkpoint.path / HEADS_NAME)
            self.train_step.heads.load_state_dict(heads)
        if self.config.ema:
            average = load_model(checkpoint.path, device="cpu")
            self.train_step.result.load_state_dict(average.state_dict())
        self.train_loader.load_state_dict(dict(checkpoint.state["loader"]))
        self.step = self.first_step = checkpoint.step

    def _description(self, shards: str) -> str:
        """Sizes, data, precision and device of the run, in one line."""
        config, model = self.config, self.train_step.model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        total = sum(p.numel() for p in model.parameters())
        loader, vocabulary = self.train_loader, model.config.vocabulary
        names = {"speech": "speech units", "text": "text pieces", "units": config.target}
        what = names.get(vocabulary.kind, vocabulary.kind)
        split = f" ({loader.dataset.split})" if loader.dataset.split else ""
        return (
            f"{total / 1e6:.1f} M parameters, {trained / 1e6:.1f} M trainable, for "
            f"{vocabulary.num_ids:,} {what}; {loader.num_samples:,} images of {shards}{split}, "
            f"{self.images_a_step:,} per step; {config.precision} on {self.ranks.device}"
        )

    def finish(self) -> TrainResult:
        """Run the remaining steps."""
        config = self.config
        hidden = config.quiet or not self.ranks.is_first
        try:
            with tqdm(
                total=config.steps,
                initial=min(self.step, config.steps),
                desc="train",
                unit=" steps",
                disable=hidden,
                file=sys.stderr,
            ) as bar:
                self._train(bar)
        finally:
            if self.metrics is not None:
                self.metrics.close()
        if self.ranks.is_first:
            draw_curves(config.out)
        best = best_checkpoint(config.out)
        return TrainResult(
            out=config.out,
            first_step=self.first_step,
            step=self.step,
            num_images=(self.step - self.first_step) * self.images_a_step,
            num_tokens=self.num_tokens,
            train_s=self.train_s,
            loss=self.last_loss,
            best_step=best.step if best else self.step,
            scores=dict(best.state["scores"]) if best else {},
            skipped=dict(self.train_loader.skipped),
            is_first=self.ranks.is_first,
        )

    def _train(self, bar: "tqdm[Any]") -> None:
        config = self.config
        batches = iter(self.train_batches)
        pending: StepRecord | None = None
        self.watch = _Stopwatch()
        while self.step < config.steps:
            taken = [next(batches) for _ in range(config.grad_accumulation)]
            # The next step is queued on the GPU before the last one's loss is read.
            record = self.train_step.step(self.step, taken)
            if pending is not None:
                self._report(pending, bar)
            pending = record
            self.step += 1
            is_last = self.step == config.steps
            is_checkpoint = is_last or self.step % config.checkpoint_every == 0
            if is_checkpoint or self.step % (config.eval_every or self.step + 1) == 0:
                self._report(pending, bar, is_row=is_checkpoint)
                pending = None
                self._pause(is_checkpoint=is_checkpoint)

    def _report(self, record: StepRecord, bar: "tqdm[Any]", *, is_row: bool = False) -> None:
        """Check a completed step, and write a row of metrics if one is due."""
        record.check()
        self.watch.add(record)
        bar.set_postfix(loss=f"{float(record.loss):.3f}", refresh=False)
        bar.update()
        if is_row or record.step % self.config.log_every == 0:
            self._write_row(record)

    def _write_row(self, record: StepRecord) -> None:
        """Write a row of metrics and start the next interval."""
        watch = self.watch
        seconds = watch.seconds()
        self.last_loss = watch.loss / watch.num_steps
        row = {
            "step": record.step,
            "epoch": record.batches[-1].source.epoch,
            "loss": self.last_loss,
            "learning_rate": record.learning_rate,
            "grad_norm": float(record.grad_norm),
            "images_per_s": watch.num_steps * self.images_a_step / seconds,
            "tokens_per_s": watch.num_tokens / seconds,
        }
        if self.metrics is not None:
            self.metrics.add(row)
        self.train_s += seconds
        self.num_tokens += watch.num_tokens
        self.watch = _Stopwatch()

    def _pause(self, *, is_checkpoint: bool) -> None:
        """Validate and write a checkpoint; excluded from the throughput figures."""
        begin_s = time.perf_counter()
        scores = self._validate()
        if is_checkpoint and self.ranks.is_first:
            self._write_checkpoint(scores)
        self.ranks.wait()
        self.watch.start_s += time.perf_counter() - begin_s

    def _validate(self) -> dict[str, float]:
        """Scores on the validation split; empty if there is none."""
        if self.val_batches is None:
            return {}
        max_images = self.config.val_images
        self.val_batches.loader.reset()
        scores = {"loss": self.train_step.evaluate(self.val_batches, max_images)}
        if self.config.best_by == "bleu":
            self.val_batches.loader.reset()
            scores["bleu"] = generated_bleu(
                self.train_step.result, self.val_batches, self.text_model, self.ranks, max_images
            )
        if self.metrics is not None:
            self.metrics.add({"step": self.step, **{f"val_{k}": v for k, v in scores.items()}})
        return scores

    def _write_checkpoint(self, scores: dict[str, float]) -> None:
        config, train_step = self.config, self.train_step
        state = {
            "rng": {"seed": config.seed, "step": self.step},
            "loader": self.train_loader.state_dict(),
            "scores": scores,
            "best_by": config.best_by,
            "images_a_step": self.images_a_step,
            "fingerprints": self.fingerprints,
            "tokenizers": self.tokenizers,
            "unit_columns": config.unit_columns,
            "text_model_sha256": self.text_model_sha256,
        }
        writers = {
            MODEL_NAME: lambda path: save_model(path.parent, train_step.result),
            OPTIMIZER_NAME: lambda path: _save(train_step.optimizer.state_dict(), path),
            CONFIG_NAME: lambda path: path.write_bytes(to_toml(config)),
        }
        if (heads := train_step.heads) is not None:
            writers[HEADS_NAME] = lambda path: safetensors.torch.save_file(heads.state_dict(), path)
        if config.ema:
            writers[TRAINED_NAME] = lambda path: save_model(
                path.parent, train_step.model, TRAINED_NAME
            )
        write_checkpoint(config.out, self.step, writers, state)
        prune(config.out, config.keep_last)


def _save(content: object, path: Path) -> None:
    """`torch.save` to a path; through a file of Python's, so that a full disk is an OSError."""
    with open(path, "wb") as file:
        torch.save(content, file)
