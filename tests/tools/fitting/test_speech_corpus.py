import numpy as np
import pytest

from im2sp.tools.engines.flite import FliteError, speak
from im2sp.tools.fitting.speech_corpus import UNLABELLED, Corpus, Manner, draw_manner, make_corpus
from support.speech import install_flite

CAPTIONS = ["one dog", " ", "three small cats"]
MANNERS = [Manner(voice="slt"), Manner(voice="awb"), Manner(voice="rms", speed=1.25)]


@pytest.fixture(autouse=True)
def flite(tmp_path, monkeypatch):
    install_flite(tmp_path / "bin", monkeypatch)


def test_clips_come_back_as_they_were_spoken(tmp_path):
    recording = np.linspace(-1, 1, 1000, dtype=np.float32)
    recordings = [("a.wav", recording), ("short.wav", recording[:399])]
    corpus = make_corpus(tmp_path / "c", CAPTIONS, MANNERS, recordings, quiet=True)
    assert [clip.name for clip in corpus.clips] == ["0 slt", "2 rms", "a.wav"]
    spoken = speak(CAPTIONS[0], "slt")
    np.testing.assert_array_equal(corpus.waveform(0), spoken.samples / np.float32(32768))
    np.testing.assert_array_equal(corpus.labels(0), spoken.labels())
    faster = speak(CAPTIONS[2], "rms")
    assert len(corpus.waveform(1)) == pytest.approx(len(faster.samples) / 1.25, abs=2)
    assert corpus.clips[1].num_frames == len(corpus.labels(1))
    np.testing.assert_allclose(corpus.waveform(2), recording, atol=2 / 32768)
    assert corpus.labels(2).tolist() == [UNLABELLED] * 2
    assert [clip.is_recording for clip in corpus.clips] == [False, False, True]
    assert corpus.hours == pytest.approx(sum(c.num_samples for c in corpus.clips) / 16_000 / 3600)


def test_the_same_captions_make_the_same_files(tmp_path):
    for name, num_threads in (("a", 1), ("b", 3)):
        make_corpus(tmp_path / name, CAPTIONS, MANNERS, num_threads=num_threads, quiet=True)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["clips.json", "labels.uint8", "samples.int16"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(Corpus(tmp_path / "a")) == 2


def test_without_flite_nothing_is_left_out_silently(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FliteError, match="flite is not installed"):
        make_corpus(tmp_path / "c", CAPTIONS, MANNERS, quiet=True)
    assert not (tmp_path / "c" / "samples.int16").exists()


def test_manners_differ_and_follow_the_seed():
    first, second = (
        [draw_manner(np.random.default_rng(seed)) for _ in range(1)] for seed in (0, 0)
    )
    assert first == second
    generator = np.random.default_rng(1)
    manners = [draw_manner(generator) for _ in range(200)]
    assert {manner.voice for manner in manners} == {"awb", "rms", "slt", "kal16"}
    assert all(0.8 <= manner.stretch <= 1.25 for manner in manners)
    assert all(0.85 <= manner.speed <= 1.2 for manner in manners)
    assert 40 < sum(manner.speed == 1.0 for manner in manners) < 120
