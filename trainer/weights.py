"""Reading and writing of models: our own form, and published ones.

Our own is one `model.safetensors`, written atomically: the tensors, codebook included, and the
configuration as JSON in its metadata under "im2sp". Published forms are distinguished by their
tensor names (see `published`) and read by the restricted reader.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from im2sp.shards.files import atomic_file, parse_json
from im2sp.shards.weights import describe, read_weights
from im2sp.shards.weights.hub import CONFIG_FILE, find_model
from im2sp.shards.weights.pickles import WeightsError
from im2sp.shards.weights.rebuild import BFLOAT16
from im2sp.trainer.checkpoint import best_checkpoint
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import (
    PRESETS,
    SEIT_STEM_STRIDE,
    ModelConfig,
    StackConfig,
    config_from_dict,
)
from im2sp.trainer.published import (
    GIT_MARK,
    ORIGINAL_ENCODER,
    ORIGINAL_PREFIX,
    TIMM_MARK,
    Part,
    PublishedError,
    below,
    decoder_part,
    encoder_part,
    git_decoder,
    projection_tensors,
)
from im2sp.trainer.vocabulary import Vocabulary

MODEL_FILE = "model.safetensors"
METADATA_KEY = "im2sp"
FORM = "im2sp model 1"
STEP_DIRS = "step-*"
BUNDLED = {
    "compact": Path(__file__).parent / "compact_captioner.safetensors",
    "compact-text": Path(__file__).parent / "compact_text.safetensors",
}
"""The bundled captioners: one of speech units, one of text."""
WEIGHT_FILES = (MODEL_FILE, "pytorch_model.bin")
# Weights and biases of two norms and four Linears.
_LAYER_TENSORS = 12


def save_model(folder: str | Path, model: Im2SpModel, name: str = MODEL_FILE) -> Path:
    """Write a model into a file of an existing folder; the same model gives the same bytes.

    Returns:
        Path of the file.
    """
    path = Path(folder) / name
    tensors = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {METADATA_KEY: json.dumps({"form": FORM, "config": asdict(model.config)})}
    data = safetensors.torch.save(tensors, metadata)
    with atomic_file(path) as file:
        file.write(data)
    return path


def load_model(
    path: str | Path,
    codebook: str | Path | Tensor | None = None,
    *,
    encoder: str | Path | None = None,
    features: tuple[int, int] | None = None,
    device: str | torch.device | None = None,
) -> Im2SpModel:
    """Load a model in eval mode; no code in the file is executed.

    Args:
        path: "compact" or "compact-text" (bundled), the folder of a run (its best checkpoint, or
            else the newest), a folder or file in our own form, the paper's checkpoint, or a GIT of
            transformers: a folder, or a hub id such as `microsoft/git-base`. Only the decoder of a
            GIT is used; as its encoder reads pixels, the image encoder (see `encoder`) and
            projection are new.
        codebook: (codes, width) vectors of the image units, or their file. Required for published
            weights; our own form contains it.
        encoder: A model in our own form, whose image encoder and projection replace those of
            `path`; or for a GIT, SeiT's weights for the image encoder. A GIT without it gets a
            randomly initialised encoder of the paper's size.
        features: Shape (states, width) of the features of an image encoder that sees pixels, which
            replace the codebook for a GIT: its projection is kept if it has this width, else new.
        device: torch device; by default CUDA if available, else the CPU.

    Raises:
        WeightsError: (a ValueError) the weights do not exist, or are not those of a model.
    """
    found = _find(path)
    tensors, metadata = read_tensors(found)
    other = None
    if encoder is not None and is_own(encoder):
        other, encoder = load_model(encoder, codebook, device="cpu"), None
    if METADATA_KEY in metadata:
        if encoder is not None:
            raise WeightsError(
                f"{found}: holds an encoder; omit encoder={str(encoder)!r}, or give a model"
                " of im2sp"
            )
        model = _own_model(found, tensors, metadata[METADATA_KEY], codebook)
    else:
        if codebook is None and features is None:
            raise WeightsError(
                f"{found}: holds no codebook; pass codebook=, the file or tensor of the vectors of"
                " the image units"
            )
        try:
            if codebook is None:
                model = _git_of_features(found, tensors, features)
            else:
                model = _published_model(found, tensors, load_codebook(codebook), encoder)
        except PublishedError as error:
            raise WeightsError(f"{found}: {error}") from error
    if other is not None:
        model = with_image_side(model, other, str(found))
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and safetensors metadata of a file with the restricted reader."""
    weights = read_weights(path)
    tensors = {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == BFLOAT16
        else torch.from_numpy(array)
        for name, array in weights.arrays().items()
    }
    if not tensors:
        raise WeightsError(f"{path}: holds {describe(weights.content)}, expected a model's weights")
    return tensors, weights.metadata


def load_codebook(codebook: str | Path | Tensor) -> Tensor:
    """(codes, width) float32 from a tensor, or from a file with exactly one such tensor.

    Raises:
        WeightsError: It is anything else.
    """
    if isinstance(codebook, Tensor):
        tensors, source = {"": codebook}, "codebook"
    else:
        tensors, source = read_tensors(Path(codebook).expanduser())[0], str(codebook)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len(tensors) != 1 or any(len(shape) != 2 for shape in shapes.values()):
        raise WeightsError(
            f"{source}: holds {str(shapes)[:200]}, expected one tensor [codes, width]"
        )
    (rows,) = tensors.values()
    return rows.detach().float().cpu()


def use_encoder(model: Im2SpModel, path: str | Path) -> None:
    """Load SeiT's weights into the image encoder; the codebook is unchanged.

    Raises:
        WeightsError: The weights are not SeiT's, or have other sizes.
    """
    found = _find(path)
    part = _seit(found)
    _take(found, model.encoder, part, model.config.encoder)


def is_own(path: str | Path) -> bool:
    """True if weights are in our own form.

    Raises:
        WeightsError: The weights do not exist.
    """
    return METADATA_KEY in read_tensors(_find(path))[1]


def codebook_of(model: Im2SpModel) -> Tensor | None:
    """The codebook of a model; None without image units, or if its vectors are learned."""
    config = model.config
    is_held = config.has_units and not config.learned_codes
    return model.encoder.get_buffer("codebook") if is_held else None


def with_image_side(model: Im2SpModel, other: Im2SpModel, name: str) -> Im2SpModel:
    """Combine the image encoder, codebook and projection of `other` with the decoder of `model`.

    Args:
        model: Model with the decoder.
        other: Model with the other parts.
        name: Name of `model`, for messages.

    Raises:
        WeightsError: The decoders differ in width.
    """
    widths = model.config.decoder.width, other.config.decoder.width
    if widths[0] != widths[1]:
        raise WeightsError(
            f"{name}: has a decoder of width {widths[0]}, expected {widths[1]}, the output width of"
            " the encoder's projection"
        )
    own = model.config
    sizes = replace(
        other.config,
        vocabulary=own.vocabulary,
        decoder=own.decoder,
        max_positions=own.max_positions,
        dropout=own.dropout,
        attention_dropout=own.attention_dropout,
    )
    mixed = Im2SpModel(sizes, codebook_of(other))
    kept = {n: t for n, t in model.state_dict().items() if n.startswith("decoder.")}
    mixed.load_state_dict(other.state_dict() | kept)
    return mixed


def _take(path: Path, module: torch.nn.Module, part: Part, stack: StackConfig) -> None:
    """Copy the tensors of a part into a module of the same sizes."""
    if part.stack != stack:
        raise WeightsError(f"{path}: has {part.stack}, expected {stack}; choose another preset")
    _check_shapes(path, part.tensors, module.state_dict())
    module.load_state_dict(part.tensors, strict=False)


def _find(path: str | Path) -> Path:
    """The weights file of a bundled name, a run, a folder, a file or a hub id."""
    if str(path) in BUNDLED:
        return BUNDLED[str(path)]
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / CONFIG_FILE).is_file():
        if (folder / MODEL_FILE).is_file():
            return folder / MODEL_FILE
        if (best := best_checkpoint(folder)) is not None:
            return best.path / MODEL_FILE
        steps = sorted(step for step in folder.glob(STEP_DIRS) if step.name[5:].isdigit())
        for step in reversed(steps):  # of a run without state.json
            if (step / MODEL_FILE).is_file():
                return step / MODEL_FILE
        raise WeightsError(
            f"{path}: this folder lacks {MODEL_FILE}, {STEP_DIRS}/{MODEL_FILE} and {CONFIG_FILE};"
            " expected a run, a checkpoint, or a model of transformers"
        )
    return find_model(path, WEIGHT_FILES)


def _own_model(
    path: Path, tensors: dict[str, Tensor], text: str, codebook: str | Path | Tensor | None
) -> Im2SpModel:
    try:
        header = parse_json(text)
        if header.get("form") != FORM:
            raise ValueError(f"form {header.get('form')!r}, expected {FORM!r}")
        config = config_from_dict(header["config"])
        depth = config.decoder.depth + config.has_units * config.encoder.depth
        if depth * _LAYER_TENSORS > len(tensors):  # before a model of that depth is built
            raise ValueError(f"{depth} layers, {len(tensors)} tensors")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{path}: {error}; expected a model of im2sp") from error
    if codebook is not None:
        tensors = {**tensors, "encoder.codebook": load_codebook(codebook)}
    return _filled(path, config, tensors)


class _WithoutNoise(TorchFunctionMode):
    """Skip `normal_`: on the meta device it fills nothing, but imports all of torch._dynamo."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "normal_":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _meta_model(path: Path, config: ModelConfig) -> Im2SpModel:
    try:
        with torch.device("meta"), _WithoutNoise():
            return Im2SpModel(config, torch.empty(config.num_codes, config.code_width))
    except (RuntimeError, TypeError, OverflowError) as error:
        what = str(error).splitlines()[0]
        raise WeightsError(f"{path}: no model has its sizes ({what}); {config}") from None


def _filled(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Im2SpModel:
    """Model with all tensors from a file."""
    model = _meta_model(path, config)
    own = model.state_dict()
    if missing := sorted(own.keys() - tensors.keys()):
        raise WeightsError(f"{path}: lacks {missing[0]!r}; expected a whole model of im2sp")
    _check_shapes(path, {name: tensors[name] for name in own}, own)
    # Copies, because the tensors are mapped from the file.
    filled = {name: tensors[name].detach().float().clone() for name in own}
    model.load_state_dict(filled, assign=True)
    return model


def _check_shapes(path: Path, found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    for name, tensor in found.items():
        shape, expected = list(tensor.shape), list(own[name].shape)
        if shape != expected:
            raise WeightsError(f"{path}: {name} has shape {shape}, expected {expected}")


def _published_model(
    path: Path, tensors: dict[str, Tensor], codebook: Tensor, encoder: str | Path | None
) -> Im2SpModel:
    original = below(tensors, ORIGINAL_PREFIX)
    if GIT_MARK in original:
        if encoder is not None:
            raise WeightsError(f"{path}: holds an encoder; omit encoder={str(encoder)!r}")
        return _original_model(path, original, codebook)
    if GIT_MARK not in tensors:
        hint = "SeiT's encoder alone; pass it as encoder=" if TIMM_MARK in tensors else ""
        names = hint or f"{len(tensors)} tensors such as {min(tensors)[:80]!r}"
        raise WeightsError(f"{path}: holds {names}, expected a model of im2sp, GIT or the paper")
    image = None if encoder is None else _seit(_find(encoder))
    config, decoder = git_decoder(
        path,
        tensors,
        encoder=image.stack if image is not None else PRESETS["base"][0],
        num_codes=codebook.shape[0],
        code_width=codebook.shape[1],
    )
    sizes = _meta_model(path, config)  # before a model takes memory
    _check_shapes(path, decoder.tensors, sizes.decoder.state_dict())
    if image is not None and encoder is not None:
        _check_shapes(Path(encoder), image.tensors, sizes.encoder.state_dict())
    model = Im2SpModel(config, codebook)
    _take(path, model.decoder, decoder, config.decoder)
    if image is not None and encoder is not None:
        _take(Path(encoder), model.encoder, image, config.encoder)
    return model


def _git_of_features(
    path: Path, tensors: dict[str, Tensor], features: tuple[int, int] | None
) -> Im2SpModel:
    """A GIT as its authors built it, without the image encoder: its features are the input."""
    if GIT_MARK not in tensors:
        raise WeightsError(
            f"{path}: holds {len(tensors)} tensors such as {min(tensors)[:80]!r}, expected a GIT of"
            " transformers"
        )
    config, decoder = git_decoder(path, tensors, encoder=PRESETS["base"][0], features=features)
    found = {f"decoder.{name}": tensor for name, tensor in decoder.tensors.items()}
    projection = projection_tensors(tensors)
    if projection["projection.weight"].shape[1] == config.states_width:
        found |= projection
    sizes = _meta_model(path, config).state_dict()
    _check_shapes(path, found, sizes)
    model = Im2SpModel(config)
    model.load_state_dict(found, strict=False)
    return model


def _original_model(path: Path, tensors: dict[str, Tensor], codebook: Tensor) -> Im2SpModel:
    """The paper's unit model, with the vocabulary layout that it was trained with."""
    encoder, decoder = encoder_part(below(tensors, ORIGINAL_ENCODER)), decoder_part(tensors)
    size = len(decoder.tensors["embedding.weight"])
    grid = SEIT_STEM_STRIDE * round((encoder.tensors["positions"].shape[1] - 1) ** 0.5)
    config = ModelConfig(
        vocabulary=Vocabulary(kind="speech", num_ids=size - 3, layout="original"),
        encoder=encoder.stack,
        decoder=decoder.stack,
        grid=grid,
        num_codes=codebook.shape[0],
        code_width=codebook.shape[1],
        max_positions=len(decoder.tensors["positions.weight"]),
    )
    named = {f"encoder.{name}": tensor for name, tensor in encoder.tensors.items()}
    named |= {f"decoder.{name}": tensor for name, tensor in decoder.tensors.items()}
    named |= projection_tensors(tensors)
    return _filled(path, config, {**named, "encoder.codebook": codebook})


def _seit(path: Path) -> Part:
    tensors = read_tensors(path)[0]
    if TIMM_MARK not in tensors:
        raise WeightsError(
            f"{path}: holds {len(tensors)} tensors such as {min(tensors)[:80]!r}, expected SeiT's"
            " weights"
        )
    try:
        return encoder_part(tensors)
    except PublishedError as error:
        raise WeightsError(f"{path}: {error}") from error
