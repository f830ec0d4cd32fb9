"""Any damage causes a ShardError or has no effect; never wrong data or a crash."""

import dataclasses
import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import BatchInfo, Manifest, Sample, ShardDataset, ShardError, verify_dataset
from support.columns import LAYOUTS, make_rows, write_rows

Make = Callable[..., list[Sample]]
Write = Callable[..., Manifest]
Same = Callable[[Sample, Sample], None]


@pytest.fixture
def dataset_dir(
    tmp_path: Path, layout: str, make_samples: Make, write_dataset: Write, tiny_columns: Any
) -> Path:
    """A dataset with all kinds of files, small enough to damage at every byte."""
    samples = make_samples(6, shape=(4, 4))
    write_dataset(tmp_path, samples, layout, columns=tiny_columns, with_extras=True)
    assert verify_dataset(tmp_path) == []
    return tmp_path


def places(size_bytes: int, num: int) -> list[int]:
    """Up to `num` byte positions: both ends, and a random choice of the rest."""
    if size_bytes <= num:
        return list(range(size_bytes))
    chosen = random.Random(size_bytes).sample(range(size_bytes), num)
    return sorted({0, size_bytes - 1, *chosen})


def check_right_or_refused(dataset_dir: Path, expected: list[Sample], assert_same: Same) -> bool:
    """Read all samples; return whether one was refused."""
    refused = False
    try:
        dataset = ShardDataset(dataset_dir)
    except ShardError:
        return True
    for i, sample in enumerate(expected):
        try:
            found = dataset[i]
        except ShardError as error:
            if str(dataset_dir) not in str(error):
                pytest.fail(f"does not name the dataset: {error}")
            refused = True
        else:
            assert_same(found, sample)
    return refused


def test_a_flipped_bit_anywhere(
    dataset_dir: Path, layout: str, make_samples: Make, assert_same: Same
) -> None:
    expected = make_samples(6, shape=(4, 4))
    shard = Manifest.read(dataset_dir).shards[0]
    for path in sorted(dataset_dir.iterdir()):
        data = path.read_bytes()
        # test_manifest.py flips every byte of a dataset.json
        for i in places(len(data), 150 if path.name == shard.file else 30):
            path.write_bytes(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :])
            problems = verify_dataset(dataset_dir)
            assert problems, f"{path.name} byte {i}"
            assert {problem.file for problem in problems} <= {path.name, "dataset.json"}
            refused = check_right_or_refused(dataset_dir, expected, assert_same)
            in_batch = path.name == shard.file and any(
                batch.offset <= i < batch.offset + batch.size_bytes for batch in shard.batches
            )
            assert refused == (in_batch or path.name == "dataset.json"), f"{path.name} byte {i}"
            if in_batch:
                assert any(
                    problem.where and "crc32" in problem.found and path.name == problem.file
                    for problem in problems
                )
        path.write_bytes(data)


def test_a_cut_anywhere(dataset_dir: Path, make_samples: Make, assert_same: Same) -> None:
    expected = make_samples(6, shape=(4, 4))
    for path in sorted(dataset_dir.iterdir()):
        data = path.read_bytes()
        for size_bytes in places(len(data), 40):
            path.write_bytes(data[:size_bytes])
            assert verify_dataset(dataset_dir), f"{path.name} cut to {size_bytes}"
            check_right_or_refused(dataset_dir, expected, assert_same)
        path.write_bytes(data)


def test_messages_name_file_place_found_expected_and_remedy(dataset_dir: Path) -> None:
    shard = Manifest.read(dataset_dir).shards[0]
    path, batch = dataset_dir / shard.file, shard.batches[0]
    data = bytearray(path.read_bytes())
    data[batch.offset + 700] ^= 4
    path.write_bytes(data)
    start, end = batch.offset, batch.offset + batch.size_bytes
    found = zlib.crc32(data[start:end])
    with pytest.raises(ShardError) as caught:
        ShardDataset(dataset_dir)[0]
    assert str(caught.value) == (
        f"{path}: bytes {start} to {end - 1}: crc32 {found:08x} != {batch.crc32:08x} in "
        "dataset.json; copy the file again or rebuild the dataset with im2sp-tokenize"
    )
    assert ShardDataset(dataset_dir)[5].key  # other batches are intact
    path.write_bytes(data + b"x")
    with pytest.raises(ShardError, match=f"{len(data) + 1} bytes, dataset.json says {len(data)}"):
        ShardDataset(dataset_dir)[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(ShardError, match="not a regular file"):
        ShardDataset(dataset_dir)[0]


def test_forged_batch_ranges_with_right_checksums(
    dataset_dir: Path, layout: str, forge: Callable[..., None]
) -> None:
    """Ranges of other bytes and wrong counts, with a matching crc32."""
    shard = Manifest.read(dataset_dir).shards[0]
    data = (dataset_dir / shard.file).read_bytes()
    good = (dataset_dir / "dataset.json").read_bytes()

    def forged(offset: int, size_bytes: int, num_samples: int) -> Callable[[dict[str, Any]], None]:
        def change(content: dict[str, Any]) -> None:
            crc32 = zlib.crc32(data[offset : offset + size_bytes])
            content["shards"][0].update(
                batches=[
                    {
                        "offset": offset,
                        "size_bytes": size_bytes,
                        "num_samples": num_samples,
                        "crc32": crc32,
                    }
                ],
                num_samples=num_samples,
                splits={"": num_samples},
            )
            content.update(num_samples=num_samples, splits={"": num_samples})

        return change

    first = shard.batches[0]
    tries = [
        (first.offset, first.size_bytes, first.num_samples + 1),
        (first.offset, first.size_bytes, first.num_samples - 1),
        (first.offset, first.size_bytes - 16, first.num_samples),
        (first.offset, 1, 1),
    ]
    if layout != "plain":
        tries += [
            (first.offset + 8, first.size_bytes, first.num_samples),
            (first.offset - 8, first.size_bytes, first.num_samples),
            (first.offset + 1, first.size_bytes - 1, first.num_samples),
        ]
    for offset, size_bytes, num_samples in tries:
        (dataset_dir / "dataset.json").write_bytes(good)
        forge(dataset_dir, forged(offset, size_bytes, num_samples))
        assert verify_dataset(dataset_dir)
        with pytest.raises(ShardError, match=f"{shard.file}: bytes {offset} to"):
            ShardDataset(dataset_dir)[0]


def num_forged_refused(
    path: Path, batch: BatchInfo, forge: Callable[..., None], *, num_copies: int, seed: int
) -> int:
    """Damage a batch at random and update its crc32; the number of copies that are refused."""
    data = path.read_bytes()
    rng = random.Random(seed)
    num_refused = 0
    for _ in range(num_copies):
        broken = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(batch.offset, batch.offset + batch.size_bytes)
            broken[place] = rng.choice([0, 127, 128, 255, rng.randrange(256)])
        path.write_bytes(broken)
        content = bytes(broken[batch.offset : batch.offset + batch.size_bytes])

        def fit(text: dict[str, Any], crc32: int = zlib.crc32(content)) -> None:
            text["shards"][0]["batches"][0]["crc32"] = crc32

        forge(path.parent, fit)
        try:
            dataset = ShardDataset(path.parent)
            for i in range(batch.num_samples):
                _ = dataset[i]
        except ShardError:
            num_refused += 1
        verify_dataset(path.parent)
    return num_refused


def test_forged_batches_never_crash(dataset_dir: Path, forge: Callable[..., None]) -> None:
    """Random damage with an updated crc32: refused or read, no other exception."""
    manifest = Manifest.read(dataset_dir)
    path = dataset_dir / manifest.shards[0].file
    batch = manifest.shards[0].batches[0]
    assert num_forged_refused(path, batch, forge, num_copies=150, seed=0) > 25


def test_a_wrong_codec_in_the_manifest_is_found(
    dataset_dir: Path, layout: str, forge: Callable[..., None]
) -> None:
    forge(dataset_dir, lambda content: content["columns"]["speech_units"].update(bits=16))
    assert any(
        "differs from that in dataset.json" in problem.found
        for problem in verify_dataset(dataset_dir)
    )
    if layout != "arrow":  # an Arrow message does not carry its schema
        with pytest.raises(ShardError, match="differs from that in dataset.json"):
            ShardDataset(dataset_dir)[0]


def test_manifest_and_shard_of_different_runs(
    tmp_path: Path, layout: str, make_samples: Make, write_dataset: Write
) -> None:
    old = write_dataset(tmp_path, make_samples(5, seed=0), layout)
    write_dataset(tmp_path, make_samples(5, seed=1), layout)
    shard = old.shards[0]
    dataclasses.replace(old, shards=(shard,)).write(tmp_path)
    with pytest.raises(ShardError, match=r"crc32|bytes, dataset\.json says"):
        _ = ShardDataset(tmp_path)[0]
    assert json.loads((tmp_path / "dataset.json").read_text())["num_samples"] == 5
    assert np.all([problem.file == shard.file for problem in verify_dataset(tmp_path)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forged_batches_of_version_2_never_crash(
    tmp_path: Path, layout: str, forge: Callable[..., None]
) -> None:
    dataset = write_rows(tmp_path, make_rows(18), **LAYOUTS[layout])
    shard = dataset.manifest.shards[0]
    path, batch = tmp_path / shard.file, shard.batches[0]
    assert num_forged_refused(path, batch, forge, num_copies=80, seed=1) > 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": "ans"}, "column line: codec 'ans' is unknown"),
        ({"order": 1}, r"column line: codec packed lacks or does not know \['order'\]"),
        ({"shape": 3}, "column line: shape is 3; expected a list"),
        ({"shape": [1 << 30]}, "column line: an axis of shape is 1073741824"),
        ({"shape": [True]}, "column line: an axis of shape is True"),
        ({"num_codes": 1.5}, "column line: num_codes is 1.5"),
        ({"many": None}, "column line: many is None"),
        ({"type": "string"}, "column line: type 'string', expected one of"),
        ({"type": ["x"]}, "column line: type "),
    ],
)
def test_columns_of_version_2_that_make_no_sense(
    tmp_path: Path, forge: Callable[..., None], change: dict[str, Any], message: str
) -> None:
    write_rows(tmp_path, make_rows(2))
    forge(tmp_path, lambda content: content["columns"]["line"].update(change))
    with pytest.raises(ShardError, match=message):
        ShardDataset(tmp_path)
    forge(tmp_path, lambda content: content["columns"]["line"].clear())
    with pytest.raises(ShardError, match="column line: has no 'shape'"):
        ShardDataset(tmp_path)
    forge(tmp_path, lambda content: content["columns"].update({"a b": {"type": "string"}}))
    with pytest.raises(ShardError, match="column 'a b': expected a name"):
        ShardDataset(tmp_path)
    assert verify_dataset(tmp_path)
