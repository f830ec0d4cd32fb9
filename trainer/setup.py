"""Start of a run: the checkpoint to resume from, and the text model."""

import hashlib
from collections.abc import Callable, Sequence

from im2sp.shards import ShardDataset, UnitColumn
from im2sp.shards.files import atomic_file, read_regular, read_toml
from im2sp.trainer.checkpoint import Checkpoint, newest_whole, read_checkpoint, step_dir
from im2sp.trainer.config import CONFIG_NAME, TrainConfig, differences
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.sources import (
    captions_of,
    check_fingerprints,
    speech_vocabulary,
    utterances_of,
)
from im2sp.trainer.text import (
    TEXT_MODEL_NAME,
    TextModel,
    fit_text_model,
    fit_word_bag,
    read_text_model,
)
from im2sp.trainer.transfer import former_state, former_text_model, former_unit_pieces
from im2sp.trainer.unit_pieces import UNITS_MODEL_NAME, UnitPieces, fit_unit_pieces


def find_checkpoint(
    config: TrainConfig, ranks: Ranks, log: Callable[[str], object]
) -> Checkpoint | None:
    """The checkpoint to resume from, the same on all processes; None for a new run.

    Raises:
        ValueError: The existing run has other settings.
    """
    step = -1
    if ranks.is_first and (found := newest_whole(config.out, log)) is not None:
        step = found.step
    step = ranks.shared(step)
    if step < 0:
        return None
    checkpoint = read_checkpoint(step_dir(config.out, step))
    former = read_toml(checkpoint.path / CONFIG_NAME)
    changed = differences(config, former)
    advice = f"give another --out, or --config {checkpoint.path / CONFIG_NAME}"
    num_images, expected = images_of_a_step(config, ranks), checkpoint.state["images_a_step"]
    if num_images != expected:
        batch_size, rest = divmod(expected, num_images // config.batch_size)
        if not (changed or rest):
            advice = f"give --batch-size {batch_size}, or another --out"
        changed.append(
            f"images per step was {expected} and is {num_images}"
            " (batch_size x grad_accumulation x processes)"
        )
    if changed:
        raise ValueError(
            f"{config.out}: contains a run with other settings: {'; '.join(changed)}; {advice}"
        )
    return checkpoint


def images_of_a_step(config: TrainConfig, ranks: Ranks) -> int:
    """Images per optimizer step, of all processes."""
    return config.batch_size * config.grad_accumulation * ranks.world_size


def check_same_units(
    found: dict[str, str | None], checkpoint: Checkpoint | None, config: TrainConfig
) -> None:
    """Refuse units of other tokenizers than those of the run or of its initial weights.

    Speech units may differ from those of --init-from; their embedding is then re-initialised.

    Raises:
        ValueError: A fingerprint differs.
    """
    place = ", ".join(map(str, config.shard_dirs))
    if checkpoint is not None:
        expected = checkpoint.state["fingerprints"]
        check_fingerprints(found, expected, place, f"the run {config.out}")
    else:
        encoder = None if config.encoder_from is None else str(config.encoder_from)
        origins = {"--encoder-from": encoder, "--init-from": config.init_from}
        for flag, origin in origins.items():
            # Only the image units of the run that provides the encoder must match.
            state = former_state(origin)
            former, record = state.get("fingerprints", {}), state.get("tokenizers", {}).get("image")
            is_same_input = (record or {}).get("input", "units") == config.input
            if "image" in former and is_same_input and not config.without_image:
                check_fingerprints(found, {"image": former["image"]}, place, f"{flag} {origin}")
                break


def check_grid(config: TrainConfig, image: UnitColumn | None) -> None:
    """Refuse settings that need rows and columns of image units, where there are none.

    Raises:
        ValueError: Names the setting and the column.
    """
    needs_grid = {"crop-area": config.crop_area < 1, "teacher": bool(config.teacher)}
    if image is not None and len(image.shape) == 2:
        return
    for flag, is_given in needs_grid.items():
        if is_given:
            raise ValueError(
                f"--{flag} needs rows and columns of image units, but the column"
                f" {config.image_column} has the shape {image.shape if image else None}"
            )


def find_text_model(
    config: TrainConfig,
    datasets: Sequence[ShardDataset],
    checkpoint: Checkpoint | None,
    ranks: Ranks,
) -> TextModel | UnitPieces | None:
    """The text model or unit pieces of a run; None for speech units without pieces.

    In this order: the run's own, --text-model, that of --init-from, or one fitted to the captions
    or utterances. It is saved in the run's folder, and all processes read it from there.

    Raises:
        ValueError: It cannot be read or fitted, or differs from the one the run started with.
    """
    if config.target not in ("text", "words") and not config.unit_pieces:
        return None
    num_units = speech_vocabulary(datasets[0]).num_ids
    path = config.out / (UNITS_MODEL_NAME if config.unit_pieces else TEXT_MODEL_NAME)
    if checkpoint is None and ranks.is_first:
        if config.text_model is not None:
            model = read_text_model(config.text_model)
        elif config.unit_pieces:
            model = former_unit_pieces(config.init_from, num_units) or fit_unit_pieces(
                utterances_of(datasets), num_units, config.unit_pieces
            )
        elif (former := former_text_model(config.init_from, config.target)) is not None:
            model = former
        elif config.target == "words":
            model = fit_word_bag(captions_of(datasets), config.text_pieces)
        else:
            model = fit_text_model(captions_of(datasets), config.text_pieces)
        with atomic_file(path) as file:
            file.write(model.data)
    ranks.wait()
    if config.unit_pieces:
        model = UnitPieces(read_regular(path), str(path), num_units)
    else:
        model = read_text_model(path)
    if checkpoint is not None:
        expected = checkpoint.state["text_model_sha256"]
        if (found := text_model_sha256(model)) != expected:
            raise ValueError(
                f"{path}: sha256 {found}, expected that of the run, {expected}; restore that file"
            )
    return model


def text_model_sha256(model: TextModel | UnitPieces | None) -> str | None:
    """Checksum of a text model or of unit pieces."""
    return None if model is None else hashlib.sha256(model.data).hexdigest()
