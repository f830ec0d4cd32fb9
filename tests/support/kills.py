"""Simulated kills of a job at any of its steps."""

import os
import shutil
from pathlib import Path


class Killed(BaseException):
    """Simulated kill; never caught."""


class Died(BaseException):
    """End of the process without clean-up, as by `kill -9`, when it is raised as a class."""

    def __init__(self):
        os._exit(9)


PLACES = {
    "before os.replace": (os, "replace", False),
    "after os.replace": (os, "replace", True),
    "before removing": (Path, "unlink", False),
    "after removing": (Path, "unlink", True),
    "before dropping the folder": (shutil, "rmtree", False),
}
"""Module or class, name of its function, and whether to stop after the call."""


def stop_at(monkeypatch, place, stop, error):
    """Make call number `stop` of a function raise, before or after the call."""
    module, name, is_after = place
    real = getattr(module, name)
    calls = iter(range(10_000))

    def call(*args, **keywords):
        at = next(calls)
        if at == stop and not is_after:
            raise error
        result = real(*args, **keywords)
        if at == stop:
            raise error
        return result

    monkeypatch.setattr(module, name, call)
    return lambda: monkeypatch.setattr(module, name, real)


def was_killed(monkeypatch, place, stop, run):
    """Call `run()`, killed at call number `stop` of a function; False if it went through."""
    undo = stop_at(monkeypatch, place, stop, Killed())
    try:
        run()
    except Killed:
        return True
    finally:
        undo()
    return False
