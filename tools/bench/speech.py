"""Time speech -> units: our HuBERT against a plain one; run by `bench/encode.py --audio`.

The plain one is transformers' `HubertModel`: all its layers, one clip at a time, in float32, then
the distances from all centroids. Ours is `SpeechTokenizer.encode_batch` on the same clips, with
the same weights. The weights are random, in transformers' format; the centroids are k-means of the
plain features of other such clips, so that many units occur. The speed does not depend on them, but
the share of units changed by bfloat16 does: random features are distributed unlike trained ones.

`audio_hours_per_hour` is hours of audio encoded per hour, without reading files.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im2sp.pipeline.speech_tokenizer.tokenizer import RATE_HZ, Precision, load_speech_tokenizer
from im2sp.pipeline.speech_tokenizer.weights import DEFAULT_LAYER
from im2sp.tools.bench.timing import BASELINE, check_cases, take_turns
from im2sp.tools.fitting.kmeans import fit_kmeans

# The defaults of transformers are HuBERT base.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
    "base": {},
}
COLUMNS = (
    "case",
    "audio_hours_per_hour",
    "median_s",
    "fastest_s",
    "slowest_s",
    "speedup",
    "equal_units",
    "distinct_units",
)
PRECISIONS: dict[str, Precision] = {"ours-fp32": "fp32", "ours-bf16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class SpeechSettings:
    """Settings for speech; `bench.encode.Settings` describes the fields."""

    cases: tuple[str, ...] = (BASELINE, *PRECISIONS)
    size: str = "base"
    num_clips: int = 12
    clip_s: float = 6.0
    num_units: int = 200
    repeats: int = 5
    threads: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_cases(self.cases, (BASELINE, *PRECISIONS))
        if self.size not in SIZES:
            raise ValueError(f"size {self.size!r}, expected {' or '.join(SIZES)} with --audio")
        if self.num_clips < 1 or self.clip_s < 0.1:
            raise ValueError(
                f"{self.num_clips} clips of {self.clip_s:g} s, expected at least 1 of 0.1 s"
            )


def make_clips(settings: SpeechSettings, seed: int = 0) -> list[NDArray[np.float32]]:
    """Synthetic clips of various lengths: a buzz of varying pitch and timbre, with pauses."""
    random = np.random.default_rng(seed)
    lengths_s = settings.clip_s * np.linspace(0.5, 1.5, settings.num_clips)
    return [_voice(int(length_s * RATE_HZ), random) for length_s in lengths_s]


def _voice(num_samples: int, random: np.random.Generator) -> NDArray[np.float32]:
    """(S,) float32: ten harmonics and noise, each with its own random loudness curve."""
    knots = np.linspace(0, num_samples, 2 + num_samples // 1600)

    def curve(low: float, high: float) -> NDArray[np.float64]:
        return np.interp(np.arange(num_samples), knots, random.uniform(low, high, len(knots)))

    phase = 2 * np.pi * np.cumsum(curve(90, 250)) / RATE_HZ
    wave = curve(0, 0.2) * random.normal(size=num_samples)
    for harmonic in range(1, 11):
        wave += curve(0, 1 / harmonic) * np.sin(harmonic * phase)
    return (0.1 * wave * (curve(-0.3, 1) > 0)).astype(np.float32)


def make_model(size: str) -> Any:
    """A `HubertModel` of transformers, with random weights.

    Raises:
        ValueError: Transformers is not installed.
    """
    try:
        from transformers import HubertConfig, HubertModel
    except ImportError:
        raise ValueError(
            "--audio compares with transformers, which is not installed; `pip install transformers`"
        ) from None
    torch.manual_seed(0)
    return HubertModel(HubertConfig(**SIZES[size])).eval().requires_grad_(False)


def plain_features(model: Any, clips: list[NDArray[np.float32]]) -> list[Tensor]:
    """(T, D) features of each clip: one hidden state, clip by clip."""
    states = (
        model(
            torch.from_numpy(clip)[None].to(model.device), output_hidden_states=True
        ).hidden_states
        for clip in clips
    )
    return [layers[DEFAULT_LAYER][0] for layers in states]


def plain_units(features: list[Tensor], centroids: Tensor) -> NDArray[np.int64]:
    """Nearest centroids, by distances written out as fairseq does."""
    lengths = centroids.square().sum(1)
    distances = (
        rows.square().sum(1, keepdim=True) - 2 * torch.matmul(rows, centroids.T) + lengths
        for rows in features
    )
    return torch.cat([of_clip.argmin(1) for of_clip in distances]).cpu().numpy()


def run(settings: SpeechSettings) -> list[dict[str, object]]:
    """Time the cases on speech; one row each.

    Raises:
        ValueError: Transformers is not installed, or fewer frames than centroids.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    clips, model = make_clips(settings), make_model(settings.size).to(settings.device)
    with torch.inference_mode():
        others = torch.cat(plain_features(model, make_clips(settings, seed=1))).cpu()
        centroids = fit_kmeans(others, settings.num_units).centroids
        cases: dict[str, Callable[[], NDArray[Any]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            for name in settings.cases:
                cases[name] = _case(name, model, Path(folder), centroids, clips)
        units = {name: case() for name, case in cases.items()}
        times_s = take_turns(cases, settings.repeats)
    return _rows(settings, times_s, units, sum(map(len, clips)) / RATE_HZ)


def _case(
    name: str, model: Any, folder: Path, centroids: Tensor, clips: list[NDArray[np.float32]]
) -> Callable[[], NDArray[Any]]:
    """Function that returns the concatenated units of all clips."""
    if name == BASELINE:
        return lambda: plain_units(plain_features(model, clips), centroids.to(model.device))
    tokenizer = load_speech_tokenizer(
        folder, centroids, device=model.device, precision=PRECISIONS[name]
    )
    return lambda: np.concatenate(tokenizer.encode_batch(clips))


def _rows(
    settings: SpeechSettings,
    times_s: dict[str, list[float]],
    units: dict[str, NDArray[Any]],
    audio_s: float,
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    baseline_s = statistics.median(times_s[BASELINE]) if BASELINE in times_s else None
    for name, seconds in times_s.items():
        median_s = statistics.median(seconds)
        row: dict[str, object] = {
            "case": name,
            "median_s": round(median_s, 4),
            "fastest_s": round(min(seconds), 4),
            "slowest_s": round(max(seconds), 4),
            "audio_hours_per_hour": round(audio_s / median_s, 1),
            "distinct_units": len(np.unique(units[name])),
        }
        if baseline_s is not None:
            row["speedup"] = round(baseline_s / median_s, 2)
            row["equal_units"] = round(float((units[name] == units[BASELINE]).mean()), 5)
        row["audio_s"] = round(audio_s, 2)
        rows.append({**row, **asdict(settings), "threads": torch.get_num_threads()})
    return rows
