"""Speech units joined to pieces: runs of units that often occur together, as words have letters.

An utterance has some hundred units, and most of them follow from the ones before. Cut into pieces
by a sentencepiece model, each unit taken for a letter, it is a third as long: cheaper to train on
and to generate, and easier to learn. What a piece stands for is kept in the model's `Vocabulary`,
so that what is generated are units again. Shen et al., "Acoustic BPE for Speech Generation with
Discrete Tokens" (ICASSP 2024), found the same of HuBERT units; the paper's own models have none.
"""

import itertools
from collections.abc import Iterable, Sequence

from im2sp.trainer.text import load_sentencepieces, train_sentencepieces
from im2sp.trainer.vocabulary import Vocabulary

UNITS_MODEL_NAME = "units.model"
# The first letter: from here on there are 20,000 that no rule of sentencepiece changes.
_FIRST_LETTER = 0x4E00


class UnitPieces:
    """A sentencepiece model over units.

    Attributes:
        data: Its file's bytes.
        vocabulary: Where its pieces lie among the model's tokens, and the units of each.
    """

    def __init__(self, data: bytes, name: str, num_units: int) -> None:
        """Take a model's bytes; `name` is what messages call it.

        Raises:
            ValueError: They are no sentencepiece model, or not one of `num_units` units.
        """
        self.data = data
        processor = load_sentencepieces(data)
        if processor is None:
            raise ValueError(f"{name}: no sentencepiece model of speech units")
        self._processor = processor
        pieces = [
            () if processor.is_unknown(i) else _units(processor.id_to_piece(i))
            for i in range(processor.get_piece_size())
        ]
        found = {piece[0] for piece in pieces if len(piece) == 1}
        if found != set(range(num_units)):
            raise ValueError(
                f"{name}: its pieces are not those of {num_units} speech units; expected the"
                f" {UNITS_MODEL_NAME} of a run on the same units"
            )
        self.vocabulary = Vocabulary(kind="speech", num_ids=len(pieces), pieces=tuple(pieces))

    def encode(self, utterances: Sequence[Sequence[int]]) -> list[list[int]]:
        """The ids of the pieces that each utterance's units are cut into."""
        return self._processor.encode([_letters(units) for units in utterances])


def fit_unit_pieces(
    utterances: Iterable[Sequence[int]], num_units: int, max_pieces: int
) -> UnitPieces:
    """Fit pieces on utterances by byte-pair encoding.

    Args:
        utterances: Units in [0, num_units), collapsed.
        num_units: Units there are; each is a piece by itself, too.
        max_pieces: Most pieces; fewer where the utterances do not hold so many.

    Raises:
        ValueError: There is no utterance, or `max_pieces` is not above `num_units`.
    """
    # One more with all units, for some may occur in no other.
    sentences = map(_letters, itertools.chain(utterances, [range(num_units)]))
    try:
        data = train_sentencepieces(
            sentences,
            max_pieces,
            model_type="bpe",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"no {max_pieces} pieces of {num_units} units can be fitted on these utterances:"
            f" {reason}"
        ) from None
    return UnitPieces(data, "the fitted model", num_units)


def _letters(units: Iterable[int]) -> str:
    return "".join(chr(_FIRST_LETTER + unit) for unit in units)


def _units(letters: str) -> tuple[int, ...]:
    return tuple(ord(letter) - _FIRST_LETTER for letter in letters)
