import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from im2sp.shards import DEFAULT_COLUMNS, Sample, ShardDataset, ShardError, ShardLoader
from im2sp.shards.coding import make_codecs
from support.loader import COLUMNS, loader_of, train_samples


@pytest.fixture(scope="module")
def train_dir(tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable) -> Path:
    path = tmp_path_factory.mktemp("train")
    write_dataset(path, train_samples(50), batch_rows=7, shard_rows=18)
    return path


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
    write_dataset(tmp_path / "images", [Sample(key="a", image_units=image)])
    for target, message in (
        ("speech", r"1 samples without utterances\); it has no speech; use another target"),
        ("text", r"1 samples without captions\); it has no captions; use another target"),
    ):
        with pytest.raises(ValueError, match=message):
            loader_of(tmp_path / "images", target=target)
    empty = Sample(key="a", split="val", image_units=image, captions=["", ""])
    other = Sample(key="b", split="train", image_units=image, captions=["a dog"])
    write_dataset(tmp_path / "empty", [empty, other])
    with pytest.raises(ValueError, match=r"none of 1 samples of split 'val' .*; it has no capt"):
        loader_of(tmp_path / "empty", target="text", split="val")
    write_dataset(tmp_path / "speech", [Sample(key="a", speech_units=[np.ones(3, np.uint16)])])
    with pytest.raises(ValueError, match=r"1 samples without image\); the loader needs images"):
        loader_of(tmp_path / "speech")
    with pytest.raises(ValueError, match="none of 50 samples .* longer than 1.*; use other"):
        loader_of(train_dir, target="text", max_length=1)
    for name in ("epochs", "num_threads"):
        with pytest.raises(ValueError, match=f"{name} is -1; expected 0 or more"):
            ShardLoader(train_dir, batch_size=2, **{name: -1})


def test_pinning_without_a_gpu(train_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        ValueError, match="pin_memory is for copying to a GPU, but torch finds none"
    ):
        loader_of(train_dir, pin_memory=True)


def test_an_empty_dataset(tmp_path: Path, write_dataset: Callable) -> None:
    write_dataset(tmp_path, [])
    with pytest.raises(ValueError, match=r"none of 0 samples .*\(it is empty\); use a dataset"):
        loader_of(tmp_path)


# Damage -------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found(tmp_path: Path, write_dataset: Callable, layout: str) -> None:
    write_dataset(tmp_path, train_samples(20), layout)
    path = sorted(tmp_path.glob("00001.*"))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    loader = loader_of(tmp_path, target="images")
    with pytest.raises(ShardError, match=rf"{path.name}: bytes .*crc32 .* in dataset\.json"):
        list(loader)


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [
        (
            "packed-10",
            b"\xff\xff\xff",
            "batch 0: sample 'b': column speech_units: packed units",
        ),
        (
            "varint",
            b"\x80",
            "batch 0: sample 'b': column speech_units: varint: id 0 is cut off",
        ),
        ("varint", b"\x85\x00", "not in shortest form"),
        ("varint", b"\xff\xff\x7f", "over 65535"),
        ("varint", b"\x80\x80\x80\x01", "longer than three bytes"),
        (
            "huffman",
            b"\xff\xff",
            "batch 0: sample 'b': column speech_units: huffman: value 0",
        ),
        (
            "range",
            b"\x05\xc8",
            "batch 0: sample 'b': column speech_units: id 1 is 200, not below 200",
        ),
    ],
)
@pytest.mark.parametrize("num_threads", [0, 2])
def test_invalid_values_are_named(
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
    if codec != "range":  # its lengths are known without decoding
        with pytest.raises(ShardError, match=message):
            loader_of(tmp_path, max_length=100)


def change_in_place(path: Path, wanted: np.ndarray, index: int, value: int) -> None:
    """Change a number of an array in a shard file, visible to mappings of the file."""
    place = path.read_bytes().index(wanted.tobytes())
    with open(path, "r+b") as file:
        file.seek(place + 4 * index)
        file.write(value.to_bytes(4, "little"))
        file.flush()
        os.fsync(file.fileno())


def test_offsets_that_change_under_the_loader(tmp_path: Path, write_dataset: Callable) -> None:
    write_dataset(tmp_path, train_samples(20))
    loader = loader_of(tmp_path, 20)
    list(loader)
    loader.reset()
    values = loader.dataset.batch(0).views["speech_units"].values
    change_in_place(tmp_path / "00000.arrow", values.offsets, 1, 1 << 30)
    with pytest.raises(ShardError, match=r"00000\.arrow: its offsets changed while it was in use"):
        list(loader)


def test_a_row_that_grows_beyond_the_known_lengths(tmp_path: Path, write_dataset: Callable) -> None:
    """The other samples have no image, so only one utterance's length is indexed."""
    units = np.arange(5, dtype=np.uint16)
    image = np.zeros((28, 28), np.uint16)
    write_dataset(
        tmp_path,
        [
            Sample(key=str(i), image_units=None if i else image, speech_units=[units] * (1 + i))
            for i in range(4)
        ],
    )
    loader = loader_of(tmp_path, max_length=9)
    list(loader)
    loader.reset()
    rows = loader.dataset.batch(0).views["speech_units"].offsets
    assert rows.tolist() == [0, 1, 3, 6, 10]
    change_in_place(tmp_path / "00000.arrow", rows, 1, 4)
    with pytest.raises(ShardError, match=r"00000\.arrow: its offsets changed while it was in use"):
        list(loader)


# Memory -------------------------------------------------------------------------------------------


def test_one_long_utterance_does_not_pad_a_batch_without_limit(
    tmp_path: Path, write_dataset: Callable
) -> None:
    image = np.zeros((28, 28), np.uint16)
    samples = [
        Sample(key=str(i), image_units=image, speech_units=[np.zeros(size, np.uint16)])
        for i, size in enumerate([800_000] + [2] * 127)
    ]
    write_dataset(tmp_path, samples, batch_rows=128, shard_rows=128)
    message = r"128 arrays padded to 800000 units takes 204,800,000 bytes .* set max_length"
    with pytest.raises(ValueError, match=message):
        list(loader_of(tmp_path, 128))
    assert sum(len(batch.images_packed) for batch in loader_of(tmp_path, 127, max_length=2)) == 127


def test_one_sample_of_many_captions(tmp_path: Path, write_dataset: Callable) -> None:
    image = np.zeros((28, 28), np.uint16)
    samples = [
        Sample(key=str(i), image_units=image, captions=["c"] * num)
        for i, num in enumerate([60_000] + [1] * 127)
    ]
    write_dataset(tmp_path, samples, batch_rows=128, shard_rows=128)
    with pytest.raises(ValueError, match="128 samples of up to 60000 items takes 153,600,000"):
        [batch.captions for batch in loader_of(tmp_path, 128, target="text", items="one")]
