import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from im2sp.shards import Layout, Sample, ShardError, encode_batch, files, write_shard

Make = Callable[..., list[Sample]]


def _open_full(*_: object) -> BinaryIO:
    return open("/dev/full", "wb")


def test_info_describes_the_file(
    tmp_path: Path, layout: str, layouts: dict[str, Layout], make_samples: Make
) -> None:
    samples = make_samples(11)
    batches = [encode_batch(samples[:4]), encode_batch(samples[4:5]), encode_batch(samples[5:])]
    info = write_shard(tmp_path / "a", batches, layouts[layout])
    data = (tmp_path / "a").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (info.file, info.size_bytes, info.num_samples) == ("a", len(data), 11)
    assert info.sha256 == hashlib.sha256(data).hexdigest()
    assert info.splits == {"train": 4, "val": 4, "": 3}
    for batch in info.batches:
        content = data[batch.offset : batch.offset + batch.size_bytes]
        assert zlib.crc32(content) == batch.crc32
    expected = {"arrow": [4, 1, 6], "packed": [3, 1, 1, 3, 3], "plain": [4, 1, 6]}[layout]
    assert [batch.num_samples for batch in info.batches] == expected


def test_same_input_same_bytes_even_from_slices(
    tmp_path: Path, layout: str, layouts: dict[str, Layout], make_samples: Make
) -> None:
    samples = make_samples(12)
    whole = encode_batch(samples)
    for name, batches in (
        ("a", [encode_batch(samples[:5]), encode_batch(samples[5:9])]),
        ("b", [whole.slice(0, 5), whole.slice(5, 4)]),
    ):
        write_shard(tmp_path / name, batches, layouts[layout])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_large_batches_are_cut(tmp_path: Path) -> None:
    samples = [Sample(key=str(i)) for i in range(600)]
    for layout in (
        Layout(),
        Layout(kind="webdataset"),
        Layout(kind="webdataset", samples_per_member=1),
    ):
        info = write_shard(tmp_path / "a", [encode_batch(samples)], layout)
        assert [batch.num_samples for batch in info.batches] == [256, 256, 88]


def test_tar_is_plain_ustar(tmp_path: Path, layouts: dict[str, Layout], make_samples: Make) -> None:
    for layout in ("packed", "plain"):
        write_shard(tmp_path / "a", [encode_batch(make_samples(7))], layouts[layout])
        data = (tmp_path / "a").read_bytes()
        with tarfile.open(tmp_path / "a", format=tarfile.USTAR_FORMAT) as tar:
            members = tar.getmembers()
            assert not tar.pax_headers
        assert [member.name for member in members] == sorted(member.name for member in members)
        for member in members:
            assert member.isreg()
            assert not member.pax_headers
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")
        content_bytes = sum(512 + member.size + -member.size % 512 for member in members)
        assert len(data) == content_bytes + 1024
    assert [member.name for member in members[:3]] == [
        "000000000.durations",
        "000000000.image_units",
        "000000000.json",
    ]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_exception_leaves_the_old_file_and_no_other(
    tmp_path: Path, layout: str, layouts: dict[str, Layout], error: BaseException
) -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield encode_batch([Sample(key="a")])
        raise error

    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        write_shard(path, failing(), layouts[layout])
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_oserror(
    tmp_path: Path,
    layout: str,
    layouts: dict[str, Layout],
    make_samples: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "open", _open_full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "a", [encode_batch(make_samples(100))], layouts[layout])
    assert os.listdir(tmp_path) == []


def test_no_samples_are_refused(tmp_path: Path, layout: str, layouts: dict[str, Layout]) -> None:
    for batches in ([], [encode_batch([])]):
        with pytest.raises(ShardError, match="a: no samples"):
            write_shard(tmp_path / "a", batches, layouts[layout])
    assert os.listdir(tmp_path) == []


def test_foreign_and_mixed_batches_are_refused(
    tmp_path: Path, tiny_columns: dict[str, Any]
) -> None:
    with pytest.raises(ShardError, match="im2sp format note is missing"):
        write_shard(tmp_path / "a", [pa.record_batch({"x": [1]})])
    ours = encode_batch([Sample(key="a")])
    other = encode_batch([Sample(key="a")], tiny_columns)
    with pytest.raises(ShardError, match="different columns"):
        write_shard(tmp_path / "a", [ours, other])
    with pytest.raises(ShardError, match="batch has schema"):
        write_shard(tmp_path / "a", [ours.select(["key", "split"])])
