"""Fuzz targets of the media readers: a mutated file is read, or refused with its name."""

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image

from im2sp.pipeline.decoding.audio import read_audio
from im2sp.pipeline.decoding.images import read_image
from im2sp.pipeline.decoding.media import MediaError
from support.fuzz import mutations, refusal
from support.sounds import encoded, tone

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
IMAGES = {
    "jpeg": {"format": "JPEG"},
    "progressive": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "gif": {"format": "GIF"},
    "webp": {"format": "WEBP"},
    "tiff": {"format": "TIFF", "compression": "tiff_lzw"},
    "bmp": {"format": "BMP"},
    "ico": {"format": "ICO"},
}
CLIPS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", None),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", None),
    "aiff": ("AIFF", None),
    "nist": ("NIST", None),
}


def pixels_of(data):
    image = read_image(data, name="case", max_pixels=1_000_000)
    assert image.width * image.height <= 1_000_000


def samples_of(data):
    waveform = read_audio(data, name="case", max_seconds=60)
    assert waveform.dtype == np.float32
    assert np.isfinite(waveform).all()


def check(read, whole, kind):
    for data in mutations(whole, sum(kind.encode())):
        found = refusal(partial(read, data), MediaError)
        assert not found or found.startswith("case: ")
        assert "\n" not in found


@pytest.mark.parametrize("kind", IMAGES)
def test_images(kind):
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, **IMAGES[kind])
    check(pixels_of, buffer.getvalue(), kind)


@pytest.mark.parametrize("kind", CLIPS)
def test_clips(kind):
    check(samples_of, encoded(*CLIPS[kind], samples=tone(8000)), kind)
