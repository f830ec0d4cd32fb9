"""Network from the characters of a text to speech units.

Blocks of depthwise convolutions (Liu et al., "A ConvNet for the 2020s", 2022) read the characters;
each becomes `FRAMES` frames, and further blocks predict a unit or a blank for each frame. Training
by CTC (Graves et al., 2006) needs no alignment of characters and units. All frames are predicted at
once, as by Gu et al., "Non-Autoregressive Neural Machine Translation" (2018).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as _short

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789'.,"
"""Characters that are read; the id of a character is its place, from 1. Others become spaces."""
FRAMES = 3
KERNEL = 7
MLP_FACTOR = 3
MAX_WIDTH = 4096
MAX_SIZES = {"width": MAX_WIDTH, "depth": 64, "num_units": 65536}
_IDS = {character: i for i, character in enumerate(ALPHABET, 1)}


def characters(text: str) -> list[int]:
    """Ids of a text in lower case; one space between words, before the first and after the last.

    Spaces before punctuation marks, as in the captions of data sets, are left out.

    >>> characters("A dog .") == characters("a dog.") == [1, 2, 1, 5, 16, 8, 39, 1]
    True
    """
    known = "".join(c if c in _IDS else " " for c in text.lower())
    words = re.sub(r" +(?=[.,])", "", " ".join(known.split()))
    return [_IDS[c] for c in f" {words} "]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Sizes of the network."""

    num_units: int
    """Units are in [0, num_units)."""
    width: int = 192
    """Width of all states."""
    depth: int = 4
    """Blocks before, and as many after, characters become frames."""

    def __post_init__(self) -> None:
        """Check types and ranges, as values come from files."""
        for name, most in MAX_SIZES.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(f"{name} is {_short(value)}, expected a number from 1 to {most}")


class Block(nn.Module):
    """A depthwise convolution and a perceptron on a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, KERNEL, padding=KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, MLP_FACTOR * width)
        self.down = nn.Linear(MLP_FACTOR * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D); places where the mask (N, T, 1) is 0 do not affect others."""
        mixed = self.convolution((x * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.down(F.gelu(self.up(self.norm(mixed))))


class TextToUnitsNetwork(nn.Module):
    """Characters to scores of units."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(len(ALPHABET) + 1, width, padding_idx=0)
        self.frames = nn.Parameter(0.3 * torch.randn(FRAMES, width))
        self.readers = nn.ModuleList(Block(width) for _ in range(config.depth))
        self.speakers = nn.ModuleList(Block(width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, config.num_units + 1)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, T) ids of characters, padded with 0, to (N, T * FRAMES, 1 + units) scores.

        The first score is that of the blank, the next that of unit 0.
        """
        mask = (ids > 0)[..., None].to(self.output.weight.dtype)
        x = self.embedding(ids)
        for block in self.readers:
            x = block(x, mask)
        x = (x[:, :, None] + self.frames).flatten(1, 2)
        mask = mask.repeat_interleave(FRAMES, 1)
        for block in self.speakers:
            x = block(x, mask)
        return self.output(self.norm(x))

    @torch.no_grad()
    def units(self, text: str) -> list[int]:
        """Most probable units of a text, frame by frame, collapsed."""
        device = self.output.weight.device
        best = self(torch.tensor([characters(text)], device=device))[0].argmax(-1)
        return collapsed(best.tolist())


def collapsed(frames: Sequence[int]) -> list[int]:
    """Units of a row of frames: repeats are one, and blanks, which are 0, are left out.

    >>> collapsed([0, 5, 5, 0, 5, 9])
    [4, 4, 8]
    """
    return [
        frame - 1 for i, frame in enumerate(frames) if frame and (i == 0 or frames[i - 1] != frame)
    ]
