"""Folders of im2sp-speak, references and answers, for tests of the listening test."""

import io
import json
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from im2sp.tools.listening.score import ANSWERS_FORM
from im2sp.tools.speaking.page import SPOKEN_NAME, SpeechFolder, file_stems, page

KEYS = ("a", "b", "deep/c & <i>", "d")


def tone(pitch_hz: float, num_samples: int = 800) -> np.ndarray:
    """int16 [T] at 16 kHz."""
    return (8000 * np.sin(2 * np.pi * pitch_hz * np.arange(num_samples) / 16_000)).astype(np.int16)


def photo(seed: int) -> Image.Image:
    """An image of 48 x 32 pixels with a distinct colour."""
    colour = tuple(int(v) for v in np.random.default_rng(seed).integers(0, 256, 3))
    return Image.new("RGB", (48, 32), colour)


def save_spoken(folder: Path, pitch_hz: float, keys=KEYS, *, pictures=True, seed=0) -> Path:
    """Write a folder as im2sp-speak does; the clip of image i has a pitch of `pitch_hz` + 10 i."""
    stems = file_stems(keys)
    suffixes = (".wav", ".jpg") if pictures else (".wav",)
    made = SpeechFolder(folder, [stem + suffix for stem in stems for suffix in suffixes])
    rows = []
    for i, (key, stem) in enumerate(zip(keys, stems, strict=True)):
        wav, jpeg = io.BytesIO(), io.BytesIO()
        soundfile.write(wav, tone(pitch_hz + 10 * i), 16_000, "PCM_16", format="WAV")
        photo(seed + i).save(jpeg, "JPEG", quality=90)
        made.write(f"{stem}.wav", wav.getvalue())
        if pictures:
            made.write(f"{stem}.jpg", jpeg.getvalue())
        rows.append({"key": key, "wav": f"{stem}.wav", "duration_s": 0.05, "transcript": None})
    made.write_rows(SPOKEN_NAME, rows)
    made.finish(page("spoken", [], []))
    return folder


def save_reference(folder: Path, names=("a", "b_1", "b_0", "c & <i>", "d_2")) -> Path:
    """A clip at 44.1 kHz with a metadata tag naming its source."""
    for i, name in enumerate(names):
        path = folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_24") as file:
            file.artist = "the reference"
            file.write(np.full((4410, 2), 0.1 * (i + 1)))
    return folder


def save_answers(path: Path, key_path: Path, listener: str, ratings, **changes) -> Path:
    """Write a listener's answer file.

    Args:
        path: The file to write.
        key_path: The test's key.
        listener: Name of the listener.
        ratings: Called with system and image; (naturalness, descriptiveness) or None.
        changes: Other values of the file's fields.
    """
    key = json.loads(key_path.read_text())
    answers = {}
    for sample, row in key["samples"].items():
        given = ratings(row["system"], row["image"])
        naturalness, descriptiveness = given or (None, None)
        answers[sample] = {
            "heard": given is not None,
            "naturalness": naturalness,
            "descriptiveness": descriptiveness,
        }
    content = {
        "form": ANSWERS_FORM,
        "test": key["test"],
        "listener": listener,
        "order": list(answers),
        "answers": answers,
    }
    path.write_text(json.dumps(content | changes))
    return path
