"""The bundled vocoder is made for the units of the bundled speech tokenizer."""

import numpy as np
import pytest

from im2sp.pipeline import load_speech_tokenizer, load_vocoder
from im2sp.pipeline.vocoder.weights import BUNDLED


@pytest.fixture(scope="module")
def vocoder():
    return load_vocoder(device="cpu")


def test_it_is_for_the_bundled_units(vocoder):
    tokenizer = load_speech_tokenizer(device="cpu")
    assert vocoder.speech_fingerprint == tokenizer.fingerprint
    assert (vocoder.num_units, vocoder.has_durations) == (tokenizer.num_units, True)
    assert BUNDLED["compact"].stat().st_size < 8_000_000
    assert BUNDLED["compact"].with_suffix(".md").exists()


def test_it_makes_audio_of_the_right_length(vocoder):
    units = np.array([5, 90, 17, 150, 60], np.uint16)
    durations = np.array([3, 4, 5, 6, 2], np.uint16)
    samples = vocoder.synthesize(units, durations)
    assert samples.dtype == np.float32
    assert samples.shape == (20 * 320,)
    assert 0.001 < np.abs(samples).max() <= 1.0
    told = vocoder.synthesize(units)
    assert len(told) % 320 == 0
    assert len(told) >= 5 * 320
