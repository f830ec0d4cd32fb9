"""Initial weights of a run from another one: `--init-from` and `--encoder-from`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from im2sp.shards import UnitColumn
from im2sp.shards.files import read_regular
from im2sp.shards.weights.hub import find_beside
from im2sp.trainer.checkpoint import named_checkpoint
from im2sp.trainer.config import MAX_TOKENS, TrainConfig
from im2sp.trainer.export import find_notes, text_model_path
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import PRESETS, SEIT_STEM_STRIDE, grid_of, preset_config
from im2sp.trainer.text import GIT_NAME, TextModel, read_text_model
from im2sp.trainer.unit_pieces import UNITS_MODEL_NAME, UnitPieces
from im2sp.trainer.vocabulary import Vocabulary
from im2sp.trainer.weights import (
    BUNDLED,
    codebook_of,
    is_own,
    load_model,
    use_encoder,
    with_image_side,
)

_DEFAULT_PRESET = "small"
_OF_VOCABULARY = ("decoder.embedding.weight", "decoder.output_bias")


@dataclass(frozen=True)
class Units:
    """Units of a run: tokens and the tokenizers behind them, and the images' units."""

    vocabulary: Vocabulary
    fingerprints: Mapping[str, str | None]
    """Kind of unit -> fingerprint of its tokenizer."""
    image: UnitColumn | None
    """Column of the images; None without image units."""
    longest: int
    """Maximum number of ids of a text."""
    text_model_sha256: str | None = None
    """Checksum of the text model, bag of words or unit pieces, if any."""
    log_odds: Sequence[float] | None = None
    """Log odds of the words, for the target words."""
    features: tuple[int, int] | None = None
    """Shape of an image's features, for the input pixels."""


def former_state(init_from: str | None) -> Mapping[str, Any]:
    """Records of the units of `--init-from`.

    `state.json` of a run or checkpoint, or the notes of an exported file; empty for published
    weights.
    """
    if init_from is None:
        return {}
    path = BUNDLED.get(init_from, Path(init_from))
    if path.is_file():
        return find_notes(path) or {}
    found = named_checkpoint(path)
    return found.state if found else {}


def unit_columns_of(run: str | Path) -> Mapping[str, str]:
    """Kind of unit (image, speech or target) -> column, of a run or exported file."""
    return former_state(str(run)).get("unit_columns", {"image": "image_units"})


def former_text_model(init_from: str | None, target: str) -> TextModel | None:
    """The text model of the run or GIT of `--init-from`, if it has one for the target.

    Raises:
        ValueError: It cannot be read, or a GIT's cannot be fetched from the hub.
    """
    if init_from is None:
        return None
    path = text_model_path(init_from)
    if not path.is_file():
        path = None if init_from in BUNDLED else find_beside(init_from, GIT_NAME)
    if path is None or (model := read_text_model(path)).vocabulary.kind != target:
        return None
    return model


def former_unit_pieces(init_from: str | None, num_units: int) -> UnitPieces | None:
    """The unit pieces of the run of `--init-from`, if it has any."""
    if init_from is None:
        return None
    path = text_model_path(init_from, UNITS_MODEL_NAME)
    if not path.is_file():
        return None
    return UnitPieces(read_regular(path), str(path), num_units)


def first_model(
    config: TrainConfig,
    units: Units,
    codebook: torch.Tensor | None,
    warn: Callable[[str], object] = lambda _: None,
) -> Im2SpModel:
    """The initial model of a run, on the CPU.

    Randomly initialised parts depend on --seed only.

    Args:
        config: Settings.
        units: Units of the run.
        codebook: (num_codes, code_width) float32 vectors of the image units; None to learn them.
        warn: Called with a message if a text model's embedding cannot be kept.

    Raises:
        ValueError: The weights cannot be read or do not fit.
    """
    torch.manual_seed(config.seed)
    if config.init_from is None:
        is_seit = config.encoder_from is not None and not is_own(config.encoder_from)
        if is_seit and codebook is None:
            raise ValueError(_needs_codebook("--encoder-from", config.encoder_from))
        settings = _image_settings(units, codebook) | _dropouts(config)
        if is_seit:  # its encoder includes SeiT's stem, and was trained on the unchanged rows
            settings |= {"stem_stride": SEIT_STEM_STRIDE, "conv_stem": False}
            settings["standardise_codebook"] = False
        sizes = preset_config(
            config.preset or _DEFAULT_PRESET,
            units.vocabulary,
            max_positions=max(MAX_TOKENS, units.longest + 1),
            **settings,
        )
        model = Im2SpModel(sizes, codebook)
        _set_odds(model, units)
        if config.encoder_from is None:
            return model
        if is_seit:
            use_encoder(model, config.encoder_from)
            return model
        other = load_model(config.encoder_from, codebook, device="cpu")
        check_image(units.image, other, f"--encoder-from {config.encoder_from}")
        return with_image_side(model, other, f"--preset {config.preset or _DEFAULT_PRESET}")
    needs_codebook = not config.without_image and units.features is None
    if codebook is None and needs_codebook and not is_own(config.init_from):
        raise ValueError(_needs_codebook("--init-from", config.init_from))
    origin = load_model(
        config.init_from,
        codebook,
        encoder=config.encoder_from,
        features=units.features,
        device="cpu",
    )
    _check_sizes(config, units, origin)
    check_image(units.image, origin, f"--init-from {config.init_from}")
    state = former_state(config.init_from)
    kinds = {origin.config.vocabulary.kind, units.vocabulary.kind}
    if kinds == {"text"} and not _is_same(units, origin.config.vocabulary, state):
        warn(
            f"--init-from {config.init_from}: its text tokenizer differs from this run's, so the"
            " embedding and output layers are re-initialised. To keep them, give its tokenizer with"
            f" --text-model (of a GIT: {GIT_NAME} beside its weights)"
        )
    return transferred(origin, units, state, _dropouts(config))


def _image_settings(units: Units, codebook: torch.Tensor | None) -> dict[str, Any]:
    """Fields of the model's configuration that follow from the images' units or features."""
    image = units.image
    if units.features is not None:
        return {"features": units.features}
    if image is None:
        return {"has_image": False}
    settings: dict[str, Any] = {"grid": grid_of(image.shape), "num_codes": image.num_codes}
    if codebook is None:
        return settings | {"learned_codes": True}
    rows, width = codebook.shape
    return settings | {"num_codes": rows, "code_width": width, "standardise_codebook": True}


def _needs_codebook(flag: str, weights: object) -> str:
    return (
        f"{flag} {weights}: published weights need the codebook of the image units, which the"
        " dataset does not hold; give a run of im2sp-train, or write the dataset with codebooks="
    )


def check_image(image: UnitColumn | None, origin: Im2SpModel, place: str) -> None:
    """Refuse weights of an image encoder of another shape or number of codes, or of none."""
    sizes = origin.config
    if image is not None and not sizes.has_units:
        raise ValueError(f"{place}: takes features of pixels, expected a model of image units")
    if image is None or (grid_of(image.shape), image.num_codes) == (sizes.grid, sizes.num_codes):
        return
    raise ValueError(
        f"{place}: takes images of {_shown(sizes.shape)} units of {sizes.num_codes:,} codes, but"
        f" those of the dataset are {_shown(image.shape)} of {image.num_codes:,}"
    )


def _shown(shape: Sequence[int | None]) -> str:
    return " x ".join(map(str, shape))


def _dropouts(config: TrainConfig) -> dict[str, float]:
    """Fields of the model's configuration that the settings of a run determine."""
    return {
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "stochastic_depth": config.stochastic_depth,
    }


def transferred(
    origin: Im2SpModel, units: Units, state: Mapping[str, Any], dropouts: Mapping[str, float]
) -> Im2SpModel:
    """Transfer weights to another vocabulary; if it differs, embedding and output are new.

    Args:
        origin: Model with the weights.
        units: Units of the new model.
        state: `former_state` of the origin.
        dropouts: Dropouts of the new model's configuration.
    """
    sizes = dataclasses.replace(
        origin.config,
        vocabulary=units.vocabulary,
        **dropouts,
    )
    model = Im2SpModel(sizes, codebook_of(origin))
    _set_odds(model, units)
    kept = origin.state_dict()
    if not _is_same(units, origin.config.vocabulary, state):
        new = model.state_dict()
        kept |= {name: new[name] for name in _OF_VOCABULARY}
    model.load_state_dict(kept)
    return model


def _set_odds(model: Im2SpModel, units: Units) -> None:
    """Initialise the output bias with the log odds of the words, if the target is words."""
    if units.log_odds is not None:
        tokens = units.vocabulary.place(torch.arange(len(units.log_odds)))
        with torch.no_grad():
            model.decoder.output_bias[tokens] = torch.tensor(units.log_odds)


def _is_same(units: Units, vocabulary: Vocabulary, state: Mapping[str, Any]) -> bool:
    """True if tokens mean the same in both; unknown fingerprints of published weights match."""
    if units.vocabulary != vocabulary:
        return False
    if vocabulary.kind in ("text", "words"):
        return units.text_model_sha256 == state.get("text_model_sha256", units.text_model_sha256)
    kind = "speech" if vocabulary.kind == "speech" else "target"
    ours = units.fingerprints.get(kind)
    return state.get("fingerprints", {}).get(kind, ours) == ours


def _check_sizes(config: TrainConfig, units: Units, origin: Im2SpModel) -> None:
    if origin.config.has_image == config.without_image:
        kind = "a captioner" if config.without_image else "a language model without images"
        raise ValueError(
            f"--init-from {config.init_from}: is {kind}; --without-image must be the same in both"
        )
    if origin.config.features != units.features:
        names = [
            "image units" if shape is None else f"features of {_shown(shape)}"
            for shape in (origin.config.features, units.features)
        ]
        raise ValueError(
            f"--init-from {config.init_from}: its input is {names[0]}, that of this run {names[1]};"
            " give the same --input and --image-encoder to both"
        )
    found = (origin.config.encoder, origin.config.decoder)
    preset = PRESETS.get(config.preset or "", found)
    if found != preset and (units.features is None or found[1] != preset[1]):
        raise ValueError(
            f"--preset {config.preset}: {config.init_from} has other sizes, {found}; omit --preset"
        )
    if units.longest >= origin.config.max_positions:
        raise ValueError(
            f"--max-length {units.longest}: {config.init_from} has"
            f" {origin.config.max_positions} positions; give a smaller --max-length"
        )
