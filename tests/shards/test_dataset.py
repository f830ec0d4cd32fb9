import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from im2sp.shards import Manifest, Sample, ShardDataset, ShardError, encode_batch

Make = Callable[..., list[Sample]]
Write = Callable[..., Manifest]
Same = Callable[[Sample, Sample], None]


def test_round_trip(
    tmp_path: Path, layout: str, make_samples: Make, write_dataset: Write, assert_same: Same
) -> None:
    samples = make_samples(27)
    write_dataset(tmp_path, samples, layout)
    dataset = ShardDataset(tmp_path)
    assert len(dataset) == 27
    for i in np.random.default_rng(0).permutation(27):
        assert_same(dataset[i], samples[i])
        assert_same(dataset[int(i) - 27], samples[i])
    for found, expected in zip(dataset, samples, strict=True):
        assert_same(found, expected)
    for i in (27, -28, 10**30):
        with pytest.raises(IndexError, match="of 27"):
            dataset[i]
    with pytest.raises(TypeError):
        dataset["key"]  # type: ignore[index]


units = hnp.arrays(np.uint16, st.integers(0, 300), elements=st.integers(0, 255))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def any_samples(draw: st.DrawFn) -> Sample:
    images = hnp.arrays(np.uint16, (28, 28), elements=st.integers(0, 8191), fill=st.just(7))
    speech = draw(st.lists(units, max_size=3))
    durations = [
        draw(hnp.arrays(np.uint16, ids.size, elements=st.integers(1, 65535))) for ids in speech
    ]
    return Sample(
        key=draw(texts.filter(bool)),
        split=draw(texts),
        image_units=draw(st.none() | images),
        speech_units=speech,
        durations=draw(st.sampled_from([None, durations])),
        captions=draw(st.lists(texts, max_size=3)),
    )


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(samples=st.lists(any_samples(), min_size=1, max_size=6), batch_rows=st.integers(1, 6))
def test_any_samples_round_trip(
    tmp_path: Path,
    layout: str,
    samples: list[Sample],
    batch_rows: int,
    write_dataset: Write,
    assert_same: Same,
) -> None:
    write_dataset(tmp_path, samples, layout, batch_rows=batch_rows, shard_rows=4)
    for found, expected in zip(ShardDataset(tmp_path), samples, strict=True):
        assert_same(found, expected)


def test_splits(
    tmp_path: Path, layout: str, make_samples: Make, write_dataset: Write, assert_same: Same
) -> None:
    samples = make_samples(27)
    write_dataset(tmp_path, samples, layout)
    for split in ("train", "val", ""):
        expected = [sample for sample in samples if sample.split == split]
        dataset = ShardDataset(tmp_path, split=split)
        assert len(dataset) == len(expected) == 9
        assert_same(dataset[-1], expected[-1])
        for found, sample in zip(dataset, expected, strict=True):
            assert_same(found, sample)
    with pytest.raises(ShardError, match=r"no split 'test'; it has \['', 'train', 'val'\]"):
        ShardDataset(tmp_path, split="test")


def test_shards_of_other_splits_are_not_opened(
    tmp_path: Path, make_samples: Make, write_dataset: Write
) -> None:
    samples = sorted(make_samples(30), key=lambda sample: sample.split)
    write_dataset(tmp_path, samples, shard_rows=10)
    (tmp_path / "00000.arrow").unlink()
    assert [sample.split for sample in ShardDataset(tmp_path, "val")] == ["val"] * 10


def test_opening_reads_only_the_manifest(
    tmp_path: Path, make_samples: Make, write_dataset: Write
) -> None:
    write_dataset(tmp_path, make_samples(20))
    for path in tmp_path.glob("*.arrow"):
        path.unlink()
    dataset = ShardDataset(str(tmp_path))
    assert len(dataset) == 20
    assert "20 samples" in repr(dataset)
    with pytest.raises(ShardError, match=r"00000\.arrow: missing, dataset\.json lists it; copy"):
        dataset[0]


def test_unlisted_files_are_ignored(
    tmp_path: Path, make_samples: Make, write_dataset: Write
) -> None:
    for name in ("zzz.arrow", "dataset.py", "00000.arrow.tmp", "__init__.py"):
        (tmp_path / name).write_bytes(b"raise SystemExit('not me')")
    write_dataset(tmp_path, make_samples(3))
    assert len(list(ShardDataset(tmp_path))) == 3


def test_no_descriptor_is_held(tmp_path: Path, make_samples: Make, write_dataset: Write) -> None:
    write_dataset(tmp_path, make_samples(20), shard_rows=2)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    dataset = ShardDataset(tmp_path)
    assert len(list(dataset)) == 20
    assert (len(os.listdir("/proc/self/fd")) if before else 0) == before


def test_pickle_is_small_and_reopens_the_dataset(
    tmp_path: Path,
    make_samples: Make,
    write_dataset: Write,
    assert_same: Same,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = make_samples(20)
    write_dataset(tmp_path / "data", samples)
    monkeypatch.chdir(tmp_path)
    dataset = ShardDataset("data", split="val")
    list(dataset)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    found = ForkingPickler.loads(data)
    assert found.split == "val"
    for one, other in zip(found, dataset, strict=True):
        assert_same(one, other)
    write_dataset(tmp_path / "data", samples[:10])
    with pytest.raises(ShardError, match="has changed since it was pickled"):
        ForkingPickler.loads(data)


def _keys(dataset: ShardDataset, order: list[int]) -> list[str]:
    return [dataset[i].key for i in order]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_worker_processes(
    tmp_path: Path, layout: str, make_samples: Make, write_dataset: Write, method: str
) -> None:
    if method == "spawn" and layout != "arrow":
        return  # one slow start is enough
    samples = make_samples(20)
    write_dataset(tmp_path, samples, layout)
    dataset = ShardDataset(tmp_path)
    dataset[5]
    code = (
        "import json, sys; from multiprocessing.reduction import ForkingPickler; "
        "dataset = ForkingPickler.loads(sys.stdin.buffer.read()); "
        "json.dump([sample.key for sample in dataset], sys.stdout)"
    )
    if method == "spawn":
        answer = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(dataset),
            capture_output=True,
            check=True,
        )
        assert json.loads(answer.stdout) == [sample.key for sample in samples]
        return
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        sender.send(_keys(dataset, list(range(20))))

    process = context.Process(target=work)
    process.start()
    assert receiver.recv() == [sample.key for sample in samples]
    process.join()
    assert process.exitcode == 0
    assert dataset[19].key == samples[19].key


def test_batches_give_views_for_many_rows(
    tmp_path: Path, layout: str, make_samples: Make, write_dataset: Write
) -> None:
    samples = make_samples(27)
    write_dataset(tmp_path, samples, layout)
    dataset = ShardDataset(tmp_path)
    packed = encode_batch(samples).column("image_units").to_pylist()
    rows = 0
    for number in range(dataset.num_batches):
        batch = dataset.batch(number)
        images = batch.views["image_units"]
        assert images.data.shape == (batch.num_samples, 1274)
        for i in range(batch.num_samples):
            is_there = images.valid is None or bool(images.valid[i])
            assert (images.data[i].tobytes() if is_there else None) == packed[rows + i]
            assert dataset.locate(rows + i) == (number, i)
        rows += batch.num_samples
    assert rows == 27


def test_codebook(tmp_path: Path, make_samples: Make, write_dataset: Write) -> None:
    write_dataset(tmp_path, make_samples(3), with_extras=True)
    codebook = ShardDataset(tmp_path).codebook()
    assert (codebook.shape, codebook.dtype) == ((8192, 2), np.float32)
    assert codebook[8191, 1] == 16383
    path = tmp_path / "codebook.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"\x01")
    with pytest.raises(ShardError, match=r"codebook\.safetensors: sha256 .* != .*; copy the file"):
        ShardDataset(tmp_path).codebook()
    path.unlink()
    with pytest.raises(ShardError, match=r"codebook\.safetensors: missing"):
        ShardDataset(tmp_path).codebook()
    write_dataset(tmp_path, make_samples(3))
    with pytest.raises(ShardError, match="names no codebook"):
        ShardDataset(tmp_path).codebook()


def test_other_image_shapes(
    tmp_path: Path,
    layout: str,
    make_samples: Make,
    write_dataset: Write,
    assert_same: Same,
    tiny_columns: dict[str, Any],
) -> None:
    samples = make_samples(9, shape=(4, 4))
    write_dataset(tmp_path, samples, layout, columns=tiny_columns)
    for found, expected in zip(ShardDataset(tmp_path), samples, strict=True):
        assert_same(found, expected)


def test_importing_does_not_import_torch_or_compile() -> None:
    code = "import sys, im2sp.shards; assert not {'torch', 'numba', 'tyro'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_storage(tmp_path: Path, write_dataset: Write) -> None:
    """1,000 images with 21-byte keys and nothing else cost at most 1,330 bytes each."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 8192, (1000, 28, 28)).astype(np.uint16)
    samples = [
        Sample(key=f"{i:010d}_{i:010d}", split="val", image_units=image)
        for i, image in enumerate(images)
    ]
    write_dataset(tmp_path, samples, batch_rows=256, shard_rows=1000, with_extras=True)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sum(sizes.values()) - sizes["codebook.safetensors"] <= 1_330_000
