import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from im2sp.pipeline.decoding.images import ByteRange
from im2sp.pipeline.sources import SourceError, list_source
from support.sources import write_tar
from support.speech_sources import touch, utterance_rejects_of


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(item) -> list[tuple[str, str | None]]:
    return [(clip.name, clip.text) for clip in item.utterances if not clip.error]


@pytest.mark.parametrize("name", ["A/1.wav", "a/1.WAV", "a\\1.wav"])
def test_a_path_that_is_spelt_otherwise_is_explained(media, name):
    path = jsonl(media / "m.jsonl", {"audio": "a/0.wav"}, {"audio": name})
    (reason,) = utterance_rejects_of(path).values()
    assert reason.startswith("line 2: no such audio file; ")
    assert "a/1.wav is there, " in reason


ROWS = [
    {"key": "k", "image": "x.png", "audio": "a/0.wav", "caption": "zero", "split": "train"},
    {"key": "k", "image": "x.png", "audio": "", "caption": "unspoken", "split": ""},
    {"key": "k", "image": "x.png", "audio": "a/1.wav", "caption": "", "split": ""},
    {"key": "", "image": "", "audio": "a/2.flac", "caption": "alone", "split": "val"},
    {"key": "", "image": "y.png", "audio": "gone.wav", "caption": "y", "split": ""},
]


@pytest.fixture
def media(tmp_path):
    return touch(tmp_path, "x.png", "y.png", "z.png", *(f"a/{n}.wav" for n in range(4)), "a/2.flac")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_every_kind_of_manifest_gathers_clips(media, kind):
    path = media / f"m.{kind}"
    if kind == "jsonl":
        jsonl(path, *ROWS)
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    listing = list_source(path)
    assert listing.kind == kind
    x, alone, y = listing.items
    assert (x.key, x.image, x.split) == ("k", media / "x.png", "train")
    assert said(x) == [("a/0.wav", "zero"), ("a/1.wav", None)]
    assert x.utterances[0].audio == media / "a/0.wav"
    assert x.captions == ("unspoken",)
    assert (alone.key, alone.image, alone.name, alone.split) == ("a/2", None, "a/2.flac", "val")
    assert said(alone) == [("a/2.flac", "alone")]
    (gone,) = y.utterances
    assert (y.error, y.image, gone.text) == (None, media / "y.png", "y")
    assert gone.error is not None
    assert gone.error.endswith(": no such audio file")


def test_lists_pair_by_their_places(media):
    rows = [
        {"image": "x.png", "audio": ["a/0.wav", None, "a/1.wav"], "captions": ["0", "no", "1"]},
        {"image": "y.png", "audio": ["a/0.wav", "a/1.wav"]},
        {"audio": ["a/2.wav", "a/3.wav"], "caption": ["2", ""]},
    ]
    x, y, alone = list_source(jsonl(media / "m.jsonl", *rows)).items
    assert (said(x), x.captions) == ([("a/0.wav", "0"), ("a/1.wav", "1")], ("no",))
    assert said(y) == [("a/0.wav", None), ("a/1.wav", None)]
    assert (alone.key, said(alone)) == ("a/2", [("a/2.wav", "2"), ("a/3.wav", None)])
    path = media / "m.parquet"
    pq.write_table(pa.Table.from_pylist([{"image": "x.png", "audio": ["a/0.wav"]}]), path)
    assert said(list_source(path).items[0]) == [("a/0.wav", None)]


def test_an_image_may_come_in_a_later_row(media):
    rows = [
        {"key": "k", "audio": "a/0.wav"},
        {"key": "k", "image": "x.png", "audio": "a/1.wav"},
        {"key": "k", "image": "y.png"},
        {"key": "g", "audio": "a/0.wav"},
        {"key": "g", "image": "gone.png"},
    ]
    k, other, gone = list_source(jsonl(media / "m.jsonl", *rows)).items
    assert (k.image, [name for name, _ in said(k)]) == (media / "x.png", ["a/0.wav", "a/1.wav"])
    assert other.error == "line 3: key 'k' has another image in line 2: x.png"
    assert (gone.error, gone.utterances) == ("line 5: no such image file", ())


def test_contradictions_are_rejects_of_their_row(media):
    rows = [
        {"image": "x.png", "audio": ["a/0.wav", "a/1.wav"], "caption": ["one"]},
        {"image": "x.png", "audio": "a/0.wav", "caption": ["one", "two"]},
        {"image": "x.png", "audio": 5},
        {"image": "x.png", "audio": ["a/0.wav", 5]},
        {"image": "", "audio": []},
        {"image": "x.png", "audio": "a/0.wav"},
        {"image": "x.png", "audio": "a/0.wav", "caption": "again"},
        {"image": "y.png", "audio": ["a/1.wav", "a/1.wav"]},
        {"image": "z.png", "audio": "a/0.wav", "caption": "\ud800"},
        {"image": "y.png", "audio": "a/0.wav"},
    ]
    items = list_source(jsonl(media / "m.jsonl", *rows)).items
    assert [item.error for item in items if item.error] == [
        "line 1: 2 audio paths, but 1 captions; they pair by their places",
        "line 2: 1 audio paths, but 2 captions; they pair by their places",
        "line 3: audio is int, expected a path or a list of paths",
        "line 4: audio is list, expected a path or a list of paths",
        "line 5: neither an image path nor an audio path",
        "line 7: audio 'a/0.wav' is already in line 6 for the same sample",
        "line 8: audio 'a/1.wav' is already in line 8 for the same sample",
        "line 9: the caption is not valid UTF-8 text",
    ]
    assert [(item.key, len(item.utterances)) for item in items if not item.error] == [
        ("x", 1), ("y", 1)
    ]  # fmt: skip


def test_clips_that_cannot_be_had_are_rejects_alone(media):
    audio = ["gone.wav", "ftp://example.org/a.wav", "a\0.wav", "a", "a/0.wav", "x.png/b.wav"]
    path = jsonl(media / "m.jsonl", {"image": "x.png", "audio": audio})
    assert list(utterance_rejects_of(path).values()) == [
        "line 1: no such audio file",
        "line 1: ftp://example.org/a.wav: not a URL that is read; expected one of "
        "http://, https://, s3://, gs://, hf://",
        "line 1: the audio path holds a zero byte",
        "line 1: not a regular file",
        "line 1: no such audio file",
    ]
    assert said(list_source(path).items[0]) == [("a/0.wav", None)]


def test_audio_roots(media, tmp_path):
    path = jsonl(media / "m.jsonl", {"image": "x.png", "audio": "0.wav"})
    (item,) = list_source(path, audio_root=media / "a").items
    assert item.utterances[0].audio == media / "a/0.wav"
    tar = write_tar(tmp_path / "s.tar", {"./0.wav": b"zero"})
    (item,) = list_source(path, audio_root=tar).items
    assert isinstance(item.utterances[0].audio, ByteRange)
    jsonl(media / "n.jsonl", {"image": "x.png", "audio": ["0.wav", "b.wav", "c\0", "/0.wav"]})
    assert utterance_rejects_of(media / "n.jsonl", audio_root=tar) == {
        "b.wav": "line 1: no member b.wav in s.tar",
        "c\0": "line 1: the audio path holds a zero byte",
        "/0.wav": "line 1: no member /0.wav in s.tar",
    }


def test_audio_roots_that_cannot_be_used(media):
    path = jsonl(media / "m.jsonl", {"image": "x.png", "audio": "0.wav"})
    with pytest.raises(
        SourceError, match=r"gone: no such audio root; expected a folder or a \.tar"
    ):
        list_source(path, audio_root=media / "gone")
    with pytest.raises(
        SourceError,
        match=r"none of its 1 audio files can be used in .*first: 0\.wav: line 1: no such "
        r"audio file\); give the folder that holds them as --audio-root",
    ):
        list_source(path, audio_root=media)
    jsonl(path, {"image": "x.png", "caption": "x"})
    with pytest.raises(
        SourceError,
        match=r"no row names a clip under 'audio', so an audio root .* leave it out",
    ):
        list_source(path, audio_root=media)
