"""Datasets in stores: copied when needed, once, and compared with the manifest."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import fsspec
import numpy as np
import pytest

from im2sp.shards import Manifest, ShardDataset, ShardError, ShardLoader, stores, verify_dataset
from im2sp.shards.cli import main as verify
from im2sp.shards.loader import index
from im2sp.shards.stores import copies
from support.remote import put_dataset
from support.servers import web_server

SHARD = "set/00000.arrow"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """Folder of copies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "im2sp" / "datasets"


@pytest.fixture
def folder(tmp_path, make_samples, write_dataset):
    """A dataset of three shards with a codebook and rejects."""
    write_dataset(tmp_path / "local", make_samples(27), with_extras=True)
    return tmp_path / "local"


@pytest.fixture
def memory(folder):
    yield put_dataset(folder, "memory://bucket/set")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


@pytest.fixture
def site(folder, monkeypatch):
    """A web server with the dataset below `set`."""
    monkeypatch.setattr(stores, "RETRY_WAITS_S", (0.0, 0.0))
    with web_server() as made:
        made.files |= {f"set/{path.name}": path.read_bytes() for path in folder.iterdir()}
        yield made


def gets(site):
    """Names of the files that were read, and how often."""
    counts = {name[8:]: n for name, n in site.requests.items() if name.startswith("GET ")}
    site.requests.clear()
    return counts


def test_all_of_a_dataset_is_read(folder, memory, cache_dir, assert_same):
    here, there = ShardDataset(folder), ShardDataset(memory)
    assert str(there.path) == memory
    assert memory in repr(there)
    for sample, expected in zip(there, here, strict=True):
        assert_same(sample, expected)
    np.testing.assert_array_equal(there.codebook(), here.codebook())
    (copied,) = cache_dir.iterdir()
    assert copied.name == here.manifest.sha256
    for path in copied.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    again = copy(ShardDataset(memory, "val", cache_dir / "own"))  # as a pickle does it
    assert (again.path, again.split) == (memory, "val")
    assert_same(again[0], next(sample for sample in here if sample.split == "val"))
    assert [path.name for path in (cache_dir / "own").iterdir()] == [here.manifest.sha256]


def test_batches_of_a_loader(folder, memory, cache_dir):
    settings = {"batch_size": 4, "target": "text", "split": "train", "num_threads": 2}
    dataset = ShardDataset(memory, cache_dir=cache_dir / "own")
    for there in (memory, dataset):
        for found, expected in zip(
            ShardLoader(there, **settings), ShardLoader(folder, **settings), strict=True
        ):
            assert found.keys == expected.keys
            assert found.captions == expected.captions
            assert found.images_packed.equal(expected.images_packed)


def test_files_are_copied_when_they_are_needed(folder, site):
    dataset = ShardDataset(f"{site.url}/set/")
    assert gets(site) == {"dataset.json": 1}
    _ = dataset[0], dataset[1]
    assert gets(site) == {"00000.arrow": 1}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(dataset.files.local, ["00002.arrow"] * 4))
    assert gets(site) == {"00002.arrow": 1}
    _ = list(ShardDataset(f"{site.url}/set"))
    assert gets(site) == {"dataset.json": 1, "00001.arrow": 1}
    assert not list(dataset.files.folder.glob("*.lock"))


@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_failure_in_between_is_tried_again(folder, site, fault):
    site.faults |= {SHARD: [fault], "set/dataset.json": [fault]}
    _ = ShardDataset(f"{site.url}/set")[0]
    assert gets(site) == {"dataset.json": 2, "00000.arrow": 2}


def damage_size(data):
    return data[:-8], f"{len(data) - 8:,} bytes, expected {len(data):,} as in dataset"


def damage_value(data):
    return data[:-1] + bytes([data[-1] ^ 1]), r"sha256 \w{64}, expected \w{64} as in dataset"


@pytest.mark.parametrize("damage", [damage_size, damage_value])
def test_a_shard_that_is_wrong_is_refused(site, cache_dir, damage):
    sound = site.files[SHARD]
    site.files[SHARD], message = damage(sound)
    url = f"{site.url}/set"
    with pytest.raises(ShardError, match=f"^{url}/00000.arrow: {message}.json; put the file there"):
        _ = ShardDataset(url)[0]
    assert gets(site) == {"dataset.json": 1, "00000.arrow": 2}
    (copied,) = cache_dir.iterdir()
    assert list(copied.iterdir()) == []
    (problem,) = verify_dataset(url)
    assert (problem.file, problem.where) == ("00000.arrow", "")
    assert problem.found.startswith(message[:6])
    site.files[SHARD] = sound
    assert len(list(ShardDataset(url))) == 27
    assert verify_dataset(url) == []


def test_a_copy_that_is_wrong_once_is_made_again(site, monkeypatch):
    copy_url, wrong = copies.copy_url, [b"x"]

    def copied(url, path):
        copy_url(url, path)
        if wrong:
            path.write_bytes(wrong.pop())

    monkeypatch.setattr(copies, "copy_url", copied)
    dataset = ShardDataset(f"{site.url}/set")
    _ = dataset.codebook(), wrong.append(b"y"), dataset[0]
    assert not wrong


def test_what_a_killed_copy_left_is_removed(site):
    dataset = ShardDataset(f"{site.url}/set")
    dataset.files.folder.mkdir(parents=True)
    left = [dataset.files.folder / f"00000.arrow.im2sp-0123456{i}.tmp" for i in range(2)]
    for path in left:
        path.write_bytes(b"half")
    _ = dataset[0]
    (dataset.files.folder / "00000.arrow").write_bytes(b"cut short by hand")
    _ = ShardDataset(f"{site.url}/set")[0]
    assert os.listdir(dataset.files.folder) == ["00000.arrow"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "dataset.json: no such file, so this is not a finished dataset; give the folder"),
        (403, "dataset.json: cannot be read: status 403$"),
    ],
)
def test_a_dataset_that_cannot_be_read(site, capsys, status, message):
    url = f"{site.url}/set"
    site.faults["set/dataset.json"] = [status] * 3
    with pytest.raises(ShardError, match=f"^{url}/{message}"):
        ShardDataset(url)
    with pytest.raises(SystemExit, match="1"):
        verify([url, "--quiet"])
    assert capsys.readouterr().out.startswith(f"dataset.json: {url}/dataset.json: ")


def test_files_that_are_missing(site):
    url = f"{site.url}/set"
    del site.files[SHARD], site.files["set/codebook.safetensors"], site.files["set/rejects.jsonl"]
    with pytest.raises(ShardError, match=f"^{url}/00000.arrow: no such file$"):
        _ = ShardDataset(url)[0]
    with pytest.raises(ShardError, match=f"^{url}/codebook.safetensors: no such file$"):
        ShardDataset(url).tensors()
    found = [str(problem) for problem in verify_dataset(url)]
    names = ["codebook.safetensors", "00000.arrow", "rejects.jsonl"]
    assert [line.split(": no such file; ")[0] for line in found] == names


def test_a_changed_dataset_is_copied_again(
    tmp_path, folder, memory, cache_dir, make_samples, write_dataset, assert_same
):
    _ = ShardDataset(memory)[0]
    others = make_samples(5, seed=1)
    write_dataset(tmp_path / "other", others)
    put_dataset(tmp_path / "other", memory)
    assert_same(ShardDataset(memory)[0], others[0])
    assert len(list(cache_dir.iterdir())) == 2


def test_a_full_disk(memory, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dataset = ShardDataset(memory)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "get_file", fail)
    match = f"No space left on device; files of {memory} are copied there: free some space, or "
    with pytest.raises(OSError, match=match) as caught:
        _ = dataset[0]
    assert caught.value.filename == str(dataset.files.folder)


def test_an_index_file_needs_no_copies(site, monkeypatch):
    monkeypatch.setattr(index, "MIN_CACHED", 1)
    url, settings = f"{site.url}/set", {"batch_size": 4, "target": "text", "num_threads": 0}
    first = list(ShardLoader(url, **settings))
    assert len(gets(site)) == 4
    shutil.rmtree(ShardDataset(url).files.folder)
    loader = ShardLoader(url, **settings)
    assert gets(site) == {"dataset.json": 2}
    assert [batch.keys for batch in loader] == [batch.keys for batch in first]
    assert set(gets(site).values()) == {1}


@pytest.mark.parametrize("url", ["https://user:sesame@e.org/set", "https://e.org/set?key=sesame"])
def test_urls_with_secrets_are_refused(url):
    with pytest.raises(
        ValueError, match=r"^https://e\.org/set: a URL of a dataset has no user"
    ) as e:
        ShardDataset(url)
    assert "sesame" not in str(e.value)


def test_verify_reads_the_store_and_keeps_nothing(folder, site, cache_dir, capsys):
    url = f"{site.url}/set"
    _ = list(ShardDataset(url))
    gets(site)
    with pytest.raises(SystemExit, match="0"):
        verify([url, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset_dir"], found["ok"], found["num_samples"]) == (url, True, 27)
    assert gets(site) == {"dataset.json": 2} | {
        path.name: 1 for path in folder.iterdir() if path.name != "dataset.json"
    }
    with pytest.raises(SystemExit, match="0"):
        verify([f"{site.url}/set"])
    assert capsys.readouterr().out == f"{url}: 3 shards, 27 samples: sound\n"


def test_a_manifest_is_read_by_url(folder, memory):
    assert Manifest.read(memory).sha256 == Manifest.read(folder).sha256
