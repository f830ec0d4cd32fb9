"""Identity of inputs: enough of each to notice that it has changed since a job read it.

An unfinished job keeps a digest of each input: its name, captions and split, and size and
modification time of its files; for one inside a tar its place there, and those of the tar. A
finished dataset holds no such thing: there, inputs are compared with the manifest's modification
time and with the bytes that it counts.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from im2sp.pipeline.decoding.media import ByteRange, Cell, Location, Url, place_in_file
from im2sp.pipeline.job.config import JobError
from im2sp.pipeline.sources.items import SourceItem
from im2sp.shards.errors import counted, log
from im2sp.shards.files import atomic_file
from im2sp.shards.manifest import Manifest

if TYPE_CHECKING:
    from im2sp.pipeline.job.inputs import Inputs
    from im2sp.pipeline.job.plan import Plan
    from im2sp.pipeline.job.state import JobState

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

    def row(item: SourceItem) -> list[object]:
        row: list[object] = [
            item.key,
            item.name,
            item.split,
            item.captions,
            item.error,
            status(item.image),
        ]
        return row + [(u.name, u.text, u.error, status(u.audio)) for u in item.utterances]

    return digests_of(map(row, items), len(items))


def digests_of(rows: Iterable[list[object]], num: int) -> NDArray[np.uint64]:
    """Digests of `num` rows of JSON values, (num,) uint64."""
    digests = np.empty(num, "<u8")
    for index, row in enumerate(rows):
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
    items: Sequence[SourceItem], written_ns: int, raw: Mapping[str, int], num_rejects: int
) -> list[str]:
    """Names of the inputs that were modified since a manifest was written.

    Where none was, but the accepted inputs have other sizes together than the manifest counts
    (`raw`), the result names their number. That is known where no input was refused.
    """
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


# Changed inputs -----------------------------------------------------------------------------------


def drop_changed(plan: "Plan", state: "JobState") -> None:
    """Forget what an unfinished job made of inputs that have changed since; keep the digests."""
    inputs = plan.inputs
    digests = inputs.identities()
    before = read_identities(state.dir, len(digests))
    if before is None:
        state.forget(None, plan.shards)
    elif len(changed := np.flatnonzero(before != digests)):
        if not plan.config.quiet:
            log(f"{_changed(changed, inputs)}; encoding again")
        is_fitted = plan.tokenizers.fits_images or inputs.have_speech(changed)
        # Tables are fitted to speech: with other speech every shard may change.
        state.forget(None if is_fitted else inputs.chunks_of(changed), plan.shards)
    write_identities(state.dir, digests)


def check_same_inputs(plan: "Plan", state: "JobState", digests: NDArray[np.uint64]) -> None:
    """Raise `JobError` if an input has changed since the first part began."""
    before = read_identities(state.dir, len(digests))
    changed = np.flatnonzero(before != digests if before is not None else digests == digests)
    if len(changed):
        raise JobError(
            f"{plan.config.shown_out}: {_changed(changed, plan.inputs)}; copies of a "
            "source need the same modification times (cp -p); else run the command without "
            "--part, which encodes changed inputs again"
        )


def _changed(changed: NDArray[np.intp], inputs: "Inputs") -> str:
    first = inputs.name(changed[0])
    return f"{counted(len(changed), inputs.unit)} changed since the job began (the first: {first})"


def check_unchanged(plan: "Plan", finished: Manifest, written_ns: int) -> None:
    """Raise `JobError` if inputs have changed since the finished dataset was made.

    Args:
        plan: Plan of the job.
        finished: Manifest of the dataset.
        written_ns: Time of the last write of the manifest, in ns since the epoch.
    """
    changed = plan.inputs.changed_since(written_ns, finished.raw, finished.num_rejects)
    if changed:
        raise JobError(
            f"{plan.config.shown_out}: {counted(len(changed), plan.inputs.unit)} of "
            f"{plan.config.sources_name} changed since this dataset was made (the first: "
            f"{changed[0]}); give --overwrite to encode all again, or choose another --out"
        )
