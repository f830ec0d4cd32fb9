"""Captions as ids of text pieces and back: sentencepiece models, GIT's word pieces, fitting one."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
import tokenizers

from im2sp.trainer.vocabulary import Vocabulary

TEXT_MODEL_NAME = "text.model"
GIT_NAME = "tokenizer.json"
_CASE_FOLDED = "nmt_nfkc_cf"


class TextModel(Protocol):
    """What cuts texts into pieces; an id is the number of a piece."""

    @property
    def data(self) -> bytes:
        """Its file's bytes."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Where its pieces lie among the model's tokens."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without specials."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


def read_text_model(path: Path) -> TextModel:
    """Read a sentencepiece model, or the `tokenizer.json` of a GIT; told apart by content.

    Raises:
        ValueError: There is no such file, or it is neither.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return GitPieces(data, str(path)) if data[:1] == b"{" else Sentencepieces(data, str(path))


class Sentencepieces:
    """A sentencepiece model."""

    def __init__(self, data: bytes, name: str) -> None:
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

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; lower-case, as models fitted here see it."""
        return self._processor.decode(list(ids))


class GitPieces:
    """The word pieces of a GIT, as the `tokenizer.json` beside its weights holds them."""

    def __init__(self, data: bytes, name: str) -> None:
        """Take the file's bytes; `name` is what messages call it.

        Raises:
            ValueError: They are no tokenizer, or one without GIT's BOS and EOS.
        """
        self.data = data
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the library raises Exception itself
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}: no tokenizer of a GIT ({reason})") from None
        size = self._tokenizer.get_vocab_size()
        try:
            self.vocabulary = Vocabulary(kind="text", num_ids=size, layout="git")
        except ValueError as error:
            raise ValueError(f"{name}: no tokenizer of a GIT ({error})") from None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        coded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in coded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def fit_text_model(texts: Iterable[str], max_pieces: int) -> Sentencepieces:
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
    return Sentencepieces(written.getvalue(), "the fitted model")
