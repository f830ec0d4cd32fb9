"""Identity of inputs: enough of each to notice that it has changed since a job read it.

An unfinished job keeps a digest of each input: its name, captions and split, and size and
modification time of its files; for one inside a tar its place there, and those of the tar. A
finished dataset holds no such thing: there, inputs are compared with the manifest's modification
time and with the bytes that it counts.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from im2sp.pipeline.decoding.media import ByteRange, Cell, Location, Url, place_in_file
from im2sp.pipeline.sources.items import SourceItem
from im2sp.shards.files import atomic_file

IDENTITIES_NAME = "inputs.u64"


def identities(items: Sequence[SourceItem]) -> NDArray[np.uint64]:
    """Digest of each input, (n,) uint64."""
    file_status = cache(_status)

    def status(place: Location | None) -> tuple[int | str, ...]:
        if place is None:
            return ()
        if isinstance(place, Url):
            return (place.version,)
        if isinstance(place, Path):
            return _status(place)
        return (*file_status(place.path), *place_in_file(place))

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


def changed_since(
    items: Sequence[SourceItem], manifest_path: Path, raw: Mapping[str, int], num_rejects: int
) -> list[str]:
    """Names of the inputs that were modified since a manifest was written.

    Where none was, but the accepted inputs have other sizes together than the manifest counts
    (`raw`), the result names their number. That is known where no input was refused.
    """
    written_ns = manifest_path.stat().st_mtime_ns
    file_status = cache(_status)
    changed: list[str] = []
    num_bytes = {"image_file_bytes": 0, "audio_file_bytes": 0}
    unknown: set[str] = set()
    for item in items:
        places = [(item.image, "image_file_bytes")]
        places += [(utterance.audio, "audio_file_bytes") for utterance in item.utterances]
        times_ns = [0]
        for place, kind in places:
            if isinstance(place, Path):
                size_bytes, time_ns = _status(place)
                num_bytes[kind] += size_bytes
                times_ns.append(time_ns)
            elif isinstance(place, ByteRange):
                num_bytes[kind] += place.size_bytes
                times_ns.append(file_status(place.path)[1])
            elif place is not None:
                unknown.add(kind)
                times_ns += [file_status(place.path)[1]] if isinstance(place, Cell) else []
        if max(times_ns) >= written_ns:
            changed.append(item.name)
    expected = {kind: raw[kind] for kind in num_bytes if kind in raw and kind not in unknown}
    found = {kind: num_bytes[kind] for kind in expected}
    if not changed and not num_rejects and found != expected:
        return [f"{sum(found.values()):,} bytes instead of {sum(expected.values()):,}"]
    return changed


def read_identities(folder: Path, num_inputs: int) -> NDArray[np.uint64] | None:
    """The digests kept in a folder; None if there are none for `num_inputs`."""
    try:
        digests = np.fromfile(folder / IDENTITIES_NAME, "<u8")
    except OSError:
        return None
    return digests if len(digests) == num_inputs else None


def write_identities(folder: Path, digests: NDArray[np.uint64]) -> None:
    """Keep digests in a folder."""
    with atomic_file(folder / IDENTITIES_NAME) as file:
        file.write(digests.tobytes())
