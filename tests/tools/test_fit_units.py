import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch

from im2sp.pipeline import load_speech_tokenizer
from im2sp.pipeline.sources.items import Utterance
from im2sp.pipeline.speech_tokenizer.tokenizer import CHUNK_SAMPLES
from im2sp.pipeline.tensors import read_weights
from im2sp.tools import fit_units
from im2sp.tools.evaluation.unit_quality import NO_PHONE, PhoneLabels, UnitMeter, pnmi
from im2sp.tools.fitting.clip_features import Clips, FeatureReader, frame_times_s
from support.hubert import clip, features_of, make_hubert, save_folder
from support.units import save_clips


@pytest.fixture(scope="module")
def model():
    return make_hubert()


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """A HuBERT's folder, and clips of which one has no sound and one is cut."""
    folder = tmp_path_factory.mktemp("made")
    save_folder(model, folder / "hubert")
    save_clips(folder / "clips" / "deep", num_clips=5)
    (folder / "clips" / "bad.wav").write_bytes(b"no sound")
    data = (folder / "clips" / "deep" / "c0.wav").read_bytes()
    (folder / "clips" / "cut.wav").write_bytes(data[:-100])
    return folder


def run(made, out, *flags, source="clips"):
    arguments = [str(made / source), "--speech-tokenizer", str(made / "hubert"), "--out", str(out)]
    return fit_units.main([*arguments, "--num-units", "12", "--device", "cpu", "--quiet", *flags])


def label(folder, names, phones=("a", "b", "c"), step_s=0.1):
    folder.mkdir(exist_ok=True)
    for name in names:
        lines = [f"{i * step_s:.3f} {(i + 1) * step_s:.3f} {phones[i % 3]}\n" for i in range(9)]
        (folder / f"{name}.lab").write_text("".join(lines))
    return folder


def test_the_centres_load_and_the_card_says_what_they_are(made, model, tmp_path, capsys):
    out = tmp_path / "new" / "km.safetensors"
    assert run(made, out) == 0
    card = json.loads(capsys.readouterr().out)
    tokenizer = load_speech_tokenizer(made / "hubert", out, device="cpu")
    assert card["speech_tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert (tokenizer.num_units, tokenizer.layer) == (12, 6)
    samples = [clip(16_000 + 960 * i, seed=i) for i in range(5)]
    units = np.concatenate(tokenizer.encode_batch(samples))
    features = torch.cat([features_of(model, one) for one in samples]).double()
    squares = (features - tokenizer.centroids.double()[units.astype(int)]).square().sum(1)
    fitted = card["fitted"]
    assert fitted["num_frames"] == card["recipe"]["num_frames_seen"] == len(units)
    assert fitted["inertia"] == pytest.approx(squares.mean().item(), rel=1e-3)
    variance = (features - features.mean(0)).square().sum(1).mean().item()
    assert fitted["unexplained"] == pytest.approx(squares.mean().item() / variance, rel=1e-3)
    assert fitted["units_used"] == len(set(units.tolist())) == 12
    assert 6 < fitted["perplexity"] <= 12
    assert "pnmi" not in fitted
    lines = out.with_suffix(".rejects.jsonl").read_text().splitlines()
    rejects = [json.loads(line) for line in lines]
    assert [row["file"] for row in rejects] == ["bad.wav", "cut.wav"]
    assert all(row["reason"] and not row["reason"].startswith(row["file"]) for row in rejects)
    assert (card["data"]["num_clips"], card["data"]["num_rejects"]) == (5, 2)
    weights = read_weights(out)
    assert list(weights.tensors()) == ["centres"]
    assert json.loads(weights.metadata["im2sp"]) == card


def test_the_card_names_no_path_of_this_machine(made, tmp_path, capsys):
    run(made, tmp_path / "km.safetensors", "--val", str(made / "clips"))
    text = (tmp_path / "km.md").read_text()
    assert "# Card of `km.safetensors`" in text
    assert "the HuBERT `hubert` (fp32)" in text
    assert re.search(
        r"Fitted to 5 clips, 0.0016 hours, of a source of kind folder .* 2 rejects", text
    )
    assert "Measured on 5 clips" in text
    assert str(tmp_path) not in text + capsys.readouterr().out
    assert str(made) not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "km.md",
        "km.rejects.jsonl",
        "km.safetensors",
    ]


def test_the_same_command_gives_the_same_bytes(made, tmp_path, capsys):
    names = ("km.safetensors", "km.md", "km.rejects.jsonl")
    found = []
    for seed in ("3", "3", "4"):
        assert run(made, tmp_path / "km.safetensors", "--seed", seed, "--max-frames", "100") == 0
        found.append([(tmp_path / name).read_bytes() for name in names])
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]
    assert '"num_frames": 100,' in capsys.readouterr().out


def test_labels_give_what_units_tell_of_phones(made, tmp_path, capsys):
    labels = label(tmp_path / "labels", ["c0", "c1", "c2"])
    assert run(made, tmp_path / "km.safetensors", "--labels", str(labels)) == 0
    card = json.loads(capsys.readouterr().out)
    tokenizer = load_speech_tokenizer(made / "hubert", tmp_path / "km.safetensors", device="cpu")
    phones, units = [], []
    for i in range(3):
        for t, unit in enumerate(tokenizer.encode(clip(16_000 + 960 * i, seed=i), 16_000)):
            tenth = int((t * 0.02 + 0.0125) / 0.1)
            if tenth < 9:
                phones.append("abc"[tenth % 3])
                units.append(int(unit))
    fitted = card["fitted"]
    assert card["data"]["num_labelled_clips"] == 3
    assert (fitted["num_labelled_frames"], fitted["num_phones"]) == (len(phones), 3)
    assert fitted["pnmi"] == pytest.approx(pnmi(phones, units), rel=1e-3)
    assert 0 < fitted["cluster_purity"] < fitted["phone_purity"] < 1
    assert "| PNMI | 0." in (tmp_path / "km.md").read_text()


def test_val_is_measured_and_not_fitted(made, tmp_path, capsys):
    val = save_clips(tmp_path / "val", num_clips=2, num_samples=9000)
    (val / "bad.flac").write_bytes(b"")
    label(val, ["c0", "c1"])
    out = tmp_path / "km.safetensors"
    assert run(made, out, "--val", str(val), "--labels", str(val)) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["val_data"]["num_clips"] == card["val_data"]["num_labelled_clips"] == 2
    tokenizer = load_speech_tokenizer(made / "hubert", out, device="cpu")
    units = [tokenizer.encode(clip(9000 + 960 * i, seed=i), 16_000) for i in range(2)]
    assert card["val"]["num_frames"] == sum(map(len, units))
    assert card["val"]["units_used"] == len(set(np.concatenate(units).tolist()))
    assert card["val"]["pnmi"] > 0
    assert "bad.flac" in out.with_suffix(".rejects.jsonl").read_text()
    assert run(made, tmp_path / "alone.safetensors") == 0
    alone = read_weights(tmp_path / "alone.safetensors").tensors()["centres"]
    assert torch.equal(read_weights(out).tensors()["centres"], alone)


def test_damaged_labels_cost_the_labels_alone(made, tmp_path, capsys):
    labels = label(tmp_path / "labels", ["c0", "c1"])
    (labels / "c1.lab").write_text("0 x a\n")
    assert run(made, tmp_path / "km.safetensors", "--labels", str(labels)) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["num_clips"], data["num_labelled_clips"], data["num_rejects"]) == (5, 1, 3)
    text = (tmp_path / "km.rejects.jsonl").read_text()
    assert "its labels are not used: c1.lab:1: '0 x a'" in text


def test_a_split_of_a_list(made, tmp_path, capsys):
    rows = [
        {"audio": f"clips/deep/c{i}.wav", "split": "train" if i < 3 else "val"} for i in range(5)
    ]
    shutil.copytree(made, tmp_path / "all")
    (tmp_path / "all" / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--split", "train")
    assert run(tmp_path / "all", tmp_path / "km.safetensors", *flags, source="list.jsonl") == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["num_clips"], data["split"]) == (3, "train")
    assert "kind jsonl, split train" in (tmp_path / "km.md").read_text()
    flags = ("--split", "test")
    assert run(tmp_path / "all", tmp_path / "no.safetensors", *flags, source="list.jsonl") == 1
    assert "holds no speech in split 'test' among 5 inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--labels", "{0}/none"), "none: no such file or folder of phone labels"),
        (("--labels", "{0}"), "labels for none of the 7 clips to measure, the first is bad.wav"),
        (("--layer", "9"), "a model of 8 layers has no layer 9"),
        (("--val", "{0}/none"), "none: no such file or folder; check the path of the source"),
        (("--restarts", "0"), "0 restarts of 50 rounds"),
        (("--num-units", "5000"), "5000 centroids for 275 rows"),
    ],
)
def test_what_is_not_possible_is_one_line(made, tmp_path, capsys, flags, message):
    flags = [flag.format(tmp_path) for flag in flags]
    assert run(made, tmp_path / "km.safetensors", *flags) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be(made, tmp_path, capsys):
    common = {"source": tmp_path, "speech_tokenizer": "x"}
    with pytest.raises(ValueError, match="--max-frames is 11, expected at least --num-units, 200"):
        fit_units.FitConfig(**common, out=tmp_path / "km.safetensors", max_frames=11)
    with pytest.raises(ValueError, match="km.bin: expected a file name that ends in .safetensors"):
        fit_units.FitConfig(**common, out=tmp_path / "km.bin")
    assert run(made, tmp_path / "km.bin") == 2
    assert "expected a file name that ends in" in " ".join(capsys.readouterr().err.split())


def test_no_readable_clip_is_one_line(made, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"nothing")
    assert run(made, tmp_path / "x.safetensors", source=str(tmp_path / "in")) == 1
    assert "no readable clip, the first is a.wav: " in capsys.readouterr().err
    flags = ("--val", str(tmp_path / "in"))
    assert run(made, tmp_path / "x.safetensors", *flags) == 1
    assert "in: no readable clip" in capsys.readouterr().err


# Reading ------------------------------------------------------------------------------------------


def frames_of(samples):
    """A stand-in for an encoder: each frame's first samples."""
    return samples.unfold(1, 400, 320)[..., :3].contiguous()


def write_clip(path, samples):
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    return Utterance(audio=path, name=path.name)


def test_long_clips_are_cut_as_they_are_tokenized(tmp_path):
    samples = np.random.default_rng(0).normal(size=2 * CHUNK_SAMPLES + 399).astype(np.float32)
    utterance = write_clip(tmp_path / "long.wav", samples)
    (tmp_path / "long.lab").write_text("0 100 a\n100 150 b\n")
    reader = FeatureReader(frames_of, labels=PhoneLabels(tmp_path))
    parts = list(reader.read([utterance, utterance]))
    assert [len(features) for features, _ in parts] == [4999] * 4
    assert (reader.num_clips, reader.num_labelled) == (2, 2)
    np.testing.assert_array_equal(parts[1][0][0], samples[CHUNK_SAMPLES : CHUNK_SAMPLES + 3])
    assert set(parts[0][1].tolist()) == {0}
    assert parts[1][1].tolist() == [1] * 2500 + [NO_PHONE] * 2499
    assert frame_times_s(2).tolist() == [0.0125, 0.0325]


def test_features_that_are_not_finite_are_a_reject(tmp_path):
    good, loud = clip(1000), clip(1000, loudness=1e30)
    utterances = [write_clip(tmp_path / f"{i}.wav", one) for i, one in enumerate((good, loud))]
    reader = FeatureReader(lambda samples: (frames_of(samples).square() * 1e-30).exp())
    assert len(list(reader.read(utterances))) == 1
    assert reader.rejects == [
        {"file": "1.wav", "reason": "its features from 0 s on are not finite"}
    ]
    assert (reader.num_clips, reader.num_samples) == (1, 1000)


def test_rejects_of_the_source_are_listed(tmp_path):
    save_clips(tmp_path, num_clips=1)
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nothing")
    for suffix in (".jpg", ".png"):
        (tmp_path / f"x{suffix}").write_bytes(b"")
    shutil.copy(tmp_path / "c0.wav", tmp_path / "x.wav")
    clips = Clips.of(tmp_path)
    assert [row["file"] for row in clips.rejects] == ["x.wav"]
    reader = FeatureReader(frames_of)
    assert len(list(reader.read(clips.utterances))) == 1
    assert [row["reason"] for row in reader.rejects] == ["link to nothing"]


def test_nothing_measured_is_refused(made, model):
    centroids = features_of(model, clip(5000))[:3]
    tokenizer = load_speech_tokenizer(made / "hubert", centroids, device="cpu")
    with pytest.raises(ValueError, match="no frames to measure"):
        UnitMeter(tokenizer).figures()
