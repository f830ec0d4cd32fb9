import shutil

import pytest

from im2sp.pipeline.sources import SourceError, list_source
from support.speech_sources import LJSPEECH, ljspeech_tree, touch, utterance_rejects_of


def test_lines_are_sound_with_normalised_text(tmp_path):
    folder = ljspeech_tree(tmp_path)
    listing = list_source(folder)
    assert listing.kind == "ljspeech"
    assert [item.key for item in listing.items] == list(LJSPEECH)
    assert all(item.image is None and item.captions == () for item in listing.items)
    clips = [clip for item in listing.items for clip in item.utterances]
    assert [clip.name for clip in clips] == [f"wavs/{name}.wav" for name in LJSPEECH]
    assert clips[0].audio == folder / "wavs/LJ001-0001.wav"
    assert [clip.text for clip in clips] == [
        "Printing, in the only sense",
        'in "seventeen ninety" here',
        "the recommendations we have made",
    ]
    assert listing.ignored == {"(no suffix)": 1}


def test_broken_lines_and_missing_clips_are_rejects(tmp_path):
    lines = [
        b"\xef\xbb\xbfLJ001-0001|one|1\r",
        b"",
        b"LJ001-0002|two",
        b"gone|three|3",
        b"LJ001-0001|again|again",
        b"a|b|c|d",
        b"LJ050-0278|caf\xe9",
        b"|x|y",
        b"plain",
        b"LJ050-0278||",
    ]
    folder = ljspeech_tree(tmp_path)
    (folder / "metadata.csv").write_bytes(b"\n".join(lines))
    listing = list_source(folder)
    good = [item for item in listing.items if not item.error]
    assert [(item.key, item.utterances[0].text) for item in good] == [
        ("LJ001-0001", "1"), ("LJ001-0002", "two"), ("gone", "3"), ("LJ050-0278", None)
    ]  # fmt: skip
    assert utterance_rejects_of(folder) == {"wavs/gone.wav": "line 4: no such audio file"}
    fields = "fields between |, expected id|text|normalised text"
    assert [item.error for item in listing.items if item.error] == [
        "line 5: audio 'wavs/LJ001-0001.wav' is already in line 1 for the same sample",
        f"line 6: found 4 {fields}",
        "line 7: the caption is not valid UTF-8 text",
        f"line 8: found 3 {fields}",
        f"line 9: found 1 {fields}",
    ]


def test_other_folders_with_a_table_are_none(tmp_path):
    touch(tmp_path, "a.png", "wavs/a_0.wav")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\n")
    listing = list_source(tmp_path)
    assert listing.kind == "folder"
    assert [item.key for item in listing.items] == ["a", "wavs/a_0"]
    shutil.rmtree(tmp_path / "wavs")
    (tmp_path / "metadata.csv").write_text("a|b\n")
    assert list_source(tmp_path).kind == "folder"


def test_what_cannot_be_used(tmp_path):
    folder = ljspeech_tree(tmp_path)
    with pytest.raises(
        SourceError, match=r"an audio root \(.*\) does not apply to LJSpeech.*leave"
    ):
        list_source(folder, audio_root=folder)
    with pytest.raises(SourceError, match="an image root .* contains its images, so leave it out"):
        list_source(folder, image_root=folder)
    shutil.rmtree(folder / "wavs")
    touch(folder, "wavs/other.wav")
    with pytest.raises(
        SourceError,
        match=r"none of its 3 audio files can be used .*LJ001-0001\.wav: line 1: no such audio "
        r"file\); put them into .*wavs",
    ):
        list_source(folder)
    (folder / "metadata.csv").write_text("|\n")
    with pytest.raises(SourceError, match=r"no line of metadata\.csv is id\|text\|normalised text"):
        list_source(folder)
