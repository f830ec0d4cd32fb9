"""Decoding in worker processes, in order, a bounded number of media ahead of the model.

Every worker process is led by a thread of this process, which gives it one task at a time and
takes its results one by one. So a worker that dies (a decoder that crashes, a kill for memory) is
known to have died on one picture or clip, which alone is tried again and then refused, and no
other worker notices. Nothing but the pipe to that thread keeps a worker alive: it ends when this
process does, however that ends.

A picture is always as small as its view; clips are of any length, so a `Room` bounds how many bytes
of them wait for the model. A worker holds one clip, and waits with it until there is room.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np

from im2sp.pipeline.audio import DEFAULT_MAX_SECONDS
from im2sp.pipeline.decode import Decoded, Medium, decode
from im2sp.pipeline.decode_room import Room

MEDIA_PER_TASK = 16
_TASKS_AHEAD = 4
_PIECE_BYTES = 2**20
_DIED = "the process that decoded it died twice (a crash of the decoder, or no memory)"


class DecodePool:
    """Worker processes that decode media; use it in a `with` statement, which ends them."""

    def __init__(
        self,
        *,
        num_workers: int,
        view: str,
        max_pixels: int,
        max_audio_s: float = DEFAULT_MAX_SECONDS,
    ) -> None:
        self._num_workers = num_workers
        self._settings = (view, max_pixels, max_audio_s)
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._room = Room()
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
        self._room.close()
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

    def decode(self, tasks: Iterable[Sequence[Medium]]) -> Iterator[Decoded]:
        """Decode tasks of a few media each; results come one by one, in the order of the media.

        Raises:
            ChildProcessError: No worker can be started.
        """
        waiting: deque[_Task] = deque()
        limit = _TASKS_AHEAD * self._num_workers
        for number, media in enumerate(tasks):
            self.start()
            waiting.append(_Task(number=number, media=list(media)))
            self._queue.put(waiting[-1])
            if len(waiting) >= limit:
                yield from self._results(waiting.popleft())
        while waiting:
            yield from self._results(waiting.popleft())

    def _results(self, task: "_Task") -> Iterator[Decoded]:
        self._room.consume(task.number)
        for _ in task.media:
            yield self._next(task)  # a name for it here would keep a clip alive while another comes

    def _next(self, task: "_Task") -> Decoded:
        result = task.results.get()
        if isinstance(result, Exception):
            raise result
        if result.waveform is not None:
            self._room.leave(task.number, result.waveform.nbytes)
        return result

    def _lead(self, index: int) -> None:
        """Do tasks with one worker until the pool ends; the body of a thread."""
        # Workers inherit this: Ctrl-C goes to this process, which ends them in an orderly way.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        if index:
            # The first worker compiles and caches the JPEG walk, the others load it.
            self._is_first_up.wait()
        try:
            self._worker(index)
        except Exception:  # whatever it is, the first task meets it again and tells
            pass
        finally:
            self._is_first_up.set()
        for task in iter(self._queue.get, None):
            if self._is_closed:
                break
            try:
                self._decode_task(index, task)
            except Exception as error:
                task.results.put(error)
        self._drop(index)

    def _decode_task(self, index: int, task: "_Task") -> None:
        num_done = 0
        died_at = -1
        while num_done < len(task.media):
            worker = self._worker(index)
            try:
                worker.connection.send(task.media[num_done:])
                while num_done < len(task.media):
                    task.results.put(self._receive(worker.connection, task.number))
                    num_done += 1
            except (EOFError, OSError):
                self._drop(index)
                if died_at == num_done:
                    task.results.put(Decoded(reason=_DIED))
                    num_done += 1
                else:
                    died_at = num_done

    def _receive(self, connection: Connection, task: int) -> Decoded:
        """The next result of a worker, once there is room for it."""
        result, num_samples = connection.recv()
        if not num_samples:
            return result
        size_bytes = 4 * num_samples
        self._room.enter(task, size_bytes)
        try:
            waveform = np.empty(num_samples, np.float32)
            data = waveform.view(np.uint8).data
            for start in range(0, size_bytes, _PIECE_BYTES):
                connection.recv_bytes_into(data, start)
        except BaseException:
            self._room.leave(task, size_bytes)
            raise
        return replace(result, waveform=waveform)

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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    number: int
    media: list[Medium]
    results: "queue.SimpleQueue[Decoded | Exception]" = field(default_factory=queue.SimpleQueue)


@dataclass(frozen=True, kw_only=True)
class _Worker:
    process: SpawnProcess
    connection: Connection


def _start(view: str, max_pixels: int, max_audio_s: float) -> _Worker:
    # Not forked: torch's threads in this process would be copied in an unknown state.
    context = multiprocessing.get_context("spawn")
    ends: tuple[Any, Any] = context.Pipe()
    connection, remote = ends
    settings = (view, max_pixels, max_audio_s)
    process = context.Process(target=_work, args=(remote, *settings), daemon=True)
    try:
        process.start()
    except BaseException:
        connection.close()
        raise
    finally:
        remote.close()
    return _Worker(process=process, connection=connection)


def _work(connection: Connection, view: str, max_pixels: int, max_audio_s: float) -> None:
    """What a worker does: take lists of media, give each one's result, until the pipe ends."""
    try:
        connection.send("up")
        # Decoders in C may print what they think of a file; the output belongs to the command.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        while True:
            for medium in connection.recv():
                _send(connection, decode(medium, view, max_pixels, max_audio_s))
    except (EOFError, OSError):
        return  # the other end is gone, and with it all reason to go on


def _send(connection: Connection, result: Decoded) -> None:
    """A result and how many samples follow, then these piece by piece, without a copy of all."""
    waveform = result.waveform
    if waveform is None:
        connection.send((result, 0))
        return
    connection.send((replace(result, waveform=None), len(waveform)))
    data = np.ascontiguousarray(waveform).view(np.uint8).data
    for start in range(0, len(data), _PIECE_BYTES):
        connection.send_bytes(data[start : start + _PIECE_BYTES])
