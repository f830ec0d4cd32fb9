"""Targets of masked prediction (one cluster per frame of a corpus) and measures of unit quality."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numba import types
from numpy.typing import NDArray
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from im2sp.pipeline.core_threads import SingleCorePool
from im2sp.pipeline.speech_tokenizer.encoder import HubertEncoder
from im2sp.pipeline.speech_tokenizer.weights import HubertSettings, HubertWeights
from im2sp.shards import deduplicate
from im2sp.shards.coding.packing_kernels import compiled
from im2sp.tools.evaluation.unit_quality import (
    cluster_purity,
    perplexity,
    phone_purity,
    pnmi,
    unit_edit_distance,
    unit_survival,
)
from im2sp.tools.fitting.hubert_trainer import MaskedPredictor
from im2sp.tools.fitting.kmeans import fit_kmeans, nearest_centroids
from im2sp.tools.fitting.speech_corpus import UNLABELLED, Clip, Corpus, add_noise

RATE_HZ = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SIZE = 512
NUM_MELS = 40
NUM_CEPSTRA = 13
# Frames on each side in the fit of a slope.
SLOPE_REACH = 2
# A frame of another phone costs 1; one of the same phone at most this, by position in the phone.
PLACE_COST = 0.2
# Number of clips whose features are in memory at once.
BATCH_CLIPS = 32

Features = Callable[[Tensor], Tensor]
"""(S,) float32 samples at 16 kHz -> (T, D) float32 features."""


def hubert_weights(model: MaskedPredictor, layer: int) -> HubertWeights:
    """Copy of the current model up to a layer (counted from 1), in the form of tokenizers."""
    hubert = model.hubert
    tensors = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in hubert.state_dict().items()
    }
    settings = HubertSettings(heads=hubert.config.num_attention_heads, layer=layer)
    return HubertWeights(settings=settings, tensors=tensors)


def hubert_features(
    weights: HubertWeights, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Features:
    """Feature function of a HuBERT."""
    encoder = HubertEncoder(weights, dtype, device)
    return lambda samples: encoder(samples[None].to(device))[0].cpu()


def features_of_clips(
    corpus: Corpus, numbers: np.ndarray, features: Features, *, snr_db: float | None = None
) -> Iterator[Tensor]:
    """Yield features (T, D) of each clip, in order; with white noise at `snr_db` if given."""
    threads = SingleCorePool()

    def one(number: int) -> Tensor:
        samples = torch.from_numpy(corpus.waveform(number))
        if snr_db is not None:
            generator = torch.Generator().manual_seed(number)
            samples = add_noise(samples, snr_db, generator)
        with torch.no_grad():
            return features(samples)

    for start in range(0, len(numbers), BATCH_CLIPS):
        yield from threads.map(one, numbers[start : start + BATCH_CLIPS].tolist())


def make_targets(
    corpus: Corpus,
    reference: Corpus,
    features: Features,
    num_clusters: int,
    *,
    num_sample_clips: int,
    seed: int,
) -> np.ndarray:
    """(frames,) uint16: target cluster of each frame of the corpus.

    Targets of a caption are those of the same caption in the reference voice, aligned by phones,
    so that they contain the content and not the speaker. Targets of a recording are its own.

    Args:
        corpus: Captions in many manners, then recordings.
        reference: The same captions in one voice.
        features: Feature function of a clip's samples.
        num_clusters: Number of centroids, fitted to a sample of the reference's clips.
        num_sample_clips: Number of clips in that sample.
        seed: Random seed of the sample and the centroids.
    """
    numbers = np.arange(len(reference))
    drawn = np.sort(np.random.default_rng(seed).permutation(numbers)[:num_sample_clips])
    sample = torch.cat(list(features_of_clips(reference, drawn, features)))
    centroids = fit_kmeans(sample, num_clusters, seed=seed, max_rounds=20).centroids

    def clusters(of: Corpus, chosen: np.ndarray) -> Iterator[np.ndarray]:
        for rows in features_of_clips(of, chosen, features):
            yield nearest_centroids(rows, centroids)[0].numpy().astype(np.uint16)

    of_caption = {
        _caption_of(clip): (number, found)
        for number, (clip, found) in enumerate(
            zip(reference.clips, clusters(reference, numbers), strict=True)
        )
    }
    is_recording = [clip.is_recording for clip in corpus.clips]
    of_recordings = clusters(corpus, np.flatnonzero(is_recording))
    targets: list[np.ndarray] = []
    for number, clip in enumerate(corpus.clips):
        if clip.is_recording:
            targets.append(next(of_recordings))
        else:
            other, found = of_caption[_caption_of(clip)]
            frames = align_frames(corpus.labels(number), reference.labels(other))
            targets.append(found[frames])
    return np.concatenate(targets)


def _caption_of(clip: Clip) -> str:
    """Number of a clip's caption."""
    return clip.name.split()[0]


@dataclass(frozen=True, kw_only=True)
class UnitFigures:
    """Quality of units on labelled speech."""

    pnmi: float
    """Phone-normalised mutual information."""
    phone_purity: float
    """Share of frames with the most frequent phone of their unit."""
    cluster_purity: float
    """Share of frames with the most frequent unit of their phone."""
    survival: float
    """Share of frames whose unit stays the same under white noise at 20 dB."""
    perplexity: float
    """Number of equally frequent units with the same entropy."""
    units_used: int
    """Number of units that occur."""

    def as_json(self) -> dict[str, float]:
        """Rounded for cards and logs."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure_units(corpus: Corpus, features: Features, centroids: Tensor) -> UnitFigures:
    """Measure the units of all labelled clips of a corpus against phones and noise."""
    numbers = np.arange(len(corpus))
    clean, noisy = (
        np.concatenate(
            [
                nearest_centroids(row, centroids)[0].numpy()
                for row in features_of_clips(corpus, numbers, features, snr_db=snr_db)
            ]
        )
        for snr_db in (None, 20.0)
    )
    labels = np.concatenate([corpus.labels(int(number)) for number in numbers])
    is_labelled = labels != UNLABELLED
    labels, clean, noisy = labels[is_labelled], clean[is_labelled], noisy[is_labelled]
    counts = np.bincount(clean, minlength=len(centroids))
    return UnitFigures(
        pnmi=pnmi(labels, clean),
        phone_purity=phone_purity(labels, clean),
        cluster_purity=cluster_purity(labels, clean),
        survival=unit_survival(clean, noisy),
        perplexity=perplexity(counts),
        units_used=int((counts > 0).sum()),
    )


@dataclass(frozen=True, kw_only=True)
class VoiceFigures:
    """Normalised edit distances of collapsed units of the same captions in several voices."""

    same_text: float
    """Mean over pairs of voices with the same caption."""
    same_voice: float
    """Mean over pairs of captions in the same voice."""
    share_closer: float
    """Share of clips that are closer to their caption in another voice than to another caption."""

    def as_json(self) -> dict[str, float]:
        """Rounded for cards and logs."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure_voices(units: list[np.ndarray], num_voices: int) -> VoiceFigures:
    """Compare clips ordered by caption, then by voice.

    Args:
        units: Units of each clip, repeats kept.
        num_voices: Number of voices of each caption.
    """
    clips = [deduplicate(row)[0] for row in units]
    same_text: list[float] = []
    same_voice: list[float] = []
    for number, clip in enumerate(clips):
        voice = number % num_voices
        neighbour = number - voice + (voice + 1) % num_voices
        same_text.append(unit_edit_distance(clip, clips[neighbour]))
        same_voice.append(unit_edit_distance(clip, clips[(number + num_voices) % len(clips)]))
    is_closer = np.array(same_text) < np.array(same_voice)
    return VoiceFigures(
        same_text=float(np.mean(same_text)),
        same_voice=float(np.mean(same_voice)),
        share_closer=float(is_closer.mean()),
    )


class Cepstra:
    """13 mel-frequency cepstra with their first and second slopes, one row per HuBERT frame."""

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

        Frames are 25 ms long and start at the unit's first sample. The mean over the clip is
        subtracted (cepstral mean normalisation), against differences between recordings.
        """
        frames = samples.unfold(0, WINDOW_SAMPLES, HOP_SAMPLES)
        frames = frames - frames.mean(1, keepdim=True)
        frames = torch.cat([frames[:, :1] * 0.03, frames[:, 1:] - 0.97 * frames[:, :-1]], 1)
        power = torch.fft.rfft(frames * self._window, FFT_SIZE).abs().square()
        cepstra = (power @ self._filters).clamp(min=1e-7).log() @ self._cosines
        cepstra = cepstra - cepstra.mean(0)
        slopes = _slopes(cepstra)
        # Units are 20 ms apart; slopes are more accurate from frames 10 ms apart.
        return torch.cat([cepstra, slopes, _slopes(slopes)], 1)[::2]


def _slopes(rows: Tensor) -> Tensor:
    """(T, D) -> (T, D): slope over the surrounding frames, ends repeated."""
    reach = torch.arange(-SLOPE_REACH, SLOPE_REACH + 1, dtype=rows.dtype)
    padded = torch.cat([rows[:1].expand(SLOPE_REACH, -1), rows, rows[-1:].expand(SLOPE_REACH, -1)])
    return torch.einsum("tdk,k->td", padded.unfold(0, len(reach), 1), reach / reach.square().sum())


def align_frames(labels: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Align two readings of the same text: map each frame of one to a frame of the other.

    Dynamic time warping: the monotonic path that pairs frames of the same phone at similar
    positions in the phone, as far as the phones agree.

    Args:
        labels: (T,) phone of each frame, T at least 1.
        others: (U,) phones of the other reading, U at least 1.

    Returns:
        (T,) ascending, each in [0, U): the best match among the frames that a frame is paired with.
    """
    if not len(labels) or not len(others):
        raise ValueError(f"readings of {len(labels)} and {len(others)} frames; expected at least 1")
    return _align(
        np.ascontiguousarray(labels, np.uint8),
        _places(labels),
        np.ascontiguousarray(others, np.uint8),
        _places(others),
        PLACE_COST,
    )


def _places(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(T,) position of each frame in its phone: 0 to 1."""
    starts = np.flatnonzero(np.diff(labels, prepend=labels[:1] + np.uint8(1)))
    lengths = np.diff(starts, append=len(labels))
    within = np.arange(len(labels)) - np.repeat(starts, lengths)
    return ((within + 0.5) / np.repeat(lengths, lengths)).astype(np.float32)


_LABELS = types.Array(types.uint8, 1, "C", readonly=True)
_PLACES = types.Array(types.float32, 1, "C", readonly=True)


@compiled(
    types.float64(_LABELS, _PLACES, _LABELS, _PLACES, types.float64, types.int64, types.int64)
)
def _cost(a: Any, a_places: Any, b: Any, b_places: Any, place_cost: Any, i: Any, j: Any) -> Any:
    """Cost of pairing frame i with frame j."""
    if a[i] != b[j]:
        return 1.0
    return place_cost * abs(a_places[i] - b_places[j])


@compiled(types.int64[::1](_LABELS, _PLACES, _LABELS, _PLACES, types.float64))
def _align(a: Any, a_places: Any, b: Any, b_places: Any, place_cost: Any) -> Any:
    """For each frame of the first reading, the best match among its paired frames."""
    rows, columns = len(a), len(b)
    sums = np.empty((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            before = 0.0
            if i and j:
                before = min(sums[i - 1, j - 1], sums[i - 1, j], sums[i, j - 1])
            elif i:
                before = sums[i - 1, 0]
            elif j:
                before = sums[0, j - 1]
            sums[i, j] = before + _cost(a, a_places, b, b_places, place_cost, i, j)
    likest = np.zeros(rows, np.int64)
    lowest = np.full(rows, 2.0)
    i, j = rows - 1, columns - 1
    while True:
        cost = _cost(a, a_places, b, b_places, place_cost, i, j)
        if cost < lowest[i]:
            likest[i], lowest[i] = j, cost
        if i == 0 and j == 0:
            return likest
        if i and j and sums[i - 1, j - 1] <= min(sums[i - 1, j], sums[i, j - 1]):
            i, j = i - 1, j - 1
        elif i and (j == 0 or sums[i - 1, j] <= sums[i, j - 1]):
            i -= 1
        else:
            j -= 1
