"""Text models: captions to ids and back (sentencepiece, GIT's word pieces, bags of words)."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers

from im2sp.shards.files import read_regular
from im2sp.trainer.bleu import words_of
from im2sp.trainer.vocabulary import Vocabulary

TEXT_MODEL_NAME = "text.model"
GIT_NAME = "tokenizer.json"
_CASE_FOLDED = "nmt_nfkc_cf"
_WORDS_FORM = "im2sp words 1"


class TextModel(Protocol):
    """Tokenizer of texts; an id is the number of a piece."""

    @property
    def data(self) -> bytes:
        """Content of its file."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Mapping of its pieces to the model's tokens."""
        ...

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


def read_text_model(path: Path) -> TextModel:
    """Read a sentencepiece model, a GIT's `tokenizer.json` or a bag of words; detected by content.

    Raises:
        ValueError: The file does not exist, or is none of them.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if data.startswith(_WORDS_FORM.encode()):
        return WordBag(data, str(path))
    return GitPieces(data, str(path)) if data[:1] == b"{" else Sentencepieces(data, str(path))


class Sentencepieces:
    """A sentencepiece model."""

    def __init__(self, data: bytes, name: str) -> None:
        """Load a model from the content of its file; `name` is used in messages.

        Raises:
            ValueError: `data` is not a sentencepiece model.
        """
        self.data = data
        processor = load_sentencepieces(data)
        if processor is None:
            raise ValueError(f"{name}: not a sentencepiece model; fit one with tools/fit_text.py")
        self._processor = processor
        self.vocabulary = Vocabulary(kind="text", num_ids=processor.get_piece_size())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; lower-case for models fitted here."""
        return self._processor.decode(list(ids))


class GitPieces:
    """The word pieces of a GIT, from the `tokenizer.json` beside its weights."""

    def __init__(self, data: bytes, name: str) -> None:
        """Load the tokenizer from the content of its file; `name` is used in messages.

        Raises:
            ValueError: `data` is not a tokenizer, or lacks GIT's BOS and EOS.
        """
        self.data = data
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
        except Exception as error:  # the class that the library raises
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}: not the tokenizer of a GIT ({reason})") from None
        size = self._tokenizer.get_vocab_size()
        try:
            self.vocabulary = Vocabulary(kind="text", num_ids=size, layout="git")
        except ValueError as error:
            raise ValueError(f"{name}: not the tokenizer of a GIT ({error})") from None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        coded = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in coded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


class WordBag:
    """Bag of words: the words a caption contains, the target of pre-training the image encoder.

    Attributes:
        words: The words, most frequent first; an id is an index into them.
        log_odds: For each word, the log odds of occurring in a caption.
    """

    def __init__(self, data: bytes, name: str) -> None:
        """Load a bag of words from the content of its file; `name` is used in messages.

        Raises:
            ValueError: `data` is not a bag of words.
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
            raise ValueError(f"{name}: not a bag of words ({error})") from None
        self._places = {word: place for place, word in enumerate(self.words)}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of the words in each text, each once, in ascending order."""
        return [
            sorted({self._places[word] for word in words_of(text) if word in self._places})
            for text in texts
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ids."""
        return " ".join(self.words[i] for i in ids)


def fit_word_bag(texts: Iterable[str], max_words: int) -> WordBag:
    """Collect the words that occur in most texts.

    Args:
        texts: The captions.
        max_words: Maximum number of words; sorted by the number of texts, then alphabetically.

    Raises:
        ValueError: The texts contain no words.
    """
    counts: Counter[str] = Counter()
    num_texts = 0
    for text in texts:
        counts.update(set(words_of(text)))
        num_texts += 1
    if not counts:
        raise ValueError("the captions contain no words")
    kept = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:max_words]
    # Smoothed by half an occurrence in one more text, so that all log odds are finite.
    rows = [f"{word}\t{(count + 0.5) / (num_texts + 1):.6g}" for word, count in kept]
    return WordBag("\n".join([_WORDS_FORM, *rows, ""]).encode(), "the fitted bag of words")


def fit_text_model(texts: Iterable[str], max_pieces: int) -> Sentencepieces:
    """Fit a unigram model to texts; it normalises its input to lower case and NFKC.

    Args:
        texts: The captions.
        max_pieces: Maximum number of pieces; fewer if the texts do not contain that many.

    Raises:
        ValueError: There are no texts, or they have more than `max_pieces` distinct characters.
    """
    try:
        data = train_sentencepieces(
            texts, max_pieces, model_type="unigram", normalization_rule_name=_CASE_FOLDED
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"cannot fit a text model of {max_pieces} pieces to these captions: {reason}"
        ) from None
    return Sentencepieces(data, "the fitted model")


def load_sentencepieces(data: bytes) -> sentencepiece.SentencePieceProcessor | None:
    """The processor of a sentencepiece model; None if `data` is not one."""
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        return processor if processor.get_piece_size() else None
    except RuntimeError:
        return None


def train_sentencepieces(texts: Iterable[str], max_pieces: int, **settings: Any) -> bytes:
    """Fit a sentencepiece model without BOS, EOS and PAD; the same texts give the same bytes.

    Args:
        texts: Texts to fit to.
        max_pieces: Maximum number of pieces; fewer if the texts do not contain that many.
        settings: Further options of sentencepiece.

    Raises:
        RuntimeError: Raised by sentencepiece if no model can be fitted.
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
