from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from im2sp.shards import ARROW_SCHEMA, Sample, ShardError, encode_batch
from im2sp.shards.columns.arrays import array_of

IMAGE = np.zeros((28, 28), np.uint16)


def test_columns_are_those_of_the_design() -> None:
    assert [(field.name, field.type) for field in ARROW_SCHEMA] == [
        ("key", pa.string()),
        ("split", pa.string()),
        ("image_units", pa.binary(1274)),
        ("speech_units", pa.list_(pa.binary())),
        ("durations", pa.list_(pa.binary())),
        ("captions", pa.list_(pa.string())),
    ]


def test_absent_data_are_nulls_and_empty_lists() -> None:
    batch = encode_batch([Sample(key="a")])
    assert batch.to_pylist() == [
        {
            "key": "a",
            "split": "",
            "image_units": None,
            "speech_units": [],
            "durations": None,
            "captions": [],
        }
    ]


def test_values_are_coded() -> None:
    sample = Sample(
        key="a/b.c",
        split="val",
        image_units=IMAGE + np.uint16(8191),
        speech_units=[np.array([0, 199], np.uint16), np.array([], np.uint16)],
        durations=[np.array([1, 300], np.uint16), np.array([], np.uint16)],
        captions=["zwei Hünde", ""],
    )
    row = encode_batch([sample]).to_pylist()[0]
    assert row["image_units"] == b"\xff" * 1274
    assert row["speech_units"] == [b"\x00\xc7", b""]
    assert row["durations"] == [b"\x00\xab\x02", b""]
    assert row["captions"] == ["zwei Hünde", ""]


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([], pa.string()),
        (["a", "", "ü", None], pa.string()),
        ([None, b"x", b"", None], pa.binary()),
        ([None, b"xy", b"ab"], pa.binary(2)),
        ([b"xy", b"ab"], pa.binary(2)),
        ([["a"], [], ["b", "c"]], pa.list_(pa.string())),
        ([None, [b"1", None], [], None], pa.list_(pa.binary())),
        ([None] * 9, pa.list_(pa.binary())),
        ([True, None, False] * 5, pa.bool_()),
        ([1, None, -(1 << 63)], pa.int64()),
        ([0.1, None, 2.0], pa.float64()),
    ],
)
def test_arrays_are_those_of_arrow_to_the_byte(values: list[Any], type_: pa.DataType) -> None:
    found, expected = array_of(values, type_), pa.array(values, type=type_)
    found.validate(full=True)
    assert found.to_pylist() == values
    messages = [pa.record_batch([one], ["x"]).serialize().to_pybytes() for one in (found, expected)]
    assert messages[0] == messages[1]


def test_units_may_be_any_integers() -> None:
    sample = Sample(key="a", image_units=IMAGE.astype(np.int64), speech_units=[[], [3, 4]])  # type: ignore[list-item]
    row = encode_batch([sample]).to_pylist()[0]
    assert row["speech_units"] == [b"", b"\x03\x04"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key": ""}, "sample '': the key is empty"),
        ({"key": 3}, "sample 3: column key: a int, expected string"),
        ({"key": "a\udc80"}, "column key: not valid Unicode: .* at 1"),
        ({"split": None}, "sample 'k': column split: a NoneType, expected string"),
        ({"captions": ["x", b"y"]}, "column captions: a bytes, expected string"),
        ({"image_units": IMAGE[:27]}, r"column image_units: shape \(27, 28\), expected \(28, 28\)"),
        (
            {"image_units": IMAGE + np.uint16(8192)},
            r"code 8192 at \(0, 0\), expected 0 to 8191",
        ),
        (
            {"image_units": IMAGE.astype(np.float32)},
            "image_units: dtype float32, expected integers",
        ),
        (
            {"speech_units": [np.array([1, 256])]},
            r"array 0: code 256 at \(1,\), expected 0 to 255",
        ),
        (
            {"speech_units": [np.array([0.5])]},
            "array 0: dtype float64, expected integers",
        ),
        ({"speech_units": [np.zeros((1, 1), int)]}, r"array 0: shape \(1, 1\), expected \(None,\)"),
        (
            {"speech_units": [np.array([1])], "durations": [np.array([0])]},
            "column durations: array 0: id 0 is 0, not in 1 to 65535",
        ),
        ({"speech_units": [np.array([1])], "durations": []}, "differ in number or length"),
        (
            {"speech_units": [np.array([1])], "durations": [np.array([1, 2])]},
            "differ in number or length",
        ),
    ],
)
def test_bad_samples_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        encode_batch([Sample(**{"key": "k", **fields})])
