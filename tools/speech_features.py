"""Mel-frequency cepstra, the first targets of HuBERT's masked prediction."""

import numpy as np
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SIZE = 512
NUM_MELS = 40
NUM_CEPSTRA = 13
# Frames on each side that a slope is fitted to.
SLOPE_REACH = 2


class Cepstra:
    """13 mel-frequency cepstra with their first and second slopes, one row a HuBERT unit."""

    width = 3 * NUM_CEPSTRA

    def __init__(self) -> None:
        filters = mel_filter_bank(
            FFT_SIZE // 2 + 1,
            NUM_MELS,
            20.0,
            7600.0,
            RATE_HZ,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        self._filters = torch.from_numpy(np.asarray(filters)).float()
        k, n = torch.arange(NUM_CEPSTRA), torch.arange(NUM_MELS)
        # The orthonormal DCT-II.
        self._cosines = (
            torch.cos(torch.pi / NUM_MELS * (n[:, None] + 0.5) * k) * (2 / NUM_MELS) ** 0.5
        )
        self._cosines[:, 0] *= 0.5**0.5
        self._window = torch.hamming_window(WINDOW_SAMPLES, periodic=False)

    def __call__(self, samples: Tensor) -> Tensor:
        """(S,) float32 at 16 kHz -> (T, 39) float32, T = (S - 400) // 320 + 1.

        Frames are 25 ms long and begin where the unit's samples begin. The mean over the clip is
        taken off, as for speech from many rooms and microphones.
        """
        frames = samples.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)
        frames = frames - frames.mean(1, keepdim=True)
        frames = torch.cat([frames[:, :1] * 0.03, frames[:, 1:] - 0.97 * frames[:, :-1]], 1)
        power = torch.fft.rfft(frames * self._window, FFT_SIZE).abs().square()
        cepstra = (power @ self._filters).clamp(min=1e-7).log() @ self._cosines
        cepstra = cepstra - cepstra.mean(0)
        slopes = _slopes(cepstra)
        # Units are 20 ms apart, the slopes are best taken from frames 10 ms apart.
        return torch.cat([cepstra, slopes, _slopes(slopes)], 1)[::2]


def _slopes(rows: Tensor) -> Tensor:
    """(T, D) -> (T, D): the slope over the frames around each, ends repeated."""
    reach = torch.arange(-SLOPE_REACH, SLOPE_REACH + 1, dtype=rows.dtype)
    padded = torch.cat([rows[:1].expand(SLOPE_REACH, -1), rows, rows[-1:].expand(SLOPE_REACH, -1)])
    return torch.einsum("tdk,k->td", padded.unfold(0, len(reach), 1), reach / reach.square().sum())
