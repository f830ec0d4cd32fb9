"""The job on sources with speech: alone, and paired with images."""

import json
import re

import numpy as np
import pytest

from im2sp.pipeline.decoding.audio import read_audio
from im2sp.pipeline.image_tokenizer.tokenizer import load_image_tokenizer
from im2sp.pipeline.job import encode as job_encode
from im2sp.pipeline.job import run as job
from im2sp.pipeline.job.run import JobConfig, run_job
from im2sp.pipeline.job.state import JobError
from im2sp.pipeline.summary import summary, summary_json
from im2sp.shards import (
    ShardDataset,
    ShardError,
    deduplicate,
    verify_dataset,
)

PACKED = {"layout": "webdataset", "samples_per_member": 3}
PLAIN = {"layout": "webdataset", "samples_per_member": 1}
GOOD_CLIPS = {"006": 2, "007": 2, "010": 2, "011": 3, "003": 3, "talk": 1, "009": 1}


def run(source, out, *tokenizers, **settings):
    settings = {"num_workers": 1, "quiet": True, "samples_per_shard": 8} | settings
    return run_job(JobConfig(source=source, dataset_dir=out, **settings), *tokenizers)


def not_needed():
    raise AssertionError("this tokenizer is not needed")


def check_sound(out):
    assert [str(problem) for problem in verify_dataset(out)] == []
    assert not (out / ".im2sp-job").exists()
    assert not list(out.glob("*.tmp"))


def check_speech(sample, tokenizer, *paths):
    assert len(sample.speech_units) == len(paths)
    for path, units, runs in zip(paths, sample.speech_units, sample.durations, strict=True):
        expected = deduplicate(tokenizer.encode(read_audio(path, name="x")))
        np.testing.assert_array_equal(units, expected[0])
        np.testing.assert_array_equal(runs, expected[1])


def rejects_of(out):
    rows = [json.loads(row) for row in (out / "rejects.jsonl").read_text().splitlines()]
    return [row["file"] for row in rows]


def same_samples(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.key, a.split, a.captions) == (b.key, b.split, b.captions)
        np.testing.assert_array_equal(a.image_units, b.image_units)
        for left, right in ((a.speech_units, b.speech_units), (a.durations, b.durations)):
            assert (left is None) == (right is None)
            for x, y in zip(left or [], right or [], strict=True):
                np.testing.assert_array_equal(x, y)


# What is stored -----------------------------------------------------------------------------------


def test_pairs_with_real_workers_read_back_what_the_tokenizers_give(
    spoken, tiny_checkpoint, fake_speech, tmp_path
):
    tokenizer = load_image_tokenizer(tiny_checkpoint)
    result = run(spoken, tmp_path / "out", tokenizer, fake_speech, num_workers=2)
    check_sound(tmp_path / "out")
    dataset = ShardDataset(tmp_path / "out")
    clips = {sample.key: len(sample.speech_units) for sample in dataset}
    assert {key: number for key, number in clips.items() if number} == GOOD_CLIPS
    assert set(clips) == {f"{i:03d}" for i in range(12) if i != 5} | {"talk"}
    good = []
    for sample in dataset:
        paths = [
            path
            for path in sorted(spoken.glob(f"{sample.key}[_.]*"))
            if path.suffix != ".png" and path.name != "007_1.flac"
        ]
        good += paths
        check_speech(sample, fake_speech, *paths) if paths else None
        assert (sample.durations is None) == (not paths)
        assert (sample.image_units is None) == (sample.key == "talk")
        assert sample.captions == []
    assert rejects_of(tmp_path / "out") == ["005.png", "007_1.flac", "talk2.wav"]
    num_samples = sum(len(read_audio(path, name="x")) for path in good)
    pictures = [path for path in spoken.glob("*.png") if path.name != "005.png"]
    manifest = result.manifest
    assert manifest.raw == {
        "num_images": 11,
        "image_file_bytes": sum(path.stat().st_size for path in pictures),
        "num_utterances": len(good),
        "audio_samples": num_samples,
        "audio_file_bytes": sum(path.stat().st_size for path in good),
    }
    assert manifest.speech_tokenizer == {
        "name": "fake-speech",
        "fingerprint": fake_speech.fingerprint,
        "precision": "fp32",
        "layer": 6,
        "num_units": 200,
    }
    assert manifest.settings["speech_codec"] == "huffman"
    assert manifest.settings["max_audio_s"] == 3600.0
    assert manifest.num_samples == 12
    # The clip of the broken image is not even encoded.
    assert result.num_utterances == len(good)
    assert result.audio_s == num_samples / 16_000


@pytest.mark.usefixtures("inline_pool", "small_chunks")
@pytest.mark.parametrize("layout", [{}, PACKED, PLAIN], ids=["arrow", "packed", "plain"])
def test_layouts_and_codecs_hold_the_same(spoken, fake_tokenizer, fake_speech, tmp_path, layout):
    tokenizers = fake_tokenizer, fake_speech
    run(spoken, tmp_path / "h", *tokenizers, **layout)
    run(spoken, tmp_path / "p", *tokenizers, **layout, speech_codec="plain")
    for name, codec in (("h", "packed" if layout is PLAIN else "huffman"), ("p", "packed")):
        check_sound(tmp_path / name)
        assert ShardDataset(tmp_path / name).manifest.columns["speech_units"]["codec"] == codec
    columns = ShardDataset(tmp_path / "p").columns
    assert [columns[name].coding for name in sorted(columns)] == ["varint", "packed", "packed"]
    same_samples(ShardDataset(tmp_path / "h"), ShardDataset(tmp_path / "p"))


@pytest.mark.usefixtures("inline_pool")
def test_speech_alone_needs_no_images_and_has_no_codebook(speak, fake_speech, tmp_path):
    source, out = speak(tmp_path / "p", "a.wav", "b.flac", "c_0.flac", "c_1.flac"), tmp_path / "out"
    result = run(source, out, not_needed, fake_speech)
    check_sound(out)
    dataset = ShardDataset(out)
    assert all(sample.image_units is None for sample in dataset)
    assert sum(len(sample.speech_units) for sample in dataset) == 4
    assert sorted(path.name for path in out.iterdir()) == [
        "00000.arrow", "README.md", "codebook.safetensors", "dataset.json", "rejects.jsonl",
    ]  # fmt: skip
    assert sorted(dataset.tensors()) == ["durations.lengths", "speech_units.lengths"]
    assert dataset.manifest.image_tokenizer is None
    assert dataset.manifest.raw["num_images"] == 0
    with pytest.raises(ShardError, match="names no codebook"):
        dataset.codebook()
    assert run(source, out, not_needed, fake_speech).was_finished
    text = summary(source, out, result)
    assert "an image" not in text
    assert "view" not in text


@pytest.mark.usefixtures("inline_pool")
def test_images_alone_need_no_speech_tokenizer(twenty, fake_tokenizer, tmp_path):
    run(twenty, tmp_path / "out", fake_tokenizer, not_needed)
    manifest = ShardDataset(tmp_path / "out").manifest
    assert manifest.speech_tokenizer is None
    assert list(manifest.columns) == ["image_units"]
    assert set(manifest.raw) == {"num_images", "image_file_bytes"}
    assert set(manifest.settings) == {
        "source", "device", "image_codec", "max_pixels", "samples_per_shard",
    }  # fmt: skip


@pytest.mark.usefixtures("inline_pool")
def test_only_one_of_the_two(spoken, fake_tokenizer, fake_speech, tmp_path, files_of):
    run(spoken, tmp_path / "i", fake_tokenizer, not_needed, only="images")
    for path in spoken.iterdir():
        if path.suffix != ".png":
            path.rename(tmp_path / path.name)
    run(spoken, tmp_path / "alone", fake_tokenizer, not_needed)
    assert files_of(tmp_path / "i") == files_of(tmp_path / "alone")
    for path in tmp_path.iterdir():
        if path.suffix in (".flac", ".wav"):
            path.rename(spoken / path.name)
    run(spoken, tmp_path / "a", not_needed, fake_speech, only="audio")
    check_sound(tmp_path / "a")
    clips = {sample.key: len(sample.speech_units) for sample in ShardDataset(tmp_path / "a")}
    assert clips == GOOD_CLIPS | {"005": 1}  # its image is not used
    assert rejects_of(tmp_path / "a") == ["007_1.flac", "talk2.wav"]


@pytest.mark.usefixtures("inline_pool")
def test_texts_go_with_the_clips_that_are_accepted(
    draw, speak, fake_tokenizer, fake_speech, tmp_path
):
    draw(tmp_path, 2)
    speak(tmp_path, "a.wav", "b.wav", "c.wav", broken=["a.wav"])
    rows = [
        {"image": "000.png", "audio": "a.wav", "caption": "cut"},
        {"image": "000.png", "audio": "b.wav", "caption": "good"},
        {"image": "000.png", "audio": "gone.wav", "caption": "lost"},
        {"image": "000.png", "caption": "never spoken"},
        {"image": "001.png", "audio": ["a.wav"], "caption": ["cut again"]},
        {"audio": "c.wav", "caption": "no picture"},
    ]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "list.jsonl", tmp_path / "out", fake_tokenizer, fake_speech)
    check_sound(tmp_path / "out")
    samples = {sample.key: sample for sample in ShardDataset(tmp_path / "out")}
    assert samples["000"].captions == ["good", "cut", "lost", "never spoken"]
    check_speech(samples["000"], fake_speech, tmp_path / "b.wav")
    assert (samples["001"].captions, samples["001"].durations) == (["cut again"], None)
    assert samples["c"].captions == ["no picture"]
    assert samples["c"].image_units is None
    assert len(rejects_of(tmp_path / "out")) == 3


@pytest.mark.usefixtures("inline_pool")
def test_a_unit_longer_than_a_duration_is_a_reject(speak, fake_speech, tmp_path, monkeypatch):
    speak(tmp_path / "p", "a.wav", "b.wav")
    real = fake_speech.encode
    flat = np.zeros(70_000, np.uint16)
    longer = max(len(read_audio(tmp_path / "p" / name, name="x")) for name in ("a.wav", "b.wav"))
    monkeypatch.setattr(fake_speech, "encode", lambda w: flat if len(w) == longer else real(w))
    run(tmp_path / "p", tmp_path / "out", not_needed, fake_speech)
    (row,) = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    assert "the run of 70000 equal units from frame 0 is over 65535; cut" in row
    assert len(ShardDataset(tmp_path / "out")) == 1


@pytest.mark.usefixtures("inline_pool", "small_chunks")
def test_where_no_clip_is_good_there_are_no_tables(
    draw, speak, fake_tokenizer, fake_speech, tmp_path
):
    source = draw(tmp_path / "p", 6)
    speak(source, "000.wav", "talk.wav", broken=["000.wav", "talk.wav"])
    result = run(source, tmp_path / "out", fake_tokenizer, fake_speech, samples_per_shard=4)
    check_sound(tmp_path / "out")
    assert (len(ShardDataset(tmp_path / "out")), result.manifest.num_rejects) == (6, 2)
    assert result.manifest.columns["speech_units"]["codec"] == "huffman"
    assert result.manifest.raw["audio_samples"] == 0
    assert "6 images and 0 utterances, 0.00 hours" in summary(source, tmp_path / "out", result)


def test_a_tokenizer_for_speech_is_asked_for(speak, tmp_path):
    with pytest.raises(JobError, match="p: holds speech, which needs a speech tokenizer"):
        run(speak(tmp_path / "p", "a.wav"), tmp_path / "out", not_needed)
    assert not (tmp_path / "out").exists()


# Groups and long clips ----------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool")
def test_groups_change_no_byte_and_stay_small(
    spoken, fake_tokenizer, make_fake_speech, tmp_path, files_of, monkeypatch
):
    whole, parts = make_fake_speech(), make_fake_speech()
    run(spoken, tmp_path / "whole", fake_tokenizer, whole)
    monkeypatch.setattr(job_encode, "MAX_GROUP_SAMPLES", 15_000)
    monkeypatch.setattr(job_encode, "FIRST_GROUP_SAMPLES", 5_000)
    run(spoken, tmp_path / "parts", fake_tokenizer, parts)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "parts")
    assert len(whole.calls) == 1
    assert len(parts.calls) > 5
    assert all(sum(call[:-1]) < 15_000 for call in parts.calls)


@pytest.mark.usefixtures("inline_pool")
@pytest.mark.parametrize("num_samples", [1_600_000, 1_600_399, 1_600_400, 3_300_000])
def test_a_long_clip_is_cut_as_the_tokenizer_would(fake_speech, tmp_path, monkeypatch, num_samples):
    wave = np.random.default_rng(3).uniform(-0.3, 0.3, num_samples).astype(np.float32)
    monkeypatch.setattr("im2sp.pipeline.job.decode_pool.read_audio", lambda *_, **__: wave)
    monkeypatch.setattr(job_encode, "_MAX_CALL_SAMPLES", 1_700_000)
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.wav").write_bytes(b"")
    run(tmp_path / "p", tmp_path / "out", not_needed, fake_speech)
    pieces = [wave[at : at + 1_600_000] for at in range(0, num_samples, 1_600_000)]
    pieces = [piece for piece in pieces if len(piece) >= 400]
    assert sum(fake_speech.calls, []) == [len(piece) for piece in pieces]
    assert all(sum(call) <= 1_700_000 for call in fake_speech.calls)
    units, runs = deduplicate(np.concatenate([fake_speech.encode(piece) for piece in pieces]))
    (sample,) = ShardDataset(tmp_path / "out")
    np.testing.assert_array_equal(sample.speech_units[0], units)
    np.testing.assert_array_equal(sample.durations[0], runs)


# What it says -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool")
def test_the_summary_counts_images_utterances_and_hours(
    spoken, fake_tokenizer, fake_speech, tmp_path
):
    out = tmp_path / "out"
    result = run(spoken, out, fake_tokenizer, fake_speech)
    text = summary(spoken, out, result)
    assert re.search(
        r"read      14 inputs of \S+ \(folder\); encoded 11 images and 14 utterances "
        r"\(0.00 hours\) in [\d.]+ s: [\d.]+ images/s and \d+ s of audio per second\n"
        r"refused   3, listed with reasons in \S+\n"
        r"written   12 samples in 1 shard to \S+, [\d,]+ bytes: [\d,]+ a sample, [\d.]+% of the "
        r"raw bits\n"
        r"holds     11 images and 14 utterances, 0.00 hours\n"
        r"tokenizer fake \(fp32, fingerprint \w{12}\), view squash-224\n"
        r"tokenizer fake-speech \(fp32, fingerprint \w{12}\), layer 6, 200 speech units$",
        text,
    ), text
    content = json.loads(summary_json(out, result))
    assert content["num_encoded"] == 11
    assert content["num_utterances_encoded"] == 14
    assert content["audio_encoded_s"] == round(result.audio_s, 3) > 0
    assert content["raw"] == dict(result.manifest.raw)
    assert content["speech_tokenizer"] == dict(result.manifest.speech_tokenizer)


@pytest.mark.usefixtures("inline_pool")
def test_the_bar_counts_them_too(spoken, fake_tokenizer, fake_speech, tmp_path, capsys):
    run(spoken, tmp_path / "out", fake_tokenizer, fake_speech, quiet=False)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "14/14" in last
    assert "inputs/s, images=11, utterances=14, audio=0.00 h, refused=3]" in last


def test_broken_clips_are_refused_and_the_rest_is_done(shared_data, fake_speech, tmp_path):
    entries = json.loads((shared_data / "broken/manifest.json").read_text())
    listed = {
        entry["file"].rsplit("/", 1)[-1]: entry["expect"]
        for entry in entries
        if entry["kind"] == "audio" and "archive" not in entry
    }
    out = tmp_path / "out"
    run(shared_data / "broken", out, not_needed, fake_speech, only="audio", num_workers=2)
    check_sound(out)
    refused = {name.rsplit("/", 1)[-1] for name in rejects_of(out)}
    assert job.JobConfig.max_audio_s == 3600
    taken = sum(len(sample.speech_units) for sample in ShardDataset(out))
    assert taken + len(rejects_of(out)) >= 40
    for name, expect in listed.items():
        if expect == "reject" and name.rsplit(".", 1)[-1].lower() in ("wav", "flac", "mp3", "ogg"):
            assert name in refused, name
        if expect == "ok":
            assert name not in refused, name
