import importlib.util

import numpy as np
import pytest

from im2sp.tools.engines.mos import SCORES, Dnsmos, log_mel


def clip(num_samples):
    rng, times_s = np.random.default_rng(0), np.arange(num_samples) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * 220 * times_s) * (np.sin(2 * np.pi * 3 * times_s) > 0)
    return (tone + 0.05 * rng.standard_normal(num_samples)).astype(np.float32)


# speechmos 0.0.1.1's own answers, with librosa 0.11.
@pytest.mark.parametrize(
    ("num_samples", "expected"),
    [
        (8000, (1.0723436, 1.2390130, 1.1248122, 2.5034063)),
        (176077, (1.3608498, 2.0766021, 1.7008760, 2.4377494)),
    ],
)
def test_scores_are_those_of_speechmos(num_samples, expected):
    pytest.importorskip("onnxruntime")
    scores = Dnsmos().score(clip(num_samples))
    assert tuple(scores) == SCORES
    assert list(scores.values()) == pytest.approx(expected, abs=1e-4)


def test_the_spectrogram():
    mel = log_mel(clip(1600))
    assert mel.shape == (10, 120)
    assert mel.max() == 1.0
    assert mel.min() >= -1.0


def test_no_sound_and_no_package(monkeypatch):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="DNSMOS of a clip without samples"):
        Dnsmos().score(np.zeros(0, np.float32))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="DNSMOS needs speechmos and onnxruntime: pip install"):
        Dnsmos()
