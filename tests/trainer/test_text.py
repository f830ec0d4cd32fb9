import math

import pytest

from im2sp.trainer.text import (
    GitPieces,
    Sentencepieces,
    WordBag,
    fit_text_model,
    fit_word_bag,
    read_text_model,
)
from im2sp.trainer.vocabulary import Vocabulary
from support.training import git_tokenizer

TEXTS = [
    "A dog runs in the snow.",
    "Two dogs run.",
    "The child sits in the snow, ünder a tree.",
] * 3


@pytest.fixture(scope="module")
def model():
    return fit_text_model(TEXTS, 60)


def test_texts_and_ids(model, tmp_path):
    ids = model.encode(TEXTS)
    assert model.vocabulary.kind == "text"
    assert all(0 <= i < model.vocabulary.num_ids <= 60 for row in ids for i in row)
    assert [model.decode(row) for row in ids] == [text.lower() for text in TEXTS]
    assert model.encode([]) == []
    path = tmp_path / "text.model"
    path.write_bytes(model.data)
    assert read_text_model(path).encode(TEXTS) == ids


def test_the_same_texts_make_the_same_model(model):
    assert fit_text_model(iter(TEXTS), 60).data == model.data


def test_fewer_pieces_if_the_texts_have_no_more():
    assert fit_text_model(["ab ab"], 4000).vocabulary.num_ids < 10


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="cannot fit a text model of 60 pieces to these"):
        fit_text_model([], 60)
    with pytest.raises(ValueError, match="Vocabulary size is smaller than required_chars"):
        fit_text_model(TEXTS, 5)
    with pytest.raises(ValueError, match=r"no.model: No such file"):
        read_text_model(tmp_path / "no.model")
    for data in (b"", b"no model"):
        with pytest.raises(
            ValueError, match="x: not a sentencepiece model; fit one with tools/fit_"
        ):
            Sentencepieces(data, "x")


def test_the_word_pieces_of_a_git(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(git_tokenizer(120))
    model = read_text_model(path)
    assert (model.vocabulary.layout, model.vocabulary.size) == ("git", 120)
    ids = model.encode(["A Dogs", "dog"])
    assert ids == [[105, 103, 104], [103]]
    assert model.vocabulary.encode(ids[1]) == [101, 103, 102]
    assert model.decode(ids[0]) == "a dogs"
    for data, message in (
        (b"{}", "x: not the tokenizer of a GIT"),
        (git_tokenizer(50), "num_ids is 50"),
    ):
        with pytest.raises(ValueError, match=message):
            GitPieces(data, "x")


def test_a_bag_of_words(tmp_path):
    bag = fit_word_bag(["A dog, a dog runs.", "Dogs run; a dog runs!", "Snow"], 4)
    assert bag.words == ["a", "dog", "runs", "dogs"]
    assert bag.encode(["Runs, dog; DOG!", "tree", ""]) == [[1, 2], [], []]
    assert bag.decode([1, 2]) == "dog runs"
    assert bag.vocabulary == Vocabulary(kind="words", num_ids=4)
    # (2 + 1/2) of (3 + 1) texts hold the first, (1 + 1/2) of them the last.
    odds = [2.5 / 1.5, 2.5 / 1.5, 2.5 / 1.5, 1.5 / 2.5]
    assert bag.log_odds == pytest.approx([math.log(value) for value in odds])
    path = tmp_path / "text.model"
    path.write_bytes(bag.data)
    assert read_text_model(path).encode(["dogs run"]) == [[3]]


def test_no_bag_of_words():
    with pytest.raises(ValueError, match="the captions contain no words"):
        fit_word_bag(["", "..."], 4)
    for rows in ("", "\ndog", "\ndog\tx", "\ndog\t1", "2\ndog\t0.5"):
        with pytest.raises(ValueError, match="x: not a bag of words"):
            WordBag(f"im2sp words 1{rows}".encode(), "x")
