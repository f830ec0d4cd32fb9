import gzip
import shutil
import sys

import numpy as np
import pytest

from im2sp.tools.engines.asr import edits, load_recognizer, word_errors, words_of
from im2sp.tools.engines.flite import speak
from im2sp.tools.fit_asr import main as fit_asr
from support.evaluation import make_ctc_model, make_seq2seq_model


def sound(seconds=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(16_000 * seconds))).astype(np.float32)


def test_pocketsphinx_hears_each_clip_as_if_alone():
    pytest.importorskip("pocketsphinx")
    recognizer = load_recognizer("pocketsphinx")
    assert recognizer.name == "pocketsphinx"
    assert recognizer.fingerprint.startswith("pocketsphinx 5")
    first = recognizer.transcribe(sound())
    recognizer.transcribe(0.01 * sound(0.5, seed=1))
    assert recognizer.transcribe(sound()) == first
    assert recognizer.transcribe(sound(0.05)) == ""


def test_pocketsphinx_with_a_language_model_of_captions(tmp_path):
    pytest.importorskip("pocketsphinx")
    plain = load_recognizer("pocketsphinx")
    recognizer = load_recognizer("pocketsphinx+captions")
    assert recognizer.name == "pocketsphinx+captions"
    assert recognizer.fingerprint.startswith(f"{plain.fingerprint}, language model ")
    own = tmp_path / "own.arpa"
    captions = tmp_path / "captions.txt"
    captions.write_text("two dogs play\n")
    assert fit_asr([str(captions), "--out", str(own), "--min-count", "1"]) == 0
    fitted = load_recognizer(f"pocketsphinx+{own}")
    assert fitted.name == "pocketsphinx+own.arpa"
    assert fitted.fingerprint != recognizer.fingerprint
    # It recognizes only words of its language model.
    if shutil.which("flite"):
        spoken = speak("the dogs play", "slt").samples.astype(np.float32) / 32768
        assert set(fitted.transcribe(spoken).split()) <= {"two", "dogs", "play"}
        assert "dogs play" in fitted.transcribe(spoken)


def test_language_models_that_cannot_be_used(tmp_path):
    pytest.importorskip("pocketsphinx")
    with pytest.raises(ValueError, match=r"--asr pocketsphinx\+x: .*; expected pocketsphinx\+capt"):
        load_recognizer("pocketsphinx+x")
    path = tmp_path / "lm.gz"
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="cannot be read: damaged gzip data"):
        load_recognizer(f"pocketsphinx+{path}")
    path.write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(ValueError, match="bytes of content in [0-9,]+ bytes of gzip"):
        load_recognizer(f"pocketsphinx+{path}")
    path.write_bytes(gzip.compress(b"text"))
    with pytest.raises(ValueError, match="not a language model in the ARPA format; its first line"):
        load_recognizer(f"pocketsphinx+{path}")
    path.write_bytes(gzip.compress(b"\\data\\\nno counts"))
    with pytest.raises(ValueError, match=r"lm\.gz: pocketsphinx cannot load this language model"):
        load_recognizer(f"pocketsphinx+{path}")


@pytest.mark.parametrize("make", [make_ctc_model, make_seq2seq_model])
def test_models_of_transformers(make, tmp_path):
    folder = make(tmp_path / "model")
    recognizer = load_recognizer(str(folder), device="cpu")
    assert recognizer.name == "model"
    assert len(recognizer.fingerprint) == 64
    text = recognizer.transcribe(sound())
    assert isinstance(text, str)
    assert not set(text.lower()) - set("abcdefghij ")
    assert recognizer.transcribe(sound()) == text
    assert recognizer.transcribe(sound(0.01)) == ""
    again = load_recognizer(str(folder), device="cpu")
    assert again.fingerprint == recognizer.fingerprint


def test_a_model_of_another_sample_rate_is_refused_when_it_is_loaded(tmp_path):
    folder = make_ctc_model(tmp_path / "model")
    for path in folder.glob("*processor_config.json"):
        path.write_text(path.read_text().replace('"sampling_rate": 16000', '"sampling_rate": 8000'))
    with pytest.raises(ValueError, match="model: .*its sampling_rate is 8000, expected 16000"):
        load_recognizer(str(folder), device="cpu")


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="not a speech-to-text model that transformers can load"):
        load_recognizer(str(tmp_path))
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(ValueError, match="pocketsphinx is not installed: pip install"):
        load_recognizer("pocketsphinx")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="x: needs transformers, which is not installed"):
        load_recognizer("x")


def test_word_errors():
    assert words_of("A dog's t-shirt, TWO.") == ["a", "dog's", "t", "shirt", "two"]
    assert word_errors("the dog runs", "A dog runs fast.") == (2, 4)
    assert word_errors("", "two words") == (2, 2)
    assert word_errors("a word", "") == (2, 0)
    assert edits([1, 2, 3], [1, 3]) == 1
    assert edits(range(70_000, 70_300), range(70_001, 70_300)) == 1


def test_edits_without_rapidfuzz(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(ValueError, match=r"rapidfuzz, .* pip install 'im2sp\[evaluate\]' or"):
        edits([1], [2])
