"""A folder of clips, for tests of the speech unit tools."""

from pathlib import Path

import soundfile

from support.hubert import clip


def save_clips(folder: Path, num_clips: int = 4, num_samples: int = 16_000) -> Path:
    """`c0.wav`, `c1.wav`, ..., each 3 frames longer than the one before, 16 kHz."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num_clips):
        samples = clip(num_samples + 960 * i, seed=i)
        soundfile.write(folder / f"c{i}.wav", samples, 16_000, subtype="FLOAT")
    return folder
