"""Settings and names of published HuBERTs: transformers' `config.json`, fairseq's records."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from reprlib import repr as _short
from typing import Any

from torch import Tensor

from im2sp.pipeline.tensors import Weights
from im2sp.shards.weights.hub import CONFIG_FILE, read_settings
from im2sp.shards.weights.pickles import Record, WeightsError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
POSITIONS = "encoder.pos_conv_embed.conv"
# Front end of all published HuBERTs: 400 samples for the first frame, 320 for each further one.
CONV_KERNELS = (10, 3, 3, 3, 3, 2, 2)
CONV_STRIDES = (5, 2, 2, 2, 2, 2, 2)
HEAD_WIDTH = 64
MAX_RECORD_DEPTH = 20
RATE_HZ = 16_000
# The second holds the content of the first as its object `feature_extractor`.
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
# Added to the variance of a clip that is normalised, by transformers and by fairseq.
TRANSFORMERS_EPS, FAIRSEQ_EPS = 1e-7, 1e-5
# Values of preprocessor_config.json that this code requires.
_FIXED_PREPROCESSOR: dict[str, Any] = {"feature_size": 1, "sampling_rate": RATE_HZ}
# Values of config.json that this code requires.
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


@dataclass(frozen=True, kw_only=True)
class HubertSettings:
    """Settings that the tensors' shapes do not determine, and the layer."""

    heads: int
    """Attention heads of every layer."""
    layer: int
    """Number of layers to compute; the output of the last one is the features."""
    norm_eps: float = 1e-5
    """Epsilon of every LayerNorm of the transformer."""
    conv_norm: str = "group"
    """Norm "group": each channel of the first convolution over time; "layer": each frame of all."""
    is_pre_norm: bool = False
    """Norms before attention and MLP, as in the larger models, instead of after."""
    waveform_eps: float | None = None
    """Each clip is normalised to zero mean and unit variance, to which this is added first; None
    for clips as they are."""

    def recorded(self) -> dict[str, Any]:
        """The settings as JSON values, without `waveform_eps` where clips are as they are."""
        settings = asdict(self)
        if self.waveform_eps is None:
            del settings["waveform_eps"]
        return settings

    def __post_init__(self) -> None:
        """Check types and ranges, as values come from files."""
        numbers = (self.heads, self.layer)
        if any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError(
                f"{_short(self.heads)} heads and layer {_short(self.layer)}, expected 1 or more"
            )
        if not isinstance(self.norm_eps, float) or self.conv_norm not in ("group", "layer"):
            raise ValueError(
                f"norm_eps {_short(self.norm_eps)}, conv_norm {_short(self.conv_norm)}"
            )
        if not isinstance(self.is_pre_norm, bool):
            raise ValueError(f"is_pre_norm is {_short(self.is_pre_norm)}, expected a bool")
        if self.waveform_eps is not None and not isinstance(self.waveform_eps, float):
            raise ValueError(f"waveform_eps is {_short(self.waveform_eps)}, expected a number")


# transformers -------------------------------------------------------------------------------------


def config_settings(path: Path) -> HubertSettings:
    """Read the settings from `config.json`; the layer is the last one."""
    config_path = path.parent / CONFIG_FILE
    if path.name not in WEIGHT_FILES or not config_path.is_file():
        raise WeightsError(
            f"{path}: transformers weights without their {CONFIG_FILE}; pass the folder that"
            f" holds both, the weights as {' or '.join(WEIGHT_FILES)}"
        )
    config = _read_config(config_path, _FIXED)
    heads = config.get("num_attention_heads", 12)
    num_layers = config.get("num_hidden_layers", 12)
    norm_eps, conv_norm = config.get("layer_norm_eps", 1e-5), config.get("feat_extract_norm")
    if any(type(number) is not int or number < 1 for number in (heads, num_layers)):
        raise WeightsError(f"{config_path}: {_short(heads)} heads and {_short(num_layers)} layers")
    if not isinstance(norm_eps, float) or conv_norm not in (None, "group", "layer"):
        raise WeightsError(
            f"{config_path}: layer_norm_eps {_short(norm_eps)}, norm {_short(conv_norm)}"
        )
    return HubertSettings(
        heads=heads,
        layer=num_layers,
        norm_eps=norm_eps,
        conv_norm=conv_norm or "group",
        is_pre_norm=config.get("do_stable_layer_norm", False) is True,
    )


def with_preprocessor(settings: HubertSettings, path: Path) -> HubertSettings:
    """Settings with what one of `PREPROCESSOR_FILES` says of the waveform.

    `do_normalize` applies to models with layer norm alone: a group norm over time removes gain
    and offset itself, and the published units of such models are those of clips as they are.

    Raises:
        WeightsError: It asks for another sample rate or several channels, or is not JSON.
    """
    config = _read_config(path, _FIXED_PREPROCESSOR)
    inner = config.get("feature_extractor")
    if isinstance(inner, dict):
        config = _checked_config(path, inner, _FIXED_PREPROCESSOR)
    does_normalize = config.get("do_normalize", True)
    if not isinstance(does_normalize, bool):
        raise WeightsError(
            f"{path}: do_normalize is {_short(does_normalize)}, expected true or false"
        )
    if settings.conv_norm == "group" or not does_normalize:
        return settings
    return replace(settings, waveform_eps=TRANSFORMERS_EPS)


def _read_config(path: Path, fixed: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object; values that differ from those of `fixed` are refused."""
    return _checked_config(path, read_settings(path), fixed)


def _checked_config(path: Path, config: dict[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    for key, expected in fixed.items():
        found = config.get(key, expected)
        if found != expected:
            raise WeightsError(f"{path}: {key} is {_short(found)}, expected {expected!r}")
    return config


# fairseq ------------------------------------------------------------------------------------------


def fairseq_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors; those outside the network (`label_embs_concat`, `final_proj`) stay unused."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, replacement in _FAIRSEQ_NAMES:
            found, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                name = found
                break
        renamed[name] = tensor
    return renamed


def fairseq_settings(weights: Weights, tensors: Mapping[str, Tensor]) -> HubertSettings:
    """Read sizes from the shapes; heads and positions of norms from the records, if present."""
    records, task = fairseq_records(weights.content)
    width = len(tensors["encoder.layer_norm.weight"])
    numbers = re.compile(r"encoder\.layers\.(\d+)\.")
    num_layers = 1 + max(int(m[1]) for name in tensors if (m := numbers.match(name)))
    heads = records.get("encoder_attention_heads", max(1, width // HEAD_WIDTH))
    if type(heads) is not int or heads < 1:
        raise ValueError(f"{_short(heads)} attention heads")
    is_layer = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    activation = records.get("activation_fn", "gelu")
    if activation != "gelu":
        raise ValueError(f"activation_fn is {_short(activation)}, expected 'gelu'")
    rate_hz = task.get("sample_rate", RATE_HZ)
    if rate_hz != RATE_HZ:
        raise ValueError(f"sample_rate is {_short(rate_hz)}, expected {RATE_HZ}")
    layers = records.get("conv_feature_layers")
    if isinstance(layers, str) and _strides(layers) not in ([], list(CONV_STRIDES)):
        raise ValueError(
            f"conv_feature_layers is {_short(layers)}, expected strides of {CONV_STRIDES}"
        )
    return HubertSettings(
        heads=heads,
        layer=num_layers,
        conv_norm="layer" if is_layer else "group",
        is_pre_norm=records.get("layer_norm_first", is_layer) is True,
        waveform_eps=FAIRSEQ_EPS if task.get("normalize") is True else None,
    )


def _strides(layers: str) -> list[int]:
    """Strides in fairseq's notation of convolutions, such as `[(512,3,2)] * 4 + [(512,2,2)]`."""
    strides: list[int] = []
    for group, times in re.findall(r"\[([^\]]*)\](?:\s*\*\s*(\d{1,2}))?", layers):
        found = re.findall(r"\(\s*\d+\s*,\s*\d+\s*,\s*(\d+)\s*\)", group)
        strides += [int(stride) for stride in found] * int(times or 1)
    return strides


def fairseq_records(content: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the model and of the task: `cfg["model"]` and `cfg["task"]`, or both `args`."""
    if not isinstance(content, dict):
        return {}, {}
    both = _plain(content.get("cfg"))
    args = {} if _plain(both.get("model")) else _plain(content.get("args"))
    model, task = (
        {key: _value(value) for key, value in (_plain(both.get(name)) or args).items()}
        for name in ("model", "task")
    )
    return model, task


def _plain(record: Any) -> dict[Any, Any]:
    """Convert a dict, argparse.Namespace or omegaconf node to a dict; {} for anything else."""
    for _ in range(MAX_RECORD_DEPTH):
        if not isinstance(record, Record):
            break
        record = record.state.get("_content", record.state)
    return record if isinstance(record, dict) else {}


def _value(value: Any) -> Any:
    """Return a scalar, unwrapped if it is in an omegaconf node."""
    return value.state.get("_val") if isinstance(value, Record) else value
