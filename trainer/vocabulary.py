"""Mapping of special tokens, speech units and text pieces to the model's tokens.

An *id* is a unit, a unit piece, or a text piece; a *token* is its index in the embedding and
the output. No other module adds an offset. The layouts:

    layout    PAD  BOS  EOS   id -> token                           number of tokens
    im2sp      0    1    2    id + 3                                ids + 3
    git        0   101  102   id (the specials are pieces, too)     ids
    original   0   101  102   id + 1 up to 100, id + 3 above        ids + 3

"git" is for BERT's word pieces as used by GIT. "original" is the layout of the paper's checkpoints
and needed to load them: by mistake, unit 100 has the token of BOS, so inside a sequence token 101
is read as unit 100.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["speech", "text", "words", "units"]
Layout = Literal["im2sp", "git", "original"]
_SPECIALS: dict[str, tuple[int, int, int]] = {
    "im2sp": (0, 1, 2),
    "git": (0, 101, 102),
    "original": (0, 101, 102),
}
_NUM_SPECIALS = 3
_LAST_LOW_UNIT = 100


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Mapping of ids and special tokens to the model's tokens."""

    kind: Literal["speech", "text", "words", "units"]
    """Meaning of an id: a speech unit, a text piece, a word of a bag of words, or a unit of another
    column."""
    num_ids: int
    """Ids are 0 to num_ids - 1."""
    layout: Literal["im2sp", "git", "original"] = "im2sp"
    """Row of the table in this module's docstring."""
    pieces: tuple[tuple[int, ...], ...] | None = None
    """Speech units of each id, if ids are unit pieces (`unit_pieces`); `decode` returns units."""
    shape: tuple[int | None, ...] | None = None
    """Shape of the arrays of units of the kind units, at most one axis None, which is time.

    The other axes are then codebooks: a sequence has the units of all codebooks at the first time,
    then those at the second, and so on; code c of codebook k is the id `k * num_codes + c`. Without
    an axis of None the order is raster, and ids are codes. (Copet et al., "Simple and Controllable
    Music Generation" (2023), call the first order flattening: slower than their delay pattern, and
    at least as good.)"""

    def __post_init__(self) -> None:
        """Refuse values that are not in the table."""
        for name, values in (("kind", get_args(Kind)), ("layout", get_args(Layout))):
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, expected one of {', '.join(values)}"
                )
        if self.pieces is not None:
            if self.kind != "speech" or len(self.pieces) != self.num_ids:
                raise ValueError(
                    f"{len(self.pieces)} pieces of units for {self.num_ids} ids of kind"
                    f" {self.kind!r}, expected one for each id of kind 'speech'"
                )
            # Lists if they come from JSON.
            object.__setattr__(self, "pieces", tuple(map(tuple, self.pieces)))
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))  # a list if it comes from JSON
            if self.kind != "units" or self.num_ids % self.num_codebooks:
                raise ValueError(
                    f"arrays of the shape {self.shape} for {self.num_ids} ids of kind"
                    f" {self.kind!r}, expected kind 'units' and as many ids of each codebook"
                )
        least = {"im2sp": 1, "git": self.eos + 1, "original": self.eos + 1 - _NUM_SPECIALS}
        if self.num_ids < least[self.layout]:
            raise ValueError(
                f"num_ids is {self.num_ids}, expected at least {least[self.layout]} in the layout"
                f" {self.layout!r}"
            )

    @property
    def pad(self) -> int:
        """Token that pads rows."""
        return _SPECIALS[self.layout][0]

    @property
    def bos(self) -> int:
        """Token before the first id."""
        return _SPECIALS[self.layout][1]

    @property
    def eos(self) -> int:
        """Token after the last id."""
        return _SPECIALS[self.layout][2]

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.num_ids + (0 if self.layout == "git" else _NUM_SPECIALS)

    @property
    def num_units(self) -> int:
        """Upper bound of the values that `decode` returns: they are in [0, num_units)."""
        if self.pieces is None:
            return self.num_ids
        return 1 + max(unit for piece in self.pieces for unit in piece)

    @property
    def num_codebooks(self) -> int:
        """Units at one time; 1 without a time axis."""
        if self.shape is None or None not in self.shape:
            return 1
        return math.prod(size for size in self.shape if size is not None)

    def in_time(self, units: Tensor, lengths: Tensor) -> Tensor:
        """Ids of arrays of several codebooks, in the order of `shape`.

        Args:
            units: (N, S) integers: units of N arrays in raster order.
            lengths: (N,) integers in [0, S], the units of each array.

        Returns:
            (N, S) int64; values from a row's length on mean nothing.
        """
        shape, num = self.shape or (), self.num_codebooks
        after = math.prod(size for size in shape[shape.index(None) :] if size is not None)
        place = torch.arange(units.shape[1], device=units.device)
        time, book = place // num, place % num
        times = (lengths.to(units.device).long() // num)[:, None]
        source = (book // after * times + time) * after + book % after
        ids = units.long().gather(1, source.clamp(max=max(0, units.shape[1] - 1)))
        return ids + book * (self.num_ids // num)

    def array(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """The array of units of `shape` whose ids these are, as `decode` returns them.

        An unfinished last time is left out, and an id counts as one of the codebook of its place.

        Raises:
            ValueError: The ids are not units of arrays, or too few for a fixed shape.
        """
        shape = self.shape
        if shape is None:
            raise ValueError(f"ids of kind {self.kind!r} are no arrays; expected kind 'units'")
        num = self.num_codebooks
        codes = np.asarray(ids, np.int64) % (self.num_ids // num)
        if None not in shape:
            size = math.prod(size for size in shape if size is not None)
            if codes.size < size:
                raise ValueError(f"{codes.size} ids, expected {size} for the shape {shape}")
            return codes[:size].reshape([size for size in shape if size is not None])
        fixed = [size for size in shape if size is not None]
        in_time = codes[: codes.size // num * num].reshape(-1, *fixed)
        return np.moveaxis(in_time, 0, shape.index(None))

    def place(self, ids: Tensor) -> Tensor:
        """Tokens of ids: int64, same shape. The ids are not checked; use `encode` for that."""
        ids = ids.long()
        if self.layout == "git":
            return ids
        if self.layout == "original":
            return torch.where(ids <= _LAST_LOW_UNIT, ids + 1, ids + _NUM_SPECIALS)
        return ids + _NUM_SPECIALS

    def encode(self, ids: Sequence[int]) -> list[int]:
        """BOS, the ids' tokens, EOS.

        Raises:
            ValueError: An id outside [0, num_ids).
        """
        for index, value in enumerate(ids):
            if not 0 <= value < self.num_ids:
                raise ValueError(f"id {index} is {value}, expected one in [0, {self.num_ids})")
        return [self.bos, *self.place(torch.tensor(ids, dtype=torch.int64)).tolist(), self.eos]

    def encode_batch(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Rows of `encode`, padded.

        Args:
            ids: (N, S) integers; values from a row's length on are ignored.
            lengths: (N,) integers in [0, S].

        Returns:
            (N, S + 2) int64, on the device of `ids`.

        Raises:
            ValueError: An id outside [0, num_ids). Checked on the CPU only, to avoid
                synchronising with a GPU.
        """
        lengths = lengths.to(ids.device).long()[:, None]
        is_used = torch.arange(ids.shape[1], device=ids.device) < lengths
        ids = ids.long().masked_fill(~is_used, 0)
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(value) for value in torch.aminmax(ids))
            if low < 0 or high >= self.num_ids:
                raise ValueError(f"ids range from {low} to {high}, expected [0, {self.num_ids})")
        tokens = ids.new_full((ids.shape[0], ids.shape[1] + 2), self.pad)
        tokens[:, 0] = self.bos
        tokens[:, 1:-1] = torch.where(is_used, self.place(ids), self.pad)
        return tokens.scatter_(1, lengths + 1, self.eos)

    def decode(self, tokens: Iterable[int]) -> list[int]:
        """The ids of a sequence that starts with BOS, up to EOS, without special tokens.

        Pieces are decoded to units and collapsed: if a piece ends with the unit that the next one
        starts with, that unit appears once.
        """
        ids: list[int] = []
        for index, token in enumerate(tokens):
            if token == self.eos:
                break
            if token == self.pad or (token == self.bos and (index == 0 or not self._is_faulty)):
                continue
            value = self._id_of(token)
            if 0 <= value < self.num_ids:
                ids.append(value)
        if self.pieces is None:
            return ids
        units = [unit for value in ids for unit in self.pieces[value]]
        return [unit for unit, _ in itertools.groupby(units)]

    @property
    def _is_faulty(self) -> bool:
        return self.layout == "original"

    def _id_of(self, token: int) -> int:
        if self.layout == "git":
            return token
        if self.layout == "original":
            return token - 1 if token - 1 <= _LAST_LOW_UNIT else token - _NUM_SPECIALS
        return token - _NUM_SPECIALS
