import itertools
import random

import pytest

from im2sp.trainer.unit_pieces import UnitPieces, fit_unit_pieces
from im2sp.trainer.vocabulary import Vocabulary

WORDS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8]]
NUM_UNITS = 12  # 10 and 11 occur nowhere


def utterances(count, seed=0):
    """Sequences of words, collapsed."""
    rng = random.Random(seed)
    for _ in range(count):
        units = itertools.chain.from_iterable(rng.choices(WORDS, k=rng.randrange(2, 7)))
        yield [unit for unit, _ in itertools.groupby(units)]


@pytest.fixture(scope="module")
def pieces():
    return fit_unit_pieces(utterances(300), NUM_UNITS, 24)


def test_pieces_are_shorter_and_mean_the_same_units(pieces):
    vocabulary = pieces.vocabulary
    assert vocabulary.num_units == NUM_UNITS
    sequences = [*utterances(50, seed=1), [11, 0, 10]]
    rows = pieces.encode(sequences)
    for units, ids in zip(sequences, rows, strict=True):
        assert vocabulary.decode(vocabulary.encode(ids)) == units
    assert sum(map(len, rows)) < 0.5 * sum(map(len, sequences))
    assert pieces.encode([[]]) == [[]]


def test_the_same_utterances_make_the_same_pieces(pieces):
    again = fit_unit_pieces(utterances(300), NUM_UNITS, 24)
    assert again.data == pieces.data
    assert UnitPieces(again.data, "x", NUM_UNITS).vocabulary == pieces.vocabulary


def test_a_unit_repeated_between_pieces_is_collapsed():
    vocabulary = Vocabulary(kind="speech", num_ids=3, pieces=((), (1, 0), (0, 1)))
    assert vocabulary.decode(vocabulary.encode([1, 2, 0, 2])) == [1, 0, 1, 0, 1]


def test_refusals(pieces):
    with pytest.raises(ValueError, match="x: not a sentencepiece model of speech units"):
        UnitPieces(b"no model", "x", NUM_UNITS)
    with pytest.raises(ValueError, match=r"x: its pieces are not those of 13 speech units; expec"):
        UnitPieces(pieces.data, "x", 13)
    with pytest.raises(ValueError, match="cannot fit 5 pieces of 12 units to these utter"):
        fit_unit_pieces(utterances(9), NUM_UNITS, 5)
    with pytest.raises(ValueError, match="1 pieces of units for 2 ids of kind 'speech', expected"):
        Vocabulary(kind="speech", num_ids=2, pieces=((0,),))
    with pytest.raises(ValueError, match="2 pieces of units for 2 ids of kind 'text', expected"):
        Vocabulary(kind="text", num_ids=2, pieces=((0,), (1,)))
