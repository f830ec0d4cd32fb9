import random
import re
import struct
import time

import numpy as np
import pytest

from im2sp.pipeline import audio
from im2sp.pipeline.media import AudioError
from making.sounds import (
    NUM_SAMPLES,
    chunk,
    encoded,
    refusal_of,
    tone,
    wav,
    wav_format,
    waveform_of,
)

LONG = tone(8000)


def streamed_flac(samples=LONG, *, keep_md5=False) -> bytes:
    """A FLAC whose header counts no samples, as one written to a pipe."""
    data = bytearray(encoded("FLAC", samples=samples))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    if not keep_md5:
        data[26:42] = bytes(16)
    return bytes(data)


def without_note(data: bytes) -> bytes:
    """An MP3 without the first frame, which counts the others."""
    return data[data.index(data[:2], 4) :]


EXACT = {
    "wav": lambda: encoded("WAV"),
    "wav-rifx": lambda: encoded("WAV", endian="BIG"),
    "wav-24": lambda: encoded("WAV", "PCM_24"),
    "wav-32": lambda: encoded("WAV", "PCM_32"),
    "wav-float": lambda: encoded("WAV", "FLOAT", tone() / 32768),
    "wav-double": lambda: encoded("WAV", "DOUBLE", tone() / 32768),
    "wav-extensible": lambda: encoded("WAVEX"),
    "wav-rf64": lambda: encoded("RF64"),
    "w64": lambda: encoded("W64"),
    "aiff": lambda: encoded("AIFF"),
    "aiff-float": lambda: encoded("AIFF", "FLOAT", tone() / 32768),
    "aiff-little": lambda: encoded("AIFF", endian="LITTLE"),
    "au": lambda: encoded("AU"),
    "au-little": lambda: encoded("AU", "PCM_24", endian="LITTLE"),
    "caf": lambda: encoded("CAF"),
    "nist": lambda: encoded("NIST"),
    "flac": lambda: encoded("FLAC"),
    "flac-24": lambda: encoded("FLAC", "PCM_24"),
    "flac-streamed": lambda: streamed_flac(tone()),
}
CLOSE = {
    "wav-8": lambda: encoded("WAV", "PCM_U8"),
    "wav-mulaw": lambda: encoded("WAV", "ULAW"),
    "wav-alaw": lambda: encoded("WAV", "ALAW"),
    "aiff-mulaw": lambda: encoded("AIFF", "ULAW"),
    "nist-mulaw": lambda: encoded("NIST", "ULAW"),
    "flac-8": lambda: encoded("FLAC", "PCM_S8"),
}
CODED = {
    "wav-ima": lambda: encoded("WAV", "IMA_ADPCM"),
    "wav-ms": lambda: encoded("WAV", "MS_ADPCM"),
    "aiff-ima": lambda: encoded("AIFF", "IMA_ADPCM"),
    "caf-alac": lambda: encoded("CAF", "ALAC_16"),
    "vorbis": lambda: encoded("OGG", "VORBIS"),
    "opus": lambda: encoded("OGG", "OPUS"),
    "mp3": lambda: encoded("MP3", samples=LONG),
    "mp3-no-note": lambda: without_note(encoded("MP3", samples=LONG)),
}
FORMATS = EXACT | CLOSE | CODED


@pytest.fixture(scope="module", params=FORMATS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def whole(kind) -> bytes:
    return FORMATS[kind]()


def test_every_format_says_the_same(kind, whole):
    found = waveform_of(whole)
    if kind in EXACT:
        np.testing.assert_allclose(found, tone()[:, 0] / 32768, atol=1e-6)
    elif kind in CLOSE:
        np.testing.assert_allclose(found, tone()[:, 0] / 32768, atol=0.02)
    else:
        assert len(found) >= NUM_SAMPLES
        assert 0.05 < found.std() < 0.5


def test_blocks_join_without_a_seam(whole, monkeypatch):
    expected = waveform_of(whole)
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 100)
    np.testing.assert_array_equal(waveform_of(whole), expected)


def test_a_cut_file_is_refused_or_lacks_nothing(kind, whole):
    expected = waveform_of(whole)
    for end in range(len(whole)):
        data = whole[:end]
        if kind == "mp3-no-note" and (end >= len(whole) or not refusal_of(data)):
            # At the border of two frames nothing in the file tells.
            assert refusal_of(whole[: end - 1])
            assert refusal_of(whole[: end + 1])
            continue
        if refusal := refusal_of(data):
            assert re.fullmatch(r"x: [^\n]+", refusal)
            continue
        np.testing.assert_array_equal(waveform_of(data), expected, err_msg=f"cut at {end}")


def test_flipped_bits_raise_nothing_but_audio_errors(whole, capfd):
    rng = random.Random(0)
    for attempt in range(80):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            end = len(data) if attempt % 2 else min(100, len(data))
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        start = time.perf_counter()
        refusal = refusal_of(bytes(data), "flipped")
        assert not refusal or re.fullmatch("flipped: [^\n]+", refusal)
        assert time.perf_counter() - start < 2
    # libmpg123 prints what it meets; Python must not, from a callback that raised.
    assert "Traceback" not in capfd.readouterr().err


def test_random_bytes_behind_each_magic_raise_nothing_but_audio_errors(whole):
    rng = random.Random(1)
    for size_bytes in (0, 1, 7, 30, 400):
        for head_bytes in (4, 12, 40):
            assert refusal_of(whole[:head_bytes] + rng.randbytes(size_bytes))


@pytest.mark.parametrize("file", ["flac", "vorbis", "opus"])
def test_a_changed_sample_is_noticed(file):
    whole = FORMATS[file]()
    for at in range(len(whole) - 60, len(whole)):
        data = bytearray(whole)
        data[at] ^= 0x10
        assert re.search("cut|damaged", refusal_of(bytes(data)))


# -- WAV ------------------------------------------------------------------------------------------

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
        [wav_format(), chunk(b"data", SAMPLES, declared=0xFFFFFFFF)],
        [wav_format(), chunk(b"data", SAMPLES, declared=0x80000000)],
        [wav_format(), chunk(b"data", SAMPLES, declared=0x7FFFF000)],
    ],
)
def test_chunks_that_a_wav_may_have(chunks):
    for declared in (None, 0, 0xFFFFFFFF):
        np.testing.assert_array_equal(waveform_of(wav(*chunks, declared=declared)), EXPECTED)


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
        ([wav_format(), chunk(b"data", SAMPLES, declared=0)], "a recorder that was stopped"),
        ([wav_format(), chunk(b"data", SAMPLES[:-1])], "959 bytes .* within a frame of 2 bytes"),
        ([wav_format(), chunk(b"LIST", b"", declared=9999)], "chunk LIST .* declares 9,999 bytes"),
        ([wav_format(rate_hz=99), chunk(b"data", SAMPLES)], "99 Hz; rates from 100 to"),
    ],
)
def test_wavs_that_are_refused(chunks, match):
    with pytest.raises(AudioError, match=f"^x: .*{match}"):
        waveform_of(wav(*chunks))


# -- The others -----------------------------------------------------------------------------------


def test_a_streamed_flac_must_hold_whole_frames():
    expected = LONG[:, 0].astype(np.float32) / 32768
    whole = streamed_flac()
    np.testing.assert_array_equal(waveform_of(whole), expected)
    tagged = b"ID3\4\0\0\0\0\0\5abcde" + whole + b"TAG" + bytes(125)
    np.testing.assert_array_equal(waveform_of(tagged), expected)
    for end in (len(whole) - 1, len(whole) // 2, whole.index(b"\xff\xf8") + 9):
        assert re.search("last frame, at byte .* is not whole", refusal_of(whole[:end]))
    flipped = bytearray(whole)
    flipped[300] ^= 1
    assert refusal_of(bytes(flipped))


def test_a_hole_in_a_flac_without_md5_is_noticed():
    whole = bytearray(encoded("FLAC", samples=tone(20_000)))
    whole[26:42] = bytes(16)
    frames = [at for at in range(42, len(whole)) if whole[at : at + 3] == b"\xff\xf8\xc5"]
    assert len(frames) >= 3
    hole = bytes(whole[: frames[1]] + whole[frames[2] :])
    assert re.search(r"FLAC samples 4,\d\d\d to 8,\d\d\d are missing", refusal_of(hole))
    lost = bytes(whole[: frames[-1]])
    assert re.search(r"declares 20,000 samples, its frames hold 1", refusal_of(lost))


def test_a_flac_with_another_md5_is_refused():
    data = bytearray(encoded("FLAC"))
    data[30] ^= 1
    with pytest.raises(AudioError, match="damaged: the samples do not have the MD5 that the FLAC"):
        waveform_of(bytes(data))


def test_a_flac_without_rate_or_metadata_is_refused():
    data = bytearray(encoded("FLAC"))
    data[18:21] = bytes([0, 0, data[20] & 15])
    assert "declares a sample rate of 0 Hz" in refusal_of(bytes(data))
    data[4] = 0x81
    assert "damaged: FLAC metadata block of kind 1" in refusal_of(bytes(data))


def ogg_pages(data: bytes) -> list[bytes]:
    starts = [at for at in range(len(data)) if data[at : at + 5] == b"OggS\0"]
    return [data[at:end] for at, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def test_an_ogg_needs_each_page():
    whole = encoded("OGG", "VORBIS", samples=tone(64_000))
    pages = ogg_pages(whole)
    assert len(pages) > 3
    assert "ends after 2 pages, without its last one" in refusal_of(b"".join(pages[:2]))
    assert "page 2 is missing, page 3 follows" in refusal_of(b"".join(pages[:2] + pages[3:]))
    assert "several streams" in refusal_of(whole + whole)
    assert "no Ogg page at byte" in refusal_of(pages[0] + b"x" * 40 + b"".join(pages[1:]))
    assert "has CRC" in refusal_of(whole.replace(b"OggS\0\0", b"OggS\0\1"))
    np.testing.assert_array_equal(waveform_of(whole + b"garbage"), waveform_of(whole))


def test_an_mp3_may_have_tags_and_must_have_each_frame():
    whole = encoded("MP3", samples=LONG)
    expected = waveform_of(whole)
    id3 = b"ID3\4\0\0\0\0\0\5abcde"
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 32, 0, 0) + bytes(8)
    for data in (id3 + whole, id3 + bytes(9) + whole + b"TAG" + bytes(125), whole + ape):
        np.testing.assert_array_equal(waveform_of(data), expected)
    bare = without_note(whole)
    assert len(waveform_of(bare)) >= len(LONG)
    np.testing.assert_array_equal(waveform_of(bare + b"stray bytes"), waveform_of(bare))
    second = bare.index(bare[:2], 4)
    assert "yet more after" in refusal_of(bare[:second] + b"stray" + bare[second:])
    through = re.match(r"x: cut: MP3 frame 7 at byte (1,\d+) ", refusal_of(whole[:1500]))
    assert through
    between = whole[: int(through[1].replace(",", ""))]
    assert "the MP3 declares 16 frames, 6 are there" in refusal_of(between)
    # A second clip behind the first, which the first one's note does not count, is kept.
    assert len(waveform_of(whole + whole)) > 2 * len(LONG)
    assert "nothing that is read follows the ID3 tag" in refusal_of(id3 + b"text" * 40)
    assert "cut: the ID3 tag declares 5 bytes" in refusal_of(id3[:-2])


def test_au_and_caf_of_unknown_length():
    au, caf = bytearray(encoded("AU")), bytearray(encoded("CAF"))
    au[8:12] = b"\xff" * 4
    at = caf.index(b"data") + 4
    caf[at : at + 8] = b"\xff" * 8
    for data in (au, caf):
        np.testing.assert_array_equal(waveform_of(bytes(data)), EXPECTED)
        assert "within a frame" in refusal_of(bytes(data[:-1]))


def test_an_aiff_that_counts_more_than_it_holds_is_refused():
    data = bytearray(encoded("AIFF"))
    at = data.index(b"COMM") + 10
    data[at : at + 4] = struct.pack(">I", NUM_SAMPLES + 1)
    assert "declares 481 samples of 1 x 2 bytes, 960 bytes follow" in refusal_of(bytes(data))
    data[at : at + 4] = bytes(4)
    assert "the AIFF declares no samples" in refusal_of(bytes(data))
