"""Identity of inputs: enough of each to notice that it has changed since a job read it.

An input is known by its name, captions and split, and by size and modification time of its files;
one inside a tar by its place there, and by those of the tar. The digests are kept beside the
dataset and are no part of it: a copy of the dataset elsewhere does without.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from im2sp.pipeline.decoding.media import ByteRange
from im2sp.pipeline.sources.items import SourceItem
from im2sp.shards.files import atomic_file

IDENTITIES_NAME = ".im2sp-inputs"


def identities(items: Sequence[SourceItem]) -> NDArray[np.uint64]:
    """Digest of each input, (n,) uint64."""
    of_tar: dict[Path, tuple[int, int]] = {}

    def status(place: Path | ByteRange | None) -> tuple[int, ...]:
        if place is None:
            return ()
        if isinstance(place, ByteRange):
            if place.path not in of_tar:
                of_tar[place.path] = _status(place.path)
            return (*of_tar[place.path], place.offset, place.size_bytes)
        return _status(place)

    digests = np.empty(len(items), "<u8")
    for index, item in enumerate(items):
        row = [item.key, item.name, item.split, item.captions, item.error, status(item.image)]
        row += [(u.name, u.text, u.error, status(u.audio)) for u in item.utterances]
        digest = hashlib.blake2b(json.dumps(row).encode(), digest_size=8).digest()
        digests[index] = int.from_bytes(digest, "little")
    return digests


def _status(path: Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns; zeros for a file that cannot be asked."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def read_identities(folder: Path, num_inputs: int) -> NDArray[np.uint64] | None:
    """The digests kept in a folder; None where there are none for so many inputs."""
    try:
        digests = np.fromfile(folder / IDENTITIES_NAME, "<u8")
    except OSError:
        return None
    return digests if len(digests) == num_inputs else None


def write_identities(folder: Path, digests: NDArray[np.uint64]) -> None:
    """Keep digests in a folder."""
    with atomic_file(folder / IDENTITIES_NAME) as file:
        file.write(digests.tobytes())
