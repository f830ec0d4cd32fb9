import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im2sp.tools.engines.caption_lm import BEGIN, END, arpa, compressed, fit_lm

CAPTIONS = ["A dog runs .", "a dog sleeps", "The cat runs"]


def probability(model, gram):
    """Probability of the last word after the others, by the rule of the ARPA format."""
    if gram in model:
        return model[gram][0]
    weight = model.get(gram[:-1], (0, 1.0))[1]
    return weight * probability(model, gram[1:])


def words_of(model):
    return sorted({gram[0] for gram in model if len(gram) == 1} - {BEGIN})


def test_witten_bell_by_hand():
    model = fit_lm(CAPTIONS, min_count=1)
    # 7 kinds of words and END among 12 tokens; "dog" is 2 of them.
    dog = (2 + 7 * 1 / 7) / (12 + 7)
    assert model[("dog",)][0] == pytest.approx(dog)
    # "a" is followed twice, by one kind.
    assert model[("a", "dog")][0] == pytest.approx((2 + 1 * dog) / (2 + 1))
    assert probability(model, ("a", "cat")) == pytest.approx(1 / 3 * model[("cat",)][0], rel=1e-6)


@given(
    captions=st.lists(st.text("abc ", max_size=12), min_size=1, max_size=8),
    min_count=st.integers(1, 3),
)
def test_every_distribution_sums_to_1(captions, min_count):
    captions.append("a")
    model = fit_lm(captions, min_count)
    words = words_of(model)
    for history in [(), *(gram for gram in model if len(gram) < 3 and gram[-1] != END)]:
        total = sum(probability(model, (*history, word)) for word in words)
        assert total == pytest.approx(1, abs=1e-6), history


def test_arpa_file():
    model = fit_lm(["a a"], min_count=1)
    assert arpa(model).splitlines() == [
        "\\data\\", "ngram 1=3", "ngram 2=3", "ngram 3=2", "",
        "\\1-grams:",
        "-0.3979 </s> 0.0000", "-99.0000 <s> -0.3010", "-0.2218 a -99.0000", "",
        "\\2-grams:",
        "-0.0969 <s> a -0.3010", "-0.3468 a </s> 0.0000", "-0.2596 a a -0.3010", "",
        "\\3-grams:", "-0.1107 <s> a a", "-0.1397 a a </s>", "",
        "\\end\\",
    ]  # fmt: skip
    data = compressed(arpa(model))
    assert gzip.decompress(data).decode() == arpa(model)
    assert compressed(arpa(model)) == data


def test_captions_without_words():
    with pytest.raises(ValueError, match="the captions contain no words"):
        fit_lm(["", " . "])
