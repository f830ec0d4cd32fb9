"""Files by URL: on a web server on loopback and in fsspec's store in memory."""

import sys

import fsspec
import pytest

from im2sp.shards import stores
from im2sp.shards.stores import (
    StoredFile,
    StoreError,
    as_url,
    copy_url,
    find_urls,
    is_url,
    join_url,
    match_urls,
    read_url,
    shown_url,
    stat_url,
    url_path,
)
from support.servers import web_server


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(stores, "RETRY_WAITS_S", (0.0, 0.0))
    with web_server() as made:
        yield made


@pytest.fixture
def memory():
    """A folder of fsspec's store in memory with some files."""
    store = fsspec.filesystem("memory")
    for name in ("a/1.tar", "a/b/2.tar", "a/3.txt", "ab/4.tar"):
        store.pipe(f"/set/{name}", name.encode())
    yield "memory://set"
    store.rm("/set", recursive=True)


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("https://e.org/a.tar", "https://e.org/a.tar"),
        ("s3:/bucket/a", "s3://bucket/a"),
        ("HF://datasets/x", "hf://datasets/x"),
        ("a/b:/c", None),
        ("C:/x", None),
        ("/abs/a:/b", None),
    ],
)
def test_urls_are_known_by_their_scheme(name, expected):
    assert is_url(name) == (expected is not None)
    if expected:
        assert as_url(name) == expected


def test_messages_hold_no_secret():
    url = "https://user:word@e.org/a%20b/c.jpg?X-Signature=abc#part"
    assert shown_url(url) == "https://e.org/a%20b/c.jpg"
    assert url_path(url) == "e.org/a b/c.jpg"
    with pytest.raises(StoreError, match=r"^ftp://e\.org/x: not a URL that is read; expected one"):
        read_url("ftp://user:word@e.org/x", 10)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a/../b.jpg", "s3://x/y/b.jpg"), ("./c", "s3://x/y/c"), ("hf://d/e", "hf://d/e")],
)
def test_paths_below_a_url(path, expected):
    assert join_url("s3://x/y/", path) == expected


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    match = r"^s3://b/x: s3:// needs the package s3fs: pip install 'im2sp\[s3\]'$"
    with pytest.raises(StoreError, match=match):
        read_url("s3://b/x", 10)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(StoreError, match="needs the package aiohttp: pip install aiohttp"):
        read_url("https://b/x", 10)


# Web servers


def test_a_file_is_read_by_one_request(site, tmp_path):
    site.files["x.bin"] = bytes(range(256)) * 9000
    url = f"{site.url}/x.bin?token=1"
    assert read_url(url, 2**22) == site.files["x.bin"]
    assert site.requests == {"GET x.bin": 1}
    copy_url(url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == site.files["x.bin"]
    found = stat_url(url)
    assert found is not None
    assert (found.url, found.size_bytes) == (url, 256 * 9000)


@pytest.mark.parametrize("fault", [503, 429, "cut"])
def test_transient_failures_are_tried_again(site, tmp_path, fault):
    site.files["x"] = b"content"
    path, url = tmp_path / "x", f"{site.url}/x"
    for action in (lambda: read_url(url, 10), lambda: copy_url(url, path)):
        site.faults["x"] = [fault, fault]
        action()
        assert not site.faults["x"]
    assert path.read_bytes() == b"content"
    path.unlink()
    site.faults["x"] = [fault] * 3
    with pytest.raises(StoreError, match=r"^http://127\.0\.0\.1:\d+/x: cannot be read: "):
        copy_url(f"{site.url}/x?secret", path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("fault", "message"), [(403, "cannot be read: status 403"), (404, "no such file")]
)
def test_final_failures_are_not(site, fault, message):
    site.faults["x"] = [fault]
    with pytest.raises(StoreError, match=f"/x: {message}$"):
        read_url(f"{site.url}/x?secret", 10)
    assert site.requests == {"GET x": 1}


@pytest.mark.parametrize("faults", [[], ["endless"]])
def test_large_files_are_refused_as_soon_as_that_is_known(site, faults):
    site.files["x"] = bytes(2**22)
    site.faults["x"] = faults
    with pytest.raises(StoreError, match=r"/x: [\d,]+ bytes; files over 1,000 are not read"):
        read_url(f"{site.url}/x", 1000)
    assert site.requests == {"GET x": 1}


def test_a_server_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(stores, "RETRY_WAITS_S", (0.0,))
    with pytest.raises(StoreError, match=r"^http://127\.0\.0\.1:9/x: cannot be read: Cannot conn"):
        read_url("http://127.0.0.1:9/x", 10)


def test_web_servers_cannot_be_listed(site):
    for url in (f"{site.url}/folder/", f"{site.url}/*.tar"):
        with pytest.raises(StoreError, match="a web server cannot be listed; give the URLs of the"):
            match_urls(url)


# Object stores


def test_folders_of_a_store_are_listed(memory, tmp_path):
    found = find_urls(f"{memory}/a/")
    names = ["memory://set/a/1.tar", "memory://set/a/3.txt", "memory://set/a/b/2.tar"]
    assert [one.url for one in found] == names
    assert found[0].size_bytes == 7
    assert found[0].version
    assert stat_url(f"{memory}/a") is None
    stored = stat_url(names[0])
    assert stored is not None
    assert (stored.url, stored.size_bytes) == (names[0], 7)
    assert match_urls(f"{memory}/a*/?.tar") == [names[0], "memory://set/ab/4.tar"]
    assert match_urls(f"{memory}/**/*.tar")[-1] == "memory://set/ab/4.tar"
    assert read_url(names[0], 7) == b"a/1.tar"
    with pytest.raises(StoreError, match=r"^memory://set/a/1\.tar: 7 bytes; files over 6"):
        read_url(names[0], 6)
    copy_url(names[2], tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"a/b/2.tar"
    for action in (stat_url, lambda url: read_url(url, 9)):
        with pytest.raises(StoreError, match=r"^memory://set/gone: no such file$"):
            action(f"{memory}/gone")


def test_a_new_version_of_a_file_is_seen(memory):
    before = stat_url(f"{memory}/a/1.tar")
    fsspec.filesystem("memory").pipe("/set/a/1.tar", b"1234567")
    after = stat_url(f"{memory}/a/1.tar")
    assert isinstance(before, StoredFile)
    assert isinstance(after, StoredFile)
    assert before.size_bytes == after.size_bytes
    assert before.version != after.version


def test_credentials_that_are_refused(monkeypatch, memory):
    def refuse(*_):
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(StoreError, match="access denied; check the credentials of the store"):
        read_url(f"{memory}/a/1.tar", 10)


# S3


@pytest.mark.s3
def test_files_of_s3(bucket, tmp_path):
    store, path = fsspec.filesystem("s3"), f"{bucket.url[5:]}/set/a.bin"
    data = bytes(range(256)) * 512
    store.pipe_file(path, data)
    url = f"{bucket.url}/set/a.bin"
    for fault in (503, "cut"):
        bucket.site.faults[f"GET {path}"] = [fault]
        assert read_url(url, 2**20) == data
        bucket.site.faults[f"GET {path}"] = [fault]
        copy_url(url, tmp_path / "a")
        assert (tmp_path / "a").read_bytes() == data
        assert bucket.site.faults == {f"GET {path}": []}
    assert [one.url for one in find_urls(f"{bucket.url}/set")] == [url]
    with pytest.raises(StoreError, match=rf"^{bucket.url}/gone: no such file$"):
        read_url(f"{bucket.url}/gone", 10)
    bucket.site.faults[f"GET {path}"] = [403]
    with pytest.raises(StoreError, match=r"/a\.bin: access denied; check the credentials"):
        copy_url(url, tmp_path / "b")
    assert not (tmp_path / "b").exists()
