import sys
import types

import numpy as np
import pytest

from im2sp.pipeline import load_vocoder
from im2sp.tools.fitting import vocoder_quality
from im2sp.tools.fitting.vocoder_quality import measure, num_word_errors, word_error_rate, words
from support.vocoder import make_config, random_generator, save_published


def naive_errors(a, b):
    """The recursion itself."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        naive_errors(a[1:], b[1:]) + (a[0] != b[0]),
        naive_errors(a[1:], b) + 1,
        naive_errors(a, b[1:]) + 1,
    )


def test_word_errors_equal_the_recursion():
    random = np.random.default_rng(0)
    for _ in range(60):
        a, b = (list("abc"[i] for i in random.integers(3, size=random.integers(6))) for _ in "ab")
        assert num_word_errors(a, b) == naive_errors(a, b)


def test_word_error_rate():
    assert words("A man's dog -- runs, 2 times.") == ["a", "man's", "dog", "runs", "2", "times"]
    assert word_error_rate(["A dog runs.", "Two cats"], ["a dog run", "two cats sit"]) == 0.4
    assert word_error_rate([], []) == 0


def test_figures_of_a_vocoder(tmp_path):
    config = make_config(upsample_initial_channel=32)
    vocoder = load_vocoder(save_published(tmp_path / "v", config, random_generator(config)))
    units = [np.array([1, 1, 4, 4, 4, 2]), np.array([7, 7])]
    waveforms = [np.random.default_rng(0).normal(0, 0.1, 2000).astype(np.float32)] * 2
    heard = []

    def recognize(samples):
        heard.append(len(samples))
        return "a dog"

    found = measure(vocoder, waveforms, units, ["A dog!", None], recognize)
    told = [int(vocoder.predict_durations([[1, 4, 2]])[0].sum()) * 320]
    assert heard == [2000, 6 * 320, *told]
    assert found["num_clips"] == 2
    assert found["mel_distance"] > 0
    errors = vocoder.predict_durations([[1, 4, 2], [7]])
    expected = np.abs(np.concatenate(errors) - [2, 3, 1, 2]).mean()
    assert found["duration_error"] == pytest.approx(expected, abs=1e-3)
    names = ("recorded", "true_durations", "told_durations")
    assert [found[f"wer_{name}"] for name in names] == [0, 0, 0]
    for nobody in (
        measure(vocoder, waveforms, units, ["A dog", None], None),
        measure(vocoder, waveforms, units, [None, None], recognize),
    ):
        assert "wer_recorded" not in nobody


def test_pocketsphinx_hears_integers(monkeypatch):
    class Decoder:
        def __init__(self, **settings):
            assert settings["samprate"] == 16_000

        def start_utt(self):
            self.heard = None

        def process_raw(self, data, full_utt):
            assert full_utt
            self.heard = np.frombuffer(data, "<i2")

        def end_utt(self):
            pass

        def hyp(self):
            if not self.heard.any():
                return None
            return types.SimpleNamespace(hypstr=" ".join(map(str, self.heard)))

    monkeypatch.setitem(sys.modules, "pocketsphinx", types.SimpleNamespace(Decoder=Decoder))
    recognize = vocoder_quality.pocketsphinx_recognizer()
    assert recognize(np.array([0.0, 1.0, -2.0, 0.5], np.float32)) == "0 32767 -32768 16384"
    assert recognize(np.zeros(5, np.float32)) == ""


def test_without_pocketsphinx_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ValueError, match="pocketsphinx is not installed, .* --measure-clips 0"):
        vocoder_quality.pocketsphinx_recognizer()
