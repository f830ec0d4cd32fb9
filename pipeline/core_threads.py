"""Thread pool with one input (an image or a clip) per thread and one core per thread.

torch spreads each operation over all cores and waits for the slowest. An encoder synchronises
hundreds of times per input this way, and if other processes (such as image decoding) share the
cores, each synchronisation waits for a core to become free. Inputs that are encoded in parallel,
one per core, need no synchronisation.
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
    """Pool whose threads start on first use and end with the process.

    It has `torch.get_num_threads()` threads, so `torch.set_num_threads` sets its size.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._made_for: tuple[int, int] = (0, 0)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Apply `function` to each item; results are in order.

        Fewer items than cores are processed one after another, each on all cores.
        """
        num_threads = torch.get_num_threads()
        if num_threads == 1 or len(items) < num_threads:
            return [function(item) for item in items]
        # A forked child inherits the pool object, but not its threads.
        if self._executor is None or self._made_for != (os.getpid(), num_threads):
            self._executor = _single_core_threads(num_threads)
            self._made_for = (os.getpid(), num_threads)
        return list(self._executor.map(function, items))


def _use_one_core() -> None:
    torch.get_num_threads()  # the first call in a thread sets its number to the last one set
    torch.set_num_threads(1)


def _single_core_threads(num_threads: int) -> ThreadPoolExecutor:
    """Return an executor in whose threads torch uses one core each.

    torch keeps that number per thread, and new threads inherit the last one set. So all threads
    start here, and afterwards the number of the calling thread is set again.
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
