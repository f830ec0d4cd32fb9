"""im2sp: images and speech as units, packed into shards, and a captioner trained from them.

The packages are `im2sp.shards` (the format), `im2sp.pipeline` (raw media to units and back),
`im2sp.trainer` (units to model) and `im2sp.tools` (programs that need several packages).
"""

from pathlib import Path

__version__ = "0.1.0"

_here = Path(__file__).resolve().parent
# In a clone the packages lie beside this folder, in an installation inside it.
if not (_here / "shards").is_dir():
    __path__.append(str(_here.parent))
