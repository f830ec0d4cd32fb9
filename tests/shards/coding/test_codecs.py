import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from im2sp.shards import DEFAULT_COLUMNS, ShardError
from im2sp.shards.coding import PackedCodec, VarintCodec, make_codecs


def naive_varint(data: bytes, minimum: int) -> list[int]:
    ids, number, shift = [], 0, 0
    for byte in data:
        number += (byte & 127) << shift
        shift += 7
        if byte < 128:
            ids.append(number + minimum)
            number = shift = 0
    return ids


def raw(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_varint_golden_bytes() -> None:
    codec = VarintCodec(minimum=1)
    data = codec.encode(np.array([1, 2, 128, 129, 65535]))
    assert data.hex(" ") == "00 01 7f 80 01 fe ff 03"
    assert codec.decode(raw(data)).tolist() == [1, 2, 128, 129, 65535]


@given(st.integers(0, 300), st.data())
def test_varint_round_trip(minimum: int, data: st.DataObject) -> None:
    small = st.integers(minimum, minimum + 127)
    ids = data.draw(st.lists(small) | st.lists(st.integers(minimum, 65535)))
    codec = VarintCodec(minimum=minimum)
    coded = codec.encode(np.array(ids, np.uint16))
    assert naive_varint(coded, minimum) == ids
    assert codec.decode(raw(coded)).tolist() == ids


@given(st.binary(max_size=12))
def test_varint_bytes_decode_to_what_encodes_to_them_or_are_refused(data: bytes) -> None:
    codec = VarintCodec(minimum=1)
    try:
        ids = codec.decode(raw(data))
    except ShardError:
        return
    assert codec.encode(ids) == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("80", "id 0 is cut off"),
        ("05 ff ff", "id 1 is cut off"),
        ("80 00", "shortest form"),
        ("ff ff 03", "over 65535"),
        ("80 80 80 01", "longer than three bytes"),
    ],
)
def test_varint_refuses_bytes(data: str, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        VarintCodec(minimum=1).decode(raw(bytes.fromhex(data)))


def test_varint_refuses_ids() -> None:
    with pytest.raises(ShardError, match="id 1 is 0, not in 1 to 65535"):
        VarintCodec(minimum=1).encode(np.array([3, 0]))
    with pytest.raises(ShardError, match="id 0 is 65536"):
        VarintCodec().encode(np.array([65536]))


@given(st.integers(8, 16), st.lists(st.integers(0, 255)))
def test_packed_without_count_keeps_the_length(bits: int, ids: list[int]) -> None:
    codec = PackedCodec(bits=bits)
    assert codec.decode(raw(codec.encode(np.array(ids, np.uint16)))).tolist() == ids


def test_packed_checks_the_vocabulary() -> None:
    codec = PackedCodec(bits=8, num_units=200)
    with pytest.raises(ShardError, match="id 1 is 200, not below 200"):
        codec.encode(np.array([199, 200]))
    with pytest.raises(ShardError, match="id 0 is 255, not below 200"):
        codec.decode(raw(b"\xff"))


@pytest.mark.parametrize(
    ("column", "params", "message"),
    [
        ("speech_units", {"codec": "ans", "bits": 8}, "column speech_units: codec 'ans' is unk"),
        ("speech_units", {"bits": 8}, "codec None"),
        ("speech_units", {"codec": ["packed"]}, r"codec \['packed'\]"),
        ("speech_units", {"codec": "packed", "bits": 7}, r"without count\) is 7"),
        ("speech_units", {"codec": "packed", "bits": "8"}, "bits is '8'"),
        ("speech_units", {"codec": "packed"}, "codec packed: .*bits"),
        ("speech_units", {"codec": "packed", "bits": 8, "table": 1}, r"no parameter \['table'\]"),
        ("speech_units", {"codec": "packed", "bits": 8, "num_units": 300}, "num_units is 300"),
        ("durations", {"codec": "varint", "minimum": -1}, "minimum is -1"),
        ("image_units", {"codec": "packed", "bits": 13}, "needs codec packed with count"),
        ("image_units", {"codec": "varint"}, "needs codec packed with count"),
        ("image_units", {"codec": "packed", "bits": 13, "count": 0}, "count is 0"),
        (
            "image_units",
            {"codec": "packed", "bits": 13, "count": 784, "shape": [28, 27]},
            r"shape \[28, 27\] does not make count 784",
        ),
    ],
)
def test_bad_columns_are_refused(column: str, params: dict, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        make_codecs({**DEFAULT_COLUMNS, column: params})


def test_missing_and_unknown_columns_are_refused() -> None:
    with pytest.raises(ShardError, match="coded columns are"):
        make_codecs({"image_units": DEFAULT_COLUMNS["image_units"]})
    with pytest.raises(ShardError, match="coded columns are"):
        make_codecs({**DEFAULT_COLUMNS, "depth": {}})
