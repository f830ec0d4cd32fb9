"""A loader's position as plain numbers and texts, and the refusal of states that do not fit."""

from collections.abc import Mapping
from typing import Any, cast

from im2sp.shards.loader_plan import Position

_VERSION = 1
_NUMBERS = ("step", "epoch", "sample", "global_batch")


def make_state(
    position: Position, settings: Mapping[str, Any], *, dataset_sha256: str, global_batch: int
) -> dict[str, Any]:
    """The state as JSON can hold it.

    Args:
        position: The position.
        settings: What decides the sequence.
        dataset_sha256: Checksum of the dataset's manifest.
        global_batch: Samples of a step, those of all ranks.
    """
    return {
        "version": _VERSION,
        "dataset_sha256": dataset_sha256,
        "settings": dict(settings),
        "global_batch": global_batch,
        "step": position.step,
        "epoch": position.epoch,
        "sample": position.sample,
    }


def check_state(
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    dataset_sha256: str,
    global_batch: int,
    num_samples: int,
) -> Position:
    """The position of a state.

    Raises:
        ValueError: It is no state, of another version, or does not belong to these arguments.
    """
    if state.get("version") != _VERSION:
        raise ValueError(
            f"loader state: version {state.get('version')!r}, this im2sp reads {_VERSION}"
        )
    for name in _NUMBERS:
        value = state.get(name)
        if type(value) is not int or value < 0:
            raise ValueError(f"loader state: {name} is {value!r}; expected a whole number from 0")
    if state.get("dataset_sha256") != dataset_sha256:
        raise ValueError(
            f"loader state: of the dataset with manifest_sha256 {state.get('dataset_sha256')}, "
            f"this one has {dataset_sha256}; resume with the dataset that the run began with"
        )
    content: object = state.get("settings")
    found: Mapping[str, Any] = {}
    if isinstance(content, Mapping):
        found = cast(Mapping[str, Any], content)
    for name, value in settings.items():
        if found.get(name) != value:
            raise ValueError(
                f"loader state: {name} was {found.get(name)!r} and is {value!r} now; "
                "resume with the settings that the run began with"
            )
    if settings["bucket_window"] > 1 and state["global_batch"] != global_batch:
        raise ValueError(
            f"loader state: a step had {state['global_batch']} samples and has {global_batch} "
            "now; with buckets, keep batch_size * world_size as it was"
        )
    if state["sample"] >= num_samples:
        raise ValueError(
            f"loader state: sample is {state['sample']}; an epoch has {num_samples} samples"
        )
    return Position(step=state["step"], epoch=state["epoch"], sample=state["sample"])
