"""Unit language models, for SpeechLMScore.

SpeechLMScore (Maiti, Peng, Saeki, Watanabe: "SpeechLMScore: Evaluating Speech Generation Using
Speech Language Model", ICASSP 2023) is the mean log-likelihood of a speech unit given the units
before it. It needs no reference, and compares systems only under one language model.

    load_speech_lm("runs/unit-lm")            # of tools/fit_unit_lm.py
    load_speech_lm("hubert200_lm")            # of fairseq's GSLM: checkpoint_best.pt and dict.txt

fairseq's form is `transformer_lm` as GSLM trains it: pre-norm layers, sinusoidal positions,
embedding scaled by the square root of the width and shared with the output. An utterance starts
with `</s>`. `dict.txt` has a line `UNIT COUNT` for each token after the four special ones.
"""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from im2sp.pipeline.speech_tokenizer.published import fairseq_records
from im2sp.shards.weights import read_weights
from im2sp.shards.weights.pickles import WeightsError

if TYPE_CHECKING:
    from im2sp.trainer.model import Im2SpModel

DICT_NAME = "dict.txt"
FAIRSEQ_NAMES = ("checkpoint_best.pt", "checkpoint_last.pt")
_EMBEDDING = "decoder.embed_tokens.weight"
_PAD, _EOS, _NUM_SPECIALS = 1, 2, 4  # <s> <pad> </s> <unk>
_HEAD_WIDTH = 64
_EPS = 1e-5


class SpeechLM(Protocol):
    """Language model of speech units."""

    @property
    def name(self) -> str:
        """Last part of the path it was loaded from."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the weights."""
        ...

    @property
    def speech_fingerprint(self) -> str | None:
        """Fingerprint of the tokenizer of its units; None if unknown."""
        ...

    def log_likelihood(self, units: Sequence[int]) -> float:
        """Mean log-likelihood of a unit, in nats; the end of the utterance is not counted.

        Args:
            units: One or more units without repeats.

        Raises:
            ValueError: A unit is not in the vocabulary.
        """
        ...


def load_speech_lm(path: str | Path, device: str | None = None) -> SpeechLM:
    """Load a unit language model; no code in its files is executed.

    Args:
        path: Run or checkpoint of tools/fit_unit_lm.py; or fairseq's checkpoint, or a folder with
            it, with `dict.txt` beside it.
        device: torch device; None for CUDA if available.

    Raises:
        ValueError: It is neither.
    """
    path = Path(path).expanduser()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = path if path.is_dir() else path.parent
    if (folder / DICT_NAME).is_file():
        names = [name for name in FAIRSEQ_NAMES if (folder / name).is_file()]
        if path.is_dir() and not names:
            raise ValueError(f"{path}: has {DICT_NAME}, but neither {' nor '.join(FAIRSEQ_NAMES)}")
        return FairseqLM(folder / names[0] if path.is_dir() else path, folder / DICT_NAME, device)
    return OwnLM(path, device)


class OwnLM:
    """A run of `im2sp-train --without-image` on speech units."""

    def __init__(self, path: Path, device: str) -> None:
        from im2sp.pipeline.tensors import state_fingerprint
        from im2sp.trainer import load_model
        from im2sp.trainer.transfer import former_state

        self._model: Im2SpModel = load_model(path, device=device)
        config = self._model.config
        vocabulary = config.vocabulary
        if config.has_image or vocabulary.kind != "speech" or vocabulary.pieces is not None:
            raise ValueError(
                f"{path}: not a language model of single speech units; expected a run of"
                f" tools/fit_unit_lm.py, or a checkpoint of fairseq with {DICT_NAME} beside it"
            )
        self.name = path.name
        self.fingerprint = state_fingerprint(self._model)
        fingerprints = former_state(str(path)).get("fingerprints", {})
        self.speech_fingerprint: str | None = fingerprints.get("speech")
        self._longest = config.max_positions - 1

    @torch.no_grad()
    def log_likelihood(self, units: Sequence[int]) -> float:
        """See `SpeechLM`. Units beyond the model's positions form further utterances."""
        device = self._model.decoder.embedding.weight.device
        total = 0.0
        for start in range(0, len(units), self._longest):
            tokens = self._model.config.vocabulary.encode(units[start : start + self._longest])
            row = torch.tensor([tokens[:-1]], device=device)
            logits = self._model(torch.zeros(1, dtype=torch.int64, device=device), row)[0, :-1]
            total += _sum_of(logits, row[0, 1:])
        return total / len(units)


class FairseqLM:
    """fairseq's `transformer_lm`."""

    speech_fingerprint = None

    def __init__(self, path: Path, dict_path: Path, device: str) -> None:
        from im2sp.trainer.weights import read_tensors

        self.name = path.parent.name
        named = {name: t.float() for name, t in read_tensors(path)[0].items()}
        records, _ = fairseq_records(read_weights(path).content)
        if _EMBEDDING not in named:
            raise WeightsError(f"{path}: lacks {_EMBEDDING!r} of fairseq's transformer_lm")
        size, width = named[_EMBEDDING].shape
        self._tokens = _read_dict(dict_path, size)
        self._heads = records.get("decoder_attention_heads", max(1, width // _HEAD_WIDTH))
        activation = records.get("activation_fn", "relu")
        if activation not in ("relu", "gelu"):
            raise WeightsError(f"{path}: activation_fn is {activation!r}, expected relu or gelu")
        if type(self._heads) is not int or self._heads < 1 or width % self._heads:
            raise WeightsError(f"{path}: {self._heads!r} heads for a width of {width}")
        self._activation = F.relu if activation == "relu" else F.gelu
        self._scale = 1.0 if records.get("no_scale_embedding") else math.sqrt(width)
        self._weights = _checked(path, named, width)
        self.fingerprint = _fingerprint(self._weights)
        self._weights = {name: t.to(device) for name, t in self._weights.items()}
        found = re.compile(r"decoder\.layers\.(\d+)\.fc1\.weight")
        self._depth = sum(found.fullmatch(name) is not None for name in self._weights)

    @torch.no_grad()
    def log_likelihood(self, units: Sequence[int]) -> float:
        """See `SpeechLM`."""
        unknown = [unit for unit in units if unit not in self._tokens]
        if unknown:
            raise ValueError(
                f"{self.name}: unit {unknown[0]} is not in its {DICT_NAME}; expected units of the"
                " tokenizer that the language model was trained on"
            )
        embedding = self._weights[_EMBEDDING]
        targets = torch.tensor([self._tokens[unit] for unit in units], device=embedding.device)
        inputs = torch.cat((targets.new_tensor([_EOS]), targets[:-1]))
        x = self._scale * embedding[inputs]
        x = x + _sinusoids(len(inputs), x.shape[1]).to(x)
        for layer in range(self._depth):
            x = self._layer(f"decoder.layers.{layer}.", x)
        logits = self._norm("decoder.layer_norm", x) @ self._output().T
        return _sum_of(logits, targets) / len(units)

    def _output(self) -> Tensor:
        return self._weights.get("decoder.output_projection.weight", self._weights[_EMBEDDING])

    def _layer(self, name: str, x: Tensor) -> Tensor:
        """(T, D) -> (T, D)."""
        normed = self._norm(f"{name}self_attn_layer_norm", x)
        q, k, v = (
            self._linear(f"{name}self_attn.{part}_proj", normed)
            .unflatten(1, (self._heads, -1))
            .transpose(0, 1)
            for part in "qkv"
        )
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        x = x + self._linear(f"{name}self_attn.out_proj", attended.transpose(0, 1).flatten(1))
        inner = self._activation(
            self._linear(f"{name}fc1", self._norm(f"{name}final_layer_norm", x))
        )
        return x + self._linear(f"{name}fc2", inner)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, _EPS)


def _sum_of(logits: Tensor, targets: Tensor) -> float:
    """Summed log-likelihood of targets (T,) under logits (T, V)."""
    return -float(F.cross_entropy(logits.double(), targets, reduction="sum"))


def _sinusoids(length: int, width: int) -> Tensor:
    """(T, D) sines, then cosines, of the positions after that of the padding token."""
    half = width // 2
    rates = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    angles = (_PAD + 1 + torch.arange(length))[:, None] * rates
    table = torch.cat((angles.sin(), angles.cos()), 1)
    return F.pad(table, (0, width - 2 * half))


def _read_dict(path: Path, size: int) -> dict[int, int]:
    """Token of each unit; entries that are no number, such as `madeupword0000`, are skipped."""
    try:
        lines = path.read_text("utf-8").splitlines()
        symbols = [line.rsplit(" ", 1)[0] for line in lines]
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text, expected lines of `UNIT COUNT`") from None
    if len(symbols) + _NUM_SPECIALS != size:
        raise ValueError(
            f"{path}: {len(symbols)} lines, expected {size - _NUM_SPECIALS} for an embedding of"
            f" {size} tokens"
        )
    return {
        int(symbol): place
        for place, symbol in enumerate(symbols, _NUM_SPECIALS)
        if symbol.isascii() and symbol.isdecimal()
    }


def _checked(path: Path, named: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """The tensors in use, of matching shapes; others than those of GSLM are refused."""
    inner = len(named.get("decoder.layers.0.fc1.bias", torch.empty(0)))
    square, row = (width, width), (width,)
    shapes = {f"self_attn.{part}_proj": square for part in ("q", "k", "v", "out")}
    shapes |= {"fc1": (inner, width), "fc2": (width, inner)}
    numbers = {int(m[1]) for n in named if (m := re.match(r"decoder\.layers\.(\d+)\.", n))}
    expected: dict[str, tuple[int, ...]] = {_EMBEDDING: tuple(named[_EMBEDDING].shape)}
    for layer in numbers:
        prefix = f"decoder.layers.{layer}."
        for name, shape in shapes.items():
            expected |= {f"{prefix}{name}.weight": shape, f"{prefix}{name}.bias": shape[:1]}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            expected |= {f"{prefix}{name}.weight": row, f"{prefix}{name}.bias": row}
    expected |= {"decoder.layer_norm.weight": row, "decoder.layer_norm.bias": row}
    optional = {"decoder.output_projection.weight": expected[_EMBEDDING]}
    unused = {"decoder.version", "decoder.embed_positions._float_tensor"}
    if numbers != set(range(len(numbers))) or not numbers:
        raise WeightsError(f"{path}: has layers {sorted(numbers)}, expected 0, 1, 2 ..")
    others = sorted(named.keys() - expected.keys() - optional.keys() - unused)
    if others:
        raise WeightsError(
            f"{path}: has the tensor {others[0]!r}, which the language models of GSLM do not have"
        )
    kept: dict[str, Tensor] = {}
    for name, shape in (expected | optional).items():
        if name not in named and name in optional:
            continue
        found = tuple(named[name].shape) if name in named else None
        if found != shape:
            raise WeightsError(f"{path}: {name} is {found or 'missing'}, expected {shape}")
        kept[name] = named[name]
    return kept


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0")
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
