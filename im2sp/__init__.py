"""im2sp: images and speech as units, packed into shards, and a captioner trained from them.

The rooms are `im2sp.shards` (the format), `im2sp.pipeline` (raw media to units and back),
`im2sp.trainer` (units to model) and `im2sp.tools` (programs that need several rooms).
"""

__version__ = "0.1.0"
