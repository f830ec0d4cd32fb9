import json

import numpy as np
import pytest
import soundfile as sf

from im2sp.pipeline import load_speech_tokenizer
from im2sp.tools.fitting.speech_corpus import read_captions
from im2sp.tools.fitting.vocoder_corpus import (
    Segments,
    collapse,
    encode_corpus,
    normalised,
    read_recordings,
    read_texts,
    speak_captions,
)
from im2sp.tools.fitting.vocoder_trainer import Recipe
from support.hubert import clip, make_centroids, make_hubert, save_folder
from support.speech import install_flite

RECIPE = Recipe(batch_size=4, segment_frames=20)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    model = make_hubert()
    folder = save_folder(model, tmp_path_factory.mktemp("hubert") / "tiny")
    return load_speech_tokenizer(folder, make_centroids(model), device="cpu")


@pytest.fixture
def captions(tmp_path, monkeypatch):
    install_flite(tmp_path / "bin", monkeypatch)
    texts = ["a dog runs", "two cats", "one man sleeps by water", "boats", "break"]
    images = [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": t} for t in texts]}]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return path


def test_captions_are_spoken_once_and_their_texts_kept(captions, tmp_path, monkeypatch):
    corpus = speak_captions(tmp_path / "c", captions, "train", "slt", 99, 0)
    texts = read_texts(tmp_path / "c")
    assert sorted(texts) == sorted(read_captions(captions, "train")[:4])  # flite fails on the last
    for found, text in zip(corpus.clips, texts, strict=True):
        assert found.num_samples == 3200 * (len(text.split()) + 2)
    monkeypatch.setenv("PATH", "")
    again = speak_captions(tmp_path / "c", captions, "train", "slt", 99, 0)
    assert again.clips == corpus.clips


def test_recordings_with_some_held_back(tmp_path, capsys, monkeypatch):
    wavs = tmp_path / "lj" / "wavs"
    wavs.mkdir(parents=True)
    rows = []
    for number in range(6):
        sf.write(wavs / f"{number}.wav", clip(8000 + 320 * number, number), 16_000)
        rows.append(f"{number}|Text {number}|text {number}")
    (wavs / "1.wav").write_bytes(b"no sound")
    (tmp_path / "lj" / "metadata.csv").write_text("\n".join(rows) + "\n")
    train, val = read_recordings(tmp_path / "t", tmp_path / "v", tmp_path / "lj", 2, 0)
    texts = read_texts(tmp_path / "t") + read_texts(tmp_path / "v")
    assert sorted(texts) == [f"text {number}" for number in (0, 2, 3, 4, 5)]
    assert len(train) + len(val) == 5
    assert "skipped: " in capsys.readouterr().err
    for corpus, folder in ((train, "t"), (val, "v")):
        for one, text in zip(corpus.clips, read_texts(tmp_path / folder), strict=True):
            assert one.num_samples == 8000 + 320 * int(text.split()[1])
    again, _ = read_recordings(tmp_path / "t", tmp_path / "v", tmp_path / "gone", 2, 0)
    assert again.clips == train.clips
    with pytest.raises(ValueError, match="6 recordings, expected more than the 6 that are held"):
        read_recordings(tmp_path / "x", tmp_path / "y", tmp_path / "lj", 6, 0)
    monkeypatch.setattr("im2sp.tools.fitting.vocoder_corpus.CHUNK_SAMPLES", 9000)
    read_recordings(tmp_path / "x", tmp_path / "y", tmp_path / "lj", 2, 0)
    assert "is over 100 s long" in capsys.readouterr().err


def test_units_are_those_of_the_clips_and_kept(captions, tmp_path, tokenizer):
    folder = tmp_path / "c"
    corpus = speak_captions(folder, captions, "train", "slt", 99, 0)
    units = encode_corpus(folder, corpus, tokenizer)
    for number in range(len(corpus)):
        expected = tokenizer.encode(corpus.waveform(number), 16_000)
        np.testing.assert_array_equal(units[number], expected)
    path = next(folder.glob("units-*"))
    before = path.stat().st_mtime_ns
    encode_corpus(folder, corpus, tokenizer)
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="units, expected .*; delete it"):
        encode_corpus(folder, corpus, tokenizer)


def test_collapse_and_back():
    units, durations = collapse(np.array([3, 3, 1, 1, 1, 3, 0], np.uint16))
    assert units.tolist() == [3, 1, 3, 0]
    assert durations.tolist() == [2, 3, 1, 1]
    assert np.abs(normalised(np.array([0.1, -0.2], np.float32))).max() == pytest.approx(0.95)
    assert normalised(np.zeros(3, np.float32)).tolist() == [0, 0, 0]


def test_segments_and_durations_belong_together(captions, tmp_path):
    corpus = speak_captions(tmp_path / "c", captions, "train", "slt", 99, 0)
    # Each frame's number in its clip, in pairs, so that a unit tells its place.
    units = [np.arange(one.num_frames, dtype=np.uint16) // 2 for one in corpus.clips]
    batch = Segments(corpus, units, RECIPE).draw(np.random.default_rng(3))
    assert batch.units.shape == (4, 20)
    assert batch.samples.shape == (4, 6400)
    waveforms = [normalised(corpus.waveform(number)) for number in range(len(corpus))]
    for row, samples in zip(batch.units, batch.samples.numpy(), strict=True):
        places = [2 * int(row[0]) + odd for odd in (0, 1)]
        assert any(
            np.array_equal(samples, waveform[320 * place : 320 * place + 6400])
            for place in places
            for waveform in waveforms
        )
    for collapsed, durations in zip(batch.collapsed, batch.durations, strict=True):
        count = int((durations > 0).sum())
        assert (durations[count:] == 0).all()
        assert collapsed[:count].tolist() == list(range(count))
        assert set(durations[: count - 1].tolist()) == {2}


def test_clips_that_are_too_short_are_not_drawn(captions, tmp_path):
    corpus = speak_captions(tmp_path / "c", captions, "train", "slt", 99, 0)
    units = [np.zeros(one.num_frames, np.uint16) for one in corpus.clips]
    longest = max(len(one) for one in units)
    recipe = Recipe(batch_size=2, segment_frames=longest)
    assert Segments(corpus, units, recipe).draw(np.random.default_rng(0)).units.shape[1] == longest
    with pytest.raises(ValueError, match=f"none of 4 clips is {longest + 1} frames of 20 ms long"):
        Segments(corpus, units, Recipe(segment_frames=longest + 1))
