"""Weights of unit HiFi-GANs of every published form.

speech-resynthesis stores `{"generator": tensors}` in files named `g_` and a number of steps, with
the settings in a `config.json` in the same folder; fairseq's CodeHiFiGAN vocoders have the same
form. The im2sp form is one safetensors file with the settings in its metadata. All are converted to
one dictionary with the published names, each convolution as one `weight` without weight norm.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from reprlib import repr as _short
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from im2sp.pipeline.tensors import (
    Weights,
    checked_tensor,
    describe,
    read_weights,
    tensors_fingerprint,
)
from im2sp.shards.files import parse_json
from im2sp.shards.weights.hub import CONFIG_FILE, find_weights, read_settings
from im2sp.shards.weights.pickles import WeightsError

BUNDLED = {"compact": Path(__file__).parent / "compact.safetensors"}
METADATA_KEY = "im2sp"
FRAME_SAMPLES = 320
RATE_HZ = 16_000
# Kernel sizes that are fixed in the published architecture.
OUTER_KERNEL = 7
DURATION_KERNEL = 3
# The convolutions of a residual block, by its kind: the first names those that are dilated.
BLOCK_PARTS = {"1": ("convs1", "convs2"), "2": ("convs",)}
# The original uses only this many dilations, even if its config lists more.
NUM_DILATIONS = {"1": 3, "2": 2}
MAX_DILATION = 1000
MAX_KERNEL = 1000
_GENERATOR_FILE = re.compile(r"g_(\d+)")
# Suffixes of weight norm's two tensors: as published, and in newer versions of torch.
_NORM_NAMES = [
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
]


@dataclass(frozen=True, kw_only=True)
class VocoderSettings:
    """Settings that the tensors' shapes do not determine."""

    resblock: str
    """Kind of the residual blocks: "1" has pairs of convolutions, "2" single ones."""
    upsample_rates: tuple[int, ...]
    """Factor of each stage; their product is the number of samples per frame."""
    dilations: tuple[tuple[int, ...], ...]
    """For each residual block of a stage, one entry per convolution (or pair of them)."""

    def __post_init__(self) -> None:
        """Check types and ranges, as values come from files."""
        if self.resblock not in BLOCK_PARTS:
            raise ValueError(f"resblock is {_short(self.resblock)}, expected '1' or '2'")
        numbers = [*self.upsample_rates, *(d for block in self.dilations for d in block)]
        if any(type(n) is not int or not 1 <= n <= MAX_DILATION for n in numbers):
            raise ValueError(
                f"upsample_rates {_short(self.upsample_rates)} and dilations"
                f" {_short(self.dilations)}, expected"
                f" whole numbers from 1 to {MAX_DILATION}"
            )
        if math.prod(self.upsample_rates) != FRAME_SAMPLES:
            raise ValueError(
                f"upsample_rates {_short(self.upsample_rates)} give"
                f" {_short(math.prod(self.upsample_rates))} samples per unit, expected"
                f" {FRAME_SAMPLES}"
            )
        if not self.dilations or not all(self.dilations):
            raise ValueError(
                f"dilations are {_short(self.dilations)}, expected one or more per block"
            )


@dataclass(frozen=True, kw_only=True)
class VocoderWeights:
    """Settings, and checked float32 tensors on the CPU under the published names."""

    settings: VocoderSettings
    tensors: dict[str, Tensor]
    speech_fingerprint: str | None = None
    """Fingerprint of the speech tokenizer whose units it was trained on, if recorded."""

    @property
    def num_units(self) -> int:
        """Size of the vocabulary; units are in [0, num_units)."""
        return len(self.tensors["dict.weight"])

    @property
    def num_speakers(self) -> int:
        """Number of voices to choose from; 0 if there is only one."""
        return len(self.tensors.get("spkr.weight", ()))

    @property
    def has_durations(self) -> bool:
        """True if it has a duration predictor."""
        return "dur_predictor.proj.weight" in self.tensors


def load_weights(name_or_path: str | Path) -> VocoderWeights:
    """Read a unit vocoder's weights; see `vocoder.load_vocoder` for possible names.

    Raises:
        WeightsError: One line with what was found and what was expected.
    """
    path = _generator_file(find_weights(name_or_path, BUNDLED))
    weights = read_weights(path)
    found = _own_settings(weights)
    own, speech_fingerprint = found or (None, None)
    tensors = weights.tensors() if own else _generator_tensors(weights)
    try:
        settings = own or _config_settings(path)
        tensors = fold_weight_norm(tensors)
        shapes = expected_shapes(tensors, settings)
    except KeyError as error:
        raise WeightsError(f"{path}: lacks {error.args[0]} of a unit vocoder") from None
    except WeightsError:
        raise
    except (ValueError, IndexError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a unit vocoder of the published form: {error}") from None
    checked = {
        name: checked_tensor(path, tensors, name, shape, what="a unit vocoder")
        for name, shape in shapes.items()
    }
    return VocoderWeights(settings=settings, tensors=checked, speech_fingerprint=speech_fingerprint)


def _generator_file(path: Path) -> Path:
    """Return the path of a file, or the `g_` file with the most steps in a folder."""
    if not path.is_dir():
        return path
    steps = {
        int(match[1]): file
        for file in path.iterdir()
        if (match := _GENERATOR_FILE.fullmatch(file.name)) and file.is_file()
    }
    if not steps:
        raise WeightsError(
            f"{path}: this folder holds no generator; expected a file such as g_00400000 and"
            f" {CONFIG_FILE}"
        )
    return steps[max(steps)]


def _generator_tensors(weights: Weights) -> dict[str, Tensor]:
    content = weights.content
    if isinstance(content, dict) and "generator" in content:
        content = content["generator"]
    tensors = weights.tensors(content)
    if not any(name.startswith("conv_pre.") for name in tensors):
        raise WeightsError(
            f"{weights.path}: holds {describe(weights.content)}, expected the generator of a unit"
            " vocoder"
        )
    return tensors


def _config_settings(path: Path) -> VocoderSettings:
    """Read the settings from `config.json` in the folder of the file."""
    config_path = path.parent / CONFIG_FILE
    if not config_path.is_file():
        raise WeightsError(
            f"{path}: a generator without its {CONFIG_FILE}; put the published one into the"
            " same folder"
        )
    config = read_settings(config_path)
    if config.get("sampling_rate", RATE_HZ) != RATE_HZ:
        raise WeightsError(
            f"{config_path}: sampling_rate is {_short(config['sampling_rate'])}, expected {RATE_HZ}"
        )
    try:
        kind = str(config["resblock"])
        return VocoderSettings(
            # The original treats every kind but "1" as the second.
            resblock="1" if kind == "1" else "2",
            upsample_rates=tuple(config["upsample_rates"]),
            dilations=tuple(
                tuple(block[: NUM_DILATIONS["1" if kind == "1" else "2"]])
                for block in config["resblock_dilation_sizes"]
            ),
        )
    except KeyError as error:
        raise WeightsError(f"{config_path}: lacks {error.args[0]!r}") from None
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{config_path}: {error}") from None


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge each pair of weight norm into one `weight`: `v * g / |v|`, norms over all axes but 0.

    Raises:
        KeyError: One tensor of a pair is missing; its name.
        ValueError: The shapes of a pair do not fit.
    """
    folded = dict(tensors)
    for name in tensors:
        for length_end, direction_end in _NORM_NAMES:
            if not name.endswith((f".{length_end}", f".{direction_end}")):
                continue
            stem = name.removesuffix(length_end).removesuffix(direction_end)
            length, direction = tensors[stem + length_end], tensors[stem + direction_end]
            if length.shape != (len(direction), *[1] * (direction.ndim - 1)):
                raise ValueError(f"{stem}{length_end} has shape {list(length.shape)}")
            norm = torch.linalg.vector_norm(
                direction.float(), dim=tuple(range(1, direction.ndim)), keepdim=True
            )
            folded[f"{stem}weight"] = direction.float() * (length.float() / norm)
            del folded[name]
    return folded


def expected_shapes(
    tensors: Mapping[str, Tensor], settings: VocoderSettings
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, with sizes read from the tensors.

    Raises:
        KeyError: A tensor that determines a size is missing; its name.
        ValueError: Sizes do not fit each other, or it is another kind of network.
    """
    num_convolutions = len(settings.upsample_rates) * sum(map(len, settings.dilations))
    if num_convolutions > len(tensors):
        raise ValueError(f"{num_convolutions} dilated convolutions, and {len(tensors)} tensors")
    num_units, width = tensors["dict.weight"].shape
    shapes: dict[str, tuple[int, ...]] = {"dict.weight": (num_units, width)}
    in_channels = width
    if "spkr.weight" in tensors:
        if "spkr.bias" in tensors:
            raise ValueError("its voice is a vector from another network, expected a table")
        shapes["spkr.weight"] = (len(tensors["spkr.weight"]), width)
        in_channels += width
    channels, found_channels, _ = tensors["conv_pre.weight"].shape
    if found_channels != in_channels:
        raise ValueError(
            f"conv_pre takes {found_channels} channels, units and voices have {in_channels}; it"
            " also needs pitch or style, which units do not contain"
        )
    shapes |= _convolution("conv_pre", channels, in_channels, OUTER_KERNEL)
    for stage, rate in enumerate(settings.upsample_rates):
        _, out_channels, kernel = tensors[f"ups.{stage}.weight"].shape
        if not rate <= kernel <= MAX_KERNEL or (kernel - rate) % 2:
            raise ValueError(
                f"ups.{stage} has a kernel of {kernel} for a rate of {rate}; expected one that is"
                f" larger by an even number, at most {MAX_KERNEL}"
            )
        shapes[f"ups.{stage}.weight"] = (channels, out_channels, kernel)
        shapes[f"ups.{stage}.bias"] = (out_channels,)
        channels = out_channels
        for block, dilations in enumerate(settings.dilations, stage * len(settings.dilations)):
            parts = BLOCK_PARTS[settings.resblock]
            kernel = tensors[f"resblocks.{block}.{parts[0]}.0.weight"].shape[2]
            if kernel % 2 == 0 or kernel > MAX_KERNEL:
                raise ValueError(
                    f"resblocks.{block} has a kernel of {kernel}, expected an odd one of at most"
                    f" {MAX_KERNEL}"
                )
            for part in parts:
                for index in range(len(dilations)):
                    name = f"resblocks.{block}.{part}.{index}"
                    shapes |= _convolution(name, channels, channels, kernel)
    shapes |= _convolution("conv_post", 1, channels, OUTER_KERNEL)
    if any(name.startswith("dur_predictor.") for name in tensors):
        shapes |= _duration_shapes(len(tensors["dur_predictor.ln1.weight"]), width)
    return shapes


def _duration_shapes(hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, channels in ((1, width), (2, hidden)):
        name = f"dur_predictor.conv{index}.0"
        shapes |= _convolution(name, hidden, channels, DURATION_KERNEL)
        shapes[f"dur_predictor.ln{index}.weight"] = (hidden,)
        shapes[f"dur_predictor.ln{index}.bias"] = (hidden,)
    return {
        **shapes,
        "dur_predictor.proj.weight": (1, hidden),
        "dur_predictor.proj.bias": (1,),
    }


def _convolution(name: str, *weight_shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight_shape, f"{name}.bias": weight_shape[:1]}


# im2sp form --------------------------------------------------------------------------------------


def vocoder_bytes(
    weights: VocoderWeights,
    dtype: torch.dtype = torch.float16,
    notes: dict[str, Any] | None = None,
) -> bytes:
    """Serialise a unit vocoder as one safetensors file.

    Args:
        weights: Weights to write.
        dtype: Type of the stored tensors.
        notes: Further metadata, such as the recipe; JSON values. The fingerprint in the object
            "speech_tokenizer" is that of the speech tokenizer of its units.
    """
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights.tensors.items()}
    metadata = {**(notes or {}), "vocoder": asdict(weights.settings)}
    if weights.speech_fingerprint is not None and "speech_tokenizer" not in metadata:
        metadata["speech_tokenizer"] = {"fingerprint": weights.speech_fingerprint}
    return save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def _own_settings(weights: Weights) -> tuple[VocoderSettings, str | None] | None:
    """Settings in the metadata of an im2sp file, and the fingerprint of the speech tokenizer.

    None for a file of another form.
    """
    if (text := weights.metadata.get(METADATA_KEY)) is None:
        return None
    try:
        notes = parse_json(text)
        found, tokenizer = notes["vocoder"], notes.get("speech_tokenizer") or {}
        settings = VocoderSettings(
            resblock=found["resblock"],
            upsample_rates=tuple(found["upsample_rates"]),
            dilations=tuple(tuple(block) for block in found["dilations"]),
        )
        return settings, tokenizer.get("fingerprint")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise WeightsError(
            f"{weights.path}: its metadata {METADATA_KEY!r} names no settings of a unit vocoder"
        ) from None


def fingerprint(weights: VocoderWeights, precision: str) -> str:
    """sha256 (hex) of all that determines a waveform: settings, float32 weights and precision.

    The container and weight norm do not matter; rounding of the weights to fewer bits does.
    """
    settings = {
        "format": 1,
        "model": "unit-hifigan",
        "precision": precision,
        **asdict(weights.settings),
    }
    return tensors_fingerprint(settings, weights.tensors.items())
