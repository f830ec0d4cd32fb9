"""Files in object stores and on web servers, by their URL, through fsspec.

`s3://`, `gs://` and `hf://` need the package of their store; credentials come from where that
package looks for them (environment, configuration files), never from a URL. A transient failure
(a dropped connection, status 429 or 5xx) is tried again.
"""

import errno
import importlib
import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

PACKAGES = {
    "http": "aiohttp",
    "https": "aiohttp",
    "s3": "s3fs",
    "gs": "gcsfs",
    "hf": "huggingface_hub",
    "memory": "fsspec",
}
"""Package by the scheme of a URL. `memory://` is a store in this process, for tests."""

_EXTRAS = {"s3": "s3", "gs": "gcs"}
RETRY_WAITS_S = (0.5, 2.0, 8.0)
"""Waits before the second and each further try."""
_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+", re.I)
_BLOCK_BYTES = 2**20

Result = TypeVar("Result")


class StoreError(ValueError):
    """A URL cannot be read; the message states it, without credentials, and the problem."""


class MissingFileError(StoreError):
    """There is no such file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """File in a store, as its listing describes it."""

    url: str
    size_bytes: int | None
    """None if the server does not state it."""
    version: str
    """Whatever changes when the file does: its entity tag or modification time; "" if unknown."""


def is_url(name: str | Path) -> bool:
    """True for `scheme://..`, also in the form `scheme:/..` that `Path` makes of it."""
    return _URL.match(str(name)) is not None


def as_url(name: str | Path) -> str:
    """URL of a name for which `is_url` is true, with both slashes."""
    return _URL.sub(lambda found: f"{found[1].lower()}://", str(name), count=1)


def folder_or_url(name: str | os.PathLike[str]) -> Path | str:
    """Place of a dataset: a folder as a `Path`, or a URL as text.

    Raises:
        ValueError: The URL holds a user, a password or a query, which messages would show.
    """
    if not is_url(os.fspath(name)):
        return Path(name)
    url = as_url(os.fspath(name)).rstrip("/")
    if url != shown_url(url):
        raise ValueError(
            f"{shown_url(url)}: a URL of a dataset has no user, password or query; configure "
            "credentials as the package of the store documents it"
        )
    return url


def shown_url(url: str) -> str:
    """The URL for messages and rejects: without user, password and query, which may be secret."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def url_path(url: str) -> str:
    """Path of a URL, with its host or bucket, as a relative path of text."""
    parts = urlsplit(url)
    return unquote(f"{parts.netloc.rpartition('@')[2]}{parts.path}").strip("/")


def join_url(url: str, path: str) -> str:
    """URL of a relative path below a folder; a path that is a URL itself is returned as it is."""
    if is_url(path):
        return path
    parts = [part for part in os.path.normpath(path).split("/") if part not in ("", ".")]
    return "/".join([url.rstrip("/"), *parts])


def check_url(url: str) -> None:
    """Raise `StoreError` for a URL of a scheme that is not read, or whose package is missing."""
    scheme = url.partition("://")[0].lower()
    if scheme not in PACKAGES:
        raise StoreError(
            f"{shown_url(url)}: not a URL that is read; expected one of "
            f"{', '.join(f'{name}://' for name in PACKAGES if name != 'memory')}"
        )
    try:
        importlib.import_module(PACKAGES[scheme])
    except ImportError:
        extra = _EXTRAS.get(scheme)
        advice = f"pip install 'im2sp[{extra}]'" if extra else f"pip install {PACKAGES[scheme]}"
        raise StoreError(
            f"{shown_url(url)}: {scheme}:// needs the package {PACKAGES[scheme]}: {advice}"
        ) from None


def read_url(url: str, max_bytes: int) -> bytes:
    """Return the content of a file, in memory of at most twice its size.

    Raises:
        StoreError: It cannot be read, or is larger than `max_bytes`.
    """

    def read() -> bytes:
        store, path = store_of(url)
        if not _is_http(url):
            check_size(url, store.info(path)["size"], max_bytes)
            return store.cat_file(path)
        data = bytearray()
        # With these sizes the file is streamed by one request, even if its length is unknown.
        with store.open(path, "rb", block_size=0, size=1) as file:
            while block := file.read(_BLOCK_BYTES):
                data += block
                check_size(url, len(data), max_bytes)
        return bytes(data)

    return tried(url, read)


def copy_url(url: str, path: Path) -> None:
    """Copy a file to this machine; on failure there is no file at `path`.

    Raises:
        StoreError: It cannot be read.
        OSError: The disk is full.
    """

    def copy() -> None:
        store, remote = store_of(url)
        try:
            store.get_file(remote, str(path))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    tried(url, copy)


def stat_url(url: str) -> StoredFile | None:
    """Describe a file; None for a folder.

    Raises:
        StoreError: There is no such file, or the store cannot be asked.
    """

    def stat() -> StoredFile | None:
        store, path = store_of(url)
        info = store.info(path)
        return None if info.get("type") == "directory" else _stored(url, info)

    return tried(url, stat)


def find_urls(url: str) -> list[StoredFile]:
    """List all files below a folder, by path.

    Raises:
        StoreError: The store cannot be listed, as web servers cannot.
    """
    if _is_http(url):
        raise StoreError(
            f"{shown_url(url)}: a web server cannot be listed; give the URLs of the files "
            "themselves, ranges such as {00000..00099}.tar included"
        )

    def find() -> list[StoredFile]:
        store, path = store_of(url)
        found = store.find(path, detail=True)
        return [_stored(_url_of(store, url, name), found[name]) for name in sorted(found)]

    return tried(url, find)


def match_urls(pattern: str) -> list[str]:
    """URLs of the files and folders that a pattern with `*`, `?`, `[..]` or `**` matches, sorted.

    Raises:
        StoreError: The store cannot be listed, as web servers cannot.
    """
    if _is_http(pattern):
        return [one.url for one in find_urls(pattern)]

    def match() -> list[str]:
        store, path = store_of(pattern)
        return sorted(_url_of(store, pattern, name) for name in store.glob(path))

    return tried(pattern, match)


def _is_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def store_of(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        StoreError: As for `check_url`.
    """
    check_url(url)
    fsspec: Any = importlib.import_module("fsspec")
    store, path = fsspec.core.url_to_fs(url)
    return store, path


def _url_of(store: Any, url: str, name: str) -> str:
    scheme = url.partition("://")[0]
    return f"{scheme}://{store._strip_protocol(name).lstrip('/')}"


def _stored(url: str, info: dict[str, Any]) -> StoredFile:
    names = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "updated", "last_modified")
    versions = [str(info[name]) for name in (*names, "created") if info.get(name)]
    return StoredFile(url=url, size_bytes=info.get("size"), version=versions[0] if versions else "")


def check_size(url: str, size_bytes: int, max_bytes: int) -> None:
    """Raise `StoreError` for a file that is too large to be read."""
    if size_bytes > max_bytes:
        raise StoreError(
            f"{shown_url(url)}: {size_bytes:,} bytes; files over {max_bytes:,} are not read"
        )


def tried(url: str, action: Callable[[], Result], done: str = "read") -> Result:
    """Result of an action that is tried again after a transient failure.

    Args:
        url: URL for messages.
        action: Function to call.
        done: Participle for messages: `read` or `written`.

    Raises:
        StoreError: It failed; credentials are not in the message.
    """
    for wait_s in RETRY_WAITS_S:
        try:
            with _errors_of(url, done):
                return action()
        except _TransientError:
            time.sleep(wait_s)
    with _errors_of(url, done):
        return action()


class _TransientError(StoreError):
    """A failure that may not occur again."""


@contextmanager
def _errors_of(url: str, done: str) -> Generator[None]:
    """Turn the errors of all stores' packages into `StoreError`."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError:
        if done == "read":
            raise MissingFileError(f"{shown_url(url)}: no such file") from None
        raise StoreError(f"{shown_url(url)}: cannot be {done}: no such bucket") from None
    except PermissionError:
        raise StoreError(
            f"{shown_url(url)}: access denied; check the credentials of the store"
        ) from None
    except Exception as error:  # boundary: each store's package has its own exceptions
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        status = _status_of(error)
        detail = f"status {status}" if status else " ".join(f"{error}".split())
        detail = detail.replace(url, shown_url(url)) or type(error).__name__
        message = f"{shown_url(url)}: cannot be {done}: {detail}"
        is_final = status is not None and status < 500 and status not in (408, 429)
        raise (StoreError if is_final else _TransientError)(message) from None


def _status_of(error: BaseException) -> int | None:
    """HTTP status in an exception of aiohttp, botocore, s3fs, gcsfs or huggingface_hub."""
    found = getattr(error, "status", None) or getattr(error, "code", None)
    if found is None and isinstance(error, OSError) and error.__cause__ is not None:
        return _status_of(error.__cause__)  # s3fs raises OSError from botocore's exceptions
    if found is None:
        response: Any = getattr(error, "response", None)
        found = getattr(response, "status_code", None)
        if isinstance(response, dict):  # of botocore
            found = cast(dict[str, Any], response).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return found if isinstance(found, int) else None
