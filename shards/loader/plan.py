"""Order of samples: settings, positions and their JSON form, and the stateless plan of a loader.

The order is a function of (seed, epoch, position), computed for each batch and never stored. Only
the position has to be saved, and ranks agree without communication.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from im2sp.shards.loader.kernels import permute

_TARGET_COLUMNS = {"speech": "speech_units", "text": "captions", "images": ""}
Items = Literal["all", "one"]

_STATE_VERSION = 1
_STATE_NUMBERS = ("step", "epoch", "sample", "global_batch")


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """Settings that, with the dataset and the batch size, determine the sequence of samples."""

    split: str | None = None
    """Split of the dataset, None for all samples."""
    target: str = "speech"
    """Items that come with each image: `speech` (the utterances), `text` (the captions), `images`
    (nothing), or the name of a unit column."""
    image_column: str = "image_units"
    """Unit column of the images."""
    needs_image: bool = True
    """Leave out samples without an image. Otherwise their rows of images are zeros."""
    items: Items = "all"
    """All utterances (or captions) of an image, or one drawn in each epoch."""
    min_length: int = 1
    """Minimum length of an utterance in units, or of a caption in characters."""
    max_length: int | None = None
    """Maximum length; longer items are left out and counted in `ShardLoader.skipped`."""
    shuffle: bool = True
    """Shuffle each epoch; otherwise keep the order of the dataset."""
    seed: int = 0
    """Seed of orders and draws."""
    bucket_window: int = 0
    """Batch items of similar length: samples are sorted within windows of N batches, whose order
    is random; 0 or 1 for no sorting."""
    weights: tuple[float, ...] | None = None
    """Shares of several datasets in an epoch, in any unit; None for their sizes."""
    drop_last: bool = False
    """Leave out the samples at the end of an epoch that do not fill a batch. Otherwise the last
    batch is smaller, and empty on some ranks if there are more ranks than samples left."""

    def __post_init__(self) -> None:
        """Refuse settings that are out of range or contradict each other."""
        if self.items not in get_args(Items):
            known = ", ".join(get_args(Items))
            raise ValueError(f"items is {self.items!r}; expected one of {known}")
        if self.min_length < 1:
            raise ValueError(f"min_length is {self.min_length}; expected at least 1")
        if self.max_length is not None and self.max_length < self.min_length:
            raise ValueError(
                f"max_length is {self.max_length}; expected at least min_length, {self.min_length}"
            )
        if self.bucket_window < 0:
            raise ValueError(f"bucket_window is {self.bucket_window}; expected 0 or more batches")
        if self.weights is not None:
            object.__setattr__(self, "weights", tuple(self.weights))
            if not all(0 < weight < math.inf for weight in self.weights):
                raise ValueError(f"weights are {self.weights}; expected numbers above 0")
        if self.target == "images" and (self.is_bucketed or self.max_length is not None):
            raise ValueError("target is 'images', which have no length: no max_length, no buckets")

    @property
    def target_column(self) -> str:
        """Column of the items; empty if there are none."""
        return _TARGET_COLUMNS.get(self.target, self.target)

    @property
    def is_of_units(self) -> bool:
        """Return True if the items are units."""
        return self.target not in ("text", "images")

    @property
    def is_bucketed(self) -> bool:
        """Return True if batches hold items of similar length."""
        return self.bucket_window > 1

    @property
    def is_filtered(self) -> bool:
        """Return True if items are filtered by more than being non-empty."""
        return self.max_length is not None or self.min_length > 1


@dataclass(frozen=True, kw_only=True)
class Position:
    """Position in the sequence, the same on all ranks."""

    step: int = 0
    """Batches completed on each rank."""
    epoch: int = 0
    """Completed passes over the samples."""
    sample: int = 0
    """Completed samples of this epoch, over all ranks."""


def key_of(seed: int, epoch: int, purpose: str) -> np.uint64:
    """A 64-bit key that depends on all arguments."""
    digest = hashlib.blake2b(f"{purpose} {seed} {epoch}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


class Plan:
    """Assignment of samples to steps and ranks.

    A step takes the next `batch_size * world_size` samples of the epoch's order; rank r gets the
    r-th of them and every `world_size`-th after it. The samples of a step therefore do not depend
    on the number of ranks, and all ranks take the same number of steps. If the last step of an
    epoch has fewer samples than ranks, some ranks get none.

    Attributes:
        num_samples: Samples in an epoch.
        global_batch: Samples of a step, over all ranks.
        steps_per_epoch: Steps of an epoch that starts at its first sample.
    """

    def __init__(
        self,
        num_samples: int,
        settings: LoaderSettings,
        lengths: Callable[[NDArray[np.int64], int], NDArray[np.int32]],
        *,
        drawn: Callable[[NDArray[np.int64], int], NDArray[np.int64]] = lambda numbers, _: numbers,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Make the plan.

        Args:
            num_samples: Samples in an epoch, at least 1.
            settings: The settings.
            lengths: (samples, epoch) -> lengths by which they are sorted into buckets.
            drawn: (numbers, epoch) -> samples at the numbers of an epoch, from 0.
            batch_size: Samples of a step on one rank.
            rank: Rank of this process.
            world_size: Number of ranks.
        """
        for name, value in (("batch_size", batch_size), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; expected 0 to {world_size - 1}")
        self.num_samples = num_samples
        self.global_batch = batch_size * world_size
        if settings.drop_last and num_samples < self.global_batch:
            raise ValueError(
                f"{num_samples} samples do not fill a batch of {self.global_batch} "
                f"({batch_size} on each of {world_size} ranks), and drop_last leaves out the rest; "
                "use a smaller batch_size or drop_last=False"
            )
        rounding = 0 if settings.drop_last else self.global_batch - 1
        self.steps_per_epoch = (num_samples + rounding) // self.global_batch
        self._settings = settings
        self._lengths, self._drawn = lengths, drawn
        self._rank, self._world_size = rank, world_size
        self._lock = Lock()
        self._window: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def normalized(self, position: Position) -> Position:
        """The position, or the next epoch's start if no batch is left in its epoch."""
        num_left = self.num_samples - position.sample
        if num_left >= (self.global_batch if self._settings.drop_last else 1):
            return position
        return Position(step=position.step, epoch=position.epoch + 1)

    def after(self, position: Position) -> Position:
        """The position after the step at `position`."""
        return self.normalized(
            Position(
                step=position.step + 1,
                epoch=position.epoch,
                sample=position.sample + self.global_batch,
            )
        )

    def positions(self, start: Position, num_epochs: int | None) -> Iterator[Position]:
        """Positions from `start` to the end of the last epoch, endless if `epochs` is None."""
        position = self.normalized(start)
        while num_epochs is None or position.epoch < num_epochs:
            yield position
            position = self.after(position)

    def samples(self, position: Position) -> NDArray[np.int64]:
        """Numbers of this rank's samples, (batch_size,) int64, or fewer at an epoch's end."""
        settings, first = self._settings, position.sample
        if settings.is_bucketed:
            window_size = settings.bucket_window * self.global_batch
            number = first // window_size
            window = self._arranged(position.epoch, number, window_size)
            first -= number * window_size
            if first < window.size:
                return window[first : first + self.global_batch][self._rank :: self._world_size]
        stop = min(position.sample + self.global_batch, self.num_samples)
        return self._ordered(
            position.epoch, range(position.sample + self._rank, stop, self._world_size)
        )

    def _ordered(self, epoch: int, places: range) -> NDArray[np.int64]:
        """Samples at the given places of an epoch's order."""
        numbers = np.arange(places.start, places.stop, places.step)
        if self._settings.shuffle and numbers.size:
            key = key_of(self._settings.seed, epoch, "order")
            permute(numbers, self.num_samples, key, numbers)
        return self._drawn(numbers, epoch)

    def _arranged(self, epoch: int, number: int, window_size: int) -> NDArray[np.int64]:
        """Full batches of a window, concatenated, each with samples of similar length."""
        with self._lock:
            if self._window is not None and self._window[0] == (epoch, number):
                return self._window[1]
            start = number * window_size
            num_batches = min(window_size, self.num_samples - start) // self.global_batch
            places = range(start, start + num_batches * self.global_batch)
            samples = self._ordered(epoch, places)
            by_length = np.argsort(self._lengths(samples, epoch), kind="stable")
            batches = samples[by_length].reshape(num_batches, self.global_batch)
            if self._settings.shuffle and num_batches:
                order = np.arange(num_batches)
                key = key_of(self._settings.seed, epoch, f"window {number}")
                permute(order, num_batches, key, order)
                batches = batches[order]
            window = batches.reshape(-1)
            self._window = ((epoch, number), window)
            return window


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them: lists in place of tuples."""
    return {
        name: list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value
        for name, value in settings.items()
    }


def make_state(
    position: Position,
    settings: Mapping[str, Any],
    *,
    dataset_sha256: str | list[str],
    global_batch: int,
) -> dict[str, Any]:
    """JSON-compatible state of a loader.

    Args:
        position: The position.
        settings: Settings that determine the sequence.
        dataset_sha256: Checksum of the dataset's manifest; a list of them for several datasets.
        global_batch: Samples of a step, over all ranks.
    """
    return {
        "version": _STATE_VERSION,
        "dataset_sha256": dataset_sha256,
        "settings": _plain(settings),
        "global_batch": global_batch,
        "step": position.step,
        "epoch": position.epoch,
        "sample": position.sample,
    }


def check_state(
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    dataset_sha256: str | list[str],
    global_batch: int,
    num_samples: int,
) -> Position:
    """Check a state and return its position.

    Raises:
        ValueError: Not a state, of another version, or inconsistent with these arguments.
    """
    if state.get("version") != _STATE_VERSION:
        raise ValueError(
            f"loader state: version {state.get('version')!r}, this im2sp reads {_STATE_VERSION}"
        )
    for name in _STATE_NUMBERS:
        value = state.get(name)
        if type(value) is not int or value < 0:
            raise ValueError(f"loader state: {name} is {value!r}; expected a whole number from 0")
    if state.get("dataset_sha256") != dataset_sha256:
        raise ValueError(
            f"loader state: of the dataset with manifest_sha256 {state.get('dataset_sha256')}, "
            f"this one has {dataset_sha256}; resume with the dataset that the run started with"
        )
    content: object = state.get("settings")
    found: Mapping[str, Any] = {}
    if isinstance(content, Mapping):
        # States of earlier versions lack newer settings; they had their defaults.
        defaults = {"image_column": "image_units", "needs_image": True, "weights": None}
        found = defaults | dict(cast(Mapping[str, Any], content))
    for name, value in _plain(settings).items():
        if found.get(name) != value:
            raise ValueError(
                f"loader state: {name} was {found.get(name)!r} and is {value!r} now; "
                "resume with the settings that the run started with"
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
