import random
import re
import struct
import time

import numpy as np
import pytest

from im2sp.pipeline.decoding import audio
from im2sp.pipeline.decoding.media import AudioError
from support.sounds import NUM_SAMPLES, encoded, refusal_of, tone, waveform_of

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
    "wav-24": lambda: encoded("WAV", "PCM_24"),
    "wav-32": lambda: encoded("WAV", "PCM_32"),
    "wav-float": lambda: encoded("WAV", "FLOAT", tone() / 32768),
    "wav-double": lambda: encoded("WAV", "DOUBLE", tone() / 32768),
    "wav-extensible": lambda: encoded("WAVEX"),
    "wav-rf64": lambda: encoded("RF64"),
    "aiff": lambda: encoded("AIFF"),
    "aiff-float": lambda: encoded("AIFF", "FLOAT", tone() / 32768),
    "aiff-little": lambda: encoded("AIFF", endian="LITTLE"),
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
            # A cut between two frames cannot be detected.
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


@pytest.mark.parametrize("keep_md5", [False, True])
def test_a_streamed_flac_must_hold_whole_frames(keep_md5):
    samples = tone(20_000)
    expected = samples[:, 0].astype(np.float32) / 32768
    whole = streamed_flac(samples, keep_md5=keep_md5)
    np.testing.assert_array_equal(waveform_of(whole), expected)
    tagged = b"ID3\4\0\0\0\0\0\5abcde" + whole + b"TAG" + bytes(125)
    np.testing.assert_array_equal(waveform_of(tagged), expected)
    for end in (len(whole) - 1, len(whole) // 2, whole.index(b"\xff\xf8") + 9):
        assert re.search("cut or damaged", refusal_of(whole[:end]))
    for at in range(100, len(whole), 997):
        data = bytearray(whole)
        data[at] ^= 1
        assert re.search("cut or damaged", refusal_of(bytes(data)))
        assert re.search("damaged", refusal_of(whole[: at - 50] + whole[at:]))


def test_a_streamed_flac_of_any_rate_and_length():
    for num_samples in (44_100, 2**16, 2**17):  # the last block of 2**16 is then empty
        samples = tone(num_samples)
        expected = waveform_of(encoded("FLAC", samples=samples, rate_hz=44_100))
        data = bytearray(encoded("FLAC", samples=samples, rate_hz=44_100))
        data[21] &= 0xF0
        data[22:26] = bytes(4)
        np.testing.assert_array_equal(waveform_of(bytes(data)), expected)
        data[18:21] = encoded("FLAC")[18:21]
        assert len(waveform_of(bytes(data), max_seconds=num_samples / 16_000)) == num_samples
        limit_s = (num_samples - 1) / 16_000
        assert "over the limit" in refusal_of(bytes(data), max_seconds=limit_s)


def test_whole_frames_missing_from_a_flac_are_noticed():
    whole = encoded("FLAC", samples=tone(20_000))
    frames = [at for at in range(42, len(whole)) if whole[at : at + 3] == b"\xff\xf8\xc5"]
    assert len(frames) >= 3
    assert "do not have the MD5" in refusal_of(whole[: frames[1]] + whole[frames[2] :])
    bare = whole[:26] + bytes(16) + whole[42 : frames[-1]]
    assert "the FLAC declares 20,000 samples, 12,288 can be decoded" in refusal_of(bare)


def test_a_flac_that_declares_billions_of_values_is_refused_before_it_is_decoded():
    data = bytearray(encoded("FLAC", samples=tone(500, 8), rate_hz=655_350))
    info = int.from_bytes(data[18:26], "big") >> 36 << 36
    data[18:26] = (info | 655_350 * 3600).to_bytes(8, "big")
    assert re.search(r"2,359,260,000 samples of 8 channels at 655,350 Hz", refusal_of(bytes(data)))
    assert "at most 2,160,000,000 values are decoded" in refusal_of(bytes(data))


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
    assert "declares no samples" in refusal_of(b"".join(pages[:2]))
    assert "page 2 is missing, page 3 follows" in refusal_of(b"".join(pages[:2] + pages[3:]))
    assert "several streams" in refusal_of(whole + whole)
    assert "no Ogg page at byte" in refusal_of(pages[0] + b"x" * 40 + b"".join(pages[1:]))
    assert "has CRC" in refusal_of(whole.replace(b"OggS\0\0", b"OggS\0\1"))
    np.testing.assert_array_equal(waveform_of(whole + b"garbage"), waveform_of(whole))


def unflagged(data: bytes) -> bytes:
    """An Ogg whose last page does not say that it is the last, with a right checksum."""
    page = bytearray(ogg_pages(data)[-1])
    page[5] &= ~4
    page[22:26] = bytes(4)
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x104C11DB7) if crc >> 31 else crc << 1
    page[22:26] = struct.pack("<I", crc)
    return data[: -len(page)] + bytes(page)


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_an_ogg_without_an_end_flag_ends_with_a_page(codec):
    whole = encoded("OGG", codec, samples=LONG)
    data = unflagged(whole)
    assert data != whole
    np.testing.assert_array_equal(waveform_of(data), waveform_of(whole))
    for end in (1, 20, len(ogg_pages(data)[-1]) - 1):
        assert re.search(r"cut: the Ogg ends within page \d", refusal_of(data[:-end]))
    assert "no Ogg page at byte" in refusal_of(data + b"garbage")


def test_an_ogg_without_an_end_flag_that_ends_within_a_packet_is_cut():
    whole = encoded("OGG", "OPUS", samples=LONG)
    last = bytearray(ogg_pages(whole)[-1])
    last[26:27], last[27 + last[26] :] = b"\1", bytes(255)
    page = last[:27] + b"\xff" + bytes(255)
    data = unflagged(whole[: -len(ogg_pages(whole)[-1])] + page)
    assert "cut: the Ogg ends within a packet, after 3 pages" in refusal_of(data)


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
    assert re.search(
        r"the MP3 declares 8,\d+ samples, [23],\d+ can be decoded", refusal_of(between)
    )
    # A second clip behind the first, which the first one's note does not count, is kept.
    assert len(waveform_of(whole + whole)) > 2 * len(LONG)
    assert "nothing that is read follows the ID3 tag" in refusal_of(id3 + b"text" * 40)
    assert "cut: the ID3 tag declares 5 bytes" in refusal_of(id3[:-2])


@pytest.mark.parametrize("between", [b"", bytes(512)], ids=["joined", "padded"])
@pytest.mark.parametrize("name", ["wav-alaw", "flac", "vorbis", "opus", "aiff-float", "nist"])
def test_a_second_file_behind_the_first_is_not_lost_silently(name, between):
    whole = FORMATS[name]()
    reason = refusal_of(whole + between + whole)
    assert re.search("holds a second .* at byte|several streams", reason), reason


def test_joined_mp3s_are_read_whole():
    whole = encoded("MP3", samples=LONG)
    bare = without_note(whole)
    tags = [b"ID3\4\0\0\0\0\0\5abcde", b"TAG" + bytes(125)]
    tags += [tags[1] + tags[0], b"APETAGEX" + struct.pack("<IIII", 2000, 2000, 0, 0) + bytes(2008)]
    expected = waveform_of(bare + bare)
    assert len(expected) > 2 * len(LONG)
    for first in (whole, bare):
        for tag in tags:
            np.testing.assert_array_equal(waveform_of(first + tag + whole + tag), expected)
    assert "cut: MP3 frame" in refusal_of(whole + tags[0] + bare[:-1])
    other = encoded("MP3", samples=LONG, rate_hz=24_000)
    for tag in (b"", tags[0]):
        assert "an MP3 of another version, layer or rate begins" in refusal_of(whole + tag + other)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b".snd\0\0\0\x18", "AU audio; convert it to WAV or FLAC"),
        (b"dns.\x18\0\0\0", "AU audio"),
        (b"caff\0\1\0\0desc", "CAF audio"),
        (encoded("W64"), "Wave64 audio"),
        (b"RIFX\0\0\1\0WAVEfmt ", r"a big-endian WAV \(RIFX\); convert it to a plain WAV"),
    ],
)
def test_formats_that_no_check_covers_are_refused_by_name(data, name):
    assert re.match(f"x: not audio that is read: it seems to be {name}", refusal_of(data))


def test_an_aiff_that_counts_more_than_it_holds_is_refused():
    data = bytearray(encoded("AIFF"))
    at = data.index(b"COMM") + 10
    data[at : at + 4] = struct.pack(">I", NUM_SAMPLES + 1)
    assert "declares 481 samples of 1 x 2 bytes, 960 bytes follow" in refusal_of(bytes(data))
    data[at : at + 4] = bytes(4)
    assert "the AIFF declares no samples" in refusal_of(bytes(data))


def damaged(data: bytes, damage: str, rng: random.Random) -> bytes:
    """A copy of `data` that lacks its end, lacks bytes within, or has others there."""
    at = rng.randrange(len(data) // 10, len(data) - 300)
    if damage == "cut":
        return data[:at]
    if damage == "hole":
        return data[:at] + data[at + 255 :]
    if damage == "zero":
        return data[:at] + bytes(256) + data[at + 256 :]
    flipped = bytearray(data)
    for _ in range(3):
        flipped[rng.randrange(at, len(data) - 130)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


CHECKED = {
    "cut hole": ("wav", "wav-24", "aiff", "nist", "mp3"),
    "cut hole zero flip": ("flac", "flac-streamed", "vorbis", "opus"),
}


@pytest.mark.parametrize("file", [file for files in CHECKED.values() for file in files])
def test_damaged_copies_are_refused(file):
    rng = random.Random(file)
    samples = tone(20_000)
    options = {"wav-24": ("WAV", "PCM_24"), "vorbis": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}
    whole = encoded(*options.get(file, (file.split("-")[0].upper(), None)), samples)
    if file == "flac-streamed":
        whole = streamed_flac(samples)
    assert len(waveform_of(whole)) >= len(samples)
    for damages, files in CHECKED.items():
        for damage in damages.split() if file in files else ():
            for attempt in range(24):
                copy = damaged(whole, damage, rng)
                assert re.search("cut|damaged|MD5", refusal_of(copy)), (damage, attempt)
