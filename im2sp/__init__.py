"""im2sp: images and speech as units, packed into shards, and a captioner trained from them.

The packages are `im2sp.shards` (the format), `im2sp.pipeline` (raw media to units and back),
`im2sp.trainer` (units to model) and `im2sp.tools` (programs that need several packages).
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from im2sp.tools.speaking.describe import describe

__version__ = "0.1.0"
__all__ = ["__version__", "describe"]

_here = Path(__file__).resolve().parent
# In a clone the packages lie beside this folder, in an installation inside it.
if not (_here / "shards").is_dir():
    __path__.append(str(_here.parent))


def _is_program() -> bool:
    """Return True in a process that runs one of our commands or tools, but no worker of it."""
    name = (getattr(sys, "argv", None) or [""])[0]
    if "--multiprocessing-fork" in sys.orig_argv:
        return False
    if name == "-m" and "-m" in sys.orig_argv[:-1]:  # im2sp is imported before its module runs
        return sys.orig_argv[sys.orig_argv.index("-m") + 1].startswith("im2sp.")
    path = Path(name)
    return path.name.startswith("im2sp-") or any(
        path.resolve().is_relative_to(Path(folder) / "tools") for folder in __path__
    )


def _stop(*_: object) -> None:
    """End at once; used before a command begins its work and after it has ended."""
    with suppress(OSError):
        os.write(2, b"im2sp: interrupted\n")
    os._exit(130)


if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    and _is_program()
):
    signal.signal(signal.SIGINT, _stop)


def __getattr__(name: str) -> Any:
    """Import `describe`, and with it torch, on first use."""
    if name == "describe":
        from im2sp.tools.speaking.describe import describe

        return describe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
