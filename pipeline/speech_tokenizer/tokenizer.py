"""Speech to units: HuBERT features of one layer, quantised to the nearest k-means centroid.

As in fairseq's GSLM and textlesslib: 16 kHz, no padding, one unit per 320 samples. The waveform is
normalised where the weights' settings ask for it (large and xlarge, not base). Clips of more than
1,600,000 samples are then split into chunks of that length, which are encoded independently.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from im2sp.pipeline.core_threads import SingleCorePool
from im2sp.pipeline.speech_tokenizer.encoder import (
    FIRST_FRAME_SAMPLES,
    HubertEncoder,
    normalized,
    num_frames,
)
from im2sp.pipeline.speech_tokenizer.weights import (
    BUNDLED,
    HubertWeights,
    fingerprint,
    load_centroids,
    load_hubert,
)
from im2sp.pipeline.tensors import DTYPES, Precision, check_precision, float32_products
from im2sp.shards.weights.pickles import WeightsError

RATE_HZ = 16_000
CHUNK_SAMPLES = 1_600_000
# Samples encoded at once on a GPU; bounds the memory of a batch of any size.
GPU_BATCH_SAMPLES = 3_200_000


class SpeechTokenizer:
    """Converts speech to units.

    Attributes:
        name: Name that it was loaded by; for a path, only the last part.
        fingerprint: sha256 of the weights and settings; see `weights.fingerprint`.
        precision: "fp32", "tf32" (on a GPU) or "bf16", of the encoder. Distances to the centroids
            are always float32.
        layer: Layer whose output is quantised, counted from 1.
        centroids: Centroids, (K, D) float32, on the CPU.
        num_units: K; units are in [0, K).
        waveform_eps: Each clip is normalised with it, see `HubertSettings`; None for none.
    """

    def __init__(
        self,
        weights: HubertWeights,
        centroids: Tensor,
        *,
        name: str,
        precision: Precision = "fp32",
        device: str | torch.device | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        check_precision(precision, self.device)
        if centroids.shape[1] != weights.width:
            raise WeightsError(
                f"{name}: its features are {weights.width} wide, the k-means centroids"
                f" {centroids.shape[1]}; use the centroids that were fitted to this model"
            )
        self.name = name
        self.precision = precision
        self.layer = weights.settings.layer
        self.waveform_eps = weights.settings.waveform_eps
        self.fingerprint = fingerprint(weights, centroids, precision)
        self.centroids = centroids
        self.num_units = len(centroids)
        self._encoder = HubertEncoder(weights, DTYPES[precision], self.device)
        self._threads = SingleCorePool()
        # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2): the nearest centroid has the largest (..).
        self._directions = centroids.t().contiguous().to(self.device)
        self._half_norms = (centroids.double().square().sum(1) / 2).float().to(self.device)

    def encode(self, waveform: np.ndarray | Tensor, rate_hz: int) -> np.ndarray:
        """Units of one clip; see `encode_batch`."""
        return self.encode_batch([waveform], rate_hz)[0]

    @torch.no_grad()
    def encode_batch(
        self, waveforms: Sequence[np.ndarray | Tensor], rate_hz: int = RATE_HZ
    ) -> list[np.ndarray]:
        """Units of clips of any lengths.

        A clip's units do not depend on the other clips: on a CPU each clip is encoded separately,
        on one core; on a GPU only chunks of exactly the same length form a batch.

        Args:
            waveforms: Each (S,) float32, one channel, as it was read.
            rate_hz: Sample rate of all of them; rates other than 16000 are resampled.

        Returns:
            (T,) uint16 each, repeats kept: one unit per 320 samples, (S - 400) // 320 + 1 for a
            clip at 16 kHz that is not split. A last chunk of fewer than 400 samples has none.

        Raises:
            ValueError: Wrong dtype or shape, values that are not finite, or fewer than 400 samples
                at 16 kHz.
        """
        clips = [normalized(_checked(one, rate_hz), self.waveform_eps) for one in waveforms]
        chunks = [(index, chunk) for index, clip in enumerate(clips) for chunk in _cut(clip)]
        order = sorted(range(len(chunks)), key=lambda i: -len(chunks[i][1]))
        batches: list[list[int]] = []
        for place in order:
            samples = len(chunks[place][1])
            is_same = bool(batches) and len(chunks[batches[-1][0]][1]) == samples
            if is_same and samples * (len(batches[-1]) + 1) <= self._batch_samples():
                batches[-1].append(place)
            else:
                batches.append([place])
        stacks = [torch.stack([chunks[place][1] for place in batch]) for batch in batches]
        units: list[list[np.ndarray]] = [[] for _ in clips]
        found: dict[int, np.ndarray] = {}
        for batch, rows in zip(batches, self._threads.map(self._units, stacks), strict=True):
            found.update(zip(batch, rows, strict=True))
        for place, (index, _) in enumerate(chunks):
            units[index].append(found[place])
        return [np.concatenate(parts) for parts in units]

    def _batch_samples(self) -> int:
        return 0 if self.device.type == "cpu" else GPU_BATCH_SAMPLES

    @torch.no_grad()
    def features(self, samples: Tensor) -> Tensor:
        """(B, S) float32 at 16 kHz -> (B, T, D) float32 before quantisation, on the device.

        The samples are taken as they are; see `waveform_eps`.
        """
        with float32_products(self.precision, self.device):
            return self._encoder(samples.to(self.device))

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """(..., D) float32 -> (...) int64: the nearest centroids by squared L2."""
        with float32_products("fp32", self.device):
            return (features.float() @ self._directions - self._half_norms).argmax(-1)

    def _units(self, samples: Tensor) -> np.ndarray:
        units = self.nearest(self.features(samples)).cpu().numpy()
        return units.astype(np.uint16)


def _cut(clip: Tensor) -> list[Tensor]:
    return [chunk for chunk in clip.split(CHUNK_SAMPLES) if num_frames(len(chunk))]


def _checked(waveform: Any, rate_hz: int) -> Tensor:
    """Check a waveform and return its samples at 16 kHz."""
    if type(rate_hz) is not int or rate_hz < 1:
        raise ValueError(f"rate_hz is {rate_hz!r}, expected a whole number such as {RATE_HZ}")
    if isinstance(waveform, np.ndarray) and waveform.dtype == np.float32:
        samples = torch.from_numpy(np.array(waveform, order="C"))
    elif isinstance(waveform, Tensor) and waveform.dtype == torch.float32:
        samples = waveform.detach().cpu()
    else:
        found = getattr(waveform, "dtype", type(waveform).__name__)
        raise ValueError(f"the waveform is {found}, expected float32 samples")
    if samples.ndim != 1:
        raise ValueError(
            f"the waveform has shape {list(samples.shape)}, expected [samples]; average the"
            " channels first"
        )
    if not torch.isfinite(samples).all():
        raise ValueError("the waveform holds values that are not finite")
    if rate_hz != RATE_HZ:
        samples = _resample(samples, rate_hz)
    if len(samples) < FIRST_FRAME_SAMPLES:
        raise ValueError(
            f"the waveform has {len(samples)} samples at {RATE_HZ} Hz, expected at least"
            f" {FIRST_FRAME_SAMPLES} for one unit"
        )
    return samples


def _resample(samples: Tensor, rate_hz: int) -> Tensor:
    try:
        import soxr
    except ImportError:
        raise ValueError(
            f"the waveform's rate is {rate_hz} Hz, expected {RATE_HZ}; install soxr"
            " (`pip install soxr`), or resample it first"
        ) from None
    return torch.from_numpy(soxr.resample(samples.numpy(), rate_hz, RATE_HZ))


def load_speech_tokenizer(
    name_or_path: str | Path = "compact",
    kmeans: str | Path | Tensor | np.ndarray | None = None,
    *,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    layer: int | None = None,
) -> SpeechTokenizer:
    """Load a HuBERT and its k-means centroids; nothing in the files is executed.

    Args:
        name_or_path: "compact" (bundled), a transformers folder (`config.json` and weights),
            fairseq's `hubert_base_ls960.pt`, an im2sp file, or a hub id such as
            `facebook/hubert-base-ls960`, with `@revision` to pin it.
        kmeans: Centroids [units, width] or their file; see `weights.load_centroids`. None for those
            in an im2sp file.
        device: None for CUDA if available, else the CPU.
        precision: Arithmetic of the encoder. "bf16" is several times as fast on a CPU that supports
            it and gives other units for some frames.
        layer: Layer whose output the centroids were fitted to, counted from 1; None for 6, or
            for the layer in an im2sp file.

    Raises:
        WeightsError: (a ValueError) the files are missing or not those of a HuBERT; one line.
    """
    check_precision(precision)
    weights = load_hubert(name_or_path, layer)
    kmeans = weights.centroids if kmeans is None else kmeans
    if kmeans is None:
        raise WeightsError(
            f"{name_or_path}: holds no k-means centroids of layer {weights.settings.layer}; pass"
            " their file as `kmeans`, such as the km.bin that was published with a HuBERT"
        )
    centroids = load_centroids(kmeans)
    is_file = str(name_or_path) not in BUNDLED and Path(name_or_path).expanduser().exists()
    name = Path(name_or_path).expanduser().resolve().name if is_file else str(name_or_path)
    return SpeechTokenizer(weights, centroids, name=name, precision=precision, device=device)
