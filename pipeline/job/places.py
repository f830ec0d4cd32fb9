"""Places of the dataset that a job writes: a folder, or an object store by way of a work folder.

In the work folder a job runs as in the folder of a dataset. A shard that is finished is put to the
store as a whole and removed here; the manifest goes last, by a put that replaces nothing. Meanwhile
the store holds `.im2sp-job.json`, which names the owner of the output:

    owner     a number, which the work folder holds too
    host      host of the command that writes
    work_dir  its work folder
    since     when it began
    job       `Plan.job_id`
    suffix    file suffix of its shards
    stale     objects of a former dataset, which --overwrite removes
"""

import json
import os
import secrets
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from im2sp.pipeline.job.config import JobConfig, JobError
from im2sp.pipeline.job.output import (
    check_foreign,
    check_output,
    check_same,
    finished_manifest,
    own_names,
    prepare_output,
    shard_names,
)
from im2sp.pipeline.job.state import JobState
from im2sp.shards import CODEBOOK_NAME, MANIFEST_NAME, REJECTS_NAME, Layout, Manifest, join_parts
from im2sp.shards.files import MAX_READ_BYTES, MAX_SETTINGS_BYTES, create_file, parse_json
from im2sp.shards.stores import StoredFile, join_url
from im2sp.shards.stores.writing import (
    create_bytes,
    find_bytes,
    list_folder,
    modified_ns,
    put_bytes,
    put_file,
    remove_urls,
)
from im2sp.shards.writing.card import CARD_NAME, card, is_own_card
from im2sp.shards.writing.parts import joined, part_path, read_part

MARKER_NAME = ".im2sp-job.json"
_OWNER_NAME = ".im2sp-owner"


class FolderOutput:
    """A dataset in a folder of this machine.

    Args:
        config: Settings of the job.
    """

    def __init__(self, config: JobConfig) -> None:
        self._config, self._dir = config, config.local_dir

    def exists(self) -> bool:
        """True if there is a manifest."""
        return (self._dir / MANIFEST_NAME).exists()

    def check(self, state: JobState, job: dict[str, Any]) -> Manifest | None:
        """Return the manifest if the same dataset is already complete; changes nothing.

        Raises:
            JobError: Another dataset or job is there, or files that are not im2sp's.
        """
        overwrite, allow_mixed = self._config.overwrite, self._config.allow_mixed
        return check_output(state, job, overwrite=overwrite, allow_mixed=allow_mixed)

    def prepare(self, state: JobState, job: dict[str, Any]) -> Manifest | None:
        """Start or resume a job in the locked folder; otherwise as `check`."""
        overwrite, allow_mixed = self._config.overwrite, self._config.allow_mixed
        return prepare_output(state, job, overwrite=overwrite, allow_mixed=allow_mixed)

    def keep(self, number: int, num_parts: int) -> None:
        """Bring the shards of a finished part to their place, where they are in a folder."""

    def join(self, state: JobState, settings: Mapping[str, Any]) -> Manifest:
        """Make one dataset of the parts, its manifest last, and remove the job.

        Raises:
            ShardError: A part is missing or damaged.
        """
        manifest = join_parts(self._dir, settings)
        state.remove()
        return manifest

    def written_ns(self) -> int:
        """Time of the last write of the manifest, in ns since the epoch."""
        return (self._dir / MANIFEST_NAME).stat().st_mtime_ns


class StoreOutput(FolderOutput):
    """A dataset in an object store, made by way of a work folder."""

    def __init__(self, config: JobConfig) -> None:
        assert config.url is not None
        super().__init__(config)
        self._url, self._where = config.url, config.shown_out
        self._stale: list[str] = []

    def exists(self) -> bool:
        """True if there is a manifest."""
        return MANIFEST_NAME in list_folder(self._url)

    def check(self, state: JobState, job: dict[str, Any]) -> Manifest | None:
        """Return the manifest if the same dataset is already complete; changes nothing.

        Raises:
            JobError: Another dataset or job is there or in the work folder, or objects that are not
                im2sp's, or another process writes there.
            StoreError: The store cannot be read.
        """
        found = list_folder(self._url)
        if MANIFEST_NAME in found and not self._config.overwrite:
            finished = finished_manifest(
                self._where, self._read(MANIFEST_NAME) or b"", lambda name: _size(found, name)
            )
            check_same(self._where, finished, job)
            return finished
        self._check_owner(self._marker(), state.job_id)
        layout = Layout(**job["layout"])
        check_foreign(self._where, found, self._own_names(found), layout)
        return super().check(state, job)

    def prepare(self, state: JobState, job: dict[str, Any]) -> Manifest | None:
        """Start or resume a job in the locked work folder, and own the output; else as `check`."""
        finished = self.check(state, job)
        if finished is not None:
            if self._is_own(self._marker()):
                remove_urls([self._file(MARKER_NAME)])
            self._clear(state)
            return finished
        try:
            self._hold(state.job_id, Layout(**job["layout"]).suffix)
        except ValueError:
            if not state.exists:
                (self._dir / _OWNER_NAME).unlink(missing_ok=True)
            raise
        super().prepare(state, job)
        return None

    def keep(self, number: int, num_parts: int) -> None:
        """Put the shards of a finished part to the store, and remove them here.

        Raises:
            JobError: Another process has taken over the output.
            StoreError: The store refuses them.
        """
        part = read_part(part_path(self._dir, number, num_parts))
        for shard in part.shards:
            path = self._dir / shard.file
            if path.exists():  # else it was put before
                self._check_held()
                put_file(path, self._file(shard.file))
                path.unlink()

    def join(self, state: JobState, settings: Mapping[str, Any]) -> Manifest:
        """Put all but the shards to the store, the manifest last, and remove the work folder.

        Raises:
            JobError: Another process has taken over the output.
            ShardError: A part is missing or damaged.
            StoreError: The store refuses an object.
        """
        self._check_held()
        found = list_folder(self._url)
        manifest, rejects = joined(self._dir, lambda name: _size(found, name), settings)
        listed = {shard.file for shard in manifest.shards}
        surplus = {*self._stale, *shard_names(found, manifest.layout.suffix)} - listed
        remove_urls([self._file(name) for name in sorted(surplus & set(found))])
        if manifest.codebook_file is not None:
            put_file(self._dir / manifest.codebook_file, self._file(manifest.codebook_file))
        put_bytes(self._file(REJECTS_NAME), rejects)
        if self._replaces_card(found):
            put_bytes(self._file(CARD_NAME), card(manifest).encode())
        if not create_bytes(self._file(MANIFEST_NAME), manifest.text.encode()):
            raise JobError(
                f"{self._where}: another process has written a {MANIFEST_NAME} meanwhile; choose "
                "another --out, or start over with --overwrite"
            )
        remove_urls([self._file(MARKER_NAME)])
        self._clear(state)
        return manifest

    def written_ns(self) -> int:
        """Time of the last write of the manifest, in ns since the epoch."""
        return modified_ns(self._file(MANIFEST_NAME))

    # Owner ----------------------------------------------------------------------------------------

    def _marker(self) -> dict[str, Any] | None:
        """Content of the object that names the owner; None if there is none."""
        data = self._read(MARKER_NAME)
        if data is None:
            return None
        with suppress(ValueError, KeyError, TypeError):
            content = parse_json(data)
            names = ("owner", "host", "work_dir", "since", "job", "suffix", "stale")
            return {name: content[name] for name in names}
        raise JobError(
            f"{self._where}: its {MARKER_NAME} was not written by im2sp or is damaged; remove it, "
            "or choose another --out"
        )

    def _is_own(self, marker: dict[str, Any] | None) -> bool:
        """True if this work folder owns the output, or one that was lost on this host."""
        if marker is None:
            return False
        here = {"host": socket.gethostname(), "work_dir": os.path.abspath(self._dir)}
        return marker["owner"] == self._owner() or here.items() <= marker.items()

    def _owner(self) -> str:
        """Number of the work folder; "" if it has none."""
        path = self._dir / _OWNER_NAME
        return path.read_text() if path.exists() else ""

    def _check_owner(self, marker: dict[str, Any] | None, job_id: str) -> None:
        """Raise `JobError` if the output is another's, or of another job."""
        if marker is None:
            return
        if not self._is_own(marker) and not self._config.take_over:
            raise JobError(
                f"{self._where}: {marker['host']} began to write here at {marker['since']} (work "
                f"folder {marker['work_dir']}); wait for it, or, if it has ended for good, give "
                "--take-over"
            )
        if marker["job"] != job_id and not self._config.overwrite:
            raise JobError(
                f"{self._where}: holds an unfinished job with other settings; choose another "
                "--out, or start over with --overwrite"
            )

    def _check_held(self) -> None:
        """Raise `JobError` if the output is no longer owned by this work folder."""
        marker = self._marker()
        if marker is None or marker["owner"] != self._owner():
            who = "it" if marker is None else f"{marker['host']} at {marker['since']}"
            raise JobError(f"{self._where}: taken over by {who}; this command stops")

    def _hold(self, job_id: str, suffix: str) -> None:
        """Own the output; with --overwrite remove what is im2sp's, the manifest first."""
        create_file(self._dir / _OWNER_NAME, secrets.token_hex(8).encode())
        found = list_folder(self._url)
        own = [name for name in self._own_names(found) if name in found]
        marker = {
            "owner": self._owner(),
            "host": socket.gethostname(),
            "work_dir": os.path.abspath(self._dir),
            "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "job": job_id,
            "suffix": suffix,
            "stale": own if self._config.overwrite else [],
        }
        url = self._file(MARKER_NAME)
        if not create_bytes(url, json.dumps(marker).encode()):
            before = self._marker()
            self._check_owner(before, job_id)
            if before is not None:
                marker["stale"] = list(dict.fromkeys([*marker["stale"], *before["stale"]]))
            put_bytes(url, json.dumps(marker).encode())
        self._stale = marker["stale"]
        if self._config.overwrite:
            remove_urls([self._file(name) for name in own])

    def _own_names(self, found: Mapping[str, StoredFile]) -> list[str]:
        """Names of objects of the former dataset or unfinished job, the manifest first."""
        marker, manifest = self._marker(), self._read(MANIFEST_NAME) or b""
        stale, suffix = ([], None) if marker is None else (marker["stale"], marker["suffix"])
        return own_names(manifest, found, stale, suffix)

    def _clear(self, state: JobState) -> None:
        """Remove the job and all that it has left in the work folder."""
        for name in (CODEBOOK_NAME, _OWNER_NAME):
            (self._dir / name).unlink(missing_ok=True)
        state.remove()  # last: a run that finds no job there does not clear
        with suppress(OSError):  # a folder of the user with other files
            self._dir.rmdir()

    def _replaces_card(self, found: Mapping[str, StoredFile]) -> bool:
        """True if there is no card, or one that im2sp wrote."""
        if (_size(found, CARD_NAME) or 0) > MAX_SETTINGS_BYTES:
            return False
        before = self._read(CARD_NAME)
        return before is None or is_own_card(before)

    def _file(self, name: str) -> str:
        return join_url(self._url, name)

    def _read(self, name: str) -> bytes | None:
        """Content of an object; None if there is none."""
        return find_bytes(self._file(name), MAX_READ_BYTES)


def _size(found: Mapping[str, StoredFile], name: str) -> int | None:
    return found[name].size_bytes if name in found else None
