import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from im2sp.shards import ShardDataset
from im2sp.tools import flickr8k_spoken
from im2sp.tools.engines.flite import VOICES
from im2sp.tools.flickr8k_spoken import main, read_lines, speak_lines
from support.hubert import make_centroids, make_hubert, save_folder
from support.speech import install_flite

IMAGES = sorted((Path(__file__).parents[2] / "docs/demo-images").glob("*.jpg"))[:2]
TEXTS = [["a dog runs", "two cats", "break"], ["one man sleeps", "boats", "red boats"]]


@pytest.fixture(scope="module")
def speech_tokenizer(tmp_path_factory):
    model = make_hubert()
    folder = tmp_path_factory.mktemp("hubert")
    np.save(folder / "centroids.npy", make_centroids(model).numpy())
    return save_folder(model, folder / "tiny"), folder / "centroids.npy"


@pytest.fixture
def captions(tmp_path, monkeypatch):
    """A Karpathy file of two pictures; flite fails on one of their captions."""
    install_flite(tmp_path / "bin", monkeypatch)
    images, sentid = [], 0
    for path, texts, split in zip(IMAGES, TEXTS, ("train", "val"), strict=True):
        shutil.copy(path, tmp_path)
        sentences = [{"raw": text, "sentid": sentid + i} for i, text in enumerate(texts)]
        images.append({"filename": path.name, "split": split, "sentences": sentences})
        sentid += len(texts)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"images": images}))
    return path


@pytest.fixture
def run(captions, tmp_path, speech_tokenizer, capsys):
    """Run the tool; exit status and what it said."""

    def function(*more, out="spoken", quiet=True):
        folder, centroids = speech_tokenizer
        options = ["--speech-tokenizer", folder, "--kmeans", centroids, "--num-workers", 1]
        arguments = [captions, "--out", tmp_path / out, *options, *more]
        arguments += ["--quiet"] * quiet
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return stopped.value.code or 0, said.out + said.err

    return function


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_captions_become_units_and_the_speech_is_removed(run, tmp_path):
    status, said = run(quiet=False)
    assert status == 0
    assert "2 images and 5 utterances" in said
    assert f"no speech from flite for {IMAGES[0].stem}_2.wav; skipped" in said
    samples = list(ShardDataset(tmp_path / "spoken"))
    assert [sample.key for sample in samples] == [path.stem for path in IMAGES]
    assert [sample.split for sample in samples] == ["train", "val"]
    assert [list(sample.captions) for sample in samples] == TEXTS
    assert [len(sample.speech_units) for sample in samples] == [2, 3]
    # The stand-in says a word in 0.2 s, with as much silence at both ends.
    num_frames = [(3200 * (len(text.split()) + 2) - 400) // 320 + 1 for text in TEXTS[1]]
    assert [int(durations.sum()) for durations in samples[1].durations] == num_frames
    assert not (tmp_path / "spoken/.spoken").exists()
    status, said = run(quiet=False)
    assert (status, "a complete dataset exists; nothing done" in said) == (0, True)


def test_an_interrupted_job_goes_on_to_the_same_bytes(run, tmp_path, monkeypatch):
    run(out="undisturbed")
    speak, spoken = flickr8k_spoken.speak, []

    def interrupted(text, voice):
        if len(spoken) == 4:
            raise KeyboardInterrupt
        spoken.append(text)
        return speak(text, voice)

    monkeypatch.setattr(flickr8k_spoken, "speak", interrupted)
    assert run() == (130, "flickr8k_spoken: interrupted; run the same command again to resume\n")
    first = spoken.copy()
    monkeypatch.setattr(flickr8k_spoken, "speak", lambda *a: spoken.append(a[0]) or speak(*a))
    assert run()[0] == 0
    assert sorted(spoken[len(first) :]) == sorted({*TEXTS[0], *TEXTS[1]} - ({*first} - {"break"}))
    assert contents(tmp_path / "spoken") == contents(tmp_path / "undisturbed")


def test_voices_take_turns_by_sentid(captions):
    lines = read_lines(captions, VOICES)
    assert [line.voice for line in lines] == ["awb", "rms", "slt", "kal16", "awb", "rms"]
    assert {line.voice for line in read_lines(captions, ["slt"])} == {"slt"}


def test_speech_is_kept_in_the_layout_of_flickr8k_audio(run, tmp_path):
    assert run("--keep-audio", tmp_path / "audio", "--voices", "slt", "rms")[0] == 0
    stems = [path.stem for path in IMAGES]
    names = [f"{stem}_{place}.wav" for stem in stems for place in range(3)]
    there = {path.name for path in (tmp_path / "audio/wavs").iterdir()}
    assert there == {*names} - {f"{stems[0]}_2.wav"}
    assert soundfile.info(tmp_path / "audio/wavs" / names[0]).samplerate == 16000
    speakers = (tmp_path / "audio/wav2spk.txt").read_text().splitlines()
    assert speakers[:2] == [f"{names[0]} slt", f"{names[1]} rms"]
    pairs = (tmp_path / "audio/wav2capt.txt").read_text().splitlines()
    assert pairs[4] == f"{names[4]} {IMAGES[1].name} #1"


def test_speech_of_other_voices_or_of_nobody_knows_what_is_refused(captions, tmp_path):
    folder = tmp_path / "audio"
    speak_lines(read_lines(captions, ["slt"]), folder, quiet=True)
    with pytest.raises(ValueError, match="contains other captions or voices; give another folder"):
        speak_lines(read_lines(captions, ["rms"]), folder, quiet=True)
    (folder / "spoken.json").unlink()
    with pytest.raises(ValueError, match=r"wavs: has files but no spoken\.json"):
        speak_lines(read_lines(captions, ["slt"]), folder, quiet=True)


def test_what_cannot_be_is_told(run, captions, tmp_path, monkeypatch):
    assert run("--voices", "slt", "fred") == (
        2,
        "flickr8k_spoken: --voices is slt fred; expected some of awb, rms, slt, kal16\n",
    )
    assert run("--num-workers", "0")[0] == 2
    monkeypatch.setenv("PATH", "")
    status, said = run()
    assert (status, "flite is not installed" in said) == (1, True)
    captions.write_text('{"images": [{"filename": "a.jpg", "sentences": [{"raw": "x"}]}]}')
    assert "KeyError('sentid'); expected a Karpathy file" in run()[1]
    captions.unlink()
    assert "No such file or directory; expected a Karpathy file" in run()[1]
