"""pyarrow, datasets and webdataset read the shards."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from im2sp.shards import Manifest, Sample, ShardError, encode_batch, expand_members, unpack_units

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
