"""Time a unit vocoder: seconds of speech made in a second.

    python tools/bench_vocoder.py [--vocoder NAME_OR_PATH] [--json]

Without `--vocoder`, random weights of the published LJSpeech size are timed: 200 units, rates
5 4 4 2 2, 512 channels, residual blocks of kernels 3 7 11 with dilations 1 3 5. Weights do not
change the time.
"""

import argparse
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch

from im2sp.pipeline.vocoder import DTYPES, Vocoder, load_vocoder
from im2sp.pipeline.vocoder_weights import (
    FRAME_SAMPLES,
    RATE_HZ,
    VocoderSettings,
    VocoderWeights,
)
from im2sp.tools.bench_timing import medians, take_turns

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
    """Seconds of speech a second, by the clock and by the cores' own time; medians of rounds."""
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


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description="Time a unit vocoder.")
    parser.add_argument("--vocoder", help="as load_vocoder takes it; default: published size")
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--clip-s", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", help="as torch names it; default: CUDA where there is one")
    parser.add_argument("--json", action="store_true", help="one JSON row a case, nothing else")
    arguments = parser.parse_args(argv)
    if min(arguments.clips, arguments.rounds, arguments.threads) < 1 or arguments.clip_s <= 0:
        parser.error("--clips, --rounds, --threads and --clip-s must be positive")
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        for precision in arguments.precision:
            if arguments.vocoder is None:
                vocoder = Vocoder(
                    published_size(),
                    name="published size",
                    precision=precision,
                    device=arguments.device,
                )
            else:
                vocoder = load_vocoder(
                    arguments.vocoder, precision=precision, device=arguments.device
                )
            row = measure(vocoder, arguments.clips, arguments.clip_s, arguments.rounds)
            if arguments.json:
                print(json.dumps(row), flush=True)
            else:
                print(
                    f"{row['vocoder']:>16}  {precision}  {row['device']}"
                    f"  {row['threads']} threads  {row['clips']} x {row['clip_s']} s:"
                    f"  {row['times_real_time']} x real time,"
                    f" {row['times_real_time_of_a_core']} x on one core's own time",
                    flush=True,
                )
    except ValueError as error:
        print(f"bench_vocoder: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
