"""Decoding in worker processes, in order, a bounded number of pictures ahead of the model."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from im2sp.pipeline.images import ImageError, read_image, source_size_bytes
from im2sp.pipeline.source_items import SourceItem
from im2sp.pipeline.views import VIEWS

IMAGES_PER_TASK = 16
_TASKS_AHEAD = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """One input after decoding: a picture or the reason why there is none."""

    pixels: np.ndarray | None
    """uint8 [S, S, 3], or None."""
    size_bytes: int
    """Size of the original file."""
    reason: str
    """Why the input is refused; "" where it is not."""


def decode(item: SourceItem, view: str, max_pixels: int) -> Decoded:
    """Decode one input; whatever is wrong with it becomes `reason`."""
    if item.error is not None or item.image is None:
        return Decoded(pixels=None, size_bytes=0, reason=item.error or "no image")
    try:
        image = read_image(item.image, name=item.name, max_pixels=max_pixels)
        pixels = VIEWS[view].apply(image)
        return Decoded(pixels=pixels, size_bytes=source_size_bytes(item.image), reason="")
    except ImageError as error:
        # The message begins with the name, which the reject has in a field of its own.
        return Decoded(pixels=None, size_bytes=0, reason=str(error).removeprefix(f"{item.name}: "))
    except OSError as error:  # it went away after it was read
        return Decoded(pixels=None, size_bytes=0, reason=f"cannot be read: {error.strerror}")


def _decode_task(items: list[SourceItem], view: str, max_pixels: int) -> list[Decoded]:
    return [decode(item, view, max_pixels) for item in items]


class DecodePool:
    """Worker processes that decode inputs.

    A worker that dies (a decoder that crashes, a kill for memory) costs the input it died on, and
    no other: its task is done again, one input at a time.
    """

    def __init__(self, *, num_workers: int, view: str, max_pixels: int) -> None:
        self._num_workers = num_workers
        self._settings = (view, max_pixels)
        # Compile and cache the JPEG walk once, before several workers would each do it.
        import im2sp.pipeline.jpeg_scan  # noqa: F401

        self._executor = self._start(num_workers)

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def decode(self, tasks: Iterable[list[SourceItem]]) -> Iterator[list[Decoded]]:
        """Decode tasks of a few inputs each; results come in the order of the tasks."""
        waiting: deque[tuple[list[SourceItem], Future[list[Decoded]]]] = deque()
        limit = _TASKS_AHEAD * self._num_workers
        for task in tasks:
            waiting.append((task, self._submit(task)))
            if len(waiting) >= limit:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def _submit(self, task: list[SourceItem]) -> Future[list[Decoded]]:
        try:
            return self._executor.submit(_decode_task, task, *self._settings)
        except BrokenProcessPool:
            self._executor = self._start(self._num_workers)
            return self._executor.submit(_decode_task, task, *self._settings)

    def _result(self, task: list[SourceItem], future: Future[list[Decoded]]) -> list[Decoded]:
        try:
            return future.result()
        except BrokenProcessPool:
            return [self._decode_apart(item) for item in task]

    def _decode_apart(self, item: SourceItem) -> Decoded:
        """Decode one input in a process of its own."""
        with self._start(1) as executor:
            try:
                return executor.submit(_decode_task, [item], *self._settings).result()[0]
            except BrokenProcessPool:
                reason = "the process that decoded it died (a crash of the decoder or no memory)"
                return Decoded(pixels=None, size_bytes=0, reason=reason)

    @staticmethod
    def _start(num_workers: int) -> ProcessPoolExecutor:
        # Not forked: torch's threads in this process would be copied in an unknown state.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(max_workers=num_workers, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Leave Ctrl-C to the parent, which then stops the workers in an orderly way."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
