import json
import tracemalloc

import pytest

from im2sp.pipeline.sources import SourceError, list_source
from support.speech_sources import (
    coco_tree,
    karpathy_image,
    spoken_coco_entry,
    touch,
    utterance_rejects_of,
    write_karpathy,
    write_spoken_coco,
)

DOGS = "train2014/COCO_train2014_000000000009.jpg"
OTHER = "train2014/COCO_train2014_000000000008.jpg"


@pytest.fixture
def tree(tmp_path):
    """Karpathy file and the two roots."""
    path, images, audio = coco_tree(tmp_path)
    return path, {"image_root": images, "audio_root": audio}


def test_both_files_are_matched_by_image_restval_too(tree):
    path, roots = tree
    listing = list_source(path, **roots)
    dogs, shoes, bikes = listing.items
    assert listing.kind == "karpathy"
    assert (dogs.key, dogs.split) == ("COCO_train2014_000000000009", "train")
    assert (shoes.key, shoes.split) == ("COCO_val2014_000000000042", "restval")
    assert [clip.text for clip in dogs.utterances] == ["THE MANS T SHIRT", "NO CAPTION OF COCO"]
    assert [clip.text for clip in shoes.utterances][0] == "SHOES AND A DOG"
    assert [item.captions for item in listing.items] == [
        ("Two dogs.",), ("A shoe rack",), ("A motorbike.",)
    ]  # fmt: skip
    assert bikes.utterances[1].name == "wavs/val/0/m1-73_1.wav"
    assert bikes.utterances[1].audio == roots["audio_root"] / "wavs/val/0/m1-73_1.wav"
    assert all(clip.error is None for item in listing.items for clip in item.utterances)


def test_one_of_the_files_is_enough(tree):
    path, roots = tree
    (roots["audio_root"] / "SpokenCOCO_train.json").unlink()
    dogs, shoes, bikes = list_source(path, **roots).items
    assert (dogs.utterances, shoes.utterances, len(bikes.utterances)) == ((), (), 2)
    assert dogs.captions == ("Two dogs.", "The man's t-shirt.")


def test_the_two_files_are_not_in_memory_at_once(tree):
    path, roots = tree
    size_bytes = 2 << 20
    for file in (path, roots["audio_root"] / "SpokenCOCO_val.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "info": "x" * size_bytes}))
    tracemalloc.start()
    list_source(path, **roots)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Bytes, text and value of one file; 4 sizes while the content of the other is kept.
    assert peak_bytes < 3.5 * size_bytes


def test_an_image_is_known_by_its_file_name_alone(tree):
    path, roots = tree
    entry = spoken_coco_entry(DOGS, "x")
    entry["image"] = DOGS.split("/")[1]
    write_spoken_coco(roots["audio_root"], "train", [entry, spoken_coco_entry(OTHER)])
    assert [clip.text for clip in list_source(path, **roots).items[0].utterances] == ["x"]


def test_a_file_name_of_two_images_is_a_reject(tmp_path):
    touch(tmp_path, "a/x.jpg", "b/x.jpg", "y.jpg", "0.wav", "1.wav")
    entries = [karpathy_image("x.jpg", "", [], filepath=folder) for folder in "ab"]
    path = write_karpathy(tmp_path / "d.json", [*entries, karpathy_image("y.jpg", "", [])])
    clips = [{"wav": f"{number}.wav", "text": "t"} for number in range(2)]
    data = [{"image": "x.jpg", "captions": clips[:1]}, {"image": "b/x.jpg", "captions": clips[1:]}]
    write_spoken_coco(tmp_path, "val", data)
    first, second, _, reject = list_source(path, audio_root=tmp_path).items
    assert (len(first.utterances), len(second.utterances)) == (0, 1)
    assert (reject.name, reject.error) == (
        "SpokenCOCO_val.json data[0]",
        "2 images are called x.jpg; give the path of one",
    )


def test_what_is_wrong_with_a_clip_is_its_reject_and_the_image_stays(tree, tmp_path):
    path, roots = tree
    entry = spoken_coco_entry(DOGS, "zero", "one")
    wav = entry["captions"][0]["wav"]
    entry["captions"] += [
        {"text": "gone", "wav": "wavs/train/0/gone.wav"},
        {"text": "far", "wav": "nowhere/gone.wav"},
        {"text": "long", "wav": "n" * 5000 + "/x.wav"},
        {"text": "net", "wav": "ftp://example.org/a.wav"},
        {"text": "nul", "wav": "a\0.wav"},
        {"text": "again", "wav": wav},
        {"text": "Two DOGS"},
        {"text": 5, "wav": "five.wav"},
        {"text": "\ud800", "wav": "six.wav"},
        "text",
        {"wav": entry["captions"].pop()["wav"]},
    ]
    write_spoken_coco(roots["audio_root"], "train", [entry])
    dogs = list_source(path, **roots).items[0]
    where = "SpokenCOCO_train.json data[0].captions"
    assert list(utterance_rejects_of(path, **roots).items()) == [
        ("wavs/train/0/gone.wav", f"{where}[1]: no such audio file"),
        ("nowhere/gone.wav", f"{where}[2]: no such audio file"),
        ("n" * 5000 + "/x.wav", f"{where}[3]: audio file cannot be looked up: File name too long"),
        ("ftp://example.org/a.wav", f"{where}[4]: ftp://example.org/a.wav: not a URL that is read; "
         "expected one of http://, https://, s3://, gs://, hf://"),
        ("a\0.wav", f"{where}[5]: the audio path holds a zero byte"),
        (wav, f"{where}[6]: already in {where}[0] for the same image"),
        (f"{where}[7]", "expected an object with the clip's path under 'wav'"),
        ("five.wav", f"{where}[8]: the text is not valid UTF-8 text"),
        ("six.wav", f"{where}[9]: the text is not valid UTF-8 text"),
        (f"{where}[10]", "expected an object with the clip's path under 'wav'"),
    ]  # fmt: skip
    assert [clip.text for clip in dogs.utterances if not clip.error] == ["zero", None]
    assert dogs.captions == ("Two dogs.", "The man's t-shirt.")


def test_paths_are_taken_as_image_paths_are_and_links_are_followed(tree, tmp_path):
    path, roots = tree
    touch(tmp_path, "outside.wav", "far/away.wav")
    (roots["audio_root"] / "linked").symlink_to(tmp_path / "far")
    (roots["audio_root"] / "round.wav").symlink_to("round.wav")
    wavs = ["../outside.wav", f"{tmp_path}/outside.wav", "linked/away.wav", "round.wav"]
    captions = [{"wav": wav, "text": "x"} for wav in wavs]
    write_spoken_coco(roots["audio_root"], "train", [{"image": DOGS, "captions": captions}])
    clips = list_source(path, **roots).items[0].utterances
    assert [clip.audio for clip in clips] == [
        roots["audio_root"] / "../outside.wav",
        tmp_path / "outside.wav",
        roots["audio_root"] / "linked/away.wav",
        None,
    ]
    assert clips[3].error == "SpokenCOCO_train.json data[0].captions[3]: not a regular file"


def test_broken_entries_are_rejects(tree):
    path, roots = tree
    entries = [spoken_coco_entry(DOGS, "a", "b"), 5, {"image": DOGS}, {"captions": []}]
    write_spoken_coco(roots["audio_root"], "train", entries)
    *_, number, no_list, no_image = list_source(path, **roots).items
    assert number.name == "SpokenCOCO_train.json data[1]"
    assert number.error == "found int, expected an object"
    assert no_list.error == "expected a path under 'image' and a list under 'captions'"
    assert no_image.error == no_list.error


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", r"not JSON \(.*\); expected a SpokenCOCO file, \{\"data\""),
        ("[" * 100_000, "not JSON"),
        ("[]", "found list; expected a SpokenCOCO file"),
        (json.dumps({"images": []}), r"found keys \['images'\]; expected a SpokenCOCO file"),
    ],
)
def test_files_that_cannot_be_used(tree, content, match):
    path, roots = tree
    (roots["audio_root"] / "SpokenCOCO_val.json").write_text(content)
    with pytest.raises(SourceError, match=rf"SpokenCOCO_val\.json: {match}"):
        list_source(path, **roots)


def test_speech_of_other_images_alone_is_refused(tree):
    path, roots = tree
    (roots["audio_root"] / "SpokenCOCO_val.json").unlink()
    write_spoken_coco(roots["audio_root"], "train", [spoken_coco_entry(OTHER, "x")])
    with pytest.raises(
        SourceError, match=rf"none of its 3 images \(the first: {DOGS}\) has speech in .*; check"
    ):
        list_source(path, **roots)
