"""Writing to stores: fsspec's store in memory, and S3 on loopback."""

import time

import fsspec
import pytest

from im2sp.shards import stores
from im2sp.shards.stores import StoreError, read_url
from im2sp.shards.stores.writing import (
    check_writable,
    create_bytes,
    list_folder,
    modified_ns,
    put_bytes,
    put_file,
    remove_urls,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stores, "RETRY_WAITS_S", (0.0, 0.0))


@pytest.fixture
def memory():
    yield "memory://set"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "x.arrow"
    made.write_bytes(bytes(range(256)) * 100)
    return made


def check_store(url, path):
    put_file(path, f"{url}/a/x.arrow")
    put_bytes(f"{url}/a/y", b"first")
    put_bytes(f"{url}/a/y", b"second")
    put_bytes(f"{url}/a/b/z", b"deeper")
    assert read_url(f"{url}/a/x.arrow", 2**20) == path.read_bytes()
    assert create_bytes(f"{url}/a/new", b"1")
    assert create_bytes(f"{url}/a/new", b"1")
    assert not create_bytes(f"{url}/a/new", b"2")
    assert read_url(f"{url}/a/new", 9) == b"1"
    found = list_folder(f"{url}/a")
    assert {name: one.size_bytes for name, one in found.items()} == {
        "new": 1, "x.arrow": 25600, "y": 6
    }  # fmt: skip
    assert found["y"].url == f"{url}/a/y"
    assert abs(modified_ns(found["y"].url) - time.time_ns()) < 100e9
    remove_urls([f"{url}/a/y", f"{url}/a/gone", f"{url}/a/new"])
    assert list(list_folder(f"{url}/a/")) == ["x.arrow"]
    assert list_folder(f"{url}/none") == {}


def test_objects_are_written_listed_and_removed(memory, path):
    check_store(memory, path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://e.org/x", r"^https://e\.org/x: https:// is not written to; expected a folder"),
        ("s3://me:word@b/x?key=1", r"^s3://b/x: a URL of a dataset has no user, password or query"),
        ("hf://datasets/a/b", r"hf:// is not written to; .* gs://; publish a finished folder with"),
    ],
)
def test_stores_that_are_not_written_are_refused(url, message):
    with pytest.raises(ValueError, match=message):
        check_writable(url)


def test_a_cut_copy_is_put_again(memory, path, monkeypatch):
    store = type(fsspec.filesystem("memory"))
    whole, calls = store.put_file, []

    def cut(self, local, remote):
        calls.append(remote)
        whole(self, local, remote)
        if len(calls) < 3:
            self.pipe_file(remote, b"half")

    monkeypatch.setattr(store, "put_file", cut)
    put_file(path, f"{memory}/x")
    assert len(calls) == 3
    calls.clear()
    monkeypatch.setattr(stores, "RETRY_WAITS_S", (0.0,))
    message = r"^memory://set/x: cannot be written: 4 bytes in the store, expected 25,600$"
    with pytest.raises(StoreError, match=message):
        put_file(path, f"{memory}/x")


@pytest.mark.s3
def test_objects_of_s3(bucket, path):
    check_store(bucket.url, path)
    name = f"{bucket.url[5:]}/x"
    for fault in (503, "drop"):
        bucket.site.faults[f"PUT {name}"] = [fault]
        put_file(path, f"{bucket.url}/x")
        assert bucket.site.faults == {f"PUT {name}": []}
        bucket.site.faults[f"PUT {name}2"] = [fault]
        assert create_bytes(f"{bucket.url}/x2", b"1")
        bucket.site.faults.clear()
    bucket.site.faults[f"PUT {name}"] = [403]
    with pytest.raises(StoreError, match=r"/x: access denied; check the credentials of the store"):
        put_bytes(f"{bucket.url}/x", b"1")
    with pytest.raises(StoreError, match=r"^s3://gone/x: cannot be written: no such bucket$"):
        put_file(path, "s3://gone/x")
