"""Acoustic BPE: byte-pair encoding of speech units into unit pieces.

A unit piece is a sequence of units that often occur together. An utterance has some hundred units,
most of them predictable from the ones before. A sentencepiece model, with one character per unit,
makes it a third as long: cheaper to train on and to generate, and easier to learn. The model's
`Vocabulary` holds the units of each piece, so generations are decoded to units. Shen et al.,
"Acoustic BPE for Speech Generation with Discrete Tokens" (ICASSP 2024), report the same for HuBERT
units; the paper's own models do not use it.
"""

import itertools
from collections.abc import Iterable, Sequence

from im2sp.trainer.text import load_sentencepieces, train_sentencepieces
from im2sp.trainer.vocabulary import Vocabulary

UNITS_MODEL_NAME = "units.model"
# Character of unit 0: the first of 20,000 that sentencepiece does not normalise.
_FIRST_LETTER = 0x4E00


class UnitPieces:
    """A sentencepiece model over units.

    Attributes:
        data: Content of its file.
        vocabulary: Mapping of its pieces to the model's tokens and to units.
    """

    def __init__(self, data: bytes, name: str, num_units: int) -> None:
        """Load a model from the content of its file; `name` is used in messages.

        Raises:
            ValueError: `data` is not a sentencepiece model of `num_units` units.
        """
        self.data = data
        processor = load_sentencepieces(data)
        if processor is None:
            raise ValueError(f"{name}: not a sentencepiece model of speech units")
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
        """The ids of the pieces of each utterance's units."""
        return self._processor.encode([_letters(units) for units in utterances])


def fit_unit_pieces(
    utterances: Iterable[Sequence[int]], num_units: int, max_pieces: int
) -> UnitPieces:
    """Fit unit pieces to utterances by byte-pair encoding.

    Args:
        utterances: Units in [0, num_units), collapsed.
        num_units: Number of units; each is also a piece.
        max_pieces: Maximum number of pieces; fewer if the utterances do not contain that many.

    Raises:
        ValueError: There are no utterances, or `max_pieces` is not above `num_units`.
    """
    # An additional sequence with all units, as some may not occur in the data.
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
            f"cannot fit {max_pieces} pieces of {num_units} units to these utterances: {reason}"
        ) from None
    return UnitPieces(data, "the fitted model", num_units)


def _letters(units: Iterable[int]) -> str:
    return "".join(chr(_FIRST_LETTER + unit) for unit in units)


def _units(letters: str) -> tuple[int, ...]:
    return tuple(ord(letter) - _FIRST_LETTER for letter in letters)
