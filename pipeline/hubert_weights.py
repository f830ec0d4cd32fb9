"""HuBERT's weights of every published form, up to the layer whose output is wanted.

transformers keeps the sizes in `config.json` and the tensors beside it. fairseq's file
(`hubert_base_ls960.pt`) has the same tensors under other names, and of the settings that shapes do
not tell, its records. Our own form is one safetensors file with the centres of k-means in it, and
the settings in its metadata. All end here as one dictionary under transformers' names.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from im2sp.pipeline.weights import Weights, checked_tensor, describe, read_weights
from im2sp.shards.hub import CONFIG_FILE, find_model, find_weights
from im2sp.shards.pickles import Record, WeightsError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
BUNDLED = {"compact": Path(__file__).parent / "compact_speech_tokenizer.safetensors"}
METADATA_KEY = "im2sp"
CENTRES = "centres"
# The layer whose features the published centres were fitted to.
DEFAULT_LAYER = 6
# The one front end of all published HuBERTs: 400 samples for the first frame, 320 for each more.
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
HF_MARK = "feature_extractor.conv_layers.0.conv.weight"
FAIRSEQ_MARK = "feature_extractor.conv_layers.0.0.weight"
POSITIONS = "encoder.pos_conv_embed.conv"
HEAD_WIDTH = 64
MAX_RECORD_DEPTH = 20
# What this code computes, where config.json could ask for something else.
_FIXED: dict[str, Any] = {
    "model_type": "hubert",
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "conv_kernel": list(CONV_KERNELS),
    "conv_stride": list(CONV_STRIDES),
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
# fairseq's name -> transformers' name; `N` is a layer's number.
_FAIRSEQ_NAMES = [
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (
        r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?",
        r"feature_extractor.conv_layers.\1.layer_norm.",
    ),
    (r"layer_norm\.", r"feature_projection.layer_norm."),
    (r"post_extract_proj\.", r"feature_projection.projection."),
    (r"encoder\.pos_conv\.0\.", rf"{POSITIONS}."),
    (r"(encoder\.layers\.\d+)\.self_attn\.", r"\1.attention."),
    (r"(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.layer_norm."),
    (r"(encoder\.layers\.\d+)\.fc1\.", r"\1.feed_forward.intermediate_dense."),
    (r"(encoder\.layers\.\d+)\.fc2\.", r"\1.feed_forward.output_dense."),
]
# Names of torch's newer weight norm -> the published ones.
_WEIGHT_NORM_NAMES = {
    f"{POSITIONS}.parametrizations.weight.original0": f"{POSITIONS}.weight_g",
    f"{POSITIONS}.parametrizations.weight.original1": f"{POSITIONS}.weight_v",
}


@dataclass(frozen=True, kw_only=True)
class HubertSettings:
    """What the shapes of the tensors do not tell, and the layer."""

    heads: int
    """Attention heads of every layer."""
    layer: int
    """Layers to compute; their output is the features."""
    norm_eps: float = 1e-5
    """Of every LayerNorm of the transformer."""
    conv_norm: str = "group"
    """"group": the first convolution's channels over time; "layer": every convolution's frames."""
    is_pre_norm: bool = False
    """Norms before attention and MLP, as in the larger models, instead of after."""

    def __post_init__(self) -> None:
        """Check types and ranges, which come from files."""
        numbers = (self.heads, self.layer)
        if any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(f"{self.heads!r} heads and layer {self.layer!r}, expected 1 or more")
        if not isinstance(self.norm_eps, float) or self.conv_norm not in ("group", "layer"):
            raise ValueError(f"norm_eps {self.norm_eps!r}, conv_norm {self.conv_norm!r}")
        if not isinstance(self.is_pre_norm, bool):
            raise ValueError(f"is_pre_norm is {self.is_pre_norm!r}, expected a bool")


@dataclass(frozen=True, kw_only=True)
class HubertWeights:
    """Settings, and float32 tensors on the CPU under transformers' names, all of them checked."""

    settings: HubertSettings
    tensors: dict[str, Tensor]
    centres: Tensor | None = None
    """(K, D) float32 of k-means, where the file holds them."""

    @property
    def width(self) -> int:
        """Width of a feature."""
        return len(self.tensors["feature_projection.projection.weight"])


def load_hubert(name_or_path: str | Path, layer: int | None = None) -> HubertWeights:
    """Read a HuBERT up to a layer; layers above it are not read.

    Args:
        name_or_path: "compact" (bundled), transformers' folder, fairseq's file, our own file, or a
            hub id.
        layer: Which layer's output is wanted, counted from 1. None for the one that the centres of
            our own file belong to, and 6 for the others.

    Raises:
        WeightsError: One line: what was found and what was expected.
    """
    is_bundled = str(name_or_path) in BUNDLED
    path = (
        find_weights(name_or_path, BUNDLED)
        if is_bundled
        else find_model(name_or_path, WEIGHT_FILES)
    )
    weights = read_weights(path)
    tensors = weights.tensors()
    own = _own_settings(weights)
    if layer is None:
        layer = own.layer if own else DEFAULT_LAYER
    try:
        if own is not None:
            settings = own
        elif (prefix := _prefix_before(tensors, FAIRSEQ_MARK)) is not None:
            tensors = _fairseq_tensors(_below(tensors, prefix))
            settings = _fairseq_settings(weights, tensors)
        elif (prefix := _prefix_before(tensors, HF_MARK)) is not None:
            tensors = _below(tensors, prefix)
            settings = _config_settings(path)
        else:
            raise WeightsError(f"{path}: holds {describe(weights.content)}, expected a HuBERT")
        if not 1 <= layer <= settings.layer:
            raise WeightsError(f"{path}: a model of {settings.layer} layers has no layer {layer}")
        settings = replace(settings, layer=layer)
        tensors = {_WEIGHT_NORM_NAMES.get(name, name): value for name, value in tensors.items()}
        shapes = expected_shapes(tensors, settings)
    except KeyError as error:
        raise WeightsError(f"{path}: lacks {error.args[0]} of a HuBERT") from None
    except (ValueError, IndexError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path}: shapes of no HuBERT: {error}") from None
    checked = {
        name: checked_tensor(path, tensors, name, shape, what="a HuBERT")
        for name, shape in shapes.items()
    }
    # Centres belong to one layer's features.
    has_centres = own is not None and layer == own.layer and CENTRES in tensors
    centres = tensors[CENTRES].to(torch.float32) if has_centres else None
    return HubertWeights(settings=settings, tensors=checked, centres=centres)


def _prefix_before(tensors: Mapping[str, Tensor], mark: str) -> str | None:
    """What stands before a name, such as `hubert.` in a fine-tuned model."""
    found = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    return min(found, key=len, default=None)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


# Our own form -------------------------------------------------------------------------------------


def speech_tokenizer_bytes(
    weights: HubertWeights,
    dtype: torch.dtype = torch.float16,
    notes: dict[str, Any] | None = None,
) -> bytes:
    """A HuBERT up to its layer, and its centres if it has some, as one safetensors file.

    Args:
        weights: What to write.
        dtype: Number type of the stored tensors; the centres stay float32.
        notes: More to keep in the metadata, such as the recipe; JSON values.
    """
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights.tensors.items()}
    if weights.centres is not None:
        tensors[CENTRES] = weights.centres.to(torch.float32).contiguous()
    metadata = {**(notes or {}), "hubert": asdict(weights.settings)}
    return save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def _own_settings(weights: Weights) -> HubertSettings | None:
    """The settings in the metadata of our own form; None for a file of another form."""
    if (text := weights.metadata.get(METADATA_KEY)) is None:
        return None
    try:
        return HubertSettings(**json.loads(text)["hubert"])
    except (ValueError, TypeError, KeyError):
        raise WeightsError(
            f"{weights.path}: its metadata {METADATA_KEY!r} names no settings of a HuBERT"
        ) from None


# transformers -------------------------------------------------------------------------------------


def _config_settings(path: Path) -> HubertSettings:
    """The settings in `config.json`; the layer is the last one."""
    config_path = path.parent / CONFIG_FILE
    if path.name not in WEIGHT_FILES or not config_path.is_file():
        raise WeightsError(
            f"{path}: transformers' weights without their {CONFIG_FILE}; pass the folder that"
            f" holds both, the weights as {' or '.join(WEIGHT_FILES)}"
        )
    try:
        config = json.loads(config_path.read_text("utf-8"))
    except ValueError as error:
        raise WeightsError(f"{config_path}: no JSON: {error}") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{config_path}: a {type(config).__name__}, expected a JSON object")
    for key, expected in _FIXED.items():
        found = config.get(key, expected)
        if found != expected:
            raise WeightsError(f"{config_path}: {key} is {found!r}, expected {expected!r}")
    heads = config.get("num_attention_heads", 12)
    num_layers = config.get("num_hidden_layers", 12)
    norm_eps, conv_norm = config.get("layer_norm_eps", 1e-5), config.get("feat_extract_norm")
    if any(type(number) is not int or number < 1 for number in (heads, num_layers)):
        raise WeightsError(f"{config_path}: {heads!r} heads and {num_layers!r} layers")
    if not isinstance(norm_eps, float) or conv_norm not in (None, "group", "layer"):
        raise WeightsError(f"{config_path}: layer_norm_eps {norm_eps!r}, norm {conv_norm!r}")
    return HubertSettings(
        heads=heads,
        layer=num_layers,
        norm_eps=norm_eps,
        conv_norm=conv_norm or "group",
        is_pre_norm=config.get("do_stable_layer_norm", False) is True,
    )


# fairseq ------------------------------------------------------------------------------------------


def _fairseq_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename; what is no part of the network (`label_embs_concat`, `final_proj`) stays unused."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _FAIRSEQ_NAMES:
            found, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                name = found
                break
        renamed[name] = tensor
    return renamed


def _fairseq_settings(weights: Weights, tensors: Mapping[str, Tensor]) -> HubertSettings:
    """Sizes from the shapes; heads and the norms' places from the records where there are some."""
    records = _plain_records(weights.content)
    width = len(tensors["encoder.layer_norm.weight"])
    numbers = re.compile(r"encoder\.layers\.(\d+)\.")
    num_layers = 1 + max(int(m[1]) for name in tensors if (m := numbers.match(name)))
    heads = records.get("encoder_attention_heads", max(1, width // HEAD_WIDTH))
    if type(heads) is not int or heads < 1:
        raise ValueError(f"{heads!r} attention heads")
    is_layer = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    activation = records.get("activation_fn", "gelu")
    if activation != "gelu":
        raise ValueError(f"activation_fn is {activation!r}, expected 'gelu'")
    return HubertSettings(
        heads=heads,
        layer=num_layers,
        conv_norm="layer" if is_layer else "group",
        is_pre_norm=records.get("layer_norm_first", is_layer) is True,
    )


def _plain_records(content: Any) -> dict[str, Any]:
    """The model's settings: `cfg["model"]`, or `args` of before, of any kind of record."""
    if not isinstance(content, dict):
        return {}
    model = _plain(_plain(content.get("cfg")).get("model"))
    return {key: _value(value) for key, value in (model or _plain(content.get("args"))).items()}


def _plain(record: Any) -> dict[Any, Any]:
    """A dict, an argparse.Namespace or an omegaconf node as a dict; {} for anything else."""
    for _ in range(MAX_RECORD_DEPTH):
        if not isinstance(record, Record):
            break
        record = record.state.get("_content", record.state)
    return record if isinstance(record, dict) else {}


def _value(value: Any) -> Any:
    """A scalar, out of its omegaconf node where it is in one."""
    return value.state.get("_val") if isinstance(value, Record) else value


# Both ---------------------------------------------------------------------------------------------


def expected_shapes(
    tensors: Mapping[str, Tensor], settings: HubertSettings
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor up to the layer, sizes taken from the tensors themselves.

    Raises:
        KeyError: A tensor that tells a size is missing; its name.
        ValueError: Sizes that do not fit each other.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 1
    for index, kernel in enumerate(CONV_KERNELS):
        name = f"feature_extractor.conv_layers.{index}"
        out_channels = tensors[f"{name}.conv.weight"].shape[0]
        shapes[f"{name}.conv.weight"] = (out_channels, channels, kernel)
        if f"{name}.conv.bias" in tensors:
            shapes[f"{name}.conv.bias"] = (out_channels,)
        if settings.conv_norm == "layer" or index == 0:
            shapes |= _pair(f"{name}.layer_norm", out_channels)
        channels = out_channels
    width = tensors["feature_projection.projection.weight"].shape[0]
    _, group_width, kernel = tensors[f"{POSITIONS}.weight_v"].shape
    if width % settings.heads or not group_width or width % group_width or not kernel:
        raise ValueError(
            f"width {width} for {settings.heads} heads, and position groups of {group_width}"
        )
    shapes |= _pair("feature_projection.layer_norm", channels)
    shapes |= _pair("feature_projection.projection", width, channels)
    shapes[f"{POSITIONS}.bias"] = (width,)
    shapes[f"{POSITIONS}.weight_g"] = (1, 1, kernel)
    shapes[f"{POSITIONS}.weight_v"] = (width, group_width, kernel)
    if not settings.is_pre_norm:  # else it follows the last layer, whose output is taken before it
        shapes |= _pair("encoder.layer_norm", width)
    hidden = tensors["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape[0]
    for index in range(settings.layer):
        name = f"encoder.layers.{index}"
        for part in "qkv":
            shapes |= _pair(f"{name}.attention.{part}_proj", width, width)
        shapes |= _pair(f"{name}.attention.out_proj", width, width)
        shapes |= _pair(f"{name}.layer_norm", width)
        shapes |= _pair(f"{name}.feed_forward.intermediate_dense", hidden, width)
        shapes |= _pair(f"{name}.feed_forward.output_dense", width, hidden)
        shapes |= _pair(f"{name}.final_layer_norm", width)
    return shapes


def _pair(name: str, *weight_shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight_shape, f"{name}.bias": weight_shape[:1]}


def fingerprint(weights: HubertWeights, centres: Tensor, precision: str) -> str:
    """sha256 (hex) of all that decides a clip's units.

    These are the settings, the float32 weights up to the layer, the centres and the precision. The
    container, the stored number type and layers above do not matter, so fairseq's file has the
    fingerprint of the folder that was converted from it.
    """
    settings = {
        "format": 1,
        "model": "hubert",
        "precision": precision,
        **asdict(weights.settings),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted({**weights.tensors, "centres": centres}.items()):
        digest.update(f"\n{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()
