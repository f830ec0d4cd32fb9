"""Sound that pairs with images by name: in folders, in tars and below an audio root."""

import os
from pathlib import Path

import pytest

from im2sp.pipeline.decoding.audio import read_audio
from im2sp.pipeline.decoding.images import ByteRange
from im2sp.pipeline.sources import SourceError, SourceItem, list_source
from support.sounds import encoded
from support.sources import png_bytes, write, write_tar
from support.speech_sources import speech_of, touch, utterance_rejects_of


def by_key(path: Path, **options) -> dict[str, SourceItem]:
    return {item.key: item for item in list_source(path, **options).items}


# Folders


def test_clips_come_with_the_image_of_their_stem_by_number(tmp_path):
    touch(tmp_path, "b/x.jpg", "b/x.wav", "b/x_10.flac", "b/x_2.mp3", "b/x_1.WAV", "x_3.wav")
    touch(tmp_path, "c.png", "notes.txt", ".hidden.wav")
    listing = list_source(tmp_path)
    assert listing.kind == "folder"
    assert speech_of(tmp_path) == {
        "b/x": ["b/x.wav", "b/x_1.WAV", "b/x_2.mp3", "b/x_10.flac"],
        "c": [],
        "x_3": ["x_3.wav"],
    }
    items = by_key(tmp_path)
    assert items["b/x"].image == tmp_path / "b/x.jpg"
    assert items["b/x"].utterances[1].audio == tmp_path / "b/x_1.WAV"
    assert items["b/x"].utterances[1].text is None
    assert (items["x_3"].image, items["x_3"].name) == (None, "x_3.wav")
    assert listing.ignored == {"(hidden)": 1, ".txt": 1}


def test_an_image_of_the_whole_stem_comes_first(tmp_path):
    touch(tmp_path, "x.jpg", "x_1.jpg", "x_0.wav", "x_1.wav", "x_1_0.wav")
    assert speech_of(tmp_path) == {"x": ["x_0.wav"], "x_1": ["x_1.wav", "x_1_0.wav"]}


def test_names_that_look_like_a_number_and_are_none(tmp_path):
    touch(tmp_path, "x.jpg", "x_a.wav", "x-1.wav", "x_.wav", "x_1234567890.wav", "x_٣.wav")
    assert speech_of(tmp_path)["x"] == []
    assert len(speech_of(tmp_path)) == 6


def test_a_clip_of_a_number_that_is_taken_is_a_reject_and_the_image_stays(tmp_path):
    touch(tmp_path, "x.jpg", "x_1.flac", "x_1.wav", "x_01.wav", "x.flac", "x.wav")
    assert speech_of(tmp_path) == {"x": ["x.flac", "x_01.wav"]}
    assert utterance_rejects_of(tmp_path) == {
        "x.wav": "the clip without a number of its image is already x.flac; keep one of them",
        "x_1.flac": "clip 1 of its image is already x_01.wav; keep one of them",
        "x_1.wav": "clip 1 of its image is already x_01.wav; keep one of them",
    }


def test_a_clip_that_two_images_could_claim_is_a_reject(tmp_path):
    touch(tmp_path, "x.jpg", "x.png", "x_0.wav", "x.wav")
    listing = list_source(tmp_path)
    assert {item.name: item.error for item in listing.items} == {
        "x.jpg": None,
        "x.png": None,
        "x.wav": "2 images could claim it: x.jpg, x.png; rename it or them",
        "x_0.wav": "2 images could claim it: x.jpg, x.png; rename it or them",
    }
    assert [item.key for item in listing.items if not item.error] == ["x.jpg", "x.png"]


def test_sound_alone_is_a_source(tmp_path):
    touch(tmp_path, "a/LJ_1.wav", "a/LJ_2.flac", "dup.wav", "dup.ogg")
    listing = list_source(tmp_path)
    assert [item.key for item in listing.items] == ["a/LJ_1", "a/LJ_2", "dup.ogg", "dup.wav"]
    assert all(item.image is None and item.error is None for item in listing.items)
    assert all(len(item.utterances) == 1 for item in listing.items)


def test_links_of_sound(tmp_path):
    root = touch(tmp_path / "root", "x.jpg", "x_0.wav", "y.jpg", "y_1.wav")
    touch(tmp_path, "outside.wav", "outside.jpg")
    (root / "x_1.wav").symlink_to("x_0.wav")
    (root / "x_2.wav").symlink_to("../outside.wav")
    (root / "x_3.wav").symlink_to("gone.wav")
    (root / "alone.wav").symlink_to("../outside.wav")
    (root / "z.jpg").symlink_to("../outside.jpg")
    touch(root, "z_0.wav")
    os.mkfifo(root / "x_4.wav")
    assert speech_of(root) == {
        "alone": ["alone.wav"],
        "x": ["x_0.wav", "x_1.wav", "x_2.wav"],
        "y": ["y_1.wav"],
        "z": ["z_0.wav"],
    }
    assert utterance_rejects_of(root) == {
        "x_3.wav": "link to nothing",
        "x_4.wav": "not a regular file",
    }
    assert [item.error for item in list_source(root).items] == [None] * 4


# An audio root


def test_an_audio_root_with_the_folders_of_the_images(tmp_path):
    images = touch(tmp_path / "images", "a/x.jpg", "b/x.jpg", "b/x_9.wav")
    audio = touch(tmp_path / "audio", "a/x_0.wav", "b/x_0.wav", "b/x_1.wav", "readme.txt")
    listing = list_source(images, audio_root=audio)
    assert speech_of(images, audio_root=audio) == {
        "a/x": ["a/x_0.wav"],
        "b/x": ["b/x_0.wav", "b/x_1.wav"],
    }
    assert listing.items[0].utterances[0].audio == audio / "a/x_0.wav"
    assert listing.ignored == {".wav": 1}


def test_an_audio_root_with_folders_of_its_own(tmp_path):
    images = touch(tmp_path / "images", "train/x.jpg", "val/y.jpg", "train/z.jpg", "val/z.jpg")
    audio = touch(tmp_path / "audio", "wavs/x_1.wav", "wavs/x_0.wav", "more/y.wav", "wavs/q.wav")
    touch(audio, "more/x_0.wav", "wavs/z_0.wav")
    assert speech_of(images, audio_root=audio) == {
        "train/x": ["more/x_0.wav", "wavs/x_1.wav"],
        "train/z": [],
        "val/y": ["more/y.wav"],
        "val/z": [],
        "wavs/q": ["wavs/q.wav"],
    }
    assert utterance_rejects_of(images, audio_root=audio) == {
        "wavs/x_0.wav": "clip 0 of its image is already more/x_0.wav; keep one of them"
    }
    errors = [item.error for item in list_source(images, audio_root=audio).items if item.error]
    assert errors == ["2 images could claim it: train/z.jpg, val/z.jpg; rename it or them"]


def test_an_image_with_clips_by_path_takes_none_by_file_name(tmp_path):
    images = touch(tmp_path / "images", "a/x.jpg")
    audio = touch(tmp_path / "audio", "a/x_0.wav", "b/x_1.wav")
    assert speech_of(images, audio_root=audio) == {"a/x": ["a/x_0.wav"], "b/x_1": ["b/x_1.wav"]}


def test_audio_roots_that_cannot_be_used(tmp_path):
    images = touch(tmp_path / "images", "x.jpg", "y.jpg")
    with pytest.raises(
        SourceError, match=r"gone: no such audio root; expected a folder or a \.tar"
    ):
        list_source(images, audio_root=tmp_path / "gone")
    silent = touch(tmp_path / "silent", "a.txt")
    with pytest.raises(
        SourceError, match=r"holds no audio files \(found 1 \.txt\); expected .*\.wav"
    ):
        list_source(images, audio_root=silent)
    other = touch(tmp_path / "other", "q_0.wav", "r_0.wav")
    with pytest.raises(
        SourceError,
        match=r"other: none of its 2 audio files \(the first: q_0\.wav\) belongs to one of the 2 "
        r"images of .*images \(the first: x\.jpg\); expected .* check the audio root",
    ):
        list_source(images, audio_root=other)


# Tars


def test_members_of_a_tar_pair_by_name(tmp_path):
    path = write_tar(
        tmp_path / "x.tar",
        {"z_1.wav": encoded("WAV"), "q.flac": encoded("FLAC"), "z.png": png_bytes(),
         "z_0.wav": encoded("WAV"), "../z_2.wav": b"", "notes.txt": b""},
    )  # fmt: skip
    assert speech_of(path) == {
        "q": ["x.tar/q.flac"],
        "z": ["x.tar/z_0.wav", "x.tar/z_1.wav"],
        "z_2": [],
    }
    assert list(by_key(path)) == ["q", "z", "z_2"]
    assert utterance_rejects_of(path) == {"x.tar/../z_2.wav": "its name leaves the archive"}
    clip = by_key(path)["z"].utterances[0]
    assert isinstance(clip.audio, ByteRange)
    assert len(read_audio(clip.audio, name=clip.name)) == 480


def test_a_tar_is_an_audio_root_too(tmp_path):
    sound = write_tar(tmp_path / "s.tar", {"wavs/x_0.wav": encoded("WAV")})
    images = write(tmp_path / "images", "x.png")
    assert speech_of(images, audio_root=sound) == {"x": ["s.tar/wavs/x_0.wav"]}
    pictures = write_tar(tmp_path / "p.tar", {"x.png": png_bytes()})
    assert speech_of(pictures, audio_root=sound) == {"x": ["s.tar/wavs/x_0.wav"]}
    data = sound.read_bytes()[:600]
    sound.write_bytes(data)
    with pytest.raises(SourceError, match=r"s\.tar: none of its"):
        list_source(write(tmp_path / "other", "y.png"), audio_root=sound)


# All


def test_a_description_changes_with_the_speech(tmp_path):
    seen = [list_source(touch(tmp_path, "x.jpg")).describe()["sha256"]]
    for name in ("x_0.wav", "x_1.wav", "alone.wav"):
        seen.append(list_source(touch(tmp_path, name)).describe()["sha256"])
    assert len(set(seen)) == 4
