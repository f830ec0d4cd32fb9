"""Configuration of a model, and the presets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from im2sp.trainer.vocabulary import Vocabulary

SEIT_STEM_STRIDE = 2


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Sizes of the encoder or the decoder."""

    width: int
    depth: int
    heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        """Refuse impossible sizes."""
        for name in ("width", "depth", "heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, expected a multiple of heads, {self.heads}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Settings that determine the shapes and the computation of a model."""

    vocabulary: Vocabulary
    """Meaning of the output tokens."""
    encoder: StackConfig
    """The ViT over the image units."""
    decoder: StackConfig
    """GIT's layers over image and text."""
    has_image: bool = True
    """False for a language model of the tokens: no encoder, no image states."""
    features: tuple[int, int] | None = None
    """Shape (states, width) of the features of a frozen image encoder that sees pixels, the input
    of the model in place of image units; None for image units."""
    grid: int | tuple[int, ...] = 28
    """Shape of an image's units: (rows, columns), multiples of `stem_stride`; a number for a
    square; or (units,), a line."""
    stem_stride: int = SEIT_STEM_STRIDE
    """Rows and columns of image units per image state: 1 (a state for each unit), or an even
    number; the stem's kernel is then twice as large. SeiT uses 2; 4 gives a quarter of the states,
    for less than half the cost. A line has 1."""
    conv_stem: bool = False
    """True for a stem of several small convolutions instead of SeiT's single large one (see
    `model.conv_stem`); it needs far fewer images. For strides that are powers of 2."""
    num_codes: int = 8192
    """Rows of the codebook: image units are below it."""
    code_width: int = 32
    """Columns of the codebook."""
    learned_codes: bool = False
    """True for vectors of codes that are trained (`encoder.CodeEmbedding`) instead of a codebook.
    """
    normalise_codebook: bool = False
    """True to scale rows to length 1 before use; the paper's code does not."""
    standardise_codebook: bool = False
    """True to scale columns to mean 0 and deviation 1 before use, after that. Otherwise a codebook
    close to principal components, like that of `compact`, is dominated by brightness."""
    max_positions: int = 1024
    """Maximum number of tokens of a text, BOS and EOS included."""
    dropout: float = 0.1
    """Dropout of the decoder's residual branches and embeddings."""
    attention_dropout: float = 0.1
    """Dropout of the decoder's attention weights."""
    stochastic_depth: float = 0.0
    """Probability that an image skips a branch of the encoder's last layer in training; it rises
    linearly from 0 in the first layer (Huang et al., "Deep Networks with Stochastic Depth")."""

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name in ("num_codes", "code_width", "max_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.features is not None:
            object.__setattr__(self, "features", tuple(self.features))
            if len(self.features) != 2 or min(self.features) < 1 or not self.has_image:
                raise ValueError(f"features is {self.features}, expected (states, width)")
        if not isinstance(self.grid, int):  # a list if it comes from JSON
            object.__setattr__(self, "grid", tuple(self.grid))
        if self.stem_stride < 1 or (self.stem_stride > 1 and self.stem_stride % 2):
            raise ValueError(f"stem_stride is {self.stem_stride}, expected 1 or an even number")
        is_power = self.stem_stride & (self.stem_stride - 1) == 0
        if self.conv_stem and not (is_power and self.stem_stride <= self.encoder.width):
            raise ValueError(
                f"stem_stride is {self.stem_stride}, expected a power of 2 for a conv_stem, at most"
                f" the encoder's width, {self.encoder.width}"
            )
        if not 1 <= len(self.shape) <= 2:
            raise ValueError(f"grid is {self.grid}, expected one or two axes")
        for size in self.shape:
            if size < self.stem_stride or size % self.stem_stride:
                raise ValueError(
                    f"grid is {self.grid}, expected a multiple of stem_stride, {self.stem_stride}"
                )
        if len(self.shape) == 1 and (self.stem_stride > 1 or self.conv_stem):
            raise ValueError(
                f"grid is {self.grid}, a line; expected stem_stride 1 and no conv_stem"
            )
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected [0, 1)")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image's units: one or two axes."""
        return (self.grid, self.grid) if isinstance(self.grid, int) else self.grid

    @property
    def rows_columns(self) -> tuple[int, int]:
        """Rows and columns of image units; a line has one column."""
        return self.shape[0], (*self.shape, 1)[1]

    @property
    def has_units(self) -> bool:
        """True if the model reads image units, which its image encoder encodes."""
        return self.has_image and self.features is None

    @property
    def states_width(self) -> int:
        """Width of the image states before the projection."""
        return self.encoder.width if self.features is None else self.features[1]

    @property
    def num_states(self) -> int:
        """Image states: CLS and one for each square of `stem_stride` units, or the features."""
        if not self.has_image:
            return 0
        if self.features is not None:
            return self.features[0]
        return 1 + math.prod(size // self.stem_stride for size in self.shape)


Preset = Literal["tiny", "mini", "midi", "small", "base"]
_TINY = StackConfig(width=64, depth=2, heads=2, mlp_width=256)
_MINI = StackConfig(width=256, depth=4, heads=4, mlp_width=1024)
_SMALL = StackConfig(width=384, depth=12, heads=6, mlp_width=1536)
_BASE = StackConfig(width=768, depth=12, heads=12, mlp_width=3072)
PRESETS: dict[str, tuple[StackConfig, StackConfig]] = {
    "tiny": (_TINY, _TINY),
    "mini": (_MINI, _MINI),
    "midi": (replace(_SMALL, depth=6), _MINI),
    "small": (_SMALL, replace(_SMALL, depth=6)),
    "base": (_BASE, replace(_BASE, depth=6)),
}
"""Encoder and decoder: for tests, for an hour or for hours on a CPU, for a GPU, and the paper's."""
_CONV_STEM: dict[str, Any] = {"stem_stride": 4, "conv_stem": True}
_STEMS = {"mini": _CONV_STEM, "midi": _CONV_STEM}
_MIN_PLACES = 7
"""Rows and columns of image states, as many as a stride of 4 leaves of 28 x 28 units."""


def preset_config(preset: Preset, vocabulary: Vocabulary, **settings: Any) -> ModelConfig:
    """The configuration of a preset for a given vocabulary.

    The stride of the stem is that of the preset, halved until it divides the grid and leaves at
    least 7 rows and columns of states; 1 for a line.

    Args:
        preset: Sizes of encoder and decoder.
        vocabulary: Meaning of the output tokens.
        settings: Other fields of the configuration, such as `grid` and `num_codes`.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}, expected one of {', '.join(PRESETS)}")
    encoder, decoder = PRESETS[preset]
    stem = _STEMS.get(preset, {"stem_stride": SEIT_STEM_STRIDE, "conv_stem": False})
    grid = settings.get("grid", ModelConfig.grid)
    shape = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if len(shape) == 1:
        stem = {"stem_stride": 1, "conv_stem": False}
    stride = stem["stem_stride"]
    while stride > 1 and any(size % stride or size // stride < _MIN_PLACES for size in shape):
        stride //= 2
    stem = {**stem, "stem_stride": stride}
    return ModelConfig(
        vocabulary=vocabulary, encoder=encoder, decoder=decoder, **{**stem, **settings}
    )


def grid_of(shape: Sequence[int | None]) -> int | tuple[int, ...]:
    """The `grid` of a fixed shape of units; more than two axes are read as a line.

    >>> grid_of((28, 28)), grid_of((16, 24)), grid_of((32,)), grid_of((4, 8, 8))
    (28, (16, 24), (32,), (256,))
    """
    sizes = tuple(size for size in shape if size is not None)
    if len(sizes) > 2:
        return (math.prod(sizes),)
    return sizes[0] if len(sizes) == 2 and sizes[0] == sizes[1] else sizes


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Undo `dataclasses.asdict`.

    Raises:
        ValueError: A value is invalid, or a name is missing or unknown.
    """
    try:
        parts = {
            "vocabulary": Vocabulary(**values["vocabulary"]),
            "encoder": StackConfig(**values["encoder"]),
            "decoder": StackConfig(**values["decoder"]),
        }
        return ModelConfig(**{**values, **parts})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a model configuration: {error}") from error
