"""Masked prediction of frame targets, as HuBERT is trained; `fit_speech_tokenizer` is the program.

Follows Hsu et al., "HuBERT" (2021): spans of frames are hidden behind a learned vector, and each
frame's target cluster is told from the cosine with the clusters' embeddings. Here the model hears
a disturbed clip and the targets come from the clean one, and the frames that are not hidden count
as well, so that a small model learns soon and its features do not follow the noise.
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
# Samples after the last frame's own 320 that it sees.
TAIL_SAMPLES = 80
CODE_WIDTH = 128
TEMPERATURE = 0.1
MASK_FRAMES = 10
WARM_UP_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained and how; kept in the card."""

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
    """A HuBERT with the embeddings of the clusters it predicts."""

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
            told = F.normalize(self.project(features.float()), dim=-1)
            return told @ F.normalize(self.codes, dim=-1).T / TEMPERATURE


def _convolve(convolution: nn.Conv1d, x: Tensor) -> Tensor:
    """A wide grouped convolution, (B, D, T) -> (B, D, T + 1), by Fourier transforms.

    On a CPU it takes a fifth of the time that torch's own takes, forwards and backwards.
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
    """Zeros before the first frame."""
    padding = convolution.padding[0]
    assert isinstance(padding, int)
    return padding


def model_config(recipe: Recipe) -> HubertConfig:
    """Transformers' settings of a recipe's model."""
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
    """The model and its optimizer in one stage: the targets do not change."""

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
        """One step on clean crops.

        Args:
            clips: (B, S) float32, `crop_frames` frames each.
            targets: (B, T) int64 clusters.
            progress: Share of the stage's time that is gone.

        Returns:
            `loss`, and the shares of `hidden` and `seen` frames whose cluster was told rightly.
        """
        rate = self.recipe.rate * min(1.0, (self.step + 1) / WARM_UP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))
        generator = torch.Generator().manual_seed(self.recipe.seed + (self.step << 20))
        is_hidden = draw_mask(targets.shape, self.recipe.mask_share, generator)
        heard = disturb(clips, generator).to(self.device)
        targets, is_hidden = targets.to(self.device), is_hidden.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16), sdpa_kernel(self._attention):
            logits = self.model(heard, is_hidden)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view_as(targets)
        weight = self.recipe.hidden_weight
        loss = weight * losses[is_hidden].mean() + (1 - weight) * losses[~is_hidden].mean()
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} at step {self.step}; lower the rate")
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
        """All that a later run needs to go on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take a `state()` over."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def draw_mask(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    """(B, T) bool: spans of ten frames, each frame the first of one with probability `share`."""
    starts = torch.rand(shape, generator=generator) < share
    spans = [F.pad(starts, (shift, 0))[:, : shape[1]] for shift in range(MASK_FRAMES)]
    is_hidden = torch.stack(spans).any(0)
    is_hidden[:, 0] |= ~is_hidden.any(1)  # at least one, and not all, so that both means exist
    is_hidden[:, -1] &= ~is_hidden.all(1)
    return is_hidden


class Crops:
    """Crops of a corpus with the targets of their frames."""

    def __init__(self, corpus: Corpus, targets: np.ndarray, recipe: Recipe) -> None:
        self.corpus, self.targets, self.recipe = corpus, targets, recipe
        is_recording = np.array([clip.is_recording for clip in corpus.clips])
        self.machine, self.recordings = np.flatnonzero(~is_recording), np.flatnonzero(is_recording)

    def draw(self, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Clips (B, S) float32 and targets (B, T) int64.

        A crop begins anywhere in a clip; where that ends first, another clip of its kind follows.
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
