"""Training steps of an image tokenizer, for `fit_image_tokenizer`."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from im2sp.pipeline.image_tokenizer.cpu_encoder import argmax_rows
from im2sp.pipeline.image_tokenizer.network import (
    TransformerConfig,
    ViTVQGAN,
    ViTVQGANConfig,
)
from im2sp.tools.fitting.image_start import (
    CONSTANT,
    PATCH_PX,
    PatchStatistics,
    start_network,
)

GRID = 28
WARM_UP_STEPS = 50
# The learning rate is constant for this share of the time, then falls linearly to zero.
CONSTANT_SHARE = 0.3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Network sizes and training settings; recorded in the card and the weights' metadata."""

    width: int
    """Width of both stacks; heads are 64 wide, the MLP is four times as wide."""
    encoder_depth: int
    """Blocks of the encoder."""
    decoder_depth: int
    """Blocks of the decoder."""
    batch_size: int
    """Crops per step; batches of whole images have the same number of patches."""
    crop_patches: int
    """Side of a crop."""
    block_rate: float
    """Learning rate of Muon for the decoder's blocks."""
    encoder_rate_factor: float
    """Learning rate of the encoder's blocks relative to `block_rate`, so that codes can follow."""
    other_rate: float
    """Learning rate of AdamW for layers at pixels and codes; ten times for norms and biases."""
    commitment: float
    """Weight of the distance between features and codes."""
    decay: float
    """Decay of the moving averages of codes; 0.998 in the last third."""
    whole_share: float
    """Share of the training time, at the end, with whole images."""
    seed: int
    """Random seed."""


class Trainer:
    """Network, optimizers and moving averages of the codes."""

    def __init__(self, recipe: Recipe, statistics: PatchStatistics, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.network = ViTVQGAN(network_config(recipe), (GRID, GRID))
        start_network(self.network, statistics, seed=recipe.seed)
        self.network.to(device)
        self.network.quantizer.requires_grad_(False)
        self.codes = self.network.quantizer.embedding.weight
        self.muon, self.adamw = self._optimizers()
        average = recipe.batch_size * recipe.crop_patches**2 / len(self.codes)
        self.counts = torch.full((len(self.codes),), average, device=device)
        self.sums = self.codes.detach().clone() * average
        # Squared error per pixel value of one unit of squared distance between directions.
        self.code_unit = statistics.scale**2 * (CONSTANT**2 + 1) / (3 * PATCH_PX**2)
        self.step = 0

    def _optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        recipe = self.recipe
        blocks: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
        sensitive: list[Tensor] = []
        others: list[Tensor] = []
        for name, parameter in self.network.named_parameters():
            if not parameter.requires_grad:
                continue
            if ".transformer.layers." in name and parameter.ndim == 2:
                blocks[name.split(".")[0]].append(parameter)
            elif any(part in name for part in ("to_pixel", "pre_quant", "to_patch_embedding")):
                sensitive.append(parameter)
            else:
                others.append(parameter)
        muon = torch.optim.Muon(
            [
                {"params": blocks["decoder"], "rate": recipe.block_rate},
                {
                    "params": blocks["encoder"],
                    "rate": recipe.block_rate * recipe.encoder_rate_factor,
                },
            ],
            weight_decay=0.0,
            adjust_lr_fn="match_rms_adamw",
        )
        adamw = torch.optim.AdamW(
            [
                {"params": sensitive, "rate": recipe.other_rate},
                {"params": others, "rate": 10 * recipe.other_rate},
            ],
            betas=(0.9, 0.99),
            weight_decay=0.0,
        )
        return muon, adamw

    def train_step(self, pixels: Tensor, origin: tuple[int, int], progress: float) -> float:
        """Run one step on (B, 3, S, S) float32; return the mean squared error."""
        rate = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        if progress > CONSTANT_SHARE:
            rate *= max(0.0, 1 - progress) / (1 - CONSTANT_SHARE)
        for optimizer in (self.muon, self.adamw):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * rate
        network = self.network
        features = network.encode_features(pixels, origin, torch.bfloat16)
        features = F.normalize(features, dim=-1)
        units = nearest_codes(features.detach().flatten(0, 1), self.codes)
        codes = self.codes[units].view_as(features)
        # The straight-through estimator: codes forwards, features backwards.
        passed = features + (codes - features).detach()
        decoded = network.decode_features(passed, None, origin, torch.bfloat16)
        error = (decoded - pixels).square().mean()
        distance = (features - codes).square().sum(-1).mean()
        loss = error + self.recipe.commitment * self.code_unit * distance
        loss.backward()
        value = error.item()
        if not math.isfinite(value):
            raise ValueError(f"loss is {value} at step {self.step}; lower the learning rates")
        for optimizer in (self.muon, self.adamw):
            optimizer.step()
            optimizer.zero_grad()
        self._move_codes(features.detach().flatten(0, 1), units, progress)
        self.step += 1
        return value

    @torch.no_grad()
    def _move_codes(self, features: Tensor, units: Tensor, progress: float) -> None:
        decay = self.recipe.decay if progress < 0.7 else 0.998
        ones = torch.ones(len(units), device=self.device)
        self.counts.mul_(decay).index_add_(0, units, ones, alpha=1 - decay)
        self.sums.mul_(decay).index_add_(0, units, features, alpha=1 - decay)
        self.codes.copy_(F.normalize(self.sums, dim=-1))
        if self.step % 50 == 49 and progress < 0.9:
            average = len(units) / len(self.codes)
            dead = (self.counts < 0.03 * average).nonzero()[:, 0]
            drawn = features[torch.randint(0, len(features), (len(dead),), device=self.device)]
            self.codes[dead] = drawn
            self.counts[dead] = 0.3 * average
            self.sums[dead] = drawn * 0.3 * average

    def state(self) -> dict[str, Any]:
        """State to resume from."""
        return {
            "network": self.network.state_dict(),
            "muon": self.muon.state_dict(),
            "adamw": self.adamw.state_dict(),
            "counts": self.counts,
            "sums": self.sums,
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a `state()`."""
        self.network.load_state_dict(state["network"])
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.counts.copy_(state["counts"])
        self.sums.copy_(state["sums"])
        self.step = state["step"]


def network_config(recipe: Recipe) -> ViTVQGANConfig:
    """Configuration of a recipe's network."""
    encoder, decoder = (
        TransformerConfig(
            width=recipe.width,
            depth=depth,
            heads=recipe.width // 64,
            mlp_width=4 * recipe.width,
        )
        for depth in (recipe.encoder_depth, recipe.decoder_depth)
    )
    return ViTVQGANConfig(encoder=encoder, decoder=decoder)


def nearest_codes(features: Tensor, codes: Tensor) -> Tensor:
    """(M, C), (codes, C) -> (M,) int64: code with the largest product."""
    if features.device.type != "cpu":
        return (features @ codes.T).argmax(-1)
    parts = features.split(512)
    return torch.cat([argmax_rows(part @ codes.T) for part in parts])
