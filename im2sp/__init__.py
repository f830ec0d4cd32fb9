"""im2sp: images and speech as units, packed into shards, and a captioner trained from them.

The packages are `im2sp.shards` (the format), `im2sp.pipeline` (raw media to units and back),
`im2sp.trainer` (units to model) and `im2sp.tools` (programs that need several packages).
"""

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


def __getattr__(name: str) -> Any:
    """Import `describe`, and with it torch, on first use."""
    if name == "describe":
        from im2sp.tools.speaking.describe import describe

        return describe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
