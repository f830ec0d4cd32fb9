"""The bundled speech tokenizer."""

import numpy as np
import pytest

from im2sp.pipeline import load_speech_tokenizer
from im2sp.pipeline.speech_tokenizer.weights import BUNDLED

FINGERPRINT = "3321d85c2be43aceaeacf6cc95dbf10470ef65a205200478f23b34be8e72384d"


@pytest.fixture(scope="module")
def tokenizer():
    return load_speech_tokenizer(device="cpu")


def test_it_is_the_default_and_what_its_card_says(tokenizer):
    assert (tokenizer.name, tokenizer.fingerprint) == ("compact", FINGERPRINT)
    assert (tokenizer.num_units, tokenizer.layer) == (200, 5)
    assert BUNDLED["compact"].stat().st_size < 16_000_000
    assert BUNDLED["compact"].with_suffix(".md").exists()


def test_units_follow_the_audio(tokenizer):
    times_s = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 200 * times_s * (1 + 4 * (times_s > 0.5))) * 0.3
    tone[:4000] = 0
    units = tokenizer.encode(tone.astype(np.float32), 16_000)
    assert len(units) == 49
    silence, low, high = (set(units[part].tolist()) for part in np.split(np.arange(48), [12, 25]))
    assert silence - low - high
    assert low - high
    assert high - low


def test_loudness_hardly_matters(tokenizer):
    # The first convolution's norm takes it out.
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    loud, quiet = (tokenizer.encode(noise * gain, 16_000) for gain in (1.0, 0.2))
    assert (loud == quiet).mean() > 0.9
