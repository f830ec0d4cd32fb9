"""Writing to object stores: files and bytes as wholes, never as streams.

A store shows an object when its put is complete, so a reader sees all of it or nothing.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from im2sp.shards.stores import (
    StoredFile,
    StoreError,
    check_size,
    check_url,
    folder_or_url,
    join_url,
    shown_url,
    store_of,
    tried,
)

WRITABLE = ("s3", "gs", "memory")
"""Schemes of stores that are written to."""


def check_writable(url: str) -> None:
    """Raise `ValueError` for a URL that cannot be written to.

    Its scheme is not written, its package is missing, or it holds a user, a password or a query.
    """
    folder_or_url(url)
    scheme = url.partition("://")[0].lower()
    if scheme not in WRITABLE:
        hub = "; publish a finished folder with the hub's own client" if scheme == "hf" else ""
        raise StoreError(
            f"{shown_url(url)}: {scheme}:// is not written to; expected a folder, s3:// or gs://"
            f"{hub}"
        )
    check_url(url)


def put_file(path: Path, url: str) -> None:
    """Copy a file to a store as a whole, over what is there; its size there is compared.

    Raises:
        StoreError: It cannot be written.
        OSError: `path` cannot be read.
    """
    size_bytes = path.stat().st_size

    def put() -> None:
        store, remote = store_of(url)
        store.put_file(str(path), remote)
        store.invalidate_cache()
        found = store.info(remote)["size"]
        if found != size_bytes:
            raise OSError(f"{found:,} bytes in the store, expected {size_bytes:,}")

    tried(url, put, "written")


def put_bytes(url: str, data: bytes) -> None:
    """Write an object as a whole, over what is there.

    Raises:
        StoreError: It cannot be written.
    """

    def put() -> None:
        store, remote = store_of(url)
        store.pipe_file(remote, data)

    tried(url, put, "written")


def create_bytes(url: str, data: bytes) -> bool:
    """Write an object unless it exists; of several writers at once, one succeeds.

    Returns:
        True if the object has this content now, False if it has another.

    Raises:
        StoreError: It cannot be written.
    """

    def create() -> bool:
        store, remote = store_of(url)
        try:
            store.pipe_file(remote, data, mode="create")
        except Exception:  # boundary: stores differ in the exception for an object that exists
            store.invalidate_cache()
            if not store.exists(remote):
                raise
            # After a dropped connection it may be our own.
            return store.cat_file(remote) == data
        return True

    return tried(url, create, "written")


def remove_urls(urls: list[str]) -> None:
    """Remove objects, in this order; those that are gone are no error.

    Raises:
        StoreError: One cannot be removed.
    """
    for url in urls:

        def remove(url: str = url) -> None:
            store, remote = store_of(url)
            with suppress(FileNotFoundError):
                store.rm_file(remote)

        tried(url, remove, "removed")


def find_bytes(url: str, max_bytes: int) -> bytes | None:
    """Content of an object; None if there is none.

    Raises:
        StoreError: The store cannot be read, or the object is larger than `max_bytes`.
    """

    def find() -> bytes | None:
        store, remote = store_of(url)
        store.invalidate_cache()
        try:
            check_size(url, store.info(remote)["size"], max_bytes)
            return store.cat_file(remote)
        except FileNotFoundError:
            return None

    return tried(url, find)


def list_folder(url: str) -> dict[str, StoredFile]:
    """Objects directly in a folder by their names; empty if there are none.

    Raises:
        StoreError: The store cannot be listed.
    """

    def list_all() -> list[dict[str, Any]]:
        store, remote = store_of(url)
        store.invalidate_cache()
        try:
            return store.ls(remote, detail=True)
        except FileNotFoundError:
            return []

    infos = [info for info in tried(url, list_all) if info["type"] == "file"]
    names = [info["name"].rpartition("/")[2] for info in infos]
    return {
        name: StoredFile(url=join_url(url, name), size_bytes=info["size"], version="")
        for name, info in zip(names, infos, strict=True)
    }


def modified_ns(url: str) -> int:
    """Time of the last write of an object, in ns since the epoch.

    Raises:
        StoreError: The store cannot be asked.
    """

    def modified() -> int:
        store, remote = store_of(url)
        return int(store.modified(remote).timestamp() * 1e9)

    return tried(url, modified)
