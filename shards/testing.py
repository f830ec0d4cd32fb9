"""Helpers for tests of `ShardLoader` and of loaders that wrap it.

from im2sp.shards.testing import check_resume
check_resume(lambda: ShardLoader("shards/", batch_size=8, target="text"))
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

Content = list[tuple[Any, ...]]


class ResumableLoader(Protocol):
    """An iterable of batches whose position can be saved after each batch."""

    def __iter__(self) -> Iterator[Any]:
        """Batches from the position on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Current position."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a position."""
        ...


def check_resume(
    make: Callable[[], ResumableLoader], content_of: Callable[[Any], Any] | None = None
) -> list[Any]:
    """Resume a new loader at every step, and require the same remaining batches.

    Args:
        make: Makes a loader; all must be equal.
        content_of: Converts a batch to a value comparable by `==`; by default `batch_content`.

    Returns:
        The content of all batches.

    Raises:
        AssertionError: A resumed loader differs; names the step.
    """
    content_of = content_of or batch_content
    states, batches = record(make(), content_of)
    for step, state in enumerate(states):
        loader = make()
        loader.load_state_dict(state)
        found = loader.state_dict()
        if found != state:
            raise AssertionError(f"step {step}: the state is {found} after loading {state}")
        if [content_of(batch) for batch in loader] != batches[step:]:
            raise AssertionError(f"step {step}: other batches follow after resuming")
    return batches


def record(
    loader: ResumableLoader, content_of: Callable[[Any], Any] | None = None
) -> tuple[list[dict[str, Any]], list[Any]]:
    """States before each batch and after the last, and the content of the batches."""
    content_of = content_of or batch_content
    states, batches = [loader.state_dict()], list[Any]()
    for batch in loader:
        batches.append(content_of(batch))
        states.append(loader.state_dict())
    return states, batches


def batch_content(batch: Any) -> Content:
    """A `LoaderBatch` as plain values: for each image its key, packed row and items."""
    images, owner = batch.images_packed.numpy(), batch.owner.tolist()
    lengths = batch.lengths.tolist()
    items = [list[Any]() for _ in images]
    if batch.ids.numel():
        rows = batch.ids.numpy()
        assert (rows[np.arange(rows.shape[1]) >= np.array(lengths)[:, None]] == -1).all()
        assert rows.shape[1] == max(lengths)
        for row, length, image in zip(rows, lengths, owner, strict=True):
            items[image].append(row[:length].tolist())
    elif owner:
        for text, length, image in zip(batch.captions, lengths, owner, strict=True):
            assert len(text) == length
            items[image].append(text)
    assert owner == sorted(owner)
    return [
        (key, image.tobytes(), mine)
        for key, image, mine in zip(batch.keys, images, items, strict=True)
    ]
