"""Training steps of a unit vocoder, for `fit_vocoder`.

Follows speech-resynthesis: segments of 8,960 samples, mel distance x 45, feature distance x 2,
least-squares adversaries, AdamW. For small machines the adversaries may start late: the mel
distance alone soon gives intelligible speech, at a third of the cost per step. The result is a
moving average of the weights.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from im2sp.tools.fitting.vocoder_losses import (
    Discriminators,
    MelDistance,
    adversarial_loss,
    discriminator_loss,
    feature_distance,
)
from im2sp.tools.fitting.vocoder_network import Generator, NetworkSizes

WARM_UP_STEPS = 100
AVERAGE_DECAY = 0.999
MAX_GRADIENT = 1000.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training settings of a vocoder; recorded in the card."""

    batch_size: int = 16
    """Segments per step."""
    segment_frames: int = 28
    """Frames of 320 samples in a segment."""
    rate: float = 8e-4
    """Learning rate of the generator; falls to a tenth over the run."""
    adversary_rate: float = 4e-4
    """Learning rate of the discriminators; falls likewise."""
    adversary_from: float = 0.4
    """Share of the training time before the discriminators start; 0: at once, 1: never."""
    adversary_rate_factor: float = 0.5
    """Factor of the generator's learning rate from then on."""
    discriminator_width: float = 0.25
    """Factor of the discriminators' published numbers of channels."""
    num_scales: int = 0
    """Number of scale discriminators besides the five period ones; 3 as published."""
    mel_windows: tuple[int, ...] = (1024, 512, 256)
    """Window sizes of the mel distance; the published one is 1024 alone."""
    mel_weight: float = 45.0
    """Weight of the mel distance."""
    feature_weight: float = 2.0
    """Weight of the discriminators' feature distance."""
    duration_weight: float = 1.0
    """Weight of the duration predictor's squared error."""
    seed: int = 0
    """Random seed."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Input of a training step."""

    units: Tensor
    """(B, T) int64, one unit per frame."""
    samples: Tensor
    """(B, T * 320) float32 samples of these units."""
    collapsed: Tensor
    """(B', N) int64: units of whole clips, repeats collapsed."""
    durations: Tensor
    """(B', N) int64: their frames; 0 after a clip's end."""


class Trainer:
    """Generator, discriminators and their optimizers."""

    def __init__(self, recipe: Recipe, sizes: NetworkSizes, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.generator = Generator(sizes).to(device).train()
        self.discriminators = (
            Discriminators(recipe.discriminator_width, recipe.num_scales).to(device).train()
        )
        self.mel = MelDistance(recipe.mel_windows).to(device)
        self.optimizer = self._adamw(self.generator)
        self.adversary = self._adamw(self.discriminators)
        self.average = {
            name: tensor.detach().clone() for name, tensor in self.generator.state_dict().items()
        }
        self.step = 0

    @staticmethod
    def _adamw(module: nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(module.parameters(), betas=(0.8, 0.99), weight_decay=0.01)

    def train_step(self, batch: Batch, progress: float) -> dict[str, float]:
        """Run one step; return the losses.

        Args:
            batch: Training batch.
            progress: Elapsed share of the training time.
        """
        recipe = self.recipe
        is_adversarial = progress >= recipe.adversary_from
        self._set_rates(progress, is_adversarial)
        units, real = batch.units.to(self.device), batch.samples.to(self.device)
        with self._autocast():
            made = self.generator(units)
        losses: dict[str, Tensor] = {"mel": self.mel(made, real)}
        loss = recipe.mel_weight * losses["mel"]
        if is_adversarial:
            losses["judged"] = self._train_adversary(real, made.detach())
            with self._autocast():
                of_made = self.discriminators(made)
                with torch.no_grad():
                    of_real = self.discriminators(real)
            losses["adversarial"] = adversarial_loss(of_made)
            losses["features"] = feature_distance(of_real, of_made)
            loss = loss + losses["adversarial"] + recipe.feature_weight * losses["features"]
        losses["durations"] = self.generator.duration_loss(
            batch.collapsed.to(self.device), batch.durations.to(self.device)
        )
        loss = loss + recipe.duration_weight * losses["durations"]
        if not torch.isfinite(loss):
            raise ValueError(f"loss is {loss.item()} at step {self.step}; lower the learning rates")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), MAX_GRADIENT)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return {name: value.item() for name, value in losses.items()}

    def _train_adversary(self, real: Tensor, made: Tensor) -> Tensor:
        with self._autocast():
            of_real, of_made = self.discriminators(real), self.discriminators(made)
        loss = discriminator_loss(of_real, of_made)
        self.adversary.zero_grad()
        loss.backward()
        self.adversary.step()
        return loss.detach()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def _set_rates(self, progress: float, is_adversarial: bool) -> None:
        recipe = self.recipe
        factor = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        factor *= 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress)))
        late = recipe.adversary_rate_factor if is_adversarial and recipe.adversary_from else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate * factor * late
        for group in self.adversary.param_groups:
            group["lr"] = recipe.adversary_rate * factor

    @torch.no_grad()
    def _follow(self) -> None:
        """Update the moving average of the weights."""
        share = 1 - min(AVERAGE_DECAY, self.step / (self.step + 10))
        state = self.generator.state_dict()
        for name, tensor in self.average.items():
            tensor.lerp_(state[name], share)

    def state(self) -> dict[str, Any]:
        """State to resume from."""
        return {
            "generator": self.generator.state_dict(),
            "average": self.average,
            "discriminators": self.discriminators.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "adversary": self.adversary.state_dict(),
            "step": self.step,
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a `state()`."""
        self.generator.load_state_dict(state["generator"])
        for name, tensor in self.average.items():
            tensor.copy_(state["average"][name])
        self.discriminators.load_state_dict(state["discriminators"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.adversary.load_state_dict(state["adversary"])
        self.step = state["step"]
        torch.set_rng_state(state["random"].cpu())
