"""pyarrow, datasets and webdataset read the shards."""

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from im2sp.shards import (
    DatasetWriter,
    Manifest,
    Sample,
    ShardDataset,
    ShardError,
    UnitColumn,
    datasets_transform,
    decode_row,
    encode_batch,
    expand_members,
    unpack_units,
)
from support.columns import COLUMNS, LAYOUTS, assert_same_row, make_rows, write_rows

Make = Callable[..., list[Sample]]
Write = Callable[..., Manifest]


def test_pyarrow(tmp_path: Path, make_samples: Make, write_dataset: Write) -> None:
    samples = make_samples(10)
    write_dataset(tmp_path, samples)
    with pa.memory_map(str(tmp_path / "00000.arrow")) as source:
        file = pa.ipc.open_file(source)
        assert file.num_record_batches == 3
        table = file.read_all()
    table.validate(full=True)
    assert table.to_pylist() == encode_batch(samples).to_pylist()


def test_datasets(
    tmp_path: Path, make_samples: Make, write_dataset: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    samples = make_samples(15)
    write_dataset(tmp_path / "data", samples)
    datasets.disable_progress_bars()
    found = datasets.load_dataset(
        "arrow",
        data_files=[str(path) for path in sorted((tmp_path / "data").glob("*.arrow"))],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert found.column_names == [
        "key",
        "split",
        "image_units",
        "speech_units",
        "durations",
        "captions",
    ]
    assert found["key"][:] == [sample.key for sample in samples]
    packed = np.frombuffer(found[0]["image_units"], np.uint8)
    assert samples[0].image_units is not None
    np.testing.assert_array_equal(unpack_units(packed), samples[0].image_units.ravel())


@pytest.mark.filterwarnings(  # the library does not close its files
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("layout", ["packed", "plain"], indirect=True)
def test_webdataset(
    tmp_path: Path,
    layout: str,
    make_samples: Make,
    write_dataset: Write,
    assert_same: Callable[[Sample, Sample], None],
) -> None:
    import webdataset

    samples = make_samples(27)
    write_dataset(tmp_path, samples, layout)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    assert len(urls) == 3
    dataset = webdataset.WebDataset(urls, shardshuffle=False).compose(expand_members)
    found = list(dataset)
    del dataset
    gc.collect()
    assert len(found) == 27
    for row, sample in zip(found, samples, strict=True):
        assert row.pop("__key__") == sample.key
        assert row.pop("__url__") in urls
        assert_same(Sample(**row), sample)


def test_expand_members_refuses_foreign_members() -> None:
    for members, message in (
        ({"jpg": b"x"}, r"u\.tar: member k: neither \.arrow nor \.json"),
        ({"arrow": b"x"}, "not an Arrow stream"),
        ({"json": b"["}, "not JSON"),
        ({"json": b"[]"}, "holds no object"),
        ({"json": b"{}"}, "im2sp format note is missing"),
        ({"json": b'{"format":{"format_version":9,"columns":{}}}'}, "format version 9"),
    ):
        with pytest.raises(ShardError, match=message):
            list(expand_members([{"__key__": "k", "__url__": "u.tar", **members}]))


# Version 2 ----------------------------------------------------------------------------------------


def test_pyarrow_rows_of_version_2(tmp_path: Path) -> None:
    rows = make_rows(30)
    dataset = write_rows(tmp_path, rows)
    with pa.memory_map(str(tmp_path / "00000.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    table.validate(full=True)
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert_same_row(decode_row(found, dataset), row)
    packed = {name: column for name, column in COLUMNS.items() if name in ("line", "url")}
    found = decode_row(table.select(["key", *packed]).to_pylist()[0], packed)
    assert_same_row(found, {name: rows[0][name] for name in ("key", *packed)})


def test_datasets_transform_of_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    rows = make_rows(30)
    dataset = write_rows(tmp_path / "data", rows)
    datasets.disable_progress_bars()
    found = datasets.load_dataset(
        "arrow",
        data_files=[str(path) for path in sorted((tmp_path / "data").glob("*.arrow"))],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert_same_row(decode_row(found[3], dataset), rows[3])
    found.set_transform(datasets_transform(dataset))
    for i in (0, 7, 29):
        assert_same_row(found[i], rows[i])
    batch = found[4:6]
    assert_same_row({name: values[1] for name, values in batch.items()}, rows[5])
    lines = found.select_columns(["line", "key"])
    lines.set_transform(datasets_transform({"line": COLUMNS["line"]}))
    np.testing.assert_array_equal(lines[2]["line"], rows[2]["line"])


@pytest.mark.filterwarnings(  # the library does not close its files
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("layout", ["packed", "plain"])
def test_webdataset_of_version_2(tmp_path: Path, layout: str) -> None:
    import webdataset

    rows = make_rows(60)
    dataset = write_rows(tmp_path, rows, **LAYOUTS[layout])
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    for expand in (expand_members, partial(expand_members, columns_or_dataset=dataset)):
        samples = webdataset.WebDataset(urls, shardshuffle=False).compose(expand)
        for found, row in zip(samples, rows, strict=True):
            assert found["__key__"] == row["key"]
            assert_same_row(found | {"speech_units": found["speech_units"] or None}, row | {
                "speech_units": row["speech_units"] or None
            })  # fmt: skip
    plain = list(webdataset.WebDataset(urls, shardshuffle=False))
    if layout == "plain":
        assert_same_row(decode_row(plain[1], dataset), rows[1])
    else:
        with pytest.raises(ShardError, match="holds many samples; use expand_members"):
            decode_row(plain[1], dataset)
    del samples
    gc.collect()


def test_datasets_reads_plain_tars_with_and_without_speech(tmp_path: Path) -> None:
    import datasets

    speech = {name: UnitColumn((None,), 200, many=True) for name in ("speech_units", "durations")}
    columns = {"image_units": UnitColumn((4, 4), 300), **speech}
    rows = [
        {"image_units": np.full((4, 4), i), "speech_units": clips, "durations": runs}
        for i, (clips, runs) in enumerate([([], None), ([[7, 8]], [[1, 2]]), ([[9]], None)])
    ]
    with DatasetWriter(tmp_path / "a", columns=columns, **LAYOUTS["plain"]) as writer:
        for i, row in enumerate(rows):
            writer.write(key=f"k{i}", **row)
    files = sorted(map(str, (tmp_path / "a").glob("*.tar")))
    found = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [row["json"]["key"] for row in found] == ["k0", "k1", "k2"]
    assert [len(row["speech_units"]) for row in found] == [0, 3, 2]
    for sample, row in zip(ShardDataset(tmp_path / "a"), rows, strict=True):
        assert [units.tolist() for units in sample.speech_units] == row["speech_units"]
        assert (sample.durations is None) == (row["durations"] is None)


def test_rows_that_cannot_be_decoded(tmp_path: Path) -> None:
    dataset = write_rows(tmp_path / "a", make_rows(30))
    row = {"key": "k", "line": b"short", "audio_units": b"\x02x", "speech_units": [b"\xff\xff"]}
    for name, message in (
        ("line", "sample 'k': column line: packed units are"),
        ("audio_units", "sample 'k': column audio_units: packed units are"),
        ("speech_units", "sample 'k': column speech_units: huffman: value 0"),
    ):
        with pytest.raises(ShardError, match=message):
            decode_row({"key": "k", name: row[name]}, dataset)
    with pytest.raises(ShardError, match="column small: is coded, .* open the dataset"):
        decode_row(row, COLUMNS)
    write_rows(tmp_path / "b", make_rows(30), **LAYOUTS["packed"])
    (member,) = [path.read_bytes() for path in (tmp_path / "b").glob("00000.tar")]
    size = int(member[124:135], 8)
    with pytest.raises(
        ShardError, match="member 0: sample .*column small: is coded, .* open the dat"
    ):
        list(expand_members([{"__key__": "0", "arrow": member[512 : 512 + size]}]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the lengths of its variable axes are cut off or too long"),
        (b"\x80", "are cut off"),
        (b"\xff\xff\xff\xff\xff\x01", "cut off or too long"),
        (b"\xff\xff\xff\xff\x7f", "the length 34359738367 of a variable axis is invalid"),
        (b"\x81\x00", "the length 1 of a variable axis is invalid"),
        (b"\x00\xff\xff\xff\xff\x07", None),
        (b"\x02\x02\x00", "4 units of 11 bits"),
    ],
)
def test_lengths_at_the_start_of_values(data: bytes, message: str | None) -> None:
    columns = {"x": UnitColumn((None, 1, None), 2048)}
    row = {"key": "k", "x": data}
    if message is None:
        assert decode_row(row, columns)["x"].shape == (0, 1, (1 << 31) - 1)
        return
    with pytest.raises(ShardError, match=f"sample 'k': column x: .*{message}"):
        decode_row(row, columns)
