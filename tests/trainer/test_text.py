import pytest

from im2sp.trainer.text import TextModel, fit_text_model

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
    assert TextModel.read(path).encode(TEXTS) == ids


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
        TextModel.read(tmp_path / "no.model")
    for data in (b"", b"no model"):
        with pytest.raises(ValueError, match="x: no sentencepiece model; make one with tools/fit_"):
            TextModel(data, "x")
