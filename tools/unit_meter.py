"""Figures of a speech tokenizer's units over many frames, gathered clip by clip."""

import numpy as np
import torch
from numpy.typing import NDArray

from im2sp.pipeline.hubert_units import SpeechTokenizer
from im2sp.tools.phone_labels import NO_PHONE
from im2sp.tools.unit_quality import cluster_purity, perplexity, phone_purity, pnmi

PIECE_FRAMES = 4096


class UnitMeter:
    """Counts units, their distances from the centres, and the phones they stand for.

    Eight bytes a frame with a phone are kept.
    """

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        self._tokenizer = tokenizer
        self._counts = np.zeros(tokenizer.num_units, np.int64)
        self._sums = np.zeros(tokenizer.centres.shape[1])
        self._squares = self._inertia = 0.0
        self._phones: list[NDArray[np.int32]] = []
        self._units: list[NDArray[np.int32]] = []

    def add(self, features: NDArray[np.float32], phones: NDArray[np.int64]) -> None:
        """Count frames: features (T, D), numbers of phones (T,) or NO_PHONE."""
        tokenizer = self._tokenizer
        for start in range(0, len(features), PIECE_FRAMES):
            rows = torch.from_numpy(features[start : start + PIECE_FRAMES])
            units = tokenizer.nearest(rows.to(tokenizer.device)).cpu()
            errors = rows - tokenizer.centres[units]
            self._inertia += float(errors.double().square().sum())
            self._squares += float(rows.double().square().sum())
            self._sums += rows.double().sum(0).numpy()
            self._counts += np.bincount(units.numpy(), minlength=len(self._counts))
            known = phones[start : start + PIECE_FRAMES] != NO_PHONE
            self._phones.append(phones[start : start + PIECE_FRAMES][known].astype(np.int32))
            self._units.append(units.numpy()[known].astype(np.int32))

    def figures(self) -> dict[str, float | int]:
        """All figures; those about phones where at least two were met.

        `inertia` is the mean squared distance of a frame from its centre, `unexplained` its share
        of the mean squared distance from the mean of all frames.

        Raises:
            ValueError: No frames.
        """
        num_frames = int(self._counts.sum())
        if not num_frames:
            raise ValueError("no frames to measure, expected at least one")
        variance = self._squares / num_frames - float(np.square(self._sums / num_frames).sum())
        inertia = self._inertia / num_frames
        figures: dict[str, float | int] = {
            "num_frames": num_frames,
            "inertia": _rounded(inertia),
            "unexplained": _rounded(inertia / variance) if variance > 0 else 0.0,
            "units_used": int((self._counts > 0).sum()),
            "perplexity": _rounded(perplexity(self._counts)),
        }
        phones, units = np.concatenate(self._phones), np.concatenate(self._units)
        num_phones = len(np.unique(phones))
        if num_phones > 1:
            figures |= {
                "num_labelled_frames": len(phones),
                "num_phones": num_phones,
                "pnmi": _rounded(pnmi(phones, units)),
                "phone_purity": _rounded(phone_purity(phones, units)),
                "cluster_purity": _rounded(cluster_purity(phones, units)),
            }
        return figures


def _rounded(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
