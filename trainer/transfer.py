"""Initial weights of a run from another one: `--init-from` and `--encoder-from`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from im2sp.shards.files import read_regular
from im2sp.shards.weights.hub import find_beside
from im2sp.trainer.checkpoint import named_checkpoint
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.export import find_notes, text_model_path
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import PRESETS, SEIT_STEM_STRIDE, preset_config
from im2sp.trainer.text import GIT_NAME, TextModel, read_text_model
from im2sp.trainer.unit_pieces import UNITS_MODEL_NAME, UnitPieces
from im2sp.trainer.vocabulary import Vocabulary
from im2sp.trainer.weights import BUNDLED, is_own, load_model, use_encoder, with_image_side

_DEFAULT_PRESET = "small"
_OF_VOCABULARY = ("decoder.embedding.weight", "decoder.output_bias")


@dataclass(frozen=True)
class Units:
    """Meaning of a run's tokens: the vocabulary, and the tokenizers of its units."""

    vocabulary: Vocabulary
    fingerprints: Mapping[str, str | None]
    """Kind of unit -> fingerprint of its tokenizer."""
    text_model_sha256: str | None = None
    """Checksum of the text model, bag of words or unit pieces, if any."""
    log_odds: Sequence[float] | None = None
    """Log odds of the words, for the target words."""


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
    codebook: torch.Tensor,
    warn: Callable[[str], object] = lambda _: None,
) -> Im2SpModel:
    """The initial model of a run, on the CPU.

    Randomly initialised parts depend on --seed only.

    Args:
        config: Settings.
        units: Units of the run.
        codebook: (num_codes, code_width) float32; not used without an image.
        warn: Called with a message if a text model's embedding cannot be kept.

    Raises:
        ValueError: The weights cannot be read or do not fit.
    """
    torch.manual_seed(config.seed)
    if config.init_from is None:
        is_seit = config.encoder_from is not None and not is_own(config.encoder_from)
        sizes = preset_config(
            config.preset or _DEFAULT_PRESET,
            units.vocabulary,
            num_codes=codebook.shape[0],
            code_width=codebook.shape[1],
            # SeiT's encoder was trained on the unchanged rows.
            standardise_codebook=not is_seit,
        )
        has_image = not config.without_image
        sizes = dataclasses.replace(sizes, has_image=has_image, **_dropouts(config))
        if is_seit:  # its encoder includes SeiT's stem
            sizes = dataclasses.replace(sizes, stem_stride=SEIT_STEM_STRIDE, conv_stem=False)
        model = Im2SpModel(sizes, codebook)
        _set_odds(model, units)
        if config.encoder_from is None:
            return model
        if is_seit:
            use_encoder(model, config.encoder_from)
            return model
        other = load_model(config.encoder_from, codebook, device="cpu")
        return with_image_side(model, other, f"--preset {config.preset or _DEFAULT_PRESET}")
    rows = None if config.without_image else codebook
    origin = load_model(config.init_from, rows, encoder=config.encoder_from, device="cpu")
    _check_sizes(config, origin)
    state = former_state(config.init_from)
    kinds = {origin.config.vocabulary.kind, units.vocabulary.kind}
    if kinds == {"text"} and not _is_same(units, origin.config.vocabulary, state):
        warn(
            f"--init-from {config.init_from}: its text tokenizer differs from this run's, so the"
            " embedding and output layers are re-initialised. To keep them, give its tokenizer with"
            f" --text-model (of a GIT: {GIT_NAME} beside its weights)"
        )
    return transferred(origin, units, state, _dropouts(config))


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
    has_image = sizes.has_image
    rows = origin.encoder.get_buffer("codebook") if has_image else torch.empty(1, 1)
    model = Im2SpModel(sizes, rows)
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
    if vocabulary.kind != "speech":
        return units.text_model_sha256 == state.get("text_model_sha256", units.text_model_sha256)
    ours = units.fingerprints.get("speech")
    return state.get("fingerprints", {}).get("speech", ours) == ours


def _check_sizes(config: TrainConfig, origin: Im2SpModel) -> None:
    if origin.config.has_image == config.without_image:
        kind = "a captioner" if config.without_image else "a language model without images"
        raise ValueError(
            f"--init-from {config.init_from}: is {kind}; --without-image must be the same in both"
        )
    found = (origin.config.encoder, origin.config.decoder)
    if config.preset is not None and found != PRESETS[config.preset]:
        raise ValueError(
            f"--preset {config.preset}: {config.init_from} has other sizes, {found}; omit --preset"
        )
    if config.longest >= origin.config.max_positions:
        raise ValueError(
            f"--max-length {config.longest}: {config.init_from} has"
            f" {origin.config.max_positions} positions; give a smaller --max-length"
        )
