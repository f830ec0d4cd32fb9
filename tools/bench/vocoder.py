"""Time a unit vocoder: seconds of speech synthesized per second.

    python tools/bench/vocoder.py [--vocoder NAME_OR_PATH] [--json]

Without `--vocoder`, random weights of the published LJSpeech size are timed: 200 units, rates
5 4 4 2 2, 512 channels, residual blocks of kernels 3 7 11 with dilations 1 3 5. Weights do not
affect the time.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from im2sp.pipeline.vocoder.vocoder import Vocoder, load_vocoder
from im2sp.pipeline.vocoder.weights import (
    FRAME_SAMPLES,
    RATE_HZ,
    VocoderSettings,
    VocoderWeights,
)
from im2sp.shards.command_line import run_command
from im2sp.tools.bench.timing import medians, take_turns

KERNELS = (3, 7, 11)
UP_KERNELS = (11, 8, 8, 4, 4)


def published_size(num_units: int = 200, channels: int = 512, width: int = 128) -> VocoderWeights:
    """Random weights of the size that was published for LJSpeech, without durations."""
    settings = VocoderSettings(
        resblock="1", upsample_rates=(5, 4, 4, 2, 2), dilations=((1, 3, 5),) * 3
    )
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *shape: int, outputs: int) -> None:
        scale = (shape[0] * shape[1] * shape[2] / outputs) ** -0.5
        tensors[f"{name}.weight"] = scale * torch.randn(shape, generator=random)
        tensors[f"{name}.bias"] = torch.zeros(outputs)

    tensors["dict.weight"] = torch.randn(num_units, width, generator=random)
    add("conv_pre", channels, width, 7, outputs=channels)
    for stage, kernel in enumerate(UP_KERNELS):
        add(f"ups.{stage}", channels, channels // 2, kernel, outputs=channels // 2)
        channels //= 2
        for block, size in enumerate(KERNELS, stage * len(KERNELS)):
            for part in ("convs1", "convs2"):
                for index in range(3):
                    name = f"resblocks.{block}.{part}.{index}"
                    add(name, channels, channels, size, outputs=channels)
    add("conv_post", 1, channels, 7, outputs=1)
    return VocoderWeights(settings=settings, tensors=tensors)


def measure(vocoder: Vocoder, num_clips: int, clip_s: float, rounds: int) -> dict[str, Any]:
    """Seconds of speech per second of wall-clock and of processor time; medians of rounds."""
    random = np.random.default_rng(0)
    frames = max(1, round(clip_s * RATE_HZ / FRAME_SAMPLES))
    units = [random.integers(0, vocoder.num_units, frames) for _ in range(num_clips)]
    durations = [np.ones(frames, np.int64)] * num_clips
    speaker = 0 if vocoder.num_speakers else None
    made = vocoder.synthesize_batch(units, durations, speaker)

    def synthesize() -> object:
        return vocoder.synthesize_batch(units, durations, speaker)

    (wall_s,) = medians(take_turns({"": synthesize}, rounds)).values()
    (core_s,) = medians(take_turns({"": synthesize}, rounds, clock=time.process_time)).values()
    speech_s = sum(len(samples) for samples in made) / RATE_HZ
    return {
        "vocoder": vocoder.name,
        "precision": vocoder.precision,
        "device": vocoder.device.type,
        "threads": torch.get_num_threads(),
        "clips": num_clips,
        "clip_s": clip_s,
        "times_real_time": round(speech_s / wall_s, 1),
        "times_real_time_of_a_core": round(speech_s / core_s, 1),
    }


@dataclass(frozen=True, kw_only=True)
class BenchVocoderConfig:
    """Time a unit vocoder: seconds of speech generated per second."""

    vocoder: str | None = None
    """Name or path of a vocoder; by default random weights of the published size."""
    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    """Precisions to time."""
    clips: int = 8
    """Clips per round."""
    clip_s: float = 5.0
    """Length of a clip in seconds."""
    rounds: int = 5
    """Rounds per case."""
    threads: int = os.cpu_count() or 1
    """CPU threads."""
    device: str | None = None
    """torch device, such as cuda:1; by default CUDA if available."""
    json: bool = False
    """Print one JSON row per case only."""

    def __post_init__(self) -> None:
        """Raise ValueError if a number is not positive."""
        if min(self.clips, self.rounds, self.threads) < 1 or self.clip_s <= 0:
            raise ValueError("--clips, --rounds, --threads and --clip-s must be positive")


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bench_vocoder", BenchVocoderConfig, _run, args)


def _run(config: BenchVocoderConfig) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        for precision in config.precision:
            if config.vocoder is None:
                vocoder = Vocoder(
                    published_size(),
                    name="published size",
                    precision=precision,
                    device=config.device,
                )
            else:
                vocoder = load_vocoder(config.vocoder, precision=precision, device=config.device)
            row = measure(vocoder, config.clips, config.clip_s, config.rounds)
            if config.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{row['vocoder']:>16}  {precision}  {row['device']}"
                    f"  {row['threads']} threads  {row['clips']} x {row['clip_s']} s:"
                    f"  {row['times_real_time']} x real time,"
                    f" {row['times_real_time_of_a_core']} x real time per core",
                    flush=True,
                )
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    sys.exit(main())
