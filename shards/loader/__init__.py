"""`ShardLoader`: training batches read from mapped shards; the only file in shards with torch.

Nothing is shuffled in advance and no process is started. The order is a function of seed, epoch and
position (`plan.py`), and a batch takes a few calls of kernels that release the GIL, so one or two
threads keep up with any model.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from im2sp.shards.coding.packing import IMAGE_UNIT_BITS
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.dataset import ShardDataset
from im2sp.shards.loader.mixture import Mixture
from im2sp.shards.loader.plan import LoaderSettings, Plan, Position, check_state, make_state
from im2sp.shards.loader.read import BatchTexts

_AHEAD_PER_THREAD = 2
Source = ShardDataset | str | os.PathLike[str]


def unpack_units_on_device(
    packed: Tensor, bits: int = IMAGE_UNIT_BITS, shape: tuple[int, ...] = (28, 28)
) -> Tensor:
    """Unpack units packed by `pack_units` on their device; `torch.compile` makes one graph of it.

    Args:
        packed: (..., bytes) uint8.
        bits: Width of one id, 1 to 32.
        shape: Shape of one image's units.

    Returns:
        (..., *shape) int64.

    Raises:
        ValueError: The number of bytes does not match the units, or they are not uint8.
    """
    count = 1
    for size in shape:
        count *= size
    size_bytes = (count * bits + 7) // 8
    if packed.dtype != torch.uint8 or packed.shape[-1] != size_bytes:
        raise ValueError(
            f"packed units are {packed.dtype} of shape {tuple(packed.shape)}; {count} units of "
            f"{bits} bits are torch.uint8 of shape (..., {size_bytes})"
        )
    first_bit = bits * torch.arange(count, device=packed.device)
    first_byte = first_bit >> 3
    word = torch.int32 if bits <= 16 else torch.int64
    held = packed[..., first_byte].to(word)
    # A unit spans at most three bytes up to 16 bits; bits read beyond the end are masked off.
    for k in range(1, (bits + 14) // 8):
        held |= packed[..., (first_byte + k).clamp(max=size_bytes - 1)].to(word) << 8 * k
    units = (held >> (first_bit & 7).to(word)) & ((1 << bits) - 1)
    return units.long().reshape(*packed.shape[:-1], *shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class LoaderBatch:
    """B images with their speech units, captions or arrays of another column."""

    step: int
    """Number of the batch since the start of the first epoch, from 0."""
    epoch: int
    """Number of the pass over the samples, from 0."""
    images_packed: Tensor
    """(B, 1274) uint8, packed units; `image_units` unpacks them to (B, 28, 28)."""
    ids: Tensor
    """(N, longest) int16, or int32 for vocabularies over 32,768, int64 over 2**31: the units of N
    utterances or arrays, flattened, padded with -1. (0, 0) if the target has no units."""
    lengths: Tensor
    """(N,) int32: units of each utterance, or characters of each caption if the target is text."""
    shapes: Tensor
    """(N, axes) int32: shape of each array; (0, 0) if the target has no units."""
    owner: Tensor
    """(N,) int32, ascending: row in `images_packed` of each utterance's or caption's image."""
    texts: BatchTexts
    """Keys and captions, read on first use."""
    image_column: UnitColumn | None
    """Column of the images; None if the dataset has none and none is needed."""

    @property
    def image_units(self) -> Tensor:
        """(B, *shape) int64, unpacked on the device of `images_packed`; (B, 0) without images."""
        if self.image_column is None:
            return self.images_packed.long()
        shape = tuple(size or 0 for size in self.image_column.shape)
        return unpack_units_on_device(self.images_packed, self.image_column.bits, shape)

    @property
    def keys(self) -> list[str]:
        """Keys of the B samples, read on first use."""
        return self.texts.keys

    @property
    def captions(self) -> list[str]:
        """Non-empty captions: the N chosen ones if the target is text, else all."""
        return self.texts.captions.texts

    def to(self, device: torch.device | str) -> "LoaderBatch":
        """Copy of the batch with its tensors on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)  # pyright: ignore[reportUnknownMemberType]  # torch does not say

        return self._mapped(moved)

    def pin_memory(self) -> "LoaderBatch":
        """Copy of the batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "LoaderBatch":
        names = ("images_packed", "ids", "lengths", "shapes", "owner")
        return replace(self, **{name: change(getattr(self, name)) for name in names})


class ShardLoader:
    """Batches of one or more datasets, in an order that depends only on seed and position.

    >>> loader = ShardLoader("shards/", batch_size=256, split="train")  # doctest: +SKIP
    >>> for batch in loader:  # doctest: +SKIP
    ...     units = unpack_units_on_device(batch.images_packed.to("cuda"))

    Iteration continues from the loader's position to the end of the last epoch; `reset` returns to
    the start. `state_dict` returns the position after the last batch that was yielded, regardless
    of read-ahead, and `load_state_dict` restores it, also on another number of ranks.

    A batch of the dataset is opened, and its checksum compared, when its first sample is read.
    From 131,072 samples on, the index of a dataset is a file in `$XDG_CACHE_HOME/im2sp/index` (or
    `~/.cache`), made by one process and mapped by all; where it cannot be written, it is in memory.

    Several datasets are mixed in every batch, by their sizes, each sample once in an epoch; or by
    `weights` (see `mixture.Mixture`).

    Attributes:
        dataset: The dataset, or the first of several.
        datasets: All datasets.
        settings: Settings that determine the sequence.
        num_samples: Samples in an epoch, over all ranks.
        steps_per_epoch: Steps in an epoch, the same on all ranks.
        image_column: Column of the images; None if there is none and none is needed.
        skipped: Items and samples left out of every epoch: reason -> number. An image without
            items of the target, or only with items that are too long or too short, is left out
            with them.
    """

    def __init__(
        self,
        dataset: Source | Sequence[Source],
        *,
        batch_size: int,
        epochs: int | None = 1,
        rank: int = 0,
        world_size: int = 1,
        num_threads: int = 1,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
        **settings: Any,
    ) -> None:
        """Open and index the dataset.

        Args:
            dataset: A dataset or its folder or URL, or several of them with equal columns.
            batch_size: Images per step on one rank.
            epochs: Passes over the samples, None for endless.
            rank: Rank of this process.
            world_size: Number of processes that share the samples.
            num_threads: Threads that read ahead; 0 reads each batch on demand.
            device: Device of the tensors, None for the CPU.
            pin_memory: Page-lock the tensors for asynchronous copies to a GPU.
            settings: Settings that determine the sequence: the fields of `LoaderSettings`
                (`split`, `target`, `image_column`, `needs_image`, `items`, `min_length`,
                `max_length`, `shuffle`, `seed`, `bucket_window`, `weights` and `drop_last`). If
                `split` is None, it is that of each dataset, or all.

        Raises:
            ShardError: The dataset is missing or damaged, or has no such split.
            ValueError: An argument is out of range, or no sample is left.
        """
        is_one = isinstance(dataset, ShardDataset | str | os.PathLike)
        sources = [dataset] if is_one else list(dataset)
        if not sources:
            raise ValueError("no dataset; give at least one")
        split = settings.pop("split", None)
        self.datasets = [_opened(source, split) for source in sources]
        self.dataset = self.datasets[0]
        self.settings = LoaderSettings(split=self.dataset.split, **settings)
        for name, value in (("epochs", epochs), ("num_threads", num_threads)):
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; expected 0 or more")
        if pin_memory and not torch.cuda.is_available():
            raise ValueError(
                "pin_memory is for copying to a GPU, but torch finds none; leave it out"
            )
        self._mixture = Mixture(self.datasets, self.settings)
        self._plan = Plan(
            self._mixture.num_samples,
            self.settings,
            self._mixture.sort_lengths,
            drawn=self._mixture.drawn,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )
        self.num_samples = self._mixture.num_samples
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.skipped = self._mixture.skipped
        self.image_column = self._mixture.image_column
        self._epochs, self._num_threads = epochs, num_threads
        self._device, self._is_pinned = device, pin_memory
        self._position = Position()
        self._turn = 0

    def __iter__(self) -> Iterator[LoaderBatch]:
        """Batches from the loader's position on; ends a running iteration."""
        self._turn += 1
        return self._batches(self._turn)

    def __len__(self) -> int:
        """Steps in all epochs, wherever the position is.

        Raises:
            TypeError: `epochs` is None, so that there is no end.
        """
        if self._epochs is None:
            raise TypeError("an endless loader has no length; see steps_per_epoch")
        return self._epochs * self.steps_per_epoch

    def __repr__(self) -> str:
        return (
            f"ShardLoader({', '.join(repr(str(one.path)) for one in self.datasets)}, "
            f"{self.settings}): "
            f"{self.num_samples} samples, {self.steps_per_epoch} steps an epoch"
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-compatible position, settings and dataset checksum; the same on all ranks."""
        return make_state(
            self._position,
            asdict(self.settings),
            dataset_sha256=self._sha256,
            global_batch=self._plan.global_batch,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position of a `state_dict`; ends a running iteration.

        If `batch_size * world_size` is unchanged, exactly the same batches follow. With another
        product the same samples follow in the same order but in other batches; this is not
        possible with buckets.

        Raises:
            ValueError: The state belongs to another dataset or other settings, or is no state.
        """
        self._position = check_state(
            state,
            asdict(self.settings),
            dataset_sha256=self._sha256,
            global_batch=self._plan.global_batch,
            num_samples=self.num_samples,
        )
        self._turn += 1

    @property
    def _sha256(self) -> str | list[str]:
        checksums = [dataset.manifest.sha256 for dataset in self.datasets]
        return checksums[0] if len(checksums) == 1 else checksums

    def reset(self) -> None:
        """Return to the start; ends a running iteration."""
        self._position = Position()
        self._turn += 1

    def _batches(self, turn: int) -> Iterator[LoaderBatch]:
        positions = self._plan.positions(self._position, self._epochs)
        for position, batch in self._read_ahead(positions):
            if turn != self._turn:
                raise RuntimeError(
                    "the loader was reset or iterated again during an iteration; "
                    "make one loader per iteration, or finish the first one"
                )
            self._position = self._plan.after(position)
            yield batch if self._device is None else batch.to(self._device)

    def _read_ahead(self, positions: Iterator[Position]) -> Iterator[tuple[Position, LoaderBatch]]:
        """Batches at the given positions, in order, read by threads."""
        if self._num_threads == 0:
            for position in positions:
                yield position, self._read(position)
            return
        pool = ThreadPoolExecutor(self._num_threads, "im2sp-loader")
        waiting: deque[tuple[Position, Future[LoaderBatch]]] = deque()
        try:
            for position in positions:
                waiting.append((position, pool.submit(self._read, position)))
                if len(waiting) > _AHEAD_PER_THREAD * self._num_threads:
                    first, batch = waiting.popleft()
                    yield first, batch.result()
            while waiting:
                first, batch = waiting.popleft()
                yield first, batch.result()
        finally:
            for _, future in waiting:  # cancel_futures fails while the interpreter ends
                future.cancel()
            pool.shutdown()

    def _read(self, position: Position) -> LoaderBatch:
        samples = self._plan.samples(position)
        reader, target = self._mixture, self.settings.target
        texts = BatchTexts(reader, samples, position.epoch, is_target=target == "text")
        ids: NDArray[Any] = np.zeros((0, 0), np.int16)
        shapes = np.zeros((0, 0), np.int32)
        lengths = owner = np.zeros(0, np.int32)
        if self.settings.is_of_units:
            found = reader.utterances(samples, position.epoch)
            ids, lengths, shapes, owner = found.ids, found.lengths, found.shapes, found.owner
        elif target == "text":
            captions = texts.captions.texts
            lengths = np.fromiter(map(len, captions), np.int32, len(captions))
            owner = texts.captions.owner
        batch = LoaderBatch(
            step=position.step,
            epoch=position.epoch,
            images_packed=_tensor(reader.images(samples)),
            ids=_tensor(ids),
            lengths=_tensor(lengths),
            shapes=_tensor(shapes),
            owner=_tensor(owner),
            texts=texts,
            image_column=self.image_column,
        )
        return batch.pin_memory() if self._is_pinned else batch


def _tensor(array: NDArray[Any]) -> Tensor:
    """The array as a tensor that shares its memory."""
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType]  # torch does not say


def _opened(dataset: ShardDataset | str | os.PathLike[str], split: str | None) -> ShardDataset:
    if not isinstance(dataset, ShardDataset):
        return ShardDataset(dataset, split)
    if split is None or split == dataset.split:
        return dataset
    if dataset.split is not None:
        raise ValueError(f"split is {split!r}, but the dataset is of split {dataset.split!r}")
    return ShardDataset(dataset.path, split, dataset.cache_dir)
