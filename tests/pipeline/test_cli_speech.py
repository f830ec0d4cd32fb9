"""`im2sp-tokenize` on speech, with a small random HuBERT."""

import json

import numpy as np
import pytest

from im2sp.pipeline import cli, load_speech_tokenizer
from im2sp.pipeline.decoding.audio import read_audio
from im2sp.shards import ShardDataset, deduplicate, verify_dataset
from support.hubert import make_centroids, make_hubert, save_folder


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    """Paths of a HuBERT and of its 20 centroids."""
    folder = tmp_path_factory.mktemp("hubert")
    model = make_hubert()
    np.save(folder / "centroids.npy", make_centroids(model).numpy())
    return save_folder(model, folder / "tiny"), folder / "centroids.npy"


@pytest.fixture(scope="module")
def pairs(draw, speak, tmp_path_factory):
    folder = draw(tmp_path_factory.mktemp("pairs") / "p", 6, broken=[2])
    names = [f"{i:03d}_{k}.flac" for i in range(1, 4) for k in range(2)]
    return speak(folder, *names, "talk.wav", broken=["003_1.flac"])


@pytest.fixture
def tokenize(capsys, tiny_checkpoint, hubert):
    """tokenize(*args) -> exit status, stdout, stderr of the command with tiny tokenizers."""

    def run(*args, kmeans=True):
        args = [*map(str, args), "--image-tokenizer", str(tiny_checkpoint), "--num-workers", "1"]
        if "--speech-tokenizer" not in args:
            args += ["--speech-tokenizer", str(hubert[0])]
        args += ["--kmeans", str(hubert[1])] if kmeans else []
        with pytest.raises(SystemExit) as left:
            cli.main(args)
        shown = capsys.readouterr()
        return left.value.code, shown.out, shown.err

    return run


def test_pairs_of_images_and_speech(tokenize, pairs, hubert, tmp_path):
    code, out, err = tokenize(pairs, "--out", tmp_path / "out")
    assert code == 0
    first, second = (line for line in err.splitlines()[:5] if " tokenizer " in line[:17])
    assert first.startswith("image tokenizer tiny.safetensors: fp32 on cpu, fingerprint ")
    assert second.startswith("speech tokenizer tiny: fp32 on cpu, fingerprint ")
    assert second.endswith(", layer 6, 20 units")
    assert "7/7" in err
    assert "images=5, utterances=4, audio=0.00 h, refused=2" in err
    assert "encoded 5 images and 4 utterances" in out
    assert "holds     5 images and 4 utterances" in out
    assert verify_dataset(tmp_path / "out") == []
    tokenizer = load_speech_tokenizer(*hubert)
    samples = {sample.key: sample for sample in ShardDataset(tmp_path / "out")}
    assert {key: len(sample.speech_units) for key, sample in samples.items()} == {
        "000": 0, "001": 2, "003": 1, "004": 0, "005": 0, "talk": 1,
    }  # fmt: skip
    wave = read_audio(pairs / "001_1.flac", name="x")
    units, runs = deduplicate(tokenizer.encode(wave, 16_000))
    np.testing.assert_array_equal(samples["001"].speech_units[1], units)
    np.testing.assert_array_equal(samples["001"].durations[1], runs)


def test_speech_alone(tokenize, pairs, tmp_path):
    args = [pairs, "--out", tmp_path / "out", "--only", "audio", "--quiet", "--json"]
    code, out, err = tokenize(*args, "--image-tokenizer", "nowhere", "--layout", "webdataset")
    assert (code, err) == (0, "")
    content = json.loads(out)
    assert content["image_tokenizer"] is None
    assert content["speech_tokenizer"]["num_units"] == 20
    assert content["raw"]["num_utterances"] == content["num_utterances_encoded"] == 6
    assert verify_dataset(tmp_path / "out") == []


def test_images_alone_load_no_speech_tokenizer(tokenize, pairs, tmp_path):
    args = [pairs, "--out", tmp_path / "out", "--only", "images", "--speech-tokenizer", "nowhere"]
    code, _, err = tokenize(*args, kmeans=False)
    assert code == 0
    assert "speech" not in err
    assert len(ShardDataset(tmp_path / "out")) == 5


def test_layer_limit_and_codec_are_passed_on(tokenize, pairs, tmp_path):
    args = [pairs, "--only", "audio", "--quiet", "--speech-layer", 3, "--max-audio-s", 0.35]
    assert tokenize(*args, "--out", tmp_path / "a", "--speech-codec", "plain")[0] == 0
    manifest = ShardDataset(tmp_path / "a").manifest
    assert manifest.speech_tokenizer["layer"] == 3
    assert manifest.settings["max_audio_s"] == 0.35
    assert manifest.columns["speech_units"]["codec"] == "packed"
    assert "over the limit of 0.35 s" in (tmp_path / "a/rejects.jsonl").read_text()


def test_audio_of_another_folder(tokenize, draw, speak, tmp_path):
    pictures, sound = draw(tmp_path / "p", 2), speak(tmp_path / "s", "000.wav", "001_0.wav")
    code, _, err = tokenize(pictures, "--audio-root", sound, "--out", tmp_path / "out", "--quiet")
    assert (code, err) == (0, "")
    assert [len(sample.speech_units) for sample in ShardDataset(tmp_path / "out")] == [1, 1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--audio-root", "nowhere"], "nowhere: no such file"),
        (["--kmeans", "gone.bin"], "gone.bin: no such file"),
        (["--speech-codec", "zip"], "Invalid choice"),
        (["--max-audio-s", "0"], "--max-audio-s is 0"),
        (["--max-audio-s", "nan"], "--max-audio-s is nan"),
        (["--speech-layer", "0"], "--speech-layer is 0"),
        (["--only", "text"], "text"),
        (["--device", "abacus", "--only", "audio"], "--device abacus: "),
    ],
)
def test_wrong_usage_is_2(tokenize, pairs, tmp_path, args, message):
    code, out, err = tokenize(
        pairs, "--out", tmp_path / "out", *args, kmeans="--kmeans" not in args
    )
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_failures_are_one_line(tokenize, pairs, twenty, tmp_path):
    audio = ["--only", "audio", "--quiet", "--out", tmp_path / "out"]
    for args, message in [
        ([pairs, *audio, "--speech-layer", 99], "99"),
        ([pairs, *audio, "--speech-tokenizer", tmp_path / "none"], "none"),
        ([twenty, *audio], "holds no audio; leave --only audio out"),
    ]:
        code, out, err = tokenize(*args)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert err.startswith("im2sp-tokenize: ")
        assert message in err
    assert not (tmp_path / "out").exists()
