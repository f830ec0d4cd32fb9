"""How much decoded sound may wait for the model."""

import threading
from collections import Counter

MAX_WAITING_BYTES = 128 * 2**20
"""Decoded sound that waits for the model: 35 minutes. A longer clip waits alone."""


class Room:
    """Bytes of sound that are decoded and not yet taken, limited over all tasks together.

    Tasks are numbered in the order in which they are consumed. The one that is being consumed may
    exceed the limit by one clip, and only while none of its own waits: so the consumer always gets
    on, and what is held is at most the limit and one clip.
    """

    def __init__(self, limit_bytes: int = MAX_WAITING_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._held_bytes = 0
        self._held: Counter[int] = Counter()
        self._consumed = -1
        self._is_closed = False

    def enter(self, task: int, size_bytes: int) -> None:
        """Wait until a clip of a task may be held.

        Raises:
            ChildProcessError: The room was closed.
        """

        def has_room() -> bool:
            is_wanted = task == self._consumed and not self._held[task]
            fits = self._held_bytes + size_bytes <= self._limit_bytes
            return self._is_closed or is_wanted or fits

        with self._changed:
            self._changed.wait_for(has_room)
            if self._is_closed:
                raise ChildProcessError("the decoding processes were stopped")
            self._held_bytes += size_bytes
            self._held[task] += 1

    def leave(self, task: int, size_bytes: int) -> None:
        """A clip of a task was taken, or never arrived."""
        with self._changed:
            self._held_bytes -= size_bytes
            self._held[task] -= 1
            self._changed.notify_all()

    def consume(self, task: int) -> None:
        """The consumer has come to a task; those before it are done."""
        with self._changed:
            self._held.pop(self._consumed, None)
            self._consumed = task
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
