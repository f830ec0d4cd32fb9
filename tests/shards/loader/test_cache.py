"""The index file: used by later loaders, made anew if damaged, never in the way."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import ShardDataset, ShardError
from im2sp.shards.loader import index as index_module
from im2sp.shards.loader.cache import read_arrays, write_arrays
from support.loader import loader_of, train_samples

KINDS: list[dict[str, Any]] = [
    {"target": "images"},
    {"target": "text", "max_length": 20},
    {"target": "speech", "bucket_window": 2, "items": "one", "world_size": 2, "rank": 1},
    {"target": "speech", "split": "train", "min_length": 3, "max_length": 30},
]


@pytest.fixture
def dataset(tmp_path: Path, write_dataset: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset that is large enough for an index file, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module, "MIN_CACHED", 1)
    write_dataset(tmp_path / "data", train_samples(60))
    return tmp_path / "data"


def content(dataset: Path, **options: Any) -> tuple[Any, ...]:
    loader = loader_of(dataset, 4, **options)
    batches = [
        (batch.keys, batch.captions, batch.images_packed.tolist(), batch.ids.tolist())
        for batch in loader
    ]
    return batches, loader.state_dict(), loader.skipped


def count_made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    make = index_module.LoaderIndex._made
    monkeypatch.setattr(
        index_module.LoaderIndex, "_made", lambda self: (made.append("made"), make(self))[1]
    )
    return made


def index_files(dataset: Path) -> list[Path]:
    return [path for path in (dataset.parent / "cache/im2sp/index").iterdir() if not path.suffix]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_file_gives_the_same_batches(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    before = sorted(dataset.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "MIN_CACHED", 1 << 40)
        expected = content(dataset, **options)
    made = count_made(monkeypatch)
    assert content(dataset, **options) == expected
    assert content(dataset, **options) == expected
    assert (len(made), len(index_files(dataset))) == (1, 1)
    assert sorted(dataset.iterdir()) == before


def test_other_settings_and_other_datasets_have_other_files(
    dataset: Path, write_dataset: Callable
) -> None:
    for options in KINDS:
        content(dataset, **options)
    write_dataset(dataset.parent / "other", train_samples(60, seed=1))
    content(dataset.parent / "other", **KINDS[0])
    assert len(index_files(dataset)) == 5


def test_a_damaged_file_is_made_anew(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = content(dataset, **KINDS[3])
    (path,) = index_files(dataset)
    sound = path.read_bytes()
    made = count_made(monkeypatch)
    flipped = [sound[:i] + bytes([sound[i] ^ 1]) + sound[i + 1 :] for i in (0, 9, 70, 999)]
    for damaged in [b"", sound[:50], sound[:-64], sound + b"0", *flipped]:
        path.write_bytes(damaged)
        assert content(dataset, **KINDS[3]) == expected
        assert path.read_bytes() == sound
    assert len(made) == 8


def test_a_folder_that_cannot_be_written(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (dataset.parent / "file").write_bytes(b"")
    expected = content(dataset, **KINDS[0])
    monkeypatch.setenv("XDG_CACHE_HOME", str(dataset.parent / "file"))
    assert content(dataset, **KINDS[0]) == expected


def test_a_full_disk(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = content(dataset, **KINDS[0])
    index_files(dataset)[0].unlink()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    made = count_made(monkeypatch)
    monkeypatch.setattr("im2sp.shards.files.os.fsync", fail)
    assert content(dataset, **KINDS[0]) == expected
    assert (len(made), index_files(dataset)) == (1, [])


def test_one_of_several_makes_it(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = count_made(monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(lambda _: content(dataset, **KINDS[3]), range(4)))
    assert contents == contents[:1] * 4
    assert len(made) == 1


def test_a_shard_that_was_damaged_when_the_file_was_made(dataset: Path) -> None:
    """It is named by its checksum first, and once it is replaced the file is made anew."""
    shard = dataset / "00000.arrow"
    sound = shard.read_bytes()
    offsets = ShardDataset(dataset).batch(0).views["speech_units"].values.offsets
    at = sound.index(np.ascontiguousarray(offsets).tobytes()) + 4
    shard.write_bytes(sound[:at] + bytes([sound[at] - 1]) + sound[at + 1 :])
    for _ in range(2):
        with pytest.raises(ShardError, match=r"00000\.arrow: bytes .*crc32 .* in dataset\.json"):
            content(dataset, max_length=99)
    shard.write_bytes(sound)
    message = r"00000\.arrow: its samples differ from the index .* removed now, start again"
    with pytest.raises(ShardError, match=message):
        content(dataset, max_length=99)
    assert content(dataset, max_length=99)[0]


def test_arrays_are_read_as_written(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5, dtype=np.uint32), "none": np.zeros(0, np.int32), "b": np.arange(9)}
    write_arrays(tmp_path / "x", arrays, {"long": 3})
    found = read_arrays(tmp_path / "x")
    assert found is not None
    assert found[1] == {"long": 3}
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[0][name], array, strict=True)
        assert not array.size or not found[0][name].flags.owndata
