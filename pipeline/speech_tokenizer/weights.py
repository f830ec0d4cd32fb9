"""HuBERT weights of every published form, up to a layer.

transformers stores the sizes in `config.json` and the tensors in a separate file. fairseq's file
(`hubert_base_ls960.pt`) has the same tensors under other names, and records of the settings that
shapes do not determine. The im2sp form is one safetensors file that includes the k-means centroids,
with the settings in its metadata. All are converted to one dictionary with transformers' names.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from im2sp.pipeline.speech_tokenizer.published import (
    CONV_KERNELS,
    POSITIONS,
    PREPROCESSOR_FILES,
    WEIGHT_FILES,
    HubertSettings,
    config_settings,
    fairseq_settings,
    fairseq_tensors,
    with_preprocessor,
)
from im2sp.pipeline.tensors import (
    Weights,
    checked_tensor,
    describe,
    finite_float32,
    read_weights,
    tensors_fingerprint,
)
from im2sp.shards.files import parse_json
from im2sp.shards.weights.hub import find_beside, find_model, find_weights
from im2sp.shards.weights.pickles import Record, WeightsError

BUNDLED = {"compact": Path(__file__).parent / "compact.safetensors"}
METADATA_KEY = "im2sp"
CENTROIDS = "centres"
# Names of the centroids in a file that holds more than one array, best first.
CENTROID_NAMES = (CENTROIDS, "cluster_centers_")
MAX_UNITS = 2**16
# Layer whose features the published centroids were fitted to.
DEFAULT_LAYER = 6
# Weights and biases of two norms and six Linears.
LAYER_TENSORS = 16
HF_MARK = "feature_extractor.conv_layers.0.conv.weight"
FAIRSEQ_MARK = "feature_extractor.conv_layers.0.0.weight"
# Names of torch's newer weight norm -> the published ones.
_WEIGHT_NORM_NAMES = {
    f"{POSITIONS}.parametrizations.weight.original0": f"{POSITIONS}.weight_g",
    f"{POSITIONS}.parametrizations.weight.original1": f"{POSITIONS}.weight_v",
}


@dataclass(frozen=True, kw_only=True)
class HubertWeights:
    """Settings, and checked float32 tensors on the CPU under transformers' names."""

    settings: HubertSettings
    tensors: dict[str, Tensor]
    centroids: Tensor | None = None
    """k-means centroids, (K, D) float32, if the file holds them."""

    @property
    def width(self) -> int:
        """Width of a feature."""
        return len(self.tensors["feature_projection.projection.weight"])


def load_hubert(name_or_path: str | Path, layer: int | None = None) -> HubertWeights:
    """Read a HuBERT up to a layer; layers above it are not read.

    Args:
        name_or_path: "compact" (bundled), a transformers folder, fairseq's file, an im2sp file, or
            a hub id.
        layer: Layer whose output is needed, counted from 1. None for that of the centroids in an
            im2sp file, and for 6 otherwise.

    Raises:
        WeightsError: One line with what was found and what was expected.
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
            tensors = fairseq_tensors(_below(tensors, prefix))
            settings = fairseq_settings(weights, tensors)
        elif (prefix := _prefix_before(tensors, HF_MARK)) is not None:
            tensors = _below(tensors, prefix)
            settings = config_settings(path)
            if (beside := _preprocessor(name_or_path, path, settings)) is not None:
                settings = with_preprocessor(settings, beside)
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
        raise WeightsError(f"{path}: not the shapes of a HuBERT: {error}") from None
    checked = {
        name: checked_tensor(path, tensors, name, shape, what="a HuBERT")
        for name, shape in shapes.items()
    }
    # The centroids belong to one layer's features.
    has_centroids = own is not None and layer == own.layer and CENTROIDS in tensors
    centroids = tensors[CENTROIDS].to(torch.float32) if has_centroids else None
    return HubertWeights(settings=settings, tensors=checked, centroids=centroids)


def _preprocessor(name_or_path: str | Path, path: Path, settings: HubertSettings) -> Path | None:
    """The preprocessor's settings beside the weights at `path`; None if there are none.

    From the hub they are fetched for models with layer norm only, where they matter.
    """
    for name in PREPROCESSOR_FILES:
        if path.with_name(name).is_file():
            return path.with_name(name)
    if settings.conv_norm == "group":
        return None
    return find_beside(name_or_path, PREPROCESSOR_FILES[0])


def _prefix_before(tensors: Mapping[str, Tensor], mark: str) -> str | None:
    """Prefix before a name, such as `hubert.` in a fine-tuned model."""
    found = [name.removesuffix(mark) for name in tensors if name.endswith(mark)]
    return min(found, key=len, default=None)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


# im2sp form --------------------------------------------------------------------------------------


def speech_tokenizer_bytes(
    weights: HubertWeights,
    dtype: torch.dtype = torch.float16,
    notes: dict[str, Any] | None = None,
) -> bytes:
    """Serialise a HuBERT up to its layer, and its centroids if any, as one safetensors file.

    Args:
        weights: Weights to write.
        dtype: Type of the stored tensors; the centroids stay float32.
        notes: Further metadata, such as the recipe; JSON values.
    """
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in weights.tensors.items()}
    if weights.centroids is not None:
        tensors[CENTROIDS] = weights.centroids.to(torch.float32).contiguous()
    metadata = {**(notes or {}), "hubert": weights.settings.recorded()}
    return save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def _own_settings(weights: Weights) -> HubertSettings | None:
    """Return the settings in the metadata of an im2sp file; None for a file of another form."""
    if (text := weights.metadata.get(METADATA_KEY)) is None:
        return None
    try:
        return HubertSettings(**parse_json(text)["hubert"])
    except (ValueError, TypeError, KeyError):
        raise WeightsError(
            f"{weights.path}: its metadata {METADATA_KEY!r} names no settings of a HuBERT"
        ) from None


# k-means ------------------------------------------------------------------------------------------


def load_centroids(source: str | Path | Tensor | np.ndarray) -> Tensor:
    """Return centroids (K, D) float32 from a table or its file.

    Args:
        source: The table; or the published `km.bin` (scikit-learn's k-means as joblib writes it,
            read without executing anything in it); or a safetensors, `.npy` or torch file of one
            table or with one named `centres`.

    Raises:
        WeightsError: The source is not one table of finite numbers.
    """
    if not isinstance(source, str | Path):
        return _checked_centroids("centres", torch.as_tensor(source))
    weights = read_weights(source)
    tensors, content = weights.tensors(), weights.content
    if isinstance(content, Record):
        table = content.state.get("cluster_centers_")
        if isinstance(table, np.ndarray) and table.dtype.kind == "f":
            native = np.ascontiguousarray(table, dtype=table.dtype.newbyteorder("="))
            tensors = {"cluster_centers_": torch.from_numpy(native)}
    for name in (*CENTROID_NAMES, *(tensors if len(tensors) == 1 else ())):
        if name in tensors:
            return _checked_centroids(str(source), tensors[name])
    raise WeightsError(
        f"{source}: holds {describe(content)}, expected the k-means centroids [units, width] as"
        " joblib's km.bin, safetensors with a table `centres`, or .npy"
    )


def _checked_centroids(name: str, table: Tensor) -> Tensor:
    is_table = table.ndim == 2 and table.is_floating_point() and 0 not in table.shape
    if not is_table or len(table) > MAX_UNITS:
        raise WeightsError(
            f"{name}: the centroids are {table.dtype} of shape {list(table.shape)}, expected real"
            f" numbers of shape [units, width] with at most {MAX_UNITS} units"
        )
    return finite_float32(table, f"{name}: the table of centroids").clone()


# Shapes and fingerprint ---------------------------------------------------------------------------


def expected_shapes(
    tensors: Mapping[str, Tensor], settings: HubertSettings
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor up to the layer, with sizes read from the tensors.

    Raises:
        KeyError: A tensor that determines a size is missing; its name.
        ValueError: Sizes that do not fit each other.
    """
    if settings.layer * LAYER_TENSORS > len(tensors):
        raise ValueError(f"{settings.layer} layers of {len(tensors)} tensors")
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
    if not settings.is_pre_norm:  # otherwise it is applied after the features are taken
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


def fingerprint(weights: HubertWeights, centroids: Tensor, precision: str) -> str:
    """sha256 (hex) of all that determines a clip's units.

    These are the settings, the float32 weights up to the layer, the centroids and the precision.
    The container, the stored dtype and layers above do not matter, so fairseq's file has the same
    fingerprint as the folder converted from it.
    """
    settings = {
        "format": 1,
        "model": "hubert",
        "precision": precision,
        **weights.settings.recorded(),
    }
    return tensors_fingerprint(settings, [*weights.tensors.items(), ("centres", centroids)])
