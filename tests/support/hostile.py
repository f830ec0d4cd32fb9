"""Media that crash, stop or delay the process that decodes them; workers import this module."""

import os
import signal
import threading
from pathlib import Path

from im2sp.pipeline.job.decode_pool import Decoded, decode

_Path = type(Path())


class Killed(_Path):
    """A file whose decoder crashes."""

    def __fspath__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Stopped(_Path):
    """A file whose worker is stopped."""

    def __fspath__(self) -> str:
        os.kill(os.getpid(), signal.SIGSTOP)
        return str(self)


class Endless(_Path):
    """A file whose decoder never returns."""

    def __fspath__(self) -> str:
        threading.Event().wait()
        raise AssertionError


def is_first_time(path: str) -> bool:
    """Return True for the first process that calls it."""
    try:
        open(path + ".seen", "x").close()
    except FileExistsError:
        return False
    return True


class KilledOnce(_Path):
    """A file whose decoder crashes the first time."""

    def __fspath__(self) -> str:
        if is_first_time(str(self)):
            os.kill(os.getpid(), signal.SIGKILL)
        return str(self)


class StoppedOnce(_Path):
    """A file whose worker is stopped the first time."""

    def __fspath__(self) -> str:
        if is_first_time(str(self)):
            os.kill(os.getpid(), signal.SIGSTOP)
        return str(self)


class _DiesInThePipe:
    def __reduce__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def decode_and_die_in_the_pipe(media, *settings) -> list[Decoded]:
    """Decode; the first result kills its worker while the worker holds the lock on the pipe."""
    results = [decode(medium, *settings) for medium in media]
    if is_first_time(str(media[0].image.parent)):
        return [_DiesInThePipe()]  # pyright: ignore[reportReturnType]
    return results
