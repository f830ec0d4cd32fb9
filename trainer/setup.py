"""What a run is made of: the model, its text model, and the state that it goes on from."""

import dataclasses
import hashlib
import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from im2sp.shards import ShardDataset
from im2sp.shards.files import atomic_file
from im2sp.trainer.checkpoint import Checkpoint, newest_whole, read_checkpoint, step_dir
from im2sp.trainer.config import CONFIG_NAME, TrainConfig, differences
from im2sp.trainer.data import captions_of, check_fingerprints
from im2sp.trainer.model import Im2SpModel, ModelConfig, preset_config
from im2sp.trainer.ranks import Ranks
from im2sp.trainer.text import TEXT_MODEL_NAME, TextModel, fit_text_model
from im2sp.trainer.vocabulary import Vocabulary

_DEFAULT_PRESET = "small"


def new_model(config: TrainConfig, dataset: ShardDataset, vocabulary: Vocabulary) -> Im2SpModel:
    """A model of the preset with random weights, a function of --seed."""
    codebook = torch.from_numpy(dataset.codebook())
    sizes = preset_config(
        config.preset or _DEFAULT_PRESET,
        vocabulary,
        num_codes=codebook.shape[0],
        code_width=codebook.shape[1],
    )
    torch.manual_seed(config.seed)
    return Im2SpModel(with_dropout(sizes, config.dropout), codebook)


def with_dropout(sizes: ModelConfig, dropout: float) -> ModelConfig:
    """The same sizes with another dropout."""
    return dataclasses.replace(sizes, dropout=dropout, attention_dropout=dropout)


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
    """Refuse to go on with units of other tokenizers than the run's.

    Raises:
        ValueError: A fingerprint differs.
    """
    if checkpoint is not None:
        expected = checkpoint.state["fingerprints"]
        check_fingerprints(found, expected, str(config.shards), f"the run {config.out}")


def find_text_model(
    config: TrainConfig, dataset: ShardDataset, checkpoint: Checkpoint | None, ranks: Ranks
) -> TextModel | None:
    """The text model: the run's own, the one that is named, or one fitted on the captions.

    It is kept in the run's folder, from which all processes read it.

    Raises:
        ValueError: It cannot be read or fitted, or is not the one that the run began with.
    """
    if config.target != "text":
        return None
    path = config.out / TEXT_MODEL_NAME
    if checkpoint is None and ranks.is_first:
        if config.text_model is not None:
            model = TextModel.read(config.text_model)
        else:
            model = fit_text_model(captions_of(dataset), config.text_pieces)
        with atomic_file(path) as file:
            file.write(model.data)
    ranks.wait()
    model = TextModel.read(path)
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


def save_weights(model: Im2SpModel, path: Path) -> None:
    """Write a model's tensors and its sizes."""
    sizes = json.dumps(dataclasses.asdict(model.config))
    save_file(model.state_dict(), path, metadata={"config": sizes})


def load_weights(model: Im2SpModel, path: Path) -> None:
    """Read a model's tensors into it."""
    model.load_state_dict(load_file(path))
