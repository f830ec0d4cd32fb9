"""Optimizer step and validation pass.

The random numbers of a step (dropout, augmentation) come from generators seeded by (seed, step,
rank), so no generator state is saved. The loss of a step is the mean over all of its tokens,
however they are distributed over batches and processes.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from im2sp.trainer.augment import augment_units
from im2sp.trainer.average import Average
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.data import TokenBatch
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.teacher import TeacherHeads

_NUM_NAMED_KEYS = 8
_MAX_SHAPES = 256


class DivergedError(ValueError):
    """Loss or gradient is NaN or infinite; names the step and its images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRecord:
    """Result of one optimizer step.

    `check` synchronises with the GPU; do not read the tensors before.
    """

    step: int
    """Number of completed steps, this one included."""
    learning_rate: float
    loss: Tensor
    """Mean over the tokens of the step on all processes, without that of the teacher."""
    num_tokens: Tensor
    """Tokens of the step on all processes."""
    grad_norm: Tensor
    """Gradient norm before clipping."""
    own_losses: Sequence[Tensor]
    """Loss of each batch on this process."""
    batches: Sequence[TokenBatch]
    """Batches on this process."""

    def check(self) -> None:
        """Wait until the step is computed, and check its loss and gradient.

        Raises:
            DivergedError: Loss or gradient is NaN or infinite.
        """
        loss, norm = float(self.loss), float(self.grad_norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        raise DivergedError(
            f"step {self.step}: {what}, {self._place(is_loss=not math.isfinite(loss))};"
            " start a new run with a lower --learning-rate, more --warmup-steps, --clip-norm 1 or"
            " --precision fp32"
        )

    def _place(self, *, is_loss: bool) -> str:
        """Description of the images concerned, as far as this process knows."""
        pairs = zip(self.batches, self.own_losses, strict=True)
        named = [batch for batch, own in pairs if not math.isfinite(float(own))]
        if is_loss and not named:
            return "in a batch of another process"
        keys = [key for batch in named or self.batches for key in batch.source.keys]
        more = f" and {len(keys) - _NUM_NAMED_KEYS} more" if len(keys) > _NUM_NAMED_KEYS else ""
        return f"at the images {', '.join(keys[:_NUM_NAMED_KEYS])}{more}"


class Objective(nn.Module):
    """Loss of images and tokens, with augmentation and label smoothing in training."""

    def __init__(
        self, model: Im2SpModel, config: TrainConfig, heads: TeacherHeads | None = None
    ) -> None:
        super().__init__()
        self.model, self.heads = model, heads
        self._teacher_weight = config.teacher_weight
        self._crop_area, self._code_noise = config.crop_area, config.code_noise
        self._label_smoothing = config.label_smoothing

    def forward(
        self, units: Tensor, tokens: Tensor, owner: Tensor | None, *features: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss of a batch.

        Args:
            units: (B, *shape) int64, units of the images, or (B, P, C) features; without an image
                only B matters.
            tokens: (N, T) int64.
            owner: (N,) int64, or None; see `Im2SpModel.loss`.
            features: (B, C) and (B, 49, K), features of the teacher, if there is one.

        Returns:
            Two float32 scalars: the loss of the tokens, and that with the teacher's loss.
        """
        sizes = self.model.config
        smoothing = self._label_smoothing if self.training else 0.0
        if self.training and sizes.has_image:
            units = augment_units(
                units,
                num_codes=sizes.num_codes,
                crop_area=self._crop_area,
                code_noise=self._code_noise,
            )
        states, projected = self.model.encode(units)
        if sizes.vocabulary.kind == "words":
            loss = self.model.word_loss(units, tokens, owner, projected=projected)
        else:
            loss = self.model.loss(units, tokens, owner, smoothing, projected=projected)
        if self.heads is None:
            return loss, loss
        pooled, places = features
        return loss, loss + self._teacher_weight * self.heads(states, projected, pooled, places)


def rate_factor(step: int, *, warmup_steps: int, schedule_steps: int) -> float:
    """Learning rate of a step as a share of the peak: linear warm-up, then cosine decay to 0.

    Args:
        step: Number of the step, from 0.
        warmup_steps: Steps of the warm-up; the last of them has the peak learning rate. Always
            completed, even if `schedule_steps` is smaller.
        schedule_steps: Step at which the learning rate reaches 0.

    >>> [rate_factor(s, warmup_steps=2, schedule_steps=4) for s in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step >= schedule_steps:
        return 0.0
    progress = (step - warmup_steps) / (schedule_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


class TrainStep:
    """Optimizer and loss of a model, which is trained in place.

    Attributes:
        model: The model.
        optimizer: AdamW over the trainable parameters.
    """

    def __init__(
        self,
        model: Im2SpModel,
        config: TrainConfig,
        ranks: Ranks,
        heads: TeacherHeads | None = None,
    ) -> None:
        """Freeze parts of the model, and create the optimizer.

        Args:
            model: The model on the device of `ranks`, the same on all processes.
            config: Settings.
            ranks: Processes of the run.
            heads: Heads of --teacher on the same device, if there is one.
        """
        _freeze(model, config.freeze)
        self.model, self.heads, self._config, self._ranks = model, heads, config, ranks
        self._objective = Objective(model, config, heads)
        self._trained = [p for p in self._objective.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._trained,
            lr=config.learning_rate,
            betas=config.betas,
            eps=1e-8,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._average = Average(model, config.ema) if config.ema else None
        self._validated = Objective(self.result, config).eval()
        if config.compile:
            # A shape for each number of texts an image and each length of `with_fixed_shape`.
            from torch import _dynamo

            _dynamo.config.recompile_limit = _MAX_SHAPES
            self._objective.compile(dynamic=False)
        self._parallel = None
        if ranks.world_size > 1:
            self._parallel = DistributedDataParallel(self._objective)

    @property
    def result(self) -> Im2SpModel:
        """The model to validate and use: the average of the weights, or the model itself."""
        return self.model if self._average is None else self._average.model

    def step(self, number: int, batches: Sequence[TokenBatch]) -> StepRecord:
        """Run step `number`, counted from 0, with the accumulated gradients of `batches`."""
        config, ranks = self._config, self._ranks
        torch.manual_seed(_seed_of(config.seed, number, ranks.rank))
        horizon = config.schedule_steps or config.steps
        rate = config.learning_rate * rate_factor(
            number, warmup_steps=config.warmup_steps, schedule_steps=horizon
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        own_tokens = sum(batch.num_tokens for batch in batches)
        num_tokens = ranks.summed(torch.full((), float(own_tokens), device=ranks.device))
        self._objective.train()
        own_losses: list[Tensor] = []
        loss = torch.zeros((), device=ranks.device)
        for batch in batches:
            with self._gradients_shared(is_last=batch is batches[-1]):
                own, full = self._loss_of(batch, self._parallel or self._objective)
                share = batch.num_tokens / num_tokens
                # DDP averages gradients over processes; here they must be summed.
                (full * share * ranks.world_size).backward()
            own_losses.append(own.detach())
            loss += own.detach() * share
        norm = nn.utils.clip_grad_norm_(self._trained, config.clip_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self.model, number)
        return StepRecord(
            step=number + 1,
            learning_rate=rate,
            loss=ranks.summed(loss),
            num_tokens=num_tokens,
            grad_norm=norm,
            own_losses=own_losses,
            batches=batches,
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterable[TokenBatch], max_images: int | None = None) -> float:
        """Mean loss over the tokens of batches, of all processes together.

        Args:
            batches: Batches of this process; all processes have the same number.
            max_images: Stop after about this many images on all processes together.
        """
        sums = torch.zeros(2, dtype=torch.float64)
        num_images = 0
        self._validated.eval()
        for batch in batches:
            num_images += len(batch.images_packed)
            if batch.num_tokens:  # at the end of a split some processes have empty batches
                loss = float(self._loss_of(batch, self._validated)[0]) * batch.num_tokens
                sums += torch.tensor([loss, batch.num_tokens], dtype=torch.float64)
            if max_images is not None and num_images * self._ranks.world_size >= max_images:
                break
        loss, num_tokens = self._ranks.summed(sums.to(self._ranks.device)).tolist()
        return loss / num_tokens

    def _loss_of(self, batch: TokenBatch, objective: nn.Module) -> tuple[Tensor, Tensor]:
        device = self._ranks.device
        if self._config.compile and objective is not self._validated:
            sizes = self.model.config
            batch = batch.with_fixed_shape(sizes.vocabulary.pad, sizes.max_positions)
        is_bf16 = self._config.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            return objective(*batch.to(device))

    def _gradients_shared(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Context in which processes exchange gradients only with the last batch of a step."""
        if self._parallel is None or is_last:
            return nullcontext()
        return self._parallel.no_sync()


def _freeze(model: Im2SpModel, what: str) -> None:
    if what in ("encoder", "image") and model.config.has_units:
        model.encoder.requires_grad_(False)
    if model.config.vocabulary.kind == "words":
        model.decoder.requires_grad_(False)
        model.decoder.embedding.requires_grad_(True)
        model.decoder.output_bias.requires_grad_(True)
    if what == "image":
        model.projection.requires_grad_(False)
        model.projection_norm.requires_grad_(False)


def _seed_of(seed: int, step: int, rank: int) -> int:
    digest = hashlib.blake2b(f"step {seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
