import multiprocessing
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from im2sp.shards import ShardError, verify_dataset
from im2sp.shards.files import (
    atomic_dir,
    atomic_file,
    create_file,
    file_lock,
    lines_of,
    open_regular,
    output_lock,
    parse_json,
    read_json,
    read_regular,
    read_text,
    read_toml,
    remove_leftovers,
    temporary_path,
)


def test_two_writers_of_one_file_publish_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "chunk-000000.arrow"
    first, second = atomic_file(path), atomic_file(path)
    slow = first.__enter__()
    slow.write(b"A" * 1000)
    fast = second.__enter__()
    fast.write(b"B" * 10)
    assert not path.exists()
    first.__exit__(None, None, None)
    assert path.read_bytes() == b"A" * 1000
    fast.write(b"B" * 990)
    second.__exit__(None, None, None)
    assert path.read_bytes() == b"B" * 1000
    assert os.listdir(tmp_path) == [path.name]


def _write_often(path: Path, byte: bytes) -> None:
    for length in range(1, 200):
        with atomic_file(path) as file:
            file.write(byte * 5000)
            file.flush()
            file.write(byte * length)


def test_processes_that_write_one_file_never_mix_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_often, args=(path, byte)) for byte in (b"a", b"b")]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            data = path.read_bytes()
            assert len(data) > 5000
            assert len(set(data)) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["file"]


def _create(path: Path, data: bytes) -> None:
    create_file(path, data)
    if path.read_bytes() not in (b"a" * 5000, b"b" * 5000):
        os._exit(1)


def test_of_several_writers_one_creates_a_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for i in range(10):
        path = tmp_path / str(i)
        writers = [
            context.Process(target=_create, args=(path, byte * 5000)) for byte in (b"a", b"b")
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [0, 0]
        data = path.read_bytes()
        create_file(path, b"new")
        assert path.read_bytes() == data
    assert len(os.listdir(tmp_path)) == 10


def test_a_shared_lock_excludes_exclusive_ones_only(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with file_lock(path, is_shared=True) as first, file_lock(path, is_shared=True) as second:
        assert (first, second) == (True, True)
        with file_lock(path) as third:
            assert not third
    with file_lock(path) as first, file_lock(path, is_shared=True) as second:
        assert (first, second) == (True, False)


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    temporary_path(tmp_path / "a.arrow").write_bytes(b"half")
    temporary_path(tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    folder = temporary_path(tmp_path / "step-000001")
    (folder / "inner").mkdir(parents=True)
    others = ["a.tmp", "a.im2sp-0123.tmp", "b.im2sp-0123abcd.tmp.txt", "elsewhere"]
    for name in others:
        (tmp_path / name).touch()
    with atomic_file(tmp_path / "b") as file, atomic_dir(tmp_path / "c") as live:
        (live / "content").touch()
        file.write(b"whole")
        remove_leftovers(tmp_path, "a.arrow")
        assert folder.exists()
        remove_leftovers(tmp_path)
    left = {path.name for path in tmp_path.iterdir() if not path.is_symlink()}
    assert left == {*others, "b", "c"}
    assert (tmp_path / "b").read_bytes() == b"whole"
    remove_leftovers(tmp_path / "absent")


def test_a_folder_is_published_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_dir(tmp_path / "out") as folder:
        (folder / "absent").unlink()
    assert os.listdir(tmp_path) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "foreign").touch()
    with pytest.raises(OSError, match="not empty"), atomic_dir(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_is_held_by_one_process(tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    with output_lock(out):
        (out / "file").touch()
        temporary_path(out / "other").touch()
        with pytest.raises(ValueError, match="another im2sp command is writing here; wait"):
            output_lock(out).__enter__()
    with output_lock(out):
        assert sorted(os.listdir(out)) == [".im2sp-lock", "file"]
    assert os.listdir(out) == ["file"]
    with output_lock(out / "x.npy", is_folder=False), output_lock(out / "y.npy", is_folder=False):
        assert sorted(os.listdir(out)) == ["file", "x.npy.im2sp-lock", "y.npy.im2sp-lock"]
    with output_lock(tmp_path / "unused"):
        pass
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_of_the_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = f"No space left on device: '{tmp_path / 'a'}'"
    with pytest.raises(OSError, match=message), atomic_file(tmp_path / "a") as file:
        file.write(b"content")


def odd_files(folder: Path) -> dict[str, Path]:
    """A folder, a pipe and an endless device, by their names in messages."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    return {"a folder": folder / "folder", "a pipe": folder / "pipe", "a device": folder / "zero"}


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    for kind, path in odd_files(tmp_path).items():
        for read in (read_regular, read_text, read_json, read_toml, open_regular):
            with pytest.raises(OSError, match=f"found {kind}, expected a file"):
                read(path)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "link", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, expected at most 4"):
        read_regular(tmp_path / "file", max_bytes=4)


def test_sparse_files_and_endless_lines_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    for read in (read_regular, read_text, read_json):
        with pytest.raises(OSError, match="1,099,511,627,776 bytes, expected at most 1,073,741,82"):
            read(path)
    with pytest.raises(OSError, match="bytes, expected at most 4,000,000"):
        read_toml(path)
    with open_regular(path) as file, pytest.raises(OSError, match="a line of more than 16,777,216"):
        list(lines_of(file))
    assert tracemalloc.get_traced_memory()[1] < 64_000_000
    tracemalloc.stop()
    path.write_bytes(b"a\nb\r\nc")
    with open(path, newline="") as file:
        assert list(lines_of(file)) == ["a\n", "b\r\n", "c"]


def test_json_of_many_empty_lists(tmp_path: Path) -> None:
    for text in ("[" + "[]," * 3_000_000 + "0]", b"[" + b"{}," * 3_000_000 + b"0]"):
        with pytest.raises(ValueError, match="3,000,00. lists and objects in 9,00"):
            parse_json(text)
    assert parse_json("\ufeff[[]]") == [[]]


def test_a_byte_order_mark_is_skipped_and_deep_nesting_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {"a": 1}
    path.write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(path) == {"a": 1}
    assert read_text(path) == "a = 1"
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)
    path.write_bytes(b"a = " + b"[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_toml(path)


@pytest.mark.parametrize("name", ["dataset.json", "codebook.safetensors", "rejects.jsonl"])
def test_a_dataset_with_a_pipe_or_device_is_refused(
    tmp_path: Path, name: str, make_samples: Callable[..., Any], write_dataset: Callable[..., Any]
) -> None:
    for number, odd in enumerate(odd_files(tmp_path).values()):
        folder = tmp_path / f"dataset-{number}"
        write_dataset(folder, make_samples(3), with_extras=True)
        (folder / name).unlink()
        (folder / name).symlink_to(odd)
        try:
            problems = str(verify_dataset(folder))
        except ShardError as error:
            problems = str(error)
        assert "found a" in problems
        assert name in problems
