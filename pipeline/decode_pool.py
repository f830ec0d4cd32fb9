"""Decoding in worker processes, in order, a bounded number of pictures ahead of the model.

Every worker process is led by a thread of this process, which gives it one task at a time and
takes its results picture by picture. So a worker that dies (a decoder that crashes, a kill for
memory) is known to have died on one picture, which alone is tried again and then refused, and no
other worker notices. Nothing but the pipe to that thread keeps a worker alive: it ends when this
process does, however that ends.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from im2sp.pipeline.images import ImageError, read_image, source_size_bytes
from im2sp.pipeline.source_items import SourceItem
from im2sp.pipeline.views import VIEWS

IMAGES_PER_TASK = 16
_TASKS_AHEAD = 4
_DIED = "the process that decoded it died twice (a crash of the decoder, or no memory)"


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
        return _refused(item.error or "no image")
    try:
        image = read_image(item.image, name=item.name, max_pixels=max_pixels)
        pixels = VIEWS[view].apply(image)
        return Decoded(pixels=pixels, size_bytes=source_size_bytes(item.image), reason="")
    except ImageError as error:
        # The message begins with the name, which the reject has in a field of its own.
        return _refused(str(error).removeprefix(f"{item.name}: "))
    except OSError as error:  # it went away after it was read
        return _refused(f"cannot be read: {error.strerror or error}")
    except MemoryError:
        return _refused("decoding needs more memory than there is")
    except Exception as error:  # the per-item edge: one input never ends the run
        detail = " ".join(str(error).split())
        return _refused(f"cannot be decoded: {type(error).__name__}: {detail}")


def _refused(reason: str) -> Decoded:
    return Decoded(pixels=None, size_bytes=0, reason=reason)


class DecodePool:
    """Worker processes that decode inputs; use it in a `with` statement, which ends them."""

    def __init__(self, *, num_workers: int, view: str, max_pixels: int) -> None:
        self._num_workers = num_workers
        self._settings = (view, max_pixels)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._workers: dict[int, _Worker] = {}
        self._lock = threading.Lock()
        self._is_first_up = threading.Event()
        self._is_closed = False

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._is_closed = True
            for worker in self._workers.values():
                worker.process.kill()  # it holds nothing that could be lost
        for _ in self._threads:
            self._queue.put(None)
        self._is_first_up.set()
        for thread in self._threads:
            thread.join()

    def start(self) -> None:
        """Start the workers, so that they are up when the first task comes; returns at once."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._lead, args=[index], daemon=True)
                for index in range(self._num_workers)
            ]
            for thread in self._threads:
                thread.start()

    def decode(self, tasks: Iterable[list[SourceItem]]) -> Iterator[list[Decoded]]:
        """Decode tasks of a few inputs each; results come in the order of the tasks.

        Raises:
            ChildProcessError: No worker can be started.
        """
        waiting: deque[Future[list[Decoded]]] = deque()
        limit = _TASKS_AHEAD * self._num_workers
        for task in tasks:
            self.start()
            waiting.append(Future())
            self._queue.put((task, waiting[-1]))
            if len(waiting) >= limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _lead(self, index: int) -> None:
        """Do tasks with one worker until the pool ends; the body of a thread."""
        # Workers inherit this: Ctrl-C goes to this process, which ends them in an orderly way.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        if index:
            # The first worker compiles and caches the JPEG walk, the others load it.
            self._is_first_up.wait()
        try:
            self._worker(index)
        except OSError:
            pass  # the first task meets it again and tells
        finally:
            self._is_first_up.set()
        for job in iter(self._queue.get, None):
            if self._is_closed:
                break
            try:
                job[1].set_result(self._decode_task(index, job[0]))
            except Exception as error:
                job[1].set_exception(error)
        self._drop(index)

    def _decode_task(self, index: int, task: list[SourceItem]) -> list[Decoded]:
        results: list[Decoded] = []
        died_at = -1
        while len(results) < len(task):
            worker = self._worker(index)
            try:
                worker.connection.send(task[len(results) :])
                while len(results) < len(task):
                    results.append(worker.connection.recv())
            except (EOFError, OSError):
                self._drop(index)
                if died_at == len(results):
                    results.append(_refused(_DIED))
                else:
                    died_at = len(results)
        return results

    def _worker(self, index: int) -> "_Worker":
        """The thread's worker, started when there is none; returns when it is up."""
        with self._lock:
            if self._is_closed:
                raise ChildProcessError("the decoding processes were stopped")
            worker = self._workers.get(index)
            is_new = worker is None
            if worker is None:
                worker = self._workers[index] = _start(*self._settings)
        if is_new:
            try:
                worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join(timeout=5)  # for its exit status
                self._drop(index)
                raise ChildProcessError(
                    f"a decoding process could not start (exit status {worker.process.exitcode}); "
                    "is there memory left? In a program of your own, does what it runs stand "
                    'under `if __name__ == "__main__":`?'
                ) from None
        return worker

    def _drop(self, index: int) -> None:
        """Forget a worker that died or is no longer needed."""
        with self._lock:
            worker = self._workers.pop(index, None)
        if worker is not None:
            worker.connection.close()
            worker.process.kill()
            worker.process.join()


_Job = tuple[list[SourceItem], "Future[list[Decoded]]"]


@dataclass(frozen=True, kw_only=True)
class _Worker:
    process: SpawnProcess
    connection: Connection


def _start(view: str, max_pixels: int) -> _Worker:
    # Not forked: torch's threads in this process would be copied in an unknown state.
    context = multiprocessing.get_context("spawn")
    ends: tuple[Any, Any] = context.Pipe()
    connection, remote = ends
    process = context.Process(target=_work, args=(remote, view, max_pixels), daemon=True)
    try:
        process.start()
    except BaseException:
        connection.close()
        raise
    finally:
        remote.close()
    return _Worker(process=process, connection=connection)


def _work(connection: Connection, view: str, max_pixels: int) -> None:
    """What a worker does: take lists of inputs, give each one's result, until the pipe ends."""
    import im2sp.pipeline.jpeg_scan  # noqa: F401 - compiled, or loaded, before the first picture

    try:
        connection.send("up")
        # Decoders in C may print what they think of a file; the output belongs to the command.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        while True:
            for item in connection.recv():
                connection.send(decode(item, view, max_pixels))
    except (EOFError, OSError):
        return  # the other end is gone, and with it all reason to go on
