"""Speech synthesis by flite (Debian package): text to audio and phone timings."""

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

VOICES = ("awb", "rms", "slt", "kal16")
"""Voices of flite at 16 kHz."""
RATE_HZ = 16_000
FRAME_SAMPLES = 320
# A HuBERT frame covers 400 samples; its phone is the one at the middle.
FRAME_MIDDLE = 200
PHONES = (
    *("pau", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey"),
    *("f", "g", "hh", "ih", "iy", "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s"),
    *("sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh"),
)
"""Phones of the English voices; the first is silence."""


class FliteError(ValueError):
    """flite is missing or generated no speech; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """Synthesized text."""

    samples: np.ndarray
    """(S,) int16 at 16 kHz."""
    phones: list[tuple[float, str]]
    """Phones in order, each with its end in seconds."""

    def labels(self) -> np.ndarray:
        """(T,) uint8: phone (index in `PHONES`) at the middle of each frame, hop 320 samples."""
        num_frames = max(0, (len(self.samples) - 400) // FRAME_SAMPLES + 1)
        middles_s = (np.arange(num_frames) * FRAME_SAMPLES + FRAME_MIDDLE) / RATE_HZ
        ends_s = np.array([end_s for end_s, _ in self.phones])
        places = np.minimum(np.searchsorted(ends_s, middles_s, side="right"), len(ends_s) - 1)
        numbers = np.array([PHONES.index(phone) for _, phone in self.phones], np.uint8)
        return numbers[places]


def find_flite() -> str:
    """Path of the program.

    Raises:
        FliteError: It is not installed.
    """
    program = shutil.which("flite")
    if program is None:
        raise FliteError("flite is not installed; it synthesizes the text: apt-get install flite")
    return program


def speak(text: str, voice: str, *, stretch: float = 1.0, pitch_hz: float | None = None) -> Spoken:
    """Synthesize a text.

    Args:
        text: Text; without a word, there is no speech.
        voice: One of `VOICES`.
        stretch: Factor of every phone's duration.
        pitch_hz: Mean pitch; None for the voice's own. The voice `rms` ignores it.

    Raises:
        FliteError: flite is not installed, or generates no speech.
    """
    program = find_flite()
    if voice not in VOICES:
        raise FliteError(f"flite: no voice {voice!r}; expected one of {', '.join(VOICES)}")
    handle, path = tempfile.mkstemp(suffix=".wav")
    os.close(handle)
    try:
        command = [program, "-voice", voice, "-psdur", "--setf", f"duration_stretch={stretch}"]
        if pitch_hz is not None:
            command += ["--setf", f"int_f0_target_mean={pitch_hz}"]
        # An argument cannot contain a zero byte; it has no pronunciation either.
        command += ["-o", path, "-t", text.replace("\0", " ")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise FliteError(f"flite: failed on {text!r}: {done.stderr.strip() or done.returncode}")
        samples, rate_hz = sf.read(path, dtype="int16")
    finally:
        Path(path).unlink(missing_ok=True)
    phones = [(float(end), phone) for phone, end in re.findall(r"(\S+):(\d+\.\d+)", done.stdout)]
    if rate_hz != RATE_HZ or not len(samples) or not phones:
        raise FliteError(f"flite: {len(samples)} samples at {rate_hz} Hz for {text!r}")
    return Spoken(samples=samples, phones=phones)
