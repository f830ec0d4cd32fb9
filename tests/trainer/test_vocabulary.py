import pytest
import torch

from im2sp.trainer.vocabulary import Vocabulary

SPEECH = Vocabulary(kind="speech", num_ids=200)
ORIGINAL = Vocabulary(kind="speech", num_ids=200, layout="original")
GIT = Vocabulary(kind="text", num_ids=30522, layout="git")


@pytest.mark.parametrize("vocabulary", [SPEECH, Vocabulary(kind="text", num_ids=1000), GIT])
def test_ids_and_tokens_are_one_to_one(vocabulary):
    specials = [vocabulary.pad, vocabulary.bos, vocabulary.eos]
    ids = [i for i in range(vocabulary.num_ids) if vocabulary.layout != "git" or i not in specials]
    tokens = vocabulary.encode(ids)
    assert (tokens[0], tokens[-1]) == (vocabulary.bos, vocabulary.eos)
    assert len(set(tokens)) == len(ids) + 2
    assert all(0 <= token < vocabulary.size and token != vocabulary.pad for token in tokens)
    assert vocabulary.decode(tokens) == ids


def test_the_tables_numbers():
    assert (SPEECH.pad, SPEECH.bos, SPEECH.eos, SPEECH.size) == (0, 1, 2, 203)
    assert SPEECH.encode([0, 199]) == [1, 3, 202, 2]
    assert (GIT.pad, GIT.bos, GIT.eos, GIT.size) == (0, 101, 102, 30522)
    assert GIT.encode([7592, 2088]) == [101, 7592, 2088, 102]
    assert (ORIGINAL.pad, ORIGINAL.bos, ORIGINAL.eos, ORIGINAL.size) == (0, 101, 102, 203)


def test_the_fault_of_the_original_layout_is_kept_for_its_checkpoints():
    assert ORIGINAL.encode([0, 99, 100, 101, 199]) == [101, 1, 100, 101, 104, 202, 102]
    units = list(range(200))
    assert ORIGINAL.decode(ORIGINAL.encode(units)) == units
    assert ORIGINAL.decode([101, 103]) == [100]  # a token that nothing was trained on


@pytest.mark.parametrize("vocabulary", [SPEECH, ORIGINAL])
def test_a_batch_is_rows_of_encode(vocabulary):
    ids = torch.tensor([[5, 100, 150], [7, -1, 999], [0, 0, 0]], dtype=torch.int16)
    tokens = vocabulary.encode_batch(ids, torch.tensor([3, 1, 0], dtype=torch.int32))
    rows = [vocabulary.encode(row) for row in ([5, 100, 150], [7], [])]
    assert tokens.tolist() == [row + [vocabulary.pad] * (5 - len(row)) for row in rows]
    assert vocabulary.encode_batch(torch.zeros(0, 3), torch.zeros(0)).shape == (0, 5)


def test_decoding_stops_at_eos_and_removes_specials():
    assert SPEECH.decode([1, 3, 0, 1, 4, 2, 9]) == [0, 1]
    assert SPEECH.decode([]) == []


def test_ids_outside_are_refused():
    with pytest.raises(ValueError, match=r"id 1 is 200, expected one in \[0, 200\)"):
        SPEECH.encode([3, 200])
    with pytest.raises(ValueError, match=r"ids range from -1 to 3, expected \[0, 200\)"):
        SPEECH.encode_batch(torch.tensor([[3, -1]]), torch.tensor([2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "song"}, "kind is 'song', expected one of speech, text"),
        ({"layout": "x"}, "layout is 'x', expected one of im2sp, git, original"),
        ({"num_ids": 0}, "num_ids is 0, expected at least 1 in the layout 'im2sp'"),
        ({"num_ids": 102, "layout": "git"}, "expected at least 103 in the layout 'git'"),
        ({"num_ids": 99, "layout": "original"}, "expected at least 100 in the layout 'original'"),
    ],
)
def test_values_not_in_the_table_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary(**{"kind": "speech", "num_ids": 200} | changes)
