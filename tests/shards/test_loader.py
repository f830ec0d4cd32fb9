import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Sample,
    ShardDataset,
    ShardError,
    ShardLoader,
    fit_speech_codec,
)
from making.loader import check_resume, content_of, expected_content, record

COLUMNS: dict[str, dict[str, Any]] = {
    "packed": DEFAULT_COLUMNS,
    "packed-10": DEFAULT_COLUMNS | {"speech_units": {"codec": "packed", "bits": 10}},
    "packed-16": DEFAULT_COLUMNS | {"speech_units": {"codec": "packed", "bits": 16}},
    "varint": DEFAULT_COLUMNS | {"speech_units": {"codec": "varint"}},
    "huffman": DEFAULT_COLUMNS | {"speech_units": fit_speech_codec([np.arange(200)] * 2, 200)},
}


def train_samples(num: int, seed: int = 0) -> list[Sample]:
    """Samples of one split that have an image, 1 to 3 utterances and a caption for each."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(num):
        speech = [
            rng.integers(0, 200, rng.integers(1, 40)).astype(np.uint16) for _ in range(1 + i % 3)
        ]
        samples.append(
            Sample(
                key=f"image {i}", split="train", speech_units=speech,
                image_units=rng.integers(0, 8192, (28, 28)).astype(np.uint16),
                captions=[f"{j}: " + "wörd " * int(rng.integers(0, 9)) for j in range(1 + i % 3)],
            )
        )  # fmt: skip
    return samples


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable) -> Path:
    path = tmp_path_factory.mktemp("train")
    write_dataset(path, train_samples(50), batch_rows=7, shard_rows=18)
    return path


def loader_of(path: Path | ShardDataset, batch_size: int = 8, **options: Any) -> ShardLoader:
    return ShardLoader(path, batch_size=batch_size, num_threads=0, **options)


def flat(batches: list) -> list:
    return [image for batch in batches for image in batch]


# What comes out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", COLUMNS)
@pytest.mark.parametrize("target", ["speech", "text", "images"])
def test_it_gives_what_a_loop_over_the_dataset_gives(
    tmp_path: Path, layout: str, codec: str, target: str,
    make_samples: Callable, write_dataset: Callable,
) -> None:  # fmt: skip
    """The samples lack images, utterances, durations and captions here and there."""
    write_dataset(tmp_path, make_samples(61), layout, columns=COLUMNS[codec])
    expected = expected_content(ShardDataset(tmp_path), target)
    in_order = record(loader_of(tmp_path, 7, target=target, shuffle=False))[1]
    assert flat(in_order) == list(expected.values())
    shuffled = flat(record(loader_of(tmp_path, 7, target=target))[1])
    assert shuffled != flat(in_order)
    assert sorted(shuffled) == sorted(flat(in_order))


@pytest.mark.parametrize("codec", COLUMNS)
@pytest.mark.parametrize("target", ["speech", "text"])
def test_lengths_and_splits_are_filtered(
    tmp_path: Path, codec: str, target: str, make_samples: Callable, write_dataset: Callable
) -> None:
    write_dataset(tmp_path, make_samples(90), columns=COLUMNS[codec])
    low, high = (3, 6) if target == "speech" else (20, 20)
    for split in ("train", "val" if target == "speech" else ""):
        options = {"target": target, "split": split, "min_length": low, "max_length": high}
        found = flat(record(loader_of(tmp_path, shuffle=False, **options))[1])
        expected = expected_content(ShardDataset(tmp_path, split), target, low, high)
        assert found == list(expected.values())
        assert found


def test_ids_are_wider_where_they_must_be(tmp_path: Path, write_dataset: Callable) -> None:
    sample = Sample(
        key="a", image_units=np.zeros((28, 28), np.uint16),
        speech_units=[np.array([0, 65535, 40000], np.uint16), np.array([7], np.uint16)],
    )  # fmt: skip
    for codec in ("packed-16", "varint"):
        write_dataset(tmp_path / codec, [sample], columns=COLUMNS[codec])
        (batch,) = loader_of(tmp_path / codec)
        assert str(batch.ids.dtype) == "torch.int32"
        assert batch.ids.tolist() == [[0, 65535, 40000], [7, -1, -1]]


def test_fields_of_a_batch(train_dir: Path) -> None:
    batch = next(iter(loader_of(train_dir, 8)))
    assert (batch.step, batch.epoch) == (0, 0)
    dtypes = [str(t.dtype) for t in (batch.images_packed, batch.ids, batch.lengths, batch.owner)]
    assert dtypes == ["torch.uint8", "torch.int16", "torch.int32", "torch.int32"]
    assert batch.images_packed.shape == (8, 1274)
    samples = {sample.key: sample for sample in ShardDataset(train_dir)}
    captions = [text for key in batch.keys for text in samples[key].captions]
    assert batch.captions == captions
    assert [batch.keys[row] for row in batch.caption_owner] == [
        key for key in batch.keys for _ in samples[key].captions
    ]
    moved = batch.to("cpu")
    assert content_of(moved) == content_of(batch)
    assert next(iter(loader_of(train_dir, 8, device="meta"))).ids.is_meta


def test_what_is_left_out_is_counted(tmp_path: Path, write_dataset: Callable) -> None:
    image = np.zeros((28, 28), np.uint16)
    lengths = [[3], [], [9, 2], [9, 10], [0], [4, 4, 4], [1]]
    samples = [
        Sample(
            key=str(i), split="b" if i == 6 else "a", image_units=None if i == 5 else image,
            speech_units=[np.arange(n, dtype=np.uint16) for n in sizes],
        )
        for i, sizes in enumerate(lengths)
    ]  # fmt: skip
    write_dataset(tmp_path, samples)
    loader = loader_of(tmp_path, split="a", min_length=2, max_length=8)
    assert loader.skipped == {
        "samples without image": 1,
        "samples without utterances": 1,
        "utterances shorter than 2": 1,
        "utterances longer than 8": 3,
        "samples with no utterances left": 2,
    }
    assert loader.num_samples == 2
    assert sorted(key for batch in loader for key in batch.keys) == ["0", "2"]
    unfiltered = loader_of(tmp_path, split="a")
    assert "utterances shorter than 1" in unfiltered.skipped
    assert not any("longer" in reason for reason in unfiltered.skipped)
    assert "2 samples, 1 steps an epoch" in repr(loader)


@pytest.mark.parametrize("target", ["speech", "text"])
@pytest.mark.parametrize("options", [{}, {"max_length": 20}, {"bucket_window": 3}])
def test_one_item_is_drawn(train_dir: Path, target: str, options: dict) -> None:
    loader = loader_of(train_dir, items="one", target=target, epochs=12, **options)
    expected = expected_content(
        ShardDataset(train_dir), target, high=options.get("max_length", 1000)
    )
    drawn: dict[str, list] = {key: [] for key in expected}
    for batch in loader:
        for key, image, items in content_of(batch):
            assert image == expected[key][1]
            assert len(items) == 1
            assert items[0] in expected[key][2]
            drawn[key] += items
    for key, items in drawn.items():
        assert len(items) == 12
        choices = [str(item) for item in expected[key][2]]
        assert len(choices) == 1 or len(set(map(str, items))) > 1
    again = loader_of(train_dir, items="one", target=target, epochs=12, **options)
    assert flat([content_of(batch) for batch in again]) == flat(record(fresh(again))[1])


def fresh(loader: ShardLoader) -> ShardLoader:
    loader.reset()
    return loader


def test_buckets_hold_like_lengths(train_dir: Path) -> None:
    def padding(**options: Any) -> int:
        batches = list(loader_of(train_dir, 5, items="one", **options))
        return sum(int((batch.ids == -1).sum()) for batch in batches)

    assert padding(bucket_window=10) < 0.5 * padding()
    bucketed = flat(record(loader_of(train_dir, 5, bucket_window=4))[1])
    assert sorted(bucketed) == sorted(flat(record(loader_of(train_dir, 5))[1]))


# Resuming, ranks, threads -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": "text", "items": "one"},
        {"bucket_window": 3, "drop_last": True},
        {"bucket_window": 2, "items": "one", "max_length": 30},
        {"shuffle": False, "drop_last": True},
        {"num_threads": 2},
    ],
)
def test_resume_at_every_step(train_dir: Path, options: dict) -> None:
    dataset = ShardDataset(train_dir)

    def make() -> ShardLoader:
        return ShardLoader(dataset, batch_size=8, epochs=2, **{"num_threads": 0, **options})

    batches = check_resume(make)
    assert len(batches) == 2 * make().steps_per_epoch
    assert batches[0] != batches[make().steps_per_epoch] or not options.get("shuffle", True)


@pytest.mark.parametrize("options", [{}, {"bucket_window": 3}, {"drop_last": True}])
def test_resume_on_another_number_of_ranks(train_dir: Path, options: dict) -> None:
    dataset = ShardDataset(train_dir)

    def make(world_size: int) -> list[ShardLoader]:
        shared = {"batch_size": 12 // world_size, "epochs": 2, "num_threads": 0, **options}
        return [
            ShardLoader(dataset, rank=rank, world_size=world_size, **shared)
            for rank in range(world_size)
        ]

    def steps(loaders: list[ShardLoader]) -> list[list]:
        parts = zip(*(record(loader)[1] for loader in loaders), strict=True)
        return [sorted(flat(list(part))) for part in parts]

    whole = steps(make(1))
    states = record(make(1)[0])[0]
    for world_size in (2, 3, 4):
        assert steps(make(world_size)) == whole
        for i, state in enumerate(states):
            loaders = make(world_size)
            assert len({json.dumps(loader.state_dict()) for loader in loaders}) == 1
            for loader in loaders:
                loader.load_state_dict(json.loads(json.dumps(state)))
            assert steps(loaders) == whole[i:]


def test_resume_with_other_batches_goes_on_with_the_same_samples(train_dir: Path) -> None:
    loader = loader_of(train_dir, 12)
    states, batches = record(loader)
    for i, state in enumerate(states[:-1]):
        other = loader_of(train_dir, 5)
        other.load_state_dict(state)
        assert flat(record(other)[1]) == flat(batches[i:])
    other = loader_of(train_dir, 48, drop_last=True, epochs=2)
    other.load_state_dict(loader_of_state(train_dir, 12))
    assert [batch.epoch for batch in other] == [1]


def loader_of_state(path: Path, batch_size: int) -> dict[str, Any]:
    """The state after the first step."""
    loader = loader_of(path, batch_size, drop_last=True, epochs=2)
    next(iter(loader))
    return loader.state_dict()


def test_ranks_take_as_many_steps_whatever_the_shards(
    tmp_path: Path, write_dataset: Callable
) -> None:
    write_dataset(tmp_path, train_samples(17), batch_rows=3, shard_rows=16)
    for drop_last in (False, True):
        loaders = [
            loader_of(tmp_path, 2, rank=rank, world_size=4, drop_last=drop_last)
            for rank in range(4)
        ]
        sizes = [[len(batch.keys) for batch in loader] for loader in loaders]
        last = [] if drop_last else [[1], [0], [0], [0]]
        assert sizes == [[2, 2, *(last[rank] if last else [])] for rank in range(4)]
    (*_, empty) = loader_of(tmp_path, 2, rank=3, world_size=4)
    assert (empty.images_packed.shape, empty.ids.shape) == ((0, 1274), (0, 0))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_threads_change_nothing(train_dir: Path, num_threads: int) -> None:
    dataset = ShardDataset(train_dir)
    options: dict[str, Any] = {"batch_size": 3, "epochs": 3, "bucket_window": 4}
    states, batches = record(ShardLoader(dataset, num_threads=0, **options))
    loader = ShardLoader(dataset, num_threads=num_threads, **options)
    assert record(loader) == (states, batches)


def test_threads_end_with_the_iteration(train_dir: Path) -> None:
    import threading

    before = threading.active_count()
    loader = ShardLoader(train_dir, batch_size=2, num_threads=2, epochs=None)
    iterator = iter(loader)
    next(iterator)
    assert threading.active_count() == before + 2
    iterator.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert next(iter(loader)).step == 1


def test_iterating_goes_on_where_it_was(train_dir: Path) -> None:
    loader = loader_of(train_dir)
    whole = record(fresh(loader))[1]
    assert list(loader) == []
    fresh(loader)
    for batch in loader:
        if batch.step == 2:
            break
    assert [content_of(batch) for batch in loader] == whole[3:]
    fresh(loader)
    first = iter(loader)
    next(first)
    loader.reset()
    with pytest.raises(RuntimeError, match="reset, or iterated once more"):
        next(first)


# Refusals -----------------------------------------------------------------------------------------


def test_states_that_do_not_fit(train_dir: Path, tmp_path: Path, write_dataset: Callable) -> None:
    loader = loader_of(train_dir, max_length=30)
    state = loader.state_dict()
    for change, message in (
        ({"version": 2}, "version 2, this im2sp reads 1"),
        ({"sample": -1}, "sample is -1; expected a whole number"),
        ({"epoch": "1"}, "epoch is '1'; expected a whole number"),
        ({"sample": 50}, r"sample is 50; an epoch has \d+ samples"),
        ({"settings": None}, "split was None and is None now|target was None and is 'speech' now"),
        ({"settings": state["settings"] | {"seed": 3}}, "seed was 3 and is 0 now; resume with"),
        ({"settings": state["settings"] | {"max_length": None}}, "max_length was None and is 30"),
    ):
        with pytest.raises(ValueError, match=message):
            loader.load_state_dict(state | change)
    bucketed = loader_of(train_dir, bucket_window=4)
    with pytest.raises(ValueError, match=r"a step had 8 samples and has 6 now; with buckets"):
        loader_of(train_dir, 6, bucket_window=4).load_state_dict(bucketed.state_dict())
    write_dataset(tmp_path, train_samples(50, seed=1))
    with pytest.raises(ValueError, match="of the dataset with manifest_sha256 .* this one has"):
        loader_of(tmp_path, max_length=30).load_state_dict(state)


def test_splits_that_do_not_fit(train_dir: Path) -> None:
    with pytest.raises(ShardError, match=r"no split 'test'; it has \['train'\]"):
        loader_of(train_dir, split="test")
    dataset = ShardDataset(train_dir, "train")
    assert loader_of(dataset).settings.split == "train"
    assert loader_of(ShardDataset(train_dir), split="train").settings.split == "train"
    with pytest.raises(ValueError, match="split is 'val', but the dataset is of split 'train'"):
        loader_of(dataset, split="val")


def test_no_sample_is_left(tmp_path: Path, train_dir: Path, write_dataset: Callable) -> None:
    image = np.zeros((28, 28), np.uint16)
    write_dataset(tmp_path / "pictures", [Sample(key="a", image_units=image)])
    for target, message in (
        ("speech", r"1 samples without utterances\); it holds no speech; take target 'text'"),
        ("text", r"1 samples without captions\); it holds no captions; take target 'speech'"),
    ):
        with pytest.raises(ValueError, match=message):
            loader_of(tmp_path / "pictures", target=target)
    write_dataset(tmp_path / "sounds", [Sample(key="a", speech_units=[np.ones(3, np.uint16)])])
    with pytest.raises(ValueError, match=r"1 samples without image\); the loader needs images"):
        loader_of(tmp_path / "sounds")
    with pytest.raises(ValueError, match="none of 50 samples .* longer than 1.*; take other"):
        loader_of(train_dir, target="text", max_length=1)
    for name in ("epochs", "num_threads"):
        with pytest.raises(ValueError, match=f"{name} is -1; expected 0 or more"):
            ShardLoader(train_dir, batch_size=2, **{name: -1})


def test_an_empty_dataset(tmp_path: Path, write_dataset: Callable) -> None:
    write_dataset(tmp_path, [])
    with pytest.raises(ValueError, match=r"none of 0 samples .*\(it is empty\); give one"):
        loader_of(tmp_path)


# Damage -------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found(tmp_path: Path, write_dataset: Callable, layout: str) -> None:
    write_dataset(tmp_path, train_samples(20), layout)
    path = sorted(tmp_path.glob("00001.*"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{path.name}: bytes .*crc32 .* in dataset\.json"):
        loader_of(tmp_path)


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [
        ("packed-10", b"\xff\xff\xff", "00000.arrow: batch 0: sample 'b': packed units"),
        ("varint", b"\x80", "00000.arrow: batch 0: sample 'b': varint: id 0 is cut off"),
        ("varint", b"\x85\x00", "not in shortest form"),
        ("varint", b"\xff\xff\x7f", "over 65535"),
        ("varint", b"\x80\x80\x80\x01", "longer than three bytes"),
        ("huffman", b"\xff\xff", "00000.arrow: batch 0: sample 'b': huffman: value 0"),
        ("range", b"\x05\xc8", "00000.arrow: batch 0: sample 'b': id 1 is 200, not below 200"),
    ],
)
@pytest.mark.parametrize("num_threads", [0, 2])
def test_values_that_no_codec_writes_are_named(
    tmp_path: Path, write_dataset: Callable, monkeypatch: pytest.MonkeyPatch,
    codec: str, value: bytes, message: str, num_threads: int,
) -> None:  # fmt: skip
    units = {"codec": "packed", "bits": 8, "num_units": 200}
    columns = COLUMNS.get(codec, DEFAULT_COLUMNS | {"speech_units": units})
    image = np.zeros((28, 28), np.uint16)
    samples = [
        Sample(key=key, image_units=image, speech_units=[np.array([size], np.uint16)])
        for key, size in (("a", 1), ("b", 77), ("c", 3))
    ]
    from im2sp.shards.codecs import make_codecs

    codec_class = type(make_codecs(columns).speech_units)
    encode = codec_class.encode
    monkeypatch.setattr(
        codec_class, "encode",
        lambda self, ids: value if ids.tolist() == [77] else encode(self, ids),
    )  # fmt: skip
    write_dataset(tmp_path, samples, columns=columns)
    loader = ShardLoader(tmp_path, batch_size=3, num_threads=num_threads)
    with pytest.raises(ShardError, match=message):
        list(loader)
    if codec != "range":  # there, lengths are known without decoding
        with pytest.raises(ShardError, match=message):
            loader_of(tmp_path, max_length=100)


def test_offsets_that_change_under_the_loader(tmp_path: Path, write_dataset: Callable) -> None:
    write_dataset(tmp_path, train_samples(20))
    loader = loader_of(tmp_path, 20)
    path = tmp_path / "00000.arrow"
    batch = loader.dataset.batch(0)
    wanted = batch.speech_units.values.offsets.tobytes()
    data = path.read_bytes()
    place = data.index(wanted)
    with open(path, "r+b") as file:  # in place: the mapping sees it
        file.seek(place + 4)
        file.write((1 << 30).to_bytes(4, "little"))
        file.flush()
        os.fsync(file.fileno())
    with pytest.raises(ShardError, match=r"00000\.arrow: its offsets changed while it was in use"):
        list(loader)
