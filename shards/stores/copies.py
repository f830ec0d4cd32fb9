"""Files of a dataset: those of a folder, or copies of those in a store."""

import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from im2sp.shards.errors import ShardError
from im2sp.shards.files import (
    file_lock,
    fsync_path,
    remove_leftovers,
    temporary_path,
    user_cache_dir,
)
from im2sp.shards.stores import StoreError, copy_url, join_url, shown_url

_NUM_TRIES = 2
_NUM_THREADS = 8
_WAIT_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """Size and checksum of a file in a manifest; None where it records none."""

    size_bytes: int | None = None
    sha256: str | None = None


class DatasetFiles:
    """Files of a dataset, in a folder or in a store.

    A file in a store is copied when it is first needed: to a temporary name, compared with size and
    sha256 in the manifest, and renamed. Of the processes of a machine one copies it and the others
    wait. Copies are kept; a folder of copies belongs to one manifest.

    Attributes:
        place: The folder, or the URL as text.
        folder: Folder of the files on this machine.
        is_copy: True for a dataset in a store.
    """

    def __init__(
        self,
        place: Path | str,
        known: Mapping[str, KnownFile],
        *,
        manifest_sha256: str,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Copy nothing yet.

        Args:
            place: Folder, or URL as text.
            known: File name -> what the manifest records.
            manifest_sha256: Checksum of the manifest.
            cache_dir: Folder for the copies of datasets; None for `im2sp/datasets` in the user's
                cache folder.
        """
        self.place = place
        self.is_copy = isinstance(place, str)
        self.folder = Path(place)
        if self.is_copy:
            cache = user_cache_dir() / "datasets" if cache_dir is None else Path(cache_dir)
            self.folder = Path(os.path.abspath(cache)) / manifest_sha256
        self._known = known

    def shown(self, name: str) -> str:
        """Path or URL of a file, for messages."""
        return str(Path(self.place, name)) if not self.is_copy else shown_url(self._url(name))

    def local(self, name: str) -> Path:
        """Path of a file on this machine; it may not exist in a folder.

        Raises:
            ShardError: It cannot be read from the store, or is not the file of the manifest.
            OSError: The copy cannot be written.
        """
        path = self.folder / name
        if not self.is_copy or self._is_copied(path):
            return path
        with self._advice():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = path.with_name(f"{name}.lock")
            while not self._is_copied(path):
                with file_lock(lock) as is_ours:
                    if is_ours:
                        try:
                            if not self._is_copied(path):
                                self._copy(path)
                        finally:
                            lock.unlink(missing_ok=True)
                if not is_ours:
                    time.sleep(_WAIT_S)
        return path

    def copy_all(
        self, names: Iterable[str], on_copied: Callable[[int], object] = lambda _: None
    ) -> None:
        """Copy files of a store, several at once; see `local`.

        Args:
            names: Names of the files.
            on_copied: Called with the size of each file in bytes, in their order.
        """
        if self.is_copy:
            with ThreadPoolExecutor(_NUM_THREADS, "im2sp-copy") as pool:
                for path in pool.map(self.local, names):
                    on_copied(path.stat().st_size)

    def _url(self, name: str) -> str:
        return join_url(str(self.place), name)

    def _is_copied(self, path: Path) -> bool:
        size_bytes = self._known.get(path.name, KnownFile()).size_bytes
        try:
            return path.stat().st_size == size_bytes or size_bytes is None
        except FileNotFoundError:
            return False

    @contextmanager
    def _advice(self) -> Generator[None]:
        """Add to an error of the disk what the folder is for."""
        try:
            yield
        except OSError as error:
            message = (
                f"{error.strerror or error}; files of {self.place} are copied there: free some "
                "space, or choose another folder by XDG_CACHE_HOME or cache_dir"
            )
            raise OSError(error.errno, message, str(self.folder)) from None

    def _copy(self, path: Path) -> None:
        """Copy a file; called by one process at a time."""
        remove_leftovers(self.folder, path.name)
        problem = ""
        for _ in range(_NUM_TRIES):
            tmp_path = temporary_path(path)
            try:
                copy_url(self._url(path.name), tmp_path)
                problem = self._problem(tmp_path, path.name)
                if not problem:
                    fsync_path(tmp_path)
                    os.replace(tmp_path, path)
                    return
            except StoreError as error:
                raise ShardError(str(error)) from None
            finally:
                tmp_path.unlink(missing_ok=True)
        raise ShardError(
            f"{self.shown(path.name)}: {problem} as in dataset.json; put the file there again, or "
            "rebuild the dataset with im2sp-tokenize"
        )

    def _problem(self, path: Path, name: str) -> str:
        """Difference of a copy from the manifest, found and expected; "" if it is right."""
        known = self._known.get(name, KnownFile())
        size_bytes = path.stat().st_size
        if known.size_bytes not in (None, size_bytes):
            return f"{size_bytes:,} bytes, expected {known.size_bytes:,}"
        if known.sha256 is not None:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != known.sha256:
                return f"sha256 {found}, expected {known.sha256}"
        return ""
