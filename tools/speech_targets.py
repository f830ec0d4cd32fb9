"""From a corpus to one cluster a frame: the targets of masked prediction, and how good they are."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from im2sp.pipeline.hubert_encoder import HubertEncoder
from im2sp.pipeline.hubert_weights import HubertSettings, HubertWeights
from im2sp.pipeline.image_threads import ImageThreads
from im2sp.shards import deduplicate
from im2sp.tools.hubert_trainer import MaskedPredictor
from im2sp.tools.kmeans import fit_kmeans, nearest_centroids
from im2sp.tools.speech_align import align_frames
from im2sp.tools.speech_augment import add_noise
from im2sp.tools.speech_corpus import UNLABELLED, Clip, Corpus
from im2sp.tools.unit_quality import (
    cluster_purity,
    perplexity,
    phone_purity,
    pnmi,
    unit_edit_distance,
    unit_survival,
)

# Clips whose features are in memory at once.
BATCH_CLIPS = 32

Features = Callable[[Tensor], Tensor]
"""(S,) float32 samples at 16 kHz -> (T, D) float32 features."""


def hubert_weights(model: MaskedPredictor, layer: int) -> HubertWeights:
    """The model as it stands up to a layer, counted from 1, as tokenizers take it."""
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
    """The features of a HuBERT."""
    encoder = HubertEncoder(weights, dtype, device)
    return lambda samples: encoder(samples[None].to(device))[0].cpu()


def features_of_clips(
    corpus: Corpus, numbers: np.ndarray, features: Features, *, snr_db: float | None = None
) -> Iterator[Tensor]:
    """(T, D) of each clip, in order; with white noise `snr_db` below the speech if given."""
    threads = ImageThreads()

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
    """One cluster each frame of the corpus: (frames,) uint16.

    A caption's targets are those of the same caption in the reference voice, frame by frame along
    the phones, so that they hold what is said and not who says it. A recording's are its own.

    Args:
        corpus: Captions in many manners, then recordings.
        reference: The same captions in one voice.
        features: Of a clip's samples.
        num_clusters: Centroids, fitted to a sample of the reference's clips.
        num_sample_clips: Clips in that sample.
        seed: Of the sample and the centroids.
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
    """The number of the caption that a clip speaks."""
    return clip.name.split()[0]


@dataclass(frozen=True, kw_only=True)
class UnitFigures:
    """Quality of units on labelled speech."""

    pnmi: float
    """Phone-normalised mutual information."""
    phone_purity: float
    """Share of frames whose phone is their unit's most frequent one."""
    cluster_purity: float
    """Share of frames whose unit is their phone's most frequent one."""
    survival: float
    """Share of frames whose unit stays the same under white noise at 20 dB."""
    perplexity: float
    """Number of equally frequent units with the same entropy."""
    units_used: int
    """Units that occur."""

    def as_json(self) -> dict[str, float]:
        """Rounded for cards and logs."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure_units(corpus: Corpus, features: Features, centroids: Tensor) -> UnitFigures:
    """Units of all labelled clips of a corpus against its phones and against noise."""
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
    """Collapsed units of the same captions in several voices: normalised edit distances."""

    same_text: float
    """Mean over pairs of voices that say the same caption."""
    same_voice: float
    """Mean over pairs of captions in the same voice."""
    share_closer: float
    """How often the first is below the second, for a caption, another voice, another caption."""

    def as_json(self) -> dict[str, float]:
        """Rounded for cards and logs."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure_voices(units: list[np.ndarray], num_voices: int) -> VoiceFigures:
    """Compare clips that lie caption by caption, each in all voices in the same order.

    Args:
        units: Units of each clip, repeats kept.
        num_voices: Voices of each caption.
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
