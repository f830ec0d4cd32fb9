"""What a run begins with or goes on from: its checkpoint and its text model."""

import hashlib
import tomllib
from collections.abc import Callable

from im2sp.shards import ShardDataset
from im2sp.shards.files import atomic_file
from im2sp.trainer.checkpoint import Checkpoint, newest_whole, read_checkpoint, step_dir
from im2sp.trainer.config import CONFIG_NAME, TrainConfig, differences
from im2sp.trainer.data import captions_of, check_fingerprints
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.text import (
    TEXT_MODEL_NAME,
    TextModel,
    fit_text_model,
    fit_word_bag,
    read_text_model,
)
from im2sp.trainer.transfer import former_state, former_text_model


def find_checkpoint(
    config: TrainConfig, ranks: Ranks, tell: Callable[[str], object]
) -> Checkpoint | None:
    """The checkpoint to go on from, the same on all processes; None to begin.

    Raises:
        ValueError: The run there has other settings.
    """
    step = -1
    if ranks.is_first and (found := newest_whole(config.out, tell)) is not None:
        step = found.step
    step = ranks.shared(step)
    if step < 0:
        return None
    checkpoint = read_checkpoint(step_dir(config.out, step))
    former = tomllib.loads((checkpoint.path / CONFIG_NAME).read_text("utf-8"))
    changed = differences(config, former)
    num_images, expected = images_of_a_step(config, ranks), checkpoint.state["images_a_step"]
    if num_images != expected:
        changed.append(
            f"a step had {expected} images and has {num_images}"
            " (batch_size x grad_accumulation x processes)"
        )
    if changed:
        raise ValueError(
            f"{config.out}: holds a run with other settings: {'; '.join(changed)};"
            f" give another --out, or --config {checkpoint.path / CONFIG_NAME}"
        )
    return checkpoint


def images_of_a_step(config: TrainConfig, ranks: Ranks) -> int:
    """Images whose gradients make one step."""
    return config.batch_size * config.grad_accumulation * ranks.world_size


def check_same_units(
    found: dict[str, str | None], checkpoint: Checkpoint | None, config: TrainConfig
) -> None:
    """Refuse units of other tokenizers than those of the run, or those it begins with.

    The speech units may be others than those of --init-from: their embedding is new then.

    Raises:
        ValueError: A fingerprint differs.
    """
    place = str(config.shards)
    if checkpoint is not None:
        expected = checkpoint.state["fingerprints"]
        check_fingerprints(found, expected, place, f"the run {config.out}")
    elif former := former_state(config.init_from).get("fingerprints"):
        expected = {"image": former["image"]}
        check_fingerprints(found, expected, place, f"--init-from {config.init_from}")


def find_text_model(
    config: TrainConfig, dataset: ShardDataset, checkpoint: Checkpoint | None, ranks: Ranks
) -> TextModel | None:
    """The text model of a run, None where its target is speech.

    It is the run's own, else --text-model, else that of --init-from, else one that is fitted on
    the captions. It is kept in the run's folder, from which all processes read it.

    Raises:
        ValueError: It cannot be read or fitted, or is not the one that the run began with.
    """
    if config.target == "speech":
        return None
    path = config.out / TEXT_MODEL_NAME
    if checkpoint is None and ranks.is_first:
        if config.text_model is not None:
            model = read_text_model(config.text_model)
        elif (former := former_text_model(config.init_from, config.target)) is not None:
            model = former
        elif config.target == "words":
            model = fit_word_bag(captions_of(dataset), config.text_pieces)
        else:
            model = fit_text_model(captions_of(dataset), config.text_pieces)
        with atomic_file(path) as file:
            file.write(model.data)
    ranks.wait()
    model = read_text_model(path)
    if checkpoint is not None:
        expected = checkpoint.state["text_model_sha256"]
        if (found := text_model_sha256(model)) != expected:
            raise ValueError(
                f"{path}: sha256 {found}, the run began with {expected}; put that file back"
            )
    return model


def text_model_sha256(model: TextModel | None) -> str | None:
    """Checksum of a text model."""
    return None if model is None else hashlib.sha256(model.data).hexdigest()
