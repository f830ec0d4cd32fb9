"""Configuration of a model, and the presets."""

from collections.abc import Mapping
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
    grid: int = 28
    """Rows and columns of image units; a multiple of `stem_stride`."""
    stem_stride: int = SEIT_STEM_STRIDE
    """Rows and columns of image units per image state; even. The stem's kernel is twice as large.
    SeiT uses 2; 4 gives a quarter of the states, for less than half the cost."""
    conv_stem: bool = False
    """True for a stem of several small convolutions instead of SeiT's single large one (see
    `model.conv_stem`); it needs far fewer images. For strides that are powers of 2."""
    num_codes: int = 8192
    """Rows of the codebook."""
    code_width: int = 32
    """Columns of the codebook."""
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
        if self.stem_stride < 2 or self.stem_stride % 2:
            raise ValueError(
                f"stem_stride is {self.stem_stride}, expected an even number of at least 2"
            )
        is_power = self.stem_stride & (self.stem_stride - 1) == 0
        if self.conv_stem and not (is_power and self.stem_stride <= self.encoder.width):
            raise ValueError(
                f"stem_stride is {self.stem_stride}, expected a power of 2 for a conv_stem, at most"
                f" the encoder's width, {self.encoder.width}"
            )
        if self.grid < self.stem_stride or self.grid % self.stem_stride:
            raise ValueError(
                f"grid is {self.grid}, expected a multiple of stem_stride, {self.stem_stride}"
            )
        for name in ("dropout", "attention_dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected [0, 1)")

    @property
    def num_states(self) -> int:
        """Number of image states: CLS and one for each square of `stem_stride` units."""
        if not self.has_image:
            return 0
        return 1 + (self.grid // self.stem_stride) ** 2


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


def preset_config(
    preset: Preset,
    vocabulary: Vocabulary,
    *,
    num_codes: int = 8192,
    code_width: int = 32,
    normalise_codebook: bool = False,
    standardise_codebook: bool = False,
) -> ModelConfig:
    """The configuration of a preset for a given vocabulary and codebook."""
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r}, expected one of {', '.join(PRESETS)}")
    encoder, decoder = PRESETS[preset]
    return ModelConfig(
        vocabulary=vocabulary,
        encoder=encoder,
        decoder=decoder,
        num_codes=num_codes,
        code_width=code_width,
        normalise_codebook=normalise_codebook,
        standardise_codebook=standardise_codebook,
        **_STEMS.get(preset, {}),
    )


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
