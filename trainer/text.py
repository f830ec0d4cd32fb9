"""Captions as ids of text pieces and back: sentencepiece models, and fitting one."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from im2sp.trainer.vocabulary import Vocabulary

TEXT_MODEL_NAME = "text.model"
_CASE_FOLDED = "nmt_nfkc_cf"


class TextModel:
    """A sentencepiece model; an id is the number of a piece.

    Attributes:
        data: The model's bytes, as its file holds them.
        vocabulary: Where its pieces lie among the model's tokens.
    """

    def __init__(self, data: bytes, name: str = TEXT_MODEL_NAME) -> None:
        """Take a model's bytes; `name` is what messages call it.

        Raises:
            ValueError: They are no sentencepiece model.
        """
        self.data = data
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
            num_pieces = self._processor.get_piece_size()
        except RuntimeError:
            num_pieces = 0
        if not num_pieces:
            raise ValueError(f"{name}: no sentencepiece model; make one with tools/fit_text.py")
        self.vocabulary = Vocabulary(kind="text", num_ids=num_pieces)

    @classmethod
    def read(cls, path: Path) -> "TextModel":
        """Read a model's file.

        Raises:
            ValueError: There is no such file, or it is no sentencepiece model.
        """
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; lower-case, as models fitted here see it."""
        return self._processor.decode(list(ids))


def fit_text_model(texts: Iterable[str], max_pieces: int) -> TextModel:
    """Fit a unigram model on texts; letters are lower-cased and forms unified (NFKC) in it.

    Args:
        texts: The captions.
        max_pieces: Most pieces; fewer where the texts do not hold so many.

    Raises:
        ValueError: There is no text, or its letters alone are more than `max_pieces`.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            model_type="unigram",
            vocab_size=max_pieces,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name=_CASE_FOLDED,
            num_threads=1,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            minloglevel=4,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"no text model of {max_pieces} pieces can be fitted on these captions: {reason}"
        ) from None
    return TextModel(written.getvalue())
