"""Decoding of images and clips, and the worker processes that do it.

Workers are those of `pebble.ProcessPool`: one that dies or exceeds the time limit fails its
task and is replaced. The media of that task are then decoded one by one, so that only a medium that
fails again is refused; a suspended computer therefore causes no rejects. If the pool itself fails
(a worker was killed or stopped while it held the lock on the pipe), it is replaced as a whole and
the unfinished tasks are submitted again.

A task is one clip, or up to 8 images, which are as small as their view. At most one task more than
the number of workers is running, and none is submitted while more than 128 MiB of decoded audio
wait for the consumer, so the waiting audio exceeds that limit by at most these tasks.
"""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

import numpy as np
from pebble import ProcessExpired, ProcessPool
from PIL import Image

from im2sp.pipeline.decoding.audio import DEFAULT_MAX_SECONDS, read_audio
from im2sp.pipeline.decoding.images import read_image
from im2sp.pipeline.decoding.media import MediaError, read_bytes
from im2sp.pipeline.decoding.views import VIEWS
from im2sp.pipeline.sources.items import SourceItem, Utterance
from im2sp.shards.errors import shown

Medium = SourceItem | Utterance
"""Unit of decoding: the image of an input, or one of its clips."""

DEFAULT_TIMEOUT_S = 60.0
IMAGES_PER_TASK = 8
MAX_WAITING_BYTES = 128 * 2**20
"""Limit of decoded audio that waits for the consumer: 35 minutes."""
_TASKS_PER_WORKER = 8
_MAX_SILENCE_S = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """An image or clip after decoding, or the reason why it is refused."""

    pixels: np.ndarray | None = None
    """uint8 [S, S, 3] of an image."""
    thumbnail: np.ndarray | None = None
    """uint8 [H, W, 3]: the whole image reduced in size, if requested."""
    waveform: np.ndarray | None = None
    """float32 [T] at 16 kHz of a clip."""
    size_bytes: int = 0
    """Size of the original file."""
    reason: str = ""
    """Reason of the refusal; "" if accepted."""


def media_of(item: SourceItem) -> list[Medium]:
    """Return the media of an input: its image, then its clips.

    An input that cannot be used, or has no media, is one medium that will be refused.
    """
    if item.error is not None or not (item.image or item.utterances):
        return [item]
    return [*([item] if item.image else []), *item.utterances]


def decode(
    medium: Medium,
    view: str,
    max_pixels: int,
    max_audio_s: float = DEFAULT_MAX_SECONDS,
    thumbnail_px: int = 0,
) -> Decoded:
    """Decode a clip, or an image to its view; never raises, whatever the content is."""
    if medium.error is not None:
        return Decoded(reason=medium.error)
    try:
        if isinstance(medium, Utterance):
            return _decode_clip(medium, max_audio_s)
        return _decode_image(medium, view, max_pixels, thumbnail_px)
    except MediaError as error:
        # The message may start with the name, which the reject has in a separate field.
        return Decoded(reason=str(error).removeprefix(f"{shown(medium.name)}: "))
    except MemoryError:
        return Decoded(reason="decoding needs more memory than there is")
    except Exception as error:  # per-item boundary: one input never ends the run
        return Decoded(reason=_unexpected(error))


def _decode_image(item: SourceItem, view: str, max_pixels: int, thumbnail_px: int) -> Decoded:
    if item.image is None:
        return Decoded(reason="no image")
    data = read_bytes(item.image)
    image = read_image(data, name=item.name, max_pixels=max_pixels)
    pixels, thumbnail = VIEWS[view].apply(image), None
    if thumbnail_px:
        image.thumbnail((thumbnail_px, thumbnail_px), Image.Resampling.BICUBIC)
        thumbnail = np.asarray(image)
    return Decoded(pixels=pixels, thumbnail=thumbnail, size_bytes=len(data))


def _decode_clip(utterance: Utterance, max_audio_s: float) -> Decoded:
    if utterance.audio is None:
        return Decoded(reason="no audio")
    data = read_bytes(utterance.audio)
    waveform = read_audio(data, name=utterance.name, max_seconds=max_audio_s)
    return Decoded(waveform=waveform, size_bytes=len(data))


def _unexpected(error: BaseException) -> str:
    return f"cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())}"


class DecodePool:
    """Worker processes that decode media; a context manager, which ends them on exit.

    Args:
        num_workers: Number of processes.
        view: Name of the view that images are decoded to.
        max_pixels: Pixels of the largest image that is decoded.
        max_audio_s: Seconds of the longest clip that is decoded.
        timeout_s: Time limit of one decode; a medium that exceeds it twice is refused.
        thumbnail_px: Side of the square that thumbnails of images fit into; 0 for none.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        view: str,
        max_pixels: int,
        max_audio_s: float = DEFAULT_MAX_SECONDS,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        thumbnail_px: int = 0,
    ) -> None:
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._settings = (view, max_pixels, max_audio_s, thumbnail_px)
        self._changed = threading.Condition()
        self._tasks: deque[_Task] = deque()  # all tasks not consumed yet, in order
        self._queue: deque[_Task] = deque()  # those not submitted yet, in order
        self._waiting_bytes = 0
        self._reset()

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.stop()
        self._pool.join()

    def start(self) -> None:
        """Start the workers before the first task; returns at once."""
        with suppress(BrokenExecutor):  # the first task will raise it again
            _ = self._pool.active  # reading this property starts them

    def decode(self, media: Iterable[Medium]) -> Iterator[Decoded]:
        """Decode media; yields results one by one, in the order of the media.

        Raises:
            ChildProcessError: No worker can be started.
        """
        tasks = _tasks_of(media)
        while True:
            num_free = self._num_workers * _TASKS_PER_WORKER - len(self._tasks)
            new = list(islice(tasks, max(0, num_free)))
            with self._changed:
                self._tasks += new
                self._queue += new
            if not self._tasks:
                return
            self._wait()
            results = self._take()
            while results:
                with self._changed:
                    self._waiting_bytes -= _audio_bytes(results[:1])
                yield results.pop(0)  # no reference keeps a clip alive while another is decoded

    def _wait(self) -> None:
        """Wait until the first task is done."""
        task = self._tasks[0]
        while True:
            self._submit()
            with self._changed:
                self._changed.wait_for(lambda: task.is_done or self._is_broken, timeout=1)
            if task.is_done:
                return
            self._silence_s += 1  # seconds in which this process ran, without suspended time
            if self._is_broken or self._silence_s > self._timeout_s + _MAX_SILENCE_S:
                self._restart()

    def _submit(self) -> None:
        """Submit tasks while few are running and little audio waits for the consumer."""
        with self._changed:
            while self._queue and self._num_running <= self._num_workers and not self._is_broken:
                task = self._queue[0]
                if self._waiting_bytes > MAX_WAITING_BYTES and task is not self._tasks[0]:
                    return
                try:
                    future = self._pool.schedule(
                        _decode_all, args=[task.media, *self._settings], timeout=self._timeout_s
                    )
                except RuntimeError:  # the pool failed
                    self._is_broken = True
                    return
                self._queue.popleft()
                self._num_running += 1
                future.add_done_callback(partial(self._on_done, task))

    def _on_done(self, task: "_Task", future: "Future[list[Decoded]]") -> None:
        with self._changed:
            error = future.exception()
            self._is_broken |= isinstance(error, BrokenExecutor)
            if not self._is_broken:
                task.error, task.results = error, [] if error else future.result()
                self._waiting_bytes += _audio_bytes(task.results)
                self._num_running -= 1
                self._silence_s, self._has_answered = 0, True
            self._changed.notify_all()
        self._submit()

    def _take(self) -> "list[Decoded]":
        """Return results of the first task; none if its media are queued again one by one."""
        with self._changed:
            task = self._tasks.popleft()
            if task.error is None or task.is_retry:
                reason = "" if task.error is None else self._reason(task.error)
                return task.results or [Decoded(reason=reason)]
            retries = [_Task(media=[medium], is_retry=True) for medium in reversed(task.media)]
            self._tasks.extendleft(retries)
            self._queue.extendleft(retries)
            return []

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"decoding takes longer than the time limit of {self._timeout_s:g} s"
        if isinstance(error, ProcessExpired):
            return "the process that decoded it died twice (a crash of the decoder, or no memory)"
        return _unexpected(error)

    def _restart(self) -> None:
        """Replace the pool, and queue the unfinished tasks again."""
        if not self._has_answered:
            raise ChildProcessError("the decoding processes could not start; is there memory left?")
        self.__exit__()
        self._reset()
        self._queue = deque(task for task in self._tasks if not task.is_done)

    def _reset(self) -> None:
        self._num_running = self._silence_s = 0
        self._is_broken = self._has_answered = False
        # Spawned, not forked: a fork would copy the state of torch's threads, but not the threads.
        context: Any = _Context()  # its stub has the Pipe of Windows, which pebble's type rejects
        self._pool = ProcessPool(self._num_workers, initializer=_silence, context=context)


@dataclass(kw_only=True, eq=False)
class _Task:
    media: list[Medium]
    is_retry: bool = False
    results: list[Decoded] | None = None
    error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.results is not None


class _Worker(SpawnProcess):
    """A process that `terminate` kills at once; decoding has no state that could be lost."""

    def start(self) -> None:
        # The mask is inherited: Ctrl-C reaches only the parent, which then ends its workers. The
        # start of the tracker would lift it.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        # A worker would import the program's main module, of which it needs nothing.
        main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def terminate(self) -> None:
        self.kill()


class _Context(SpawnContext):
    Process = _Worker


def _silence() -> None:
    """Discard the output of decoders in C, which may print warnings about a file."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def _decode_all(media: list[Medium], *settings: Any) -> list[Decoded]:
    return [decode(medium, *settings) for medium in media]


def _tasks_of(media: Iterable[Medium]) -> Iterator[_Task]:
    """Tasks of one clip, or of consecutive images."""
    for is_clip, run in groupby(media, lambda medium: isinstance(medium, Utterance)):
        while group := list(islice(run, 1 if is_clip else IMAGES_PER_TASK)):
            yield _Task(media=group)


def _audio_bytes(results: list[Decoded]) -> int:
    return sum(0 if one.waveform is None else one.waveform.nbytes for one in results)
