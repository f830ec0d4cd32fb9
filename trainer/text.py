"""Captions as ids and back: sentencepiece models, GIT's word pieces, bags of words; fitting one."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from im2sp.trainer.bleu import words_of
from im2sp.trainer.vocabulary import Vocabulary

TEXT_MODEL_NAME = "text.model"
GIT_NAME = "tokenizer.json"
_CASE_FOLDED = "nmt_nfkc_cf"
_WORDS_FORM = "im2sp words 1"


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
    """Read a sentencepiece model, a GIT's `tokenizer.json`, or a bag of words; told by content.

    Raises:
        ValueError: There is no such file, or it is none of them.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if data.startswith(_WORDS_FORM.encode()):
        return WordBag(data, str(path))
    return GitPieces(data, str(path)) if data[:1] == b"{" else Sentencepieces(data, str(path))


class Sentencepieces:
    """A sentencepiece model."""

    def __init__(self, data: bytes, name: str) -> None:
        """Take a model's bytes; `name` is what messages call it.

        Raises:
            ValueError: They are no sentencepiece model.
        """
        self.data = data
        processor = load_sentencepieces(data)
        if processor is None:
            raise ValueError(f"{name}: no sentencepiece model; make one with tools/fit_text.py")
        self._processor = processor
        self.vocabulary = Vocabulary(kind="text", num_ids=processor.get_piece_size())

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


class WordBag:
    """Words that captions hold or not: what an image encoder can learn from before it has to write.

    Attributes:
        words: The words, the most frequent first; an id is a place among them.
        log_odds: Of each being in a caption.
    """

    def __init__(self, data: bytes, name: str) -> None:
        """Take a file's bytes; `name` is what messages call it.

        Raises:
            ValueError: They are no bag of words.
        """
        self.data = data
        try:
            form, *rows = [line.split("\t") for line in data.decode().splitlines()]
            self.words = [word for word, _ in rows]
            self.log_odds = [math.log(float(share) / (1 - float(share))) for _, share in rows]
            if form != [_WORDS_FORM]:
                raise ValueError(f"it begins with {form}")
            self.vocabulary = Vocabulary(kind="words", num_ids=len(rows))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{name}: no bag of words ({error})") from None
        self._places = {word: place for place, word in enumerate(self.words)}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the words that each text holds, each once, in ascending order."""
        return [
            sorted({self._places[word] for word in words_of(text) if word in self._places})
            for text in texts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ids."""
        return " ".join(self.words[i] for i in ids)


def fit_word_bag(texts: Iterable[str], max_words: int) -> WordBag:
    """The words that most texts hold.

    Args:
        texts: The captions.
        max_words: Most words; those that more texts hold come first, then by the alphabet.

    Raises:
        ValueError: There is no word.
    """
    counts: Counter[str] = Counter()
    num_texts = 0
    for text in texts:
        counts.update(set(words_of(text)))
        num_texts += 1
    if not counts:
        raise ValueError("the captions hold no word")
    kept = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:max_words]
    # One text more, half of which holds each word: none is in all or in none.
    rows = [f"{word}\t{(count + 0.5) / (num_texts + 1):.6g}" for word, count in kept]
    return WordBag("\n".join([_WORDS_FORM, *rows, ""]).encode(), "the fitted bag of words")


def fit_text_model(texts: Iterable[str], max_pieces: int) -> Sentencepieces:
    """Fit a unigram model on texts; letters are lower-cased and forms unified (NFKC) in it.

    Args:
        texts: The captions.
        max_pieces: Most pieces; fewer where the texts do not hold so many.

    Raises:
        ValueError: There is no text, or its letters alone are more than `max_pieces`.
    """
    try:
        data = train_sentencepieces(
            texts, max_pieces, model_type="unigram", normalization_rule_name=_CASE_FOLDED
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"no text model of {max_pieces} pieces can be fitted on these captions: {reason}"
        ) from None
    return Sentencepieces(data, "the fitted model")


def load_sentencepieces(data: bytes) -> sentencepiece.SentencePieceProcessor | None:
    """The processor of a sentencepiece model; None where the bytes are none."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        return processor if processor.get_piece_size() else None
    except RuntimeError:
        return None


def train_sentencepieces(texts: Iterable[str], max_pieces: int, **settings: Any) -> bytes:
    """A sentencepiece model without BOS, EOS and PAD; the same texts make the same bytes.

    Args:
        texts: What to learn from.
        max_pieces: Most pieces; fewer where the texts do not hold so many.
        settings: More of sentencepiece's own.

    Raises:
        RuntimeError: sentencepiece's, where nothing can be fitted.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        vocab_size=max_pieces,
        hard_vocab_limit=False,
        character_coverage=1.0,
        num_threads=1,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        minloglevel=4,
        **settings,
    )
    return written.getvalue()
