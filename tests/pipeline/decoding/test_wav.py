import struct
import time

import numpy as np
import pytest

from im2sp.pipeline.decoding.media import AudioError
from support.sounds import NUM_SAMPLES, chunk, refusal_of, tone, wav, wav_format, waveform_of

SAMPLES = tone()[:, 0].astype("<i2").tobytes()
EXPECTED = tone()[:, 0].astype(np.float32) / 32768


@pytest.mark.parametrize(
    "chunks",
    [
        [wav_format(), chunk(b"LIST", b"INFOodd"), chunk(b"data", SAMPLES)],
        [wav_format(), chunk(b"LIST", b"INFOodd")[:-1], chunk(b"data", SAMPLES)],
        [chunk(b"JUNK", bytes(28)), wav_format(), chunk(b"data", SAMPLES)],
        [wav_format(extra=b"\0\0"), chunk(b"fact", b"\1\0\0\0"), chunk(b"data", SAMPLES)],
        [wav_format(), chunk(b"data", SAMPLES), chunk(b"LIST", b"INFO")],
        [wav_format(), chunk(b"data", SAMPLES), chunk(b"LIST", b"INFO", declared=900)],
        [wav_format(), chunk(b"data", SAMPLES), bytes(300)],
    ],
)
def test_chunks_that_a_wav_may_have(chunks):
    for declared in (None, 0, 0xFFFFFFFF):
        np.testing.assert_array_equal(waveform_of(wav(*chunks, declared=declared)), EXPECTED)


PLACEHOLDERS = (0, 0xFFFFFFFF, 0x80000000, 0x7FFFF000, 0x7FFFFFFF, 0x7FFFFFFF - 36)
PLACEHOLDERS += (0xFFFFFFFF - 44, 2_000_000_000, 1_000_000_000)


@pytest.mark.parametrize("declared", PLACEHOLDERS)
def test_a_streamed_wav_is_read_to_its_end(declared):
    for outer in (None, 0, 36, 0xFFFFFFFF, 0x7FFFFFFF):
        data = wav(wav_format(), chunk(b"data", SAMPLES, declared=declared), declared=outer)
        np.testing.assert_array_equal(waveform_of(data), EXPECTED)
        assert "959 bytes of samples end within a frame of 2 bytes" in refusal_of(data[:-1])
    note = chunk(b"LIST", b"INFOISFT\2\0\0\0x\0")
    data = wav(wav_format(), chunk(b"data", SAMPLES, declared=declared), note)
    np.testing.assert_array_equal(waveform_of(data), EXPECTED)


@pytest.mark.parametrize("begin", [b"abcd", b"~~~ ", b"    "])
def test_streamed_samples_that_look_like_a_chunk_are_read(begin):
    samples = begin + SAMPLES
    expected = np.frombuffer(samples, "<i2").astype(np.float32) / 32768
    data = wav(wav_format(), chunk(b"data", samples, declared=0))
    np.testing.assert_array_equal(waveform_of(data), expected)


@pytest.mark.parametrize("kind", [b"LIST", b"fact", b"id3 ", b"bext", b"JUNK"])
def test_a_cut_chunk_behind_no_samples_is_not_read_as_samples(kind):
    data = wav(wav_format(), chunk(b"data", b""), chunk(kind, bytes(range(1, 251)) * 8)[:-9])
    assert "the WAV declares no samples" in refusal_of(data)


def test_chunks_of_a_wav_are_walked_in_linear_time():
    many = chunk(b"JUNK", b"") * 400_000
    start = time.process_time()
    whole = wav(wav_format(), chunk(b"data", SAMPLES), many)
    np.testing.assert_array_equal(waveform_of(whole), EXPECTED)
    assert "10,000 chunks" in refusal_of(wav(many, wav_format(), chunk(b"data", SAMPLES)))
    assert time.process_time() - start < 2


def test_bytes_behind_the_riff_are_ignored():
    data = wav(wav_format(), chunk(b"data", SAMPLES)) + b"\xff\xfe\xfd" * 200
    np.testing.assert_array_equal(waveform_of(data), EXPECTED)


def test_a_pad_byte_behind_samples_of_unknown_length_is_none():
    for extra, match in ((b"\0", ""), (b"\1", "within a frame of 3 bytes"), (b"\0\0", "a frame")):
        samples = bytes(3 * 401) + extra
        data = wav(wav_format(bits=24), chunk(b"data", samples, declared=0xFFFFFFFF))
        refusal = refusal_of(data[: len(data) - len(samples) % 2])
        assert match in refusal
        assert bool(match) == bool(refusal)


def test_a_wav_with_64_bit_lengths():
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 0, len(SAMPLES), NUM_SAMPLES, 0))
    rest = (wav_format(), chunk(b"data", SAMPLES, declared=0xFFFFFFFF))
    for magic in (b"RF64", b"BW64"):
        np.testing.assert_array_equal(waveform_of(wav(ds64, *rest, magic=magic)), EXPECTED)
        cut = wav(ds64, *rest, magic=magic)[:-2]
        assert "cut: the WAV declares 960 bytes of samples, 958 follow" in refusal_of(cut)


@pytest.mark.parametrize(
    ("chunks", "match"),
    [
        ([chunk(b"data", SAMPLES)], "no format chunk before its samples"),
        ([wav_format()], "cut: the WAV ends after 36 bytes, before its samples"),
        ([chunk(b"fmt ", bytes(12)), chunk(b"data", SAMPLES)], "holds 12 bytes, expected 16"),
        ([wav_format(tag=0xFFFE), chunk(b"data", SAMPLES)], "holds 16 bytes, expected 40"),
        ([wav_format(rate_hz=0), chunk(b"data", SAMPLES)], "declares a sample rate of 0 Hz"),
        ([wav_format(num_channels=0), chunk(b"data", SAMPLES)], "declares no channels"),
        ([wav_format(bits=0), chunk(b"data", SAMPLES)], "1 channels of 0 bits in frames of 0"),
        ([wav_format(), chunk(b"data", b"")], "the WAV declares no samples"),
        ([wav_format(), chunk(b"data", SAMPLES, declared=1920)], "cut: .* 1,920 .* 960 follow"),
        ([wav_format(), chunk(b"data", SAMPLES, declared=480)], "a recorder that was stopped"),
        ([wav_format(), chunk(b"data", b""), bytes(99)], "the WAV declares no samples"),
        ([wav_format(), chunk(b"data", b""), chunk(b"LIST", b"INFO")], "declares no samples"),
        ([wav_format(), chunk(b"data", SAMPLES, declared=999_999_999)], "cut: .* 960 follow"),
        ([chunk(b"JUNK", b"")] * 10_001, "more than 10,000 chunks before its samples"),
        ([wav_format(), chunk(b"data", SAMPLES[:-1])], "959 bytes .* within a frame of 2 bytes"),
        ([wav_format(), chunk(b"LIST", b"", declared=9999)], "chunk LIST .* declares 9,999 bytes"),
        ([wav_format(rate_hz=99), chunk(b"data", SAMPLES)], "99 Hz; rates from 100 to"),
    ],
)
def test_wavs_that_are_refused(chunks, match):
    with pytest.raises(AudioError, match=f"^x: .*{match}"):
        waveform_of(wav(*chunks))
