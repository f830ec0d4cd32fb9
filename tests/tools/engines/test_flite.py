import shutil

import numpy as np
import pytest

from im2sp.tools.engines.flite import PHONES, FliteError, Spoken, speak
from support.speech import install_flite


@pytest.fixture
def flite(tmp_path, monkeypatch):
    install_flite(tmp_path / "bin", monkeypatch)


def test_sound_and_phones_of_a_text(flite):
    spoken = speak("two words", "slt")
    assert spoken.samples.dtype == np.int16
    assert len(spoken.samples) == 4 * 3200
    assert [end_s for end_s, _ in spoken.phones] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert spoken.phones[0][1] == spoken.phones[-1][1] == "pau"


def test_tempo_and_pitch_reach_the_program(flite):
    plain, slow = speak("word", "slt"), speak("word", "slt", stretch=1.5)
    assert len(slow.samples) == 1.5 * len(plain.samples)
    high = speak("word", "slt", pitch_hz=200.0)
    assert not np.array_equal(high.samples, plain.samples)


def test_a_text_that_looks_like_a_flag_or_holds_a_zero_byte(flite):
    assert len(speak("-voice kal", "slt").samples) == 4 * 3200
    assert len(speak("a\0b", "slt").samples) == 4 * 3200


def test_labels_are_the_phones_at_the_middles_of_frames():
    # Frames begin every 320 samples; the middle of the second one is sample 520, at 32.5 ms.
    spoken = Spoken(samples=np.zeros(1100, np.int16), phones=[(0.0325, "pau"), (1.0, "aa")])
    assert [PHONES[label] for label in spoken.labels()] == ["pau", "aa", "aa"]
    longer = Spoken(samples=np.zeros(1100, np.int16), phones=[(0.01, "pau"), (0.02, "b")])
    assert [PHONES[label] for label in longer.labels()] == ["b", "b", "b"]
    assert len(Spoken(samples=np.zeros(399, np.int16), phones=[(1.0, "pau")]).labels()) == 0


def test_what_is_refused(flite, tmp_path, monkeypatch):
    with pytest.raises(FliteError, match="no voice 'bob'; expected one of awb, rms, slt, kal16"):
        speak("text", "bob")
    with pytest.raises(FliteError, match="failed on 'break': cannot"):
        speak("break", "slt")
    with pytest.raises(FliteError, match="0 samples at 16000 Hz for ' '"):
        speak(" ", "slt")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(FliteError, match="flite is not installed; .* apt-get install flite"):
        speak("text", "slt")


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_the_real_flite():
    spoken = speak("A dog runs. It is brown.", "slt")
    assert 1.0 < len(spoken.samples) / 16_000 < 4.0
    assert {phone for _, phone in spoken.phones} <= set(PHONES)
    assert spoken.phones[-1][0] == pytest.approx(len(spoken.samples) / 16_000, abs=0.03)
    assert len(set(spoken.labels().tolist())) > 8
