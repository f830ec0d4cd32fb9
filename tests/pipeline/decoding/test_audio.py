import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soxr

from im2sp.pipeline.decoding import audio
from im2sp.pipeline.decoding.audio import (
    DEFAULT_MAX_SECONDS,
    MIN_SAMPLES,
    RESAMPLING_QUALITY,
    SAMPLE_RATE_HZ,
    AudioError,
    ByteRange,
    read_audio,
)
from support.sounds import chunk, encoded, refusal_of, tone, wav, wav_format, waveform_of


def test_mono_is_the_mean_of_the_channels():
    for num_channels in (2, 3, 6):
        samples = tone(500, num_channels)
        expected = (samples / 32768).mean(axis=1)
        for file_format in ("WAV", "FLAC"):
            found = waveform_of(encoded(file_format, samples=samples))
            np.testing.assert_allclose(found, expected, atol=1e-7)
    alike = np.repeat(tone(), 2, axis=1)
    np.testing.assert_array_equal(
        waveform_of(encoded("WAV", samples=alike)), waveform_of(encoded("WAV"))
    )


@pytest.mark.parametrize("rate_hz", [8000, 11025, 22050, 24000, 44100, 48000, 96000])
def test_other_rates_are_resampled_block_by_block_as_all_at_once(rate_hz, monkeypatch):
    samples = tone(rate_hz, rate_hz=rate_hz)
    data = encoded("WAV", samples=samples, rate_hz=rate_hz)
    mono = samples[:, 0].astype(np.float32) / 32768
    expected = soxr.resample(mono, rate_hz, SAMPLE_RATE_HZ, quality=RESAMPLING_QUALITY)
    found = waveform_of(data)
    assert len(found) == SAMPLE_RATE_HZ
    np.testing.assert_allclose(found, expected, atol=1e-6)
    pure = 9000 / 32768 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ)
    assert np.corrcoef(found, pure)[0, 1] > 0.99
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 1000)
    np.testing.assert_allclose(waveform_of(data), found, atol=1e-6)


def test_sizes_are_judged_from_the_header():
    second = encoded("WAV", samples=tone(16_000))
    assert len(waveform_of(second, max_seconds=1)) == 16_000
    with pytest.raises(AudioError, match=r"declares 1\.0 s, over the limit of 0\.5 s"):
        read_audio(second, name="x", max_seconds=0.5)
    hours = bytearray(encoded("FLAC"))
    hours[22:26] = b"\xff" * 4
    with pytest.raises(AudioError, match=r"declares 268,435\.5 s, over the limit of 3,600 s"):
        read_audio(bytes(hours), name="x")
    assert DEFAULT_MAX_SECONDS == 3600


@pytest.mark.parametrize("file_format", ["WAV", "FLAC", "AIFF"])
def test_clips_without_a_whole_unit_are_refused(file_format):
    assert len(waveform_of(encoded(file_format, samples=tone(MIN_SAMPLES)))) == MIN_SAMPLES
    with pytest.raises(
        AudioError, match="^x: too short: 399 samples at 16 kHz, one speech unit .*400"
    ):
        read_audio(encoded(file_format, samples=tone(MIN_SAMPLES - 1)), name="x")
    with pytest.raises(AudioError, match="too short: 398 samples"):
        read_audio(encoded(file_format, samples=tone(199), rate_hz=8000), name="x")
    assert len(waveform_of(encoded(file_format, samples=tone(200), rate_hz=8000))) == MIN_SAMPLES


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value):
    for file_format, num_channels, rate_hz in (("WAV", 1, 16_000), ("AIFF", 2, 44_100)):
        samples = np.zeros((5000, num_channels))
        samples[4321, -1] = value
        with pytest.raises(AudioError, match="^x: sample 4,321 is not finite"):
            read_audio(encoded(file_format, "DOUBLE", samples, rate_hz), name="x")
    huge = np.full((5000, 1), 1e300)
    with pytest.raises(AudioError, match="sample 0 is not finite"):
        read_audio(encoded("WAV", "DOUBLE", huge), name="x")
    edge = np.tile(np.float32([3.4e38, -3.4e38]), 2500)
    with pytest.raises(AudioError, match="not finite after resampling"):
        read_audio(encoded("WAV", "FLOAT", np.repeat(edge, 4), 8000), name="x")


def test_float_samples_keep_their_level():
    samples = tone()[:, 0].astype(np.float32) / 4096
    assert np.abs(samples).max() > 1
    np.testing.assert_array_equal(waveform_of(encoded("WAV", "FLOAT", samples)), samples)
    quiet = waveform_of(wav(wav_format(), chunk(b"data", b"\1\0" * 400)))
    np.testing.assert_array_equal(quiet, np.full(400, 2.0**-15, np.float32))
    assert not waveform_of(wav(wav_format(), chunk(b"data", bytes(800)))).any()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (bytes(4096), "nothing but 4,096 zero bytes"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"Hello there.\n" * 30, "it seems to be text"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG image"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "a WebP image"),
        (b"\0\0\0\x18ftypM4A \0\0\0\0", "M4A audio, which libsndfile does not read"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF image"),
        (b"\xff\xf1\x50\x80", "AAC audio"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_audio_is_named(data, match):
    with pytest.raises(AudioError, match=f"^x: .*{match}"):
        read_audio(data, name="x")


def test_files_and_byte_ranges(tmp_path):
    data = encoded("FLAC")
    path = tmp_path / "named.wav"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_audio(path, name="x"), waveform_of(data))
    packed = tmp_path / "packed"
    packed.write_bytes(b"before" + data + b"behind")
    part = ByteRange(path=packed, offset=6, size_bytes=len(data))
    np.testing.assert_array_equal(read_audio(part, name="x"), waveform_of(data))
    past = ByteRange(path=packed, offset=12 + len(data), size_bytes=9)
    with pytest.raises(AudioError, match="cut: packed ends after 0 of its 9 bytes"):
        read_audio(past, name="x")


def test_what_cannot_be_read_as_a_file_is_refused(tmp_path):
    with pytest.raises(AudioError, match=r"^line\\nbreak\.wav: cannot be read: No such file"):
        read_audio(tmp_path / "gone.wav", name="line\nbreak.wav")
    os.mkfifo(tmp_path / "pipe.wav")  # opening it would wait for ever
    with pytest.raises(AudioError, match="not a regular file"):
        read_audio(tmp_path / "pipe.wav", name="pipe.wav")


def test_every_shared_input_behaves_as_its_manifest_says(shared_data: Path):
    folder = shared_data / "broken"
    entries = json.loads((folder / "manifest.json").read_bytes())
    entries = [entry for entry in entries if entry["kind"] == "audio"]
    found: dict[str, np.ndarray] = {}
    for entry in entries:
        name = entry["file"]
        refusal = refusal_of(folder / name, name)
        assert entry["expect"] != "ok" or not refusal, refusal
        assert entry["expect"] != "reject" or refusal.startswith(name)
        if not refusal:
            found[name] = read_audio(folder / name, name=name)
    assert len(entries) == 49
    for entry in entries:
        if entry["file"] in found and "same_as" in entry:
            first, second = found[entry["file"]], found[entry["same_as"]]
            np.testing.assert_allclose(first, second, atol=1e-4, err_msg=entry["file"])


def test_real_clips_are_not_refused(shared_data: Path):
    for archive, step in (("flickr8k-tts.tar", 8), ("fsdd.tar", 60), ("lrs3.tar", 4)):
        path = shared_data / "speech" / archive
        with tarfile.open(path) as tar:
            members = [m for m in tar if m.name.endswith((".wav", ".flac"))]
        assert members
        for member in members[::step]:
            part = ByteRange(path=path, offset=member.offset_data, size_bytes=member.size)
            assert len(read_audio(part, name=member.name)) >= MIN_SAMPLES


def test_whole_clips_in_odd_forms_are_read(shared_data: Path):
    folder = shared_data / "cases"
    plain = read_audio(folder / "plain.wav", name="x")
    streamed = read_audio(folder / "stream_x7fffffff.wav", name="x")
    np.testing.assert_array_equal(streamed, plain)
    assert len(read_audio(folder / "no_eos.opus", name="x")) == SAMPLE_RATE_HZ
    joined = read_audio(folder / "concat_id3.mp3", name="x")
    assert 2 * SAMPLE_RATE_HZ <= len(joined) < 2.2 * SAMPLE_RATE_HZ
