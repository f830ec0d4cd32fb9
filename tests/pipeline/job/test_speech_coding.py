"""Codecs of the speech of a job, and jobs that are killed."""

import json
import os
import shutil

import numpy as np
import pytest

from im2sp.pipeline.job.columns import speech_coding
from im2sp.pipeline.job.run import JobConfig, run_job
from im2sp.pipeline.job.state import JobError, JobState
from im2sp.shards import Layout, Manifest, ShardDataset, verify_dataset
from support.kills import PLACES, Killed, stop_at

PLAIN = Layout(kind="webdataset", samples_per_member=1)


def run(source, out, *tokenizers, **settings):
    settings = {"num_workers": 1, "quiet": True, "samples_per_shard": 4} | settings
    return run_job(JobConfig(source=source, dataset_dir=out, **settings), *tokenizers)


def units_of(folder):
    return [units.tolist() for sample in ShardDataset(folder) for units in sample.speech_units]


# Interruptions ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool", "small_chunks", "no_fsync")
@pytest.mark.parametrize("place", PLACES)
def test_a_job_killed_anywhere_ends_with_the_same_bytes(
    spoken, fake_tokenizer, fake_speech, tmp_path, monkeypatch, files_of, place
):
    # The first shard's clips go, so that it waits for the tables that the second one makes.
    for path in spoken.glob("003_*"):
        path.unlink()
    tokenizers = fake_tokenizer, fake_speech
    run(spoken, tmp_path / "whole", *tokenizers)
    expected = files_of(tmp_path / "whole")
    manifest = Manifest.read(tmp_path / "whole")
    assert len(manifest.shards) == 4
    assert manifest.columns["durations"]["codec"] == "huffman"
    num_stops = 0
    for stop in range(200):
        out = tmp_path / f"out{stop}"
        undo = stop_at(monkeypatch, PLACES[place], stop, Killed())
        try:
            run(spoken, out, *tokenizers)
        except Killed:
            num_stops += 1
        undo()
        if num_stops == stop:  # it went through
            break
        run(spoken, out, *tokenizers)
        assert files_of(out) == expected, stop
        shutil.rmtree(out)
    assert num_stops >= (1 if "dropping" in place else 6)


@pytest.mark.usefixtures("small_chunks")
def test_the_number_of_workers_does_not_change_a_byte(
    spoken, fake_tokenizer, fake_speech, tmp_path, files_of, monkeypatch
):
    tokenizers = fake_tokenizer, fake_speech
    run(spoken, tmp_path / "one", *tokenizers, num_workers=1)
    undo = stop_at(monkeypatch, (os, "replace", True), 5, Killed())
    with pytest.raises(Killed):
        run(spoken, tmp_path / "three", *tokenizers, num_workers=3)
    undo()
    run(spoken, tmp_path / "three", *tokenizers, num_workers=2)
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


@pytest.mark.usefixtures("inline_pool", "small_chunks")
def test_tables_are_those_of_the_first_shard_with_speech(
    spoken, fake_tokenizer, fake_speech, tmp_path
):
    run(spoken, tmp_path / "all", fake_tokenizer, fake_speech)
    for path in spoken.iterdir():
        if path.stem[:3] not in ("000", "001", "002", "003"):
            path.unlink()
    run(spoken, tmp_path / "first", fake_tokenizer, fake_speech)
    first = Manifest.read(tmp_path / "first")
    assert first.columns == Manifest.read(tmp_path / "all").columns
    assert first.columns["speech_units"]["num_codes"] == 200
    assert first.codebook == Manifest.read(tmp_path / "all").codebook


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 99])
def test_damaged_tables_are_named(tmp_path, data):
    state = JobState(tmp_path)
    state.dir.mkdir()
    assert state.read_tables() is None
    state.write_tables({"durations.lengths": np.arange(3, dtype=np.uint8)})
    assert state.read_tables()["durations.lengths"].tolist() == [0, 1, 2]
    (state.dir / "tables.safetensors").write_bytes(data)
    with pytest.raises(JobError, match=r"tables.safetensors: .* damaged .*--overwrite"):
        state.read_tables()


CHANGES = {
    "codec": ({"speech_codec": "plain"}, "--speech-codec: huffman there, plain now"),
    "limit": ({"max_audio_s": 9.5}, "--max-audio-s: 3600.0 there, 9.5 now"),
    "images": ({"only": "audio"}, "image tokenizer: fake there, none now"),
    "audio": ({"only": "images"}, "speech tokenizer: fake-speech there, none now"),
}


@pytest.mark.usefixtures("inline_pool")
@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("change", [*CHANGES, "tokenizer"])
def test_changed_settings_are_refused_and_nothing_is_touched(
    spoken, fake_tokenizer, make_fake_speech, tmp_path, files_of, monkeypatch, change, is_finished
):
    out, speech = tmp_path / "out", make_fake_speech()
    undo = stop_at(monkeypatch, (os, "replace", True), -1 if is_finished else 1, Killed())
    try:
        run(spoken, out, fake_tokenizer, speech)
    except Killed:
        assert not is_finished
    undo()
    settings, message = CHANGES.get(change, ({}, ""))
    if change == "tokenizer":
        speech, message = make_fake_speech(1), "fingerprint of the speech tokenizer: "
    before = files_of(out)
    with pytest.raises(JobError, match="with other settings") as caught:
        run(spoken, out, fake_tokenizer, speech, **settings)
    assert message in str(caught.value)
    assert files_of(out) == before
    run(spoken, out, fake_tokenizer, speech, overwrite=True, **settings)
    assert verify_dataset(out) == []
    assert (out / "codebook.safetensors").exists()  # of images, and of coded speech


# Codecs by name -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline_pool")
@pytest.mark.parametrize(("num_units", "bits"), [(256, 8), (257, 9), (2000, 11), (65536, 16)])
def test_large_vocabularies(spoken, fake_tokenizer, fake_speech, tmp_path, num_units, bits):
    real = fake_speech.encode
    fake_speech.num_units = num_units
    fake_speech.encode = lambda waveform: real(waveform).astype(int) * 331 % num_units
    run(spoken, tmp_path / "p", fake_tokenizer, fake_speech, speech_codec="plain")
    column = ShardDataset(tmp_path / "p").columns["speech_units"]
    assert (column.coding, column.num_codes, column.bits) == ("packed", num_units, bits)
    if num_units <= 1024:
        run(spoken, tmp_path / "h", fake_tokenizer, fake_speech)
        assert units_of(tmp_path / "h") == units_of(tmp_path / "p")
        assert max(map(max, units_of(tmp_path / "h"))) > 200
        return
    with pytest.raises(
        JobError,
        match=rf"--speech-codec huffman: .* at most 1,024 units, .* has {num_units:,}; use",
    ):
        run(spoken, tmp_path / "h", fake_tokenizer, fake_speech)


def test_the_plain_layout_has_plain_codecs(tmp_path):
    for codec in ("huffman", "plain"):
        assert speech_coding(codec, PLAIN, 200) == "plain"
    with pytest.raises(ValueError, match="--speech-codec is x; expected one of huffman, plain"):
        JobConfig(source=tmp_path, dataset_dir=tmp_path, speech_codec="x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"only": "text"}, "--only is text; expected one of images, audio"),
        ({"max_audio_s": float("inf")}, "--max-audio-s is inf; expected more than 0 s, not inf"),
        ({"max_audio_s": 0}, "--max-audio-s is 0; expected more than 0 s, not infinite"),
        ({"max_audio_s": float("nan")}, "--max-audio-s is nan"),
    ],
)
def test_settings_are_checked(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        JobConfig(source=tmp_path, dataset_dir=tmp_path, **settings)


@pytest.mark.usefixtures("inline_pool")
def test_fitted_codes_are_smaller_on_real_units(
    shared_data, tmp_path, speak, fake_speech, monkeypatch
):
    """HuBERT units of real clips, passed to the job as if the tokenizer had found them."""
    import gzip

    with gzip.open(shared_data / "speech/units-lj100.jsonl.gz", "rt") as lines:
        clips = [json.loads(line)["units"] for _, line in zip(range(300), lines, strict=False)]
    names = [f"{i:03d}.wav" for i in range(len(clips))]
    found = iter(clips)
    monkeypatch.setattr(fake_speech, "encode", lambda _: np.array(next(found), np.uint16))
    source = speak(tmp_path / "p", *names, seconds=0.05)
    run(source, tmp_path / "out", None, fake_speech, samples_per_shard=256)
    dataset = ShardDataset(tmp_path / "out")
    num_units = sum(len(units) for sample in dataset for units in sample.speech_units)
    batches = map(dataset.batch, range(dataset.num_batches))
    coded = sum(batch.views["speech_units"].values.data.size for batch in batches)
    assert len(dataset.manifest.shards) == 2
    assert 8 * coded / num_units < 3.6
