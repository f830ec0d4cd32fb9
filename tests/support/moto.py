"""An S3 store on loopback: moto in a process of its own."""

import importlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from support.servers import Site, proxy

_NUMBERS = itertools.count(1)
_PROGRAM = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

app = DomainDispatcherApplication(create_backend_app)
server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


@dataclass
class Bucket:
    """A bucket of the test; all requests pass a proxy that injects faults."""

    url: str
    """Such as s3://bucket1"""
    site: Site
    """The proxy: its `faults` and `requests` are by "bucket1/path" or "PUT bucket1/path"."""


@contextmanager
def s3_server() -> Iterator[int]:
    """Port of a store that is empty."""
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


@contextmanager
def s3_bucket(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """New bucket of the server at a port, which this process and its children find."""
    store = importlib.import_module("s3fs").S3FileSystem
    with proxy(port) as site:
        monkeypatch.setenv("AWS_ENDPOINT_URL", site.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store.clear_instance_cache()
        name = f"bucket{next(_NUMBERS)}"
        store().mkdir(name)
        site.requests.clear()
        yield Bucket(f"s3://{name}", site)
        store.clear_instance_cache()
