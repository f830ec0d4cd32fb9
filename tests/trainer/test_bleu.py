import math

import pytest

from im2sp.trainer.bleu import bleu, bleu_sums, words_of


def test_words():
    words = ["a", "dog", "s", "ball", "2nd", "one", "über"]
    assert words_of("A dog's ball, 2nd_one -- ÜBER!") == words


def test_bleu_equals_a_hand_computed_example():
    found = [1, 2, 3, 4, 5, 6]
    references = [[1, 2, 3, 4, 9, 9, 9], [5, 6]]
    assert bleu_sums(found, references) == [6, 4, 2, 1, 6, 5, 4, 3, 6, 7]
    expected = (6 / 6 * 4 / 5 * 2 / 4 * 1 / 3) ** 0.25 * math.exp(1 - 7 / 6)
    assert bleu(bleu_sums(found, references)) == pytest.approx(expected)


def test_a_word_counts_no_more_often_than_in_one_reference():
    assert bleu_sums([7] * 4, [[7, 7, 1], [7]])[:4] == [2, 1, 0, 0]


def test_ends():
    same = bleu_sums([1, 2, 3, 4, 5], [[1, 2, 3, 4, 5], [9]])
    assert bleu(same) == 1
    assert bleu([a + b for a, b in zip(same, same, strict=True)]) == 1
    assert bleu(bleu_sums([], [[1]])) == 0
    assert bleu(bleu_sums([1, 2, 3], [[1, 2, 3]])) == 0
    # The length of the nearest reference counts; of two equally near, the shorter one.
    assert bleu_sums([0] * 4, [[1] * 5, [1] * 3])[-2:] == [4, 3]
