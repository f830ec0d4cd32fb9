"""HuBERT training by masked prediction of frame targets, for `fit_speech_tokenizer`.

Follows Hsu et al., "HuBERT" (2021): spans of frames are masked by a learned vector, and each
frame's target cluster is predicted from the cosine with the clusters' embeddings. Unlike there, the
input is a distorted clip with targets from the clean one, and unmasked frames also count in the
loss, so that a small model learns faster and its features are robust to noise.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import HubertConfig, HubertModel

from im2sp.tools.fitting.speech_corpus import Corpus, disturb

HOP_SAMPLES = 320
# Samples beyond the hop of 320 that a frame covers.
TAIL_SAMPLES = 80
CODE_WIDTH = 128
TEMPERATURE = 0.1
MASK_FRAMES = 10
WARM_UP_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Model sizes and training settings; recorded in the card."""

    width: int = 256
    """Width of the transformer; heads are 64 wide, the MLP is four times as wide."""
    num_layers: int = 6
    """Layers of the transformer."""
    conv_width: int = 128
    """Channels of the seven convolutions."""
    position_kernel: int = 64
    """Width of the positional convolution."""
    batch_size: int = 8
    """Crops per step."""
    crop_frames: int = 125
    """Frames of 20 ms in a crop."""
    rate: float = 1e-3
    """Learning rate of AdamW; falls to a tenth over each stage."""
    mask_share: float = 0.08
    """Share of frames at which a masked span of ten frames starts."""
    hidden_weight: float = 0.5
    """Weight of masked frames in the loss; unmasked frames get the rest."""
    recording_share: float = 0.1
    """Share of crops from recordings instead of synthetic speech."""
    seed: int = 0
    """Random seed."""


class MaskedPredictor(nn.Module):
    """A HuBERT with embeddings of the target clusters."""

    def __init__(self, recipe: Recipe, num_clusters: int) -> None:
        super().__init__()
        self.hubert = HubertModel(model_config(recipe))
        convolution = self.hubert.encoder.pos_conv_embed.conv
        assert isinstance(convolution, nn.Conv1d)
        setattr(convolution, "forward", partial(_convolve, convolution))  # noqa: B010
        self.project = nn.Linear(recipe.width, CODE_WIDTH)
        self.codes = nn.Parameter(torch.empty(num_clusters, CODE_WIDTH).uniform_())

    def forward(self, clips: Tensor, is_hidden: Tensor) -> Tensor:
        """(B, S) float32 and (B, T) bool -> (B, T, clusters) float32 logits."""
        features = self.hubert(clips, mask_time_indices=is_hidden).last_hidden_state
        with torch.autocast(clips.device.type, enabled=False):
            predicted = F.normalize(self.project(features.float()), dim=-1)
            return predicted @ F.normalize(self.codes, dim=-1).T / TEMPERATURE


def _convolve(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """Grouped convolution with a wide kernel by FFT, (B, D, T) -> (B, D, T + 1).

    On a CPU, forward and backward take a fifth of the time of torch's convolution.
    """
    groups, kernel, before = (
        convolution.groups,
        convolution.kernel_size[0],
        kernel_padding(convolution),
    )
    bias = convolution.bias
    assert bias is not None
    size = x.shape[-1] + kernel
    size += -size % 32
    with torch.autocast(x.device.type, enabled=False):
        weights = torch.fft.rfft(convolution.weight.float(), size).conj()
        spectra = torch.fft.rfft(x.float(), size)
        product = torch.einsum(
            "bgif,goif->bgof",
            spectra.unflatten(1, (groups, -1)),
            weights.unflatten(0, (groups, -1)),
        )
        mixed = torch.fft.irfft(product.flatten(1, 2), size).roll(before, -1)
    return (mixed[..., : x.shape[-1] + 1] + bias[:, None]).to(x.dtype)


def kernel_padding(convolution: nn.Conv1d) -> int:
    """Number of zeros before the first frame."""
    padding = convolution.padding[0]
    assert isinstance(padding, int)
    return padding


def model_config(recipe: Recipe) -> HubertConfig:
    """Configuration of a recipe's model in transformers."""
    return HubertConfig(
        hidden_size=recipe.width,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.width // 64,
        intermediate_size=4 * recipe.width,
        conv_dim=(recipe.conv_width,) * 7,
        num_conv_pos_embeddings=recipe.position_kernel,
        num_conv_pos_embedding_groups=16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        layerdrop=0.0,
    )


class Trainer:
    """Model and optimizer of one stage, with fixed targets."""

    def __init__(self, recipe: Recipe, num_clusters: int, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.model = MaskedPredictor(recipe, num_clusters).to(device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        # On a CPU, attention's fused backward is slower than plain matrix products.
        is_cpu = device.type == "cpu"
        self._attention = SDPBackend.MATH if is_cpu else SDPBackend.FLASH_ATTENTION
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        self.step = 0

    def train_step(self, clips: Tensor, targets: Tensor, progress: float) -> dict[str, float]:
        """Run one step on clean crops.

        Args:
            clips: (B, S) float32, `crop_frames` frames each.
            targets: (B, T) int64 clusters.
            progress: Elapsed share of the stage's time.

        Returns:
            `loss`, and the accuracies on masked (`hidden`) and unmasked (`seen`) frames.
        """
        rate = self.recipe.rate * min(1.0, (self.step + 1) / WARM_UP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))
        generator = torch.Generator().manual_seed(self.recipe.seed + (self.step << 20))
        is_hidden = draw_mask(targets.shape, self.recipe.mask_share, generator)
        distorted = disturb(clips, generator).to(self.device)
        targets, is_hidden = targets.to(self.device), is_hidden.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16), sdpa_kernel(self._attention):
            logits = self.model(distorted, is_hidden)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view_as(targets)
        weight = self.recipe.hidden_weight
        loss = weight * losses[is_hidden].mean() + (1 - weight) * losses[~is_hidden].mean()
        if not torch.isfinite(loss):
            raise ValueError(f"loss is {loss.item()} at step {self.step}; lower the learning rate")
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        is_right = logits.detach().argmax(-1) == targets
        return {
            "loss": loss.item(),
            "hidden": is_right[is_hidden].float().mean().item(),
            "seen": is_right[~is_hidden].float().mean().item(),
        }

    def state(self) -> dict[str, Any]:
        """State to resume from."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a `state()`."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def draw_mask(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """(B, T) bool mask of spans of ten frames, which start at a frame with probability `share`."""
    starts = torch.rand(shape, generator=generator) < share
    spans = [F.pad(starts, (shift, 0))[:, : shape[1]] for shift in range(MASK_FRAMES)]
    is_hidden = torch.stack(spans).any(0)
    is_hidden[:, 0] |= ~is_hidden.any(1)  # at least one, and not all, so that both means exist
    is_hidden[:, -1] &= ~is_hidden.all(1)
    return is_hidden


class Crops:
    """Random crops of a corpus with their frame targets."""

    def __init__(self, corpus: Corpus, targets: np.ndarray, recipe: Recipe) -> None:
        self.corpus, self.targets, self.recipe = corpus, targets, recipe
        is_recording = np.array([clip.is_recording for clip in corpus.clips])
        self.machine, self.recordings = np.flatnonzero(~is_recording), np.flatnonzero(is_recording)

    def draw(self, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draw clips (B, S) float32 and targets (B, T) int64.

        A crop starts anywhere in a clip; if the clip ends first, another clip of its kind follows.
        """
        num_frames = self.recipe.crop_frames
        size = self.recipe.batch_size
        clips = np.zeros((size, num_frames * HOP_SAMPLES + TAIL_SAMPLES), np.float32)
        targets = np.zeros((size, num_frames), np.int64)
        for row in range(size):
            is_recording = generator.random() < self.recipe.recording_share
            kind = self.recordings if is_recording and len(self.recordings) else self.machine
            filled = 0
            while filled < num_frames:
                number = int(kind[generator.integers(len(kind))])
                clip = self.corpus.clips[number]
                first = int(generator.integers(clip.num_frames)) if not filled else 0
                count = min(num_frames - filled, clip.num_frames - first)
                samples = self.corpus.waveform(number)[first * HOP_SAMPLES :]
                samples = samples[: count * HOP_SAMPLES + TAIL_SAMPLES]
                begin = filled * HOP_SAMPLES
                clips[row, begin : begin + len(samples)] = samples
                place = clip.first_frame + first
                targets[row, filled : filled + count] = self.targets[place : place + count]
                filled += count
        return torch.from_numpy(clips), torch.from_numpy(targets)
