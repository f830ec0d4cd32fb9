from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from im2sp.shards import ShardError, deduplicate, pack_units, unpack_units
from im2sp.shards.coding import packing


@pytest.fixture(autouse=True, scope="module", params=[2**60, 0], ids=["numpy", "kernels"])
def limit(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "small_work", packing.SmallWork(request.param))
        yield


def test_small_work_ends_for_good() -> None:
    work = packing.SmallWork(10)
    assert [work.takes(size) for size in (4, 6, 1, 0)] == [True, True, False, False]


def naive_pack(units: list[int], bits: int) -> list[int]:
    """Pack bit by bit, as in FORMAT.md."""
    packed = [0] * ((len(units) * bits + 7) // 8)
    for k, unit in enumerate(units):
        for b in range(bits):
            j = bits * k + b
            packed[j // 8] |= (unit >> b & 1) << (j % 8)
    return packed


def test_golden_bytes() -> None:
    units = np.array([1, 2, 3, 4, 5, 6, 7, 8191], np.uint16)
    assert pack_units(units).tobytes().hex(" ") == "01 40 00 0c 00 02 50 00 0c c0 01 f8 ff"
    assert pack_units(np.array([1, 0x0FED]), bits=12).tobytes().hex(" ") == "01 d0 fe"
    assert pack_units(np.array([1, 1, 0, 1]), bits=1).tobytes().hex(" ") == "0b"


@settings(max_examples=200)
@given(
    st.integers(1, 32).flatmap(
        lambda bits: st.tuples(
            st.just(bits),
            hnp.arrays(
                np.uint16 if bits <= 16 else np.uint32,
                st.tuples(st.integers(1, 3), st.integers(0, 40)),
                elements=st.integers(0, 2**bits - 1),
            ),
        )
    )
)
def test_pack_agrees_with_naive_and_unpack_inverts(case: tuple[int, np.ndarray]) -> None:
    bits, units = case
    packed = pack_units(units, bits)
    assert packed.tolist() == [naive_pack(row, bits) for row in units.tolist()]
    np.testing.assert_array_equal(unpack_units(packed, bits, units.shape[1]), units)


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_id_of_every_width(bits: int) -> None:
    units = np.arange(2**bits, dtype=np.uint16)
    packed = pack_units(units, bits)
    assert packed.shape == ((2**bits * bits + 7) // 8,)
    whole = int.from_bytes(packed.tobytes(), "little")
    picked = range(0, 2**bits, max(1, 2**bits // 300))
    assert [whole >> bits * k & 2**bits - 1 for k in picked] == list(picked)
    np.testing.assert_array_equal(unpack_units(packed, bits, 2**bits), units)


def test_defaults_are_those_of_image_units() -> None:
    units = np.random.default_rng(0).integers(0, 8192, (2, 3, 784))
    packed = pack_units(units)
    assert packed.shape == (2, 3, 1274)
    assert packed.dtype == np.uint8
    back = unpack_units(packed)
    assert back.dtype == np.uint16
    np.testing.assert_array_equal(back, units)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">u2", "<u4", "<i8", ">i8", "<u8"])
def test_any_integer_array_packs(dtype: str) -> None:
    units = np.arange(100).astype(dtype)
    np.testing.assert_array_equal(unpack_units(pack_units(units), count=100), np.arange(100))


def test_views_read_only_and_unaligned_arrays() -> None:
    units = np.random.default_rng(1).integers(0, 8192, (9, 1568)).astype(np.uint16)
    strided = units[::2, ::2]
    strided.flags.writeable = False
    packed = pack_units(strided)
    packed.flags.writeable = False
    np.testing.assert_array_equal(unpack_units(packed), strided)
    raw = bytes(1) + strided.tobytes()
    unaligned = np.frombuffer(raw, np.uint16, strided.size, offset=1).reshape(strided.shape)
    np.testing.assert_array_equal(pack_units(unaligned), packed)


@pytest.mark.parametrize(
    ("units", "bits", "message"),
    [
        (np.array([[0, 8192]], np.uint16), 13, r"units\[0, 1\] is 8192, .* 13 bits \(0 to 8191\)"),
        (np.array([5, 6, 7, 65535] * 5, np.uint16), 13, r"units\[3\] is 65535"),
        (np.array([0] * 783 + [8192], np.uint16), 13, r"units\[783\] is 8192"),
        (np.array([0] * 16 + [9000], np.uint16), 13, r"units\[16\] is 9000"),
        (np.array([0, -1]), 13, r"units\[1\] is -1"),
        (np.array([0, 70000]), 16, r"units\[1\] is 70000, .* 16 bits \(0 to 65535\)"),
        (np.array([4], np.uint16), 2, r"units\[0\] is 4, .* 2 bits \(0 to 3\)"),
        (np.array([2**64 - 1], np.uint64), 16, r"units\[0\] is 18446744073709551615"),
        (np.array([1.0]), 13, "units are float64"),
        (np.array([True]), 13, "units are bool"),
        (np.array(3), 13, "0 dimensions"),
        (np.array([1]), 0, "bits is 0"),
        (np.array([1]), 33, "bits is 33"),
    ],
)
def test_pack_refuses(units: np.ndarray, bits: int, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        pack_units(units, bits)


@pytest.mark.parametrize(
    ("packed", "bits", "count", "message"),
    [
        (np.zeros(1273, np.uint8), 13, 784, r"shape \(1273,\); 784 units of 13 bits .* 1274\)"),
        (np.zeros(1274, np.int8), 13, 784, "int8"),
        (np.zeros(2, np.uint8), 13, -1, "-1 units"),
        (np.array(1, np.uint8), 8, 1, r"shape \(\)"),
        (np.array([[0, 0x20], [0, 0]], np.uint8), 13, 1, "the 3 unused bits .* are not 0"),
        (np.zeros(2, np.uint8), 99, 1, "bits is 99"),
    ],
)
def test_unpack_refuses(packed: np.ndarray, bits: int, count: int, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        unpack_units(packed, bits, count)


def test_empty_arrays() -> None:
    assert pack_units(np.zeros((0, 784), np.uint16)).shape == (0, 1274)
    assert pack_units(np.zeros((3, 0), np.uint16)).shape == (3, 0)
    assert unpack_units(np.zeros((0, 1274), np.uint8)).shape == (0, 784)
    assert unpack_units(np.zeros((3, 0), np.uint8), count=0).shape == (3, 0)


@given(st.lists(st.integers(0, 3), max_size=60))
def test_deduplicate_collapses_and_repeats_back(frames: list[int]) -> None:
    units, durations = deduplicate(frames)
    assert units.dtype == durations.dtype == np.uint16
    assert np.repeat(units, durations).tolist() == frames
    assert all(a != b for a, b in zip(units.tolist(), units.tolist()[1:], strict=False))
    assert (durations > 0).all()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 2), np.uint16), r"shape \(2, 2\)"),
        (np.array([0.5]), "float64"),
        (np.array([1, 65536]), r"units\[1\] is 65536"),
        (np.array([-1, 2]), r"units\[0\] is -1"),
        (np.array([3] + [7] * 65536), "run of 65536 equal units from frame 1"),
    ],
)
def test_deduplicate_refuses(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        deduplicate(frames)


def test_the_longest_run() -> None:
    units, durations = deduplicate(np.full(65535, 9, np.uint8))
    assert (units.tolist(), durations.tolist()) == ([9], [65535])
