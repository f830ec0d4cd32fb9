"""Checks of the output folder: if a tokenize job may write there, and what it may replace.

The folder may hold other files: Python sources, notes, even a tar named like a shard. A job
replaces only files that an im2sp `dataset.json` lists, that the unfinished job there writes, or
that an interrupted --overwrite had started to remove. A dataset or job with other settings is left
as it is.
"""

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.pipeline.job.config import PLAIN, JobError
from im2sp.pipeline.job.state import JobState
from im2sp.shards import CODEBOOK_NAME, MANIFEST_NAME, REJECTS_NAME, Layout, Manifest, ShardError
from im2sp.shards.files import remove_leftovers, size_of
from im2sp.shards.stores import StoreError

_MANIFEST_HEAD = b'{"manifest_sha256":"'
_LISTED = re.compile(rb'"file":"(\d{5,}\.(?:arrow|tar))"')
_ENVIRONMENT = "environment"
_COMMON = [MANIFEST_NAME, REJECTS_NAME, CODEBOOK_NAME]


@contextmanager
def output_errors(dataset_dir: Path) -> Iterator[None]:
    """Turn errors of the disk, and of the store of the output, into one line with advice."""
    again = "finished work is kept: run the same command again to resume"
    try:
        yield
    except StoreError as error:
        raise JobError(f"{error}; {again}") from None
    except OSError as error:
        if error.errno is None:
            raise  # not an error of the disk
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"{dataset_dir}: no space left on the disk; free some; {again}"
        else:
            where = error.filename or dataset_dir
            message = (
                f"{where}: {error.strerror}; choose another --out, or fix the problem; {again}"
            )
        raise JobError(message) from None


def check_output(
    state: JobState, job: dict[str, Any], *, overwrite: bool, allow_mixed: bool = False
) -> Manifest | None:
    """Return the manifest if the same dataset is already complete; changes nothing on disk.

    Args:
        state: The job folder of the dataset.
        job: Description of the job to run.
        overwrite: Replace an existing dataset or job.
        allow_mixed: Resume a job that was begun in another environment.

    Raises:
        JobError: The folder holds another dataset or job, or files that are not im2sp's.
    """
    dataset_dir = state.dataset_dir
    finished = None if overwrite else read_finished(dataset_dir)
    if finished is not None:
        check_same(dataset_dir, finished, job)
    elif state.exists and not overwrite:
        before = state.read_job()
        _check_same(dataset_dir, before, job, "an unfinished job")
        if not allow_mixed:
            _check_environment(dataset_dir, before, job)
    else:
        check_replaced(dataset_dir, state, Layout(**job["layout"]))
    return finished


def prepare_output(
    state: JobState, job: dict[str, Any], *, overwrite: bool, allow_mixed: bool = False
) -> Manifest | None:
    """Prepare the locked folder to start or resume a job; otherwise as `check_output`."""
    remove_leftovers(state.dataset_dir)
    remove_leftovers(state.dir)
    finished = check_output(state, job, overwrite=overwrite, allow_mixed=allow_mixed)
    if finished is not None:
        state.remove()
    elif overwrite or not state.exists:
        state.begin(job, own_files(state.dataset_dir, state))
    return finished


def join_output(
    state: JobState, job: dict[str, Any], digests: NDArray[np.uint64], *, allow_mixed: bool
) -> Manifest | None:
    """Start or resume a job beside other parts; otherwise as `check_output`.

    Args:
        state: The job folder, of which a part is locked.
        job: Description of the job.
        digests: A digest of each input.
        allow_mixed: As for `check_output`.
    """
    if state.read_stale():
        raise JobError(
            f"{state.dataset_dir}: an --overwrite was interrupted here; give --overwrite again, "
            "without --part"
        )
    finished = check_output(state, job, overwrite=False, allow_mixed=allow_mixed)
    if finished is None:
        state.join(job, digests.tobytes())
        # Another part may have been first, with other settings.
        finished = check_output(state, job, overwrite=False, allow_mixed=allow_mixed)
    return finished


def own_files(dataset_dir: Path, state: JobState) -> list[str]:
    """Names of files that --overwrite removes; the manifest first, as it validates the rest."""
    suffix = state.layout_suffix()
    found = _names_in(dataset_dir)
    own = own_names(_manifest_bytes(dataset_dir), found, state.read_stale(), suffix)
    return [name for name in own if (dataset_dir / name).is_file()]


def own_names(
    manifest: bytes, found: Iterable[str], stale: Iterable[str], suffix: str | None
) -> list[str]:
    """Names of files of a dataset or unfinished job, the manifest first.

    Args:
        manifest: Content of `dataset.json`; empty if there is none.
        found: Names of all files there.
        stale: Files that an interrupted --overwrite had to remove.
        suffix: File suffix of the unfinished job's shards; None if there is no job.
    """
    has_manifest = manifest.startswith(_MANIFEST_HEAD)
    # A dict keeps the order and drops duplicates.
    names = dict.fromkeys(stale)
    if has_manifest:
        # A text search finds the listed files even if the manifest is damaged.
        listed = [name.decode() for name in _LISTED.findall(manifest)]
        names = dict.fromkeys([MANIFEST_NAME, *names, *listed])
    else:
        names.pop(MANIFEST_NAME, None)
    if has_manifest or suffix is not None:
        names |= dict.fromkeys([REJECTS_NAME, CODEBOOK_NAME])
    if suffix is not None:
        # There were no such names when the job started.
        names |= dict.fromkeys(shard_names(found, suffix))
    return list(names)


def check_replaced(dataset_dir: Path, state: JobState, layout: Layout) -> None:
    """Check that a new job replaces only files that im2sp wrote.

    Raises:
        JobError: Another file has a name that the job needs.
    """
    check_foreign(dataset_dir, _names_in(dataset_dir), own_files(dataset_dir, state), layout)


def check_foreign(
    where: Path | str, found: Iterable[str], own: Iterable[str], layout: Layout
) -> None:
    """Raise `JobError` if a file that is not im2sp's has a name that the job needs."""
    found = set(found)
    wanted = [name for name in _COMMON if name in found]
    wanted += shard_names(found, layout.suffix)
    foreign = [name for name in wanted if name not in set(own)]
    if foreign:
        raise JobError(
            f"{where}: holds {foreign[0]}, which the job would replace but no dataset.json "
            "or unfinished job of im2sp there lists; move it away or choose another --out"
        )


def read_finished(dataset_dir: Path) -> Manifest | None:
    """Return the manifest of the finished dataset in a folder; None if there is none.

    Raises:
        JobError: It is damaged or not im2sp's, or a shard is missing or has another size.
    """
    if not (dataset_dir / MANIFEST_NAME).exists():
        return None
    data = _manifest_bytes(dataset_dir)
    return finished_manifest(dataset_dir, data, lambda name: size_of(dataset_dir / name))


def finished_manifest(
    where: Path | str, data: bytes, size_in: Callable[[str], int | None]
) -> Manifest:
    """Return the manifest of a finished dataset.

    Args:
        where: Folder or URL of the dataset.
        data: Content of `dataset.json`.
        size_in: Function that returns the size of a file in bytes; None if it is missing.

    Raises:
        JobError: As for `read_finished`.
    """
    if not data.startswith(_MANIFEST_HEAD):
        raise JobError(
            f"{where}: its {MANIFEST_NAME} was not written by im2sp; choose another --out, "
            "or move the file away"
        )
    try:
        manifest = Manifest.from_bytes(data)
    except ShardError as error:
        raise JobError(f"{where}: {error}; or start over with --overwrite") from None
    sizes = {shard.file: shard.size_bytes for shard in manifest.shards}
    for name, size_bytes in sizes.items():
        found = size_in(name)
        if found != size_bytes:
            what = "missing" if found is None else f"{found:,} bytes"
            raise JobError(
                f"{where}/{name}: {what}, {MANIFEST_NAME} lists {size_bytes:,} bytes; copy the "
                "file again or start over with --overwrite"
            )
    return manifest


def _manifest_bytes(dataset_dir: Path) -> bytes:
    path = dataset_dir / MANIFEST_NAME
    return path.read_bytes() if path.is_file() else b""


def _names_in(dataset_dir: Path) -> list[str]:
    return os.listdir(dataset_dir) if dataset_dir.is_dir() else []


def shard_names(names: Iterable[str], suffix: str) -> list[str]:
    """Names that are like those of shards."""
    pattern = re.compile(rf"\d{{5,}}{re.escape(suffix)}")
    return sorted(filter(pattern.fullmatch, names))


def _job_of(manifest: Manifest) -> dict[str, Any]:
    """Description of the job that wrote a dataset."""
    image_tokenizer = manifest.image_tokenizer
    if image_tokenizer is not None:
        own = ("codebook_file", "codebook_sha256")
        image_tokenizer = {k: v for k, v in image_tokenizer.items() if k not in own}
    speech_tokenizer = manifest.speech_tokenizer
    layout = manifest.layout
    settings = {k: v for k, v in manifest.settings.items() if k != "environments"}
    if image_tokenizer is not None:
        settings.setdefault("image_codec", PLAIN)  # the only one before it was a setting
    return {
        "format_version": 2,  # a finished dataset of version 1 holds the same samples
        "image_tokenizer": image_tokenizer,
        "speech_tokenizer": None if speech_tokenizer is None else dict(speech_tokenizer),
        "layout": {"kind": layout.kind, "samples_per_member": layout.samples_per_member},
        "settings": settings,
    }


def check_same(where: Path | str, finished: Manifest, job: dict[str, Any]) -> None:
    """Raise `JobError` if a finished dataset is of a job with other settings."""
    _check_same(where, _job_of(finished), job, "a finished dataset")


def _check_same(where: Path | str, before: dict[str, Any], now: dict[str, Any], what: str) -> None:
    found = differences(before | {_ENVIRONMENT: None}, now | {_ENVIRONMENT: None})
    if found:
        raise JobError(
            f"{where}: holds {what} with other settings ({'; '.join(found)}); choose another "
            "--out, or start over with --overwrite"
        )


def _check_environment(dataset_dir: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    found = differences(before.get(_ENVIRONMENT, {}), now.get(_ENVIRONMENT, {}))
    if found:
        raise JobError(
            f"{dataset_dir}: the unfinished job was begun with another {'; '.join(found)}; units "
            "may differ in a few places: use the same, or give --allow-mixed"
        )


_LABELS = {
    "format_version": "version of the format",
    "image_tokenizer.name": "--image-tokenizer",
    "image_tokenizer.fingerprint": "fingerprint of the image tokenizer",
    "image_tokenizer.precision": "--precision",
    "image_tokenizer.view": "--view",
    "image_tokenizer": "image tokenizer",
    "speech_tokenizer": "speech tokenizer",
    "speech_tokenizer.name": "--speech-tokenizer",
    "speech_tokenizer.fingerprint": "fingerprint of the speech tokenizer",
    "speech_tokenizer.precision": "--precision",
    "speech_tokenizer.layer": "--speech-layer",
    "speech_tokenizer.num_units": "speech units",
    "layout.kind": "--layout",
    "layout.samples_per_member": "--samples-per-member",
    "settings.device": "--device",
    "settings.image_codec": "--image-codec",
    "settings.max_audio_s": "--max-audio-s",
    "settings.max_pixels": "--max-pixels",
    "settings.samples_per_shard": "--samples-per-shard",
    "settings.speech_codec": "--speech-codec",
    "settings.source.kind": "kind of source",
    "settings.source.columns": "--columns",
    "settings.source.num_containers": "containers in the source, listed one by one",
    "settings.source.num_items": "inputs in the source",
    "settings.source.only": "--only",
    "settings.source.sha256": "sha256 over names, captions and splits of the source",
}


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Differences of two descriptions: `--view: squash-224 there, center-224 now`."""
    found: list[str] = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            label = _LABELS.get(prefix + name, prefix + name)
            found.append(f"{label}: {_shown(old)} there, {_shown(new)} now")
    return found


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return value.get("name", value)
    if value is None:
        return "none"
    return f"{value[:12]}.." if isinstance(value, str) and len(value) == 64 else value
