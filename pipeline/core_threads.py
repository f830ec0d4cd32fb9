"""One input (an image or a clip) a thread, one core a thread.

torch spreads each operation over all cores and waits for the slowest; an encoder makes hundreds of
such stops an input, and where other processes (image decoding, say) share the cores, each stop
waits for a core to come back. Whole inputs side by side need none.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class SingleCorePool:
    """Threads that start on the first use and end with the process.

    As many as `torch.get_num_threads()` says, so `torch.set_num_threads` governs them.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._made_for: tuple[int, int] = (0, 0)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """`function` of each item, in order.

        Fewer items than cores are handled one after another, each with all cores.
        """
        num_threads = torch.get_num_threads()
        if num_threads == 1 or len(items) < num_threads:
            return [function(item) for item in items]
        # A forked child has its parent's pool, but none of the threads.
        if self._executor is None or self._made_for != (os.getpid(), num_threads):
            self._executor = _single_core_threads(num_threads)
            self._made_for = (os.getpid(), num_threads)
        return list(self._executor.map(function, items))


def _use_one_core() -> None:
    torch.get_num_threads()  # a thread's first question sets its number to the last one set
    torch.set_num_threads(1)


def _single_core_threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads in each of which torch uses one core.

    torch keeps that number by thread, and hands the last one set to threads that are yet to come:
    so all start here, and then the number of this thread is set again.
    """
    started = threading.Barrier(num_threads + 1)
    executor = ThreadPoolExecutor(
        num_threads,
        thread_name_prefix="im2sp-core",
        initializer=_use_one_core,
    )
    for _ in range(num_threads):
        executor.submit(started.wait)
    started.wait()
    torch.set_num_threads(num_threads)
    return executor
