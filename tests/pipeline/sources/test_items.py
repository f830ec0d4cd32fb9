from pathlib import Path

import pytest

from im2sp.pipeline.job.encode import captions_of
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    SourceListing,
    Utterance,
    has_images,
    has_speech,
    narrowed,
)


def spoken(text, **settings):
    return Utterance(audio=Path("a.wav"), name="a.wav", text=text, **settings)


def item_of(*utterances, image=Path("x.png"), **settings):
    return SourceItem(key="x", image=image, name="x", utterances=utterances, **settings)


LOST = Utterance(audio=None, name="gone.wav", text="gone", error="no such audio file")


@pytest.mark.parametrize(
    ("accepted", "refused", "rest", "expected"),
    [
        ([], [], [], []),
        ([], [], ["a", "b"], ["a", "b"]),
        ([None, None], [], [], []),
        ([None, ""], [None], [], []),
        (["one", "two"], [], [], ["one", "two"]),
        (["one", None], [], [], ["one", ""]),
        ([None, None], [], ["a"], ["", "", "a"]),
        ([None], ["lost"], ["a"], ["", "lost", "a"]),
        (["one"], ["lost", None], ["a", "a"], ["one", "lost", "a", "a"]),
        ([], ["lost"], [], ["lost"]),
    ],
)
def test_the_first_captions_are_those_of_the_utterances(accepted, refused, rest, expected):
    item = item_of(captions=tuple(rest))
    found = captions_of(
        item, [spoken(text) for text in accepted], [spoken(text) for text in refused]
    )
    assert found == expected


@pytest.mark.parametrize(
    ("items", "images", "speech"),
    [
        ([item_of()], True, False),
        ([item_of(spoken("a"))], True, True),
        ([item_of(spoken("a"), image=None)], False, True),
        ([item_of(LOST)], True, False),
        ([item_of(LOST, image=None)], False, False),
        ([item_of(LOST, image=None), item_of(LOST, spoken("a"), image=None)], False, True),
        ([item_of(image=None, error="gone")], True, False),
        ([item_of(image=None, error="gone"), item_of(spoken("a"), image=None)], False, True),
    ],
)
def test_only_what_the_source_holds_needs_a_tokenizer(items, images, speech):
    assert (has_images(items), has_speech(items)) == (images, speech)


def listing_of(*items):
    return SourceListing(kind="folder", items=list(items), ignored={".txt": 1})


def test_images_alone_keep_transcripts_as_captions():
    both = item_of(spoken("one"), spoken(None), spoken("two"), captions=("three",))
    lost = item_of(image=None, error="no such file")
    listing = listing_of(both, item_of(spoken("a"), image=None), lost)
    assert narrowed(listing, None, "p") is listing
    found = narrowed(listing, "images", "p")
    assert found.items == [item_of(captions=("one", "two", "three")), lost]
    assert found.ignored == {".txt": 1}


def test_audio_alone_leaves_images_without_any_out():
    both, alone = item_of(spoken("one")), item_of(spoken("a"), image=None)
    found = narrowed(listing_of(both, item_of(), alone), "audio", "p")
    assert found.items == [item_of(spoken("one"), image=None), alone]


@pytest.mark.parametrize(
    ("only", "item"), [("audio", item_of()), ("images", item_of(spoken("a"), image=None))]
)
def test_nothing_left_is_an_error(only, item):
    with pytest.raises(SourceError, match=f"^here: holds no {only}; leave --only {only} out$"):
        narrowed(listing_of(item), only, "here")
