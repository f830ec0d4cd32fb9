import pytest

from im2sp.trainer.text import GitPieces, Sentencepieces, fit_text_model, read_text_model
from making.training import git_tokenizer

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


def test_fewer_pieces_where_the_texts_hold_no_more():
    assert fit_text_model(["ab ab"], 4000).vocabulary.num_ids < 10


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="no text model of 60 pieces can be fitted on these"):
        fit_text_model([], 60)
    with pytest.raises(ValueError, match="Vocabulary size is smaller than required_chars"):
        fit_text_model(TEXTS, 5)
    with pytest.raises(ValueError, match=r"no.model: No such file"):
        read_text_model(tmp_path / "no.model")
    for data in (b"", b"no model"):
        with pytest.raises(ValueError, match="x: no sentencepiece model; make one with tools/fit_"):
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
        (b"{}", "x: no tokenizer of a GIT"),
        (git_tokenizer(50), "num_ids is 50"),
    ):
        with pytest.raises(ValueError, match=message):
            GitPieces(data, "x")
