import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Sample,
    ShardDataset,
    ShardError,
    encode_batch,
    expand_members,
    verify_dataset,
)
from support.crafted import PLAIN, craft, craft_plain, plain_json, signed, tar_of


def check_refused(folder: Path, message: str) -> None:
    """A dataset is refused by the reader, and by im2sp-verify in one line."""
    with pytest.raises(ShardError, match=message):
        ShardDataset(folder)[0]
    (problem, *_) = verify_dataset(folder)
    assert "\n" not in str(problem)


def test_many_samples_without_a_large_image_are_refused(tmp_path: Path) -> None:
    image = {"codec": "packed", "bits": 16, "count": 1 << 24, "shape": [1 << 24]}
    columns = DEFAULT_COLUMNS | {"image_units": image}
    members = [(f"{i:09d}.json", plain_json(i, columns)) for i in range(256)]
    craft_plain(tmp_path, members, 256, columns)
    check_refused(tmp_path, "256 samples of 33554432 bytes each in .* more than .* of memory")
    huge = {"__key__": "0", "json": plain_json(0, columns)}
    assert next(iter(expand_members([huge])))["image_units"] is None  # 34 MB are within the limit


@pytest.mark.parametrize(
    ("changes", "image", "message"),
    [
        ({}, b"x" * 10, "10 bytes, expected 1274"),
        ({"key": "\ud800"}, None, "not valid Unicode"),
        ({"split": "\udfff"}, None, "not valid Unicode"),
        ({"captions": ["a", "\udc80"]}, None, "not valid Unicode"),
        ({"speech_units_sizes": [10**30, -(10**30)]}, None, "do not add up"),
    ],
)
def test_values_that_do_not_fit(
    tmp_path: Path, changes: dict[str, Any], image: bytes | None, message: str
) -> None:
    members = [("000000000.json", plain_json(0, **changes))]
    if image is not None:
        members.insert(0, ("000000000.image_units", image))
    craft_plain(tmp_path, members, 1)
    check_refused(tmp_path, message)
    with pytest.raises(ShardError, match=message):
        list(expand_members([{"__key__": "0", **{n.split(".")[1]: c for n, c in members}}]))


def test_json_nested_without_end(tmp_path: Path) -> None:
    for text in (b'{"a":' + b"[" * 200_000, b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"):
        craft_plain(tmp_path, [("000000000.json", text)], 1)
        check_refused(tmp_path, r"its \.json is not JSON")


def test_columns_whose_arrays_cannot_be_made(tmp_path: Path) -> None:
    for shape in ([784] + [1] * 65, [784] + [1] * 1_000_000):
        image = {"codec": "packed", "bits": 13, "count": 784, "shape": shape}
        columns = DEFAULT_COLUMNS | {"image_units": image}
        craft_plain(tmp_path, [("000000000.json", plain_json(0))], 1, columns)
        check_refused(tmp_path, r"shape .* axes")


def test_names_of_shards_that_no_file_can_have(tmp_path: Path) -> None:
    craft_plain(tmp_path, [("000000000.json", plain_json(0))], 1)
    content = json.loads((tmp_path / "dataset.json").read_bytes())
    for name in ("a" * 256, "é" * 255, "a\0b", "a\udc80b"):
        content["shards"][0]["file"] = name
        (tmp_path / "dataset.json").write_bytes(signed(content))
        check_refused(tmp_path, "shard file: .* expected a plain file name")


@pytest.mark.parametrize(
    "members",
    [
        [("000000000.json", plain_json(0)), ("000000000.json", plain_json(1))],
        [(name, bytes(1274)) for name in ("000000000.image_units",) * 2],
        [(".json", plain_json(0))],
        [("a.json", plain_json(0))],
    ],
    ids=str,
)
def test_members_that_occur_twice_or_have_other_names(tmp_path: Path, members: Any) -> None:
    craft_plain(tmp_path, members, 1)
    check_refused(tmp_path, r"tar member .*: expected each NNNNNNNNN\.COLUMN once")


@pytest.mark.parametrize("kind", [b"S", b"7", b"\0", b"1", b"2", b"3", b"6", b"x", b"L"])
def test_other_kinds_of_members(tmp_path: Path, kind: bytes) -> None:
    data = bytearray(tar_of([("000000000.json", plain_json(0))]))
    data[156:157] = kind
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    craft(tmp_path, bytes(data) + bytes(1024), [(0, len(data), 1)], layout=PLAIN)
    check_refused(tmp_path, "tar member '000000000.json': not a plain file, or truncated")


def test_lists_of_many_empty_values(tmp_path: Path) -> None:
    for changes in ({"speech_units_sizes": [0] * 65_537}, {"captions": [""] * 65_537}):
        craft_plain(tmp_path, [("000000000.json", plain_json(0, **changes))], 1)
        check_refused(tmp_path, "a list of 65537 values, expected at most 65536")
    with pytest.raises(ShardError, match="a list of 65537 values"):
        encode_batch([Sample(key="a", captions=[""] * 65_537)])
    with pytest.raises(ShardError, match="a list of 65537 values"):
        encode_batch([Sample(key="a", speech_units=[np.zeros(0, np.uint16)] * 65_537)])
