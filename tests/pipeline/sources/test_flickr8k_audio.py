import shutil

import pytest

from im2sp.pipeline.sources import SourceError, list_source
from support.speech_sources import (
    FLICKR8K_CAPTIONS,
    flickr8k_tree,
    karpathy_image,
    speech_of,
    touch,
    utterance_rejects_of,
    write_karpathy,
)

DOG, GIRL = (name.removesuffix(".jpg") for name in FLICKR8K_CAPTIONS)


@pytest.fixture
def tree(tmp_path):
    """Karpathy file and the two roots."""
    path, images, audio = flickr8k_tree(tmp_path)
    return path, {"image_root": images, "audio_root": audio}


def texts_of(item):
    return [utterance.text for utterance in item.utterances]


def test_the_number_in_a_name_is_the_place_of_the_caption(tree):
    path, roots = tree
    listing = list_source(path, **roots)
    assert listing.kind == "karpathy"
    dog, girl = listing.items
    assert (dog.key, dog.split, dog.captions) == (DOG, "train", ())
    assert (girl.key, girl.split, girl.captions) == (GIRL, "val", ())
    assert texts_of(dog) == FLICKR8K_CAPTIONS[f"{DOG}.jpg"]
    assert dog.utterances[3].audio == roots["audio_root"] / f"wavs/{DOG}_3.wav"
    assert girl.utterances[4].name == f"wavs/{GIRL}_4.wav"


def test_without_an_audio_root_nothing_changes(tree):
    path, roots = tree
    dog, _ = list_source(path, image_root=roots["image_root"]).items
    assert (dog.utterances, list(dog.captions)) == ((), FLICKR8K_CAPTIONS[f"{DOG}.jpg"])


def test_a_missing_clip_is_one_reject_and_its_text_stays(tree):
    path, roots = tree
    (roots["audio_root"] / f"wavs/{DOG}_2.wav").unlink()
    (roots["audio_root"] / f"wavs/{GIRL}_0.wav").unlink()
    (roots["audio_root"] / f"wavs/{GIRL}_0.wav").mkdir()
    dog, girl = list_source(path, **roots).items
    assert utterance_rejects_of(path, **roots) == {
        f"wavs/{DOG}_2.wav": "no such audio file",
        f"wavs/{GIRL}_0.wav": "not a regular file",
    }
    assert dog.error is girl.error is None
    assert texts_of(dog) == FLICKR8K_CAPTIONS[f"{DOG}.jpg"]


def test_clips_without_a_caption_have_no_text(tree):
    path, roots = tree
    wavs = roots["audio_root"] / "wavs"
    touch(wavs, f"{DOG}_5.wav", f"{DOG}.wav", f"{DOG}_1.flac", "stranger_0.wav", "notes.txt")
    dog, _ = list_source(path, **roots).items
    captions = FLICKR8K_CAPTIONS[f"{DOG}.jpg"]
    assert texts_of(dog) == [None, *captions[:2], captions[1], *captions[2:], None]
    assert utterance_rejects_of(path, **roots) == {
        f"wavs/{DOG}_1.wav": f"clip 1 of its image is already wavs/{DOG}_1.flac; keep one of them"
    }


def test_a_clip_of_two_images_of_one_name_is_a_reject(tmp_path):
    touch(tmp_path, "a/x.jpg", "b/x.jpg", "y.jpg", "wavs/x_0.wav", "wavs/y_0.wav")
    entries = [karpathy_image("x.jpg", "", [], filepath="a"), karpathy_image("y.jpg", "", [])]
    entries.append(karpathy_image("x.jpg", "", [], filepath="b"))
    path = write_karpathy(tmp_path / "d.json", entries)
    *images, reject = list_source(path, audio_root=tmp_path).items
    assert [len(item.utterances) for item in images] == [0, 1, 0]
    assert (reject.name, reject.error) == (
        "wavs/x_0.wav",
        "2 images could claim it: a/x.jpg, b/x.jpg; rename it or them",
    )


def test_wav2capt_decides(tree):
    path, roots = tree
    lines = [
        f"{DOG}_4.wav {DOG}.jpg #0",
        "",
        f"{DOG}_0.wav {DOG}.jpg #4\r",
        f"{DOG}_1.wav {DOG}.jpg #4",
        f"gone.wav {DOG}.jpg #2",
        f"{DOG}_4.wav {GIRL}.jpg #0",
        f"{GIRL}_1.wav {GIRL}.jpg #5",
        "stranger_0.wav stranger.jpg #0",
        "one field",
        f"{GIRL}_1.wav {GIRL}.jpg 1",
        f"{GIRL}_2.wav {GIRL}.jpg #2",
    ]
    (roots["audio_root"] / "wav2capt.txt").write_text("\n".join(lines))
    dog, girl, *rejects = list_source(path, **roots).items
    captions = FLICKR8K_CAPTIONS[f"{DOG}.jpg"]
    assert [(clip.name, clip.text) for clip in dog.utterances] == [
        (f"wavs/{DOG}_4.wav", captions[0]),
        ("wavs/gone.wav", captions[2]),
        (f"wavs/{DOG}_0.wav", captions[4]),
        (f"wavs/{DOG}_1.wav", captions[4]),
    ]
    assert dog.captions == (captions[1], captions[3])
    assert speech_of(path, **roots)[GIRL] == [f"wavs/{GIRL}_2.wav"]
    assert [clip.error for clip in (*dog.utterances, *girl.utterances) if clip.error] == [
        "wav2capt.txt line 5: no such audio file",
        "wav2capt.txt line 6: already in wav2capt.txt line 1",
        "wav2capt.txt line 7: caption #5, but the image has 5",
    ]
    girls = FLICKR8K_CAPTIONS[f"{GIRL}.jpg"]
    assert girl.captions == (girls[1], girls[3], girls[4])
    problem = "expected a clip, its image and #0, #1, ... for its caption"
    assert [(item.name, item.error) for item in rejects] == [
        ("wav2capt.txt line 9", problem),
        ("wav2capt.txt line 10", problem),
    ]


def test_wav2capt_paths_are_taken_as_image_paths_are(tree, tmp_path):
    path, roots = tree
    touch(tmp_path, "outside.wav")
    lines = [f"../../outside.wav {DOG}.jpg #0", f"{tmp_path}/outside.wav {DOG}.jpg #1"]
    (roots["audio_root"] / "wav2capt.txt").write_text("\n".join(lines))
    dog, _ = list_source(path, **roots).items
    first, second = (clip.audio for clip in dog.utterances)
    assert first == roots["audio_root"] / "wavs/../../outside.wav"
    assert second == tmp_path / "outside.wav"


def test_audio_roots_that_cannot_be_used(tree, tmp_path):
    path, roots = tree
    shutil.rmtree(roots["audio_root"] / "wavs")
    with pytest.raises(
        SourceError,
        match=r"not an audio root for a Karpathy file: found \['wav2spk.txt'\]; expected a folder "
        r"with SpokenCOCO_train\.json .* folder wavs/",
    ):
        list_source(path, **roots)
    with pytest.raises(SourceError, match=r"gone: not an audio root .*: found no folder; expected"):
        list_source(path, image_root=roots["image_root"], audio_root=tmp_path / "gone")
    touch(roots["audio_root"], "wavs/other_0.wav")
    with pytest.raises(
        SourceError,
        match=rf"none of its 10 audio files can be used in .*wavs/{DOG}_0\.wav: no such audio "
        r"file\); give the folder that holds them as --audio-root",
    ):
        list_source(path, **roots)
    (roots["audio_root"] / "wav2capt.txt").write_text("other_0.wav other.jpg #0\n")
    with pytest.raises(SourceError, match=r"none of its 2 images .* has speech in .*; check"):
        list_source(path, **roots)
    (roots["audio_root"] / "wav2capt.txt").unlink()
    (roots["audio_root"] / "wav2capt.txt").mkdir()
    with pytest.raises(
        SourceError, match=r"wav2capt\.txt: cannot be read: found a folder, expected a file"
    ):
        list_source(path, **roots)
