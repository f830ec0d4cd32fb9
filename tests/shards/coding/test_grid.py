from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im2sp.shards import ShardError
from im2sp.shards.coding.grid import GridHuffmanCodec
from im2sp.shards.coding.grid_tables import TABLE_NAMES, GridTables
from support.grid import TINY, NaiveGrid, random_tables


def codec_of(tensors: dict[str, Any], shape: tuple[int, int]) -> GridHuffmanCodec:
    return GridHuffmanCodec(shape=shape, tables=GridTables(**tensors))


def raw(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_golden_bytes() -> None:
    codec = codec_of(TINY, (2, 3))
    for ids, coded in (
        ([0, 0, 0, 0, 0, 0], "00 00"),
        ([3, 3, 3, 3, 3, 3], "c3 00"),
        ([0, 1, 2, 3, 2, 1], "e4 15"),
        ([2, 1, 0, 1, 3, 2], "8a 2c"),
    ):
        value = codec.encode(np.array(ids))
        assert (ids, value.hex(" ")) == (ids, coded)
        assert codec.decode(raw(value)).tolist() == ids
        assert NaiveGrid(TINY).decode(value, 2, 3) == ids


LARGE = {
    "num_codes": 3000,
    "num_clusters": 60,
    "num_left": 300,
    "num_above": 25,
    "num_joint": 30,
    "num_contexts": 80,
}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.booleans(), st.tuples(st.integers(1, 5), st.integers(1, 6)))
def test_round_trip_of_any_grids(seed: int, is_large: bool, shape: tuple[int, int]) -> None:
    tensors = random_tables(seed, **(LARGE if is_large else {}))
    codec, naive = codec_of(tensors, shape), NaiveGrid(tensors)
    grids = np.random.default_rng(seed).integers(0, codec.num_codes, (37, codec.count))
    coded = [codec.encode(grid) for grid in grids]
    for grid, value in zip(grids[:3], coded, strict=False):
        assert naive.decode(value, *shape) == grid.tolist()
        assert codec.decode(raw(value)).tolist() == grid.tolist()
    data, offsets = b"abc" + b"".join(coded) + b"behind", np.cumsum([3, *map(len, coded)])
    ids, id_offsets = codec.decode_values(raw(data), offsets)
    assert ids.dtype == np.uint16
    assert ids.reshape(grids.shape).tolist() == grids.tolist()
    assert id_offsets.tolist() == [codec.count * v for v in range(38)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.data())
def test_damage_is_refused_or_decoded_as_by_the_reference(seed: int, data: st.DataObject) -> None:
    tensors = random_tables(seed)
    codec, naive = codec_of(tensors, (3, 4)), NaiveGrid(tensors)
    value = bytearray(codec.encode(np.random.default_rng(seed).integers(0, codec.num_codes, 12)))
    for _ in range(data.draw(st.integers(0, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    end = data.draw(st.integers(0, len(value)))
    damaged = bytes(value[:end]) + data.draw(st.binary(max_size=3))
    try:
        expected = naive.decode(damaged, 3, 4)
    except ValueError:
        with pytest.raises(ShardError, match="grid-huffman: value 0 has"):
            codec.decode(raw(damaged))
    else:
        assert codec.decode(raw(damaged)).tolist() == expected


def test_every_cut_is_refused() -> None:
    codec = codec_of(random_tables(1), (4, 5))
    value = codec.encode(np.arange(20))
    for size in range(len(value)):
        with pytest.raises(ShardError, match=f"value 0 has {size} bytes"):
            codec.decode(raw(value[:size]))
    with pytest.raises(ShardError, match=f"value 0 has {len(value) + 1} bytes"):
        codec.decode(raw(value + b"\0"))


ONE_CODE: dict[str, Any] = {
    "clusters": np.zeros(1, np.uint8),
    "left_classes": np.zeros(1, np.uint16),
    "above_classes": np.zeros(1, np.uint8),
    "joint_classes": np.zeros((2, 2), np.uint8),
    "cluster_contexts": np.zeros((2, 1), np.uint16),
    "member_contexts": np.zeros((1, 2), np.uint8),
    "cluster_orders": np.zeros((1, 1), np.uint8),
    "member_orders": np.zeros(1, np.uint8),
    "rank_codes": np.zeros(2, np.uint8),
    "code_lengths": np.zeros((1, 1), np.uint8),
}


def test_a_value_has_a_bit_a_unit_at_least() -> None:
    codec, naive = codec_of(ONE_CODE, (4, 5)), NaiveGrid(ONE_CODE)
    value = codec.encode(np.zeros(20, int))
    assert value == bytes(3)
    assert naive.decode(value, 4, 5) == [0] * 20
    assert codec.decode_values(raw(bytes(9)), [0, 3, 6, 9])[0].tolist() == [0] * 60
    for data, message in [
        (bytes(2), "value 1 has 2 bytes; expected at least 3 for 20 units"),
        (bytes(4), "value 1 has 4 bytes, but its 20 units end at bit 0"),
        (b"\0\0\1", "value 1 has 3 bytes, but .* or a bit behind them is 1"),
        (b"\1\0\0", "value 1 has 3 bytes, but .* or a bit behind them is 1"),
    ]:
        with pytest.raises(ShardError, match=message):
            codec.decode_values(raw(b"\0\0\0" + data), [0, 3, 3 + len(data)])
        with pytest.raises(ValueError, match="behind"):
            naive.decode(data, 4, 5)


def test_nothing_is_written_behind_the_ids() -> None:
    """Run the kernel on random bytes, with guards on both sides of each output."""
    from im2sp.shards.coding import grid_kernels

    rng = np.random.default_rng(3)
    codec = codec_of(random_tables(5), (3, 5))
    for num in (1, 31, 32, 33, 70):
        sizes = rng.integers(0, 12, num)
        offsets = np.cumsum([0, *sizes])
        data = rng.integers(0, 256, offsets[-1] + 8).astype(np.uint8)
        ids, ends = np.full(15 * num + 16, 60_123, np.uint16), np.full(num + 16, -7)
        tables = codec.tables.for_kernel
        grid_kernels.decode(data, offsets, 3, 5, *tables, ids[8:-8], ends[8:-8])
        assert set(ids[:8].tolist() + ids[-8:].tolist()) == {60_123}
        assert set(ends[:8].tolist() + ends[-8:].tolist()) == {-7}
        assert ids[8:-8].max() < codec.num_codes


@pytest.mark.parametrize("offsets", [[0, 5], [-1, 2], [0, 2, 1, 3], [], [[0, 1]]])
def test_offsets_outside_the_data_are_refused(offsets: list[Any]) -> None:
    with pytest.raises(ShardError, match="do not ascend inside the 4 bytes"):
        codec_of(TINY, (2, 3)).decode_values(raw(b"\0" * 4), np.array(offsets, np.int64))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0] * 5, r"\(5,\) units; every grid has 6"),
        ([0, 4, 0, 0, 0, 0], "unit 1 is 4, not in 0 to 3"),
        ([0, 0, -1, 0, 0, 0], "unit 2 is -1, not in 0 to 3"),
    ],
)
def test_units_that_do_not_fit_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        codec_of(TINY, (2, 3)).encode(np.array(ids))


def changed(name: str, value: Any) -> dict[str, Any]:
    return {**TINY, name: np.array(value, TINY[name].dtype)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (TINY | {"clusters": np.zeros(4, np.int64)}, "clusters is int64 .*expected uint8 with 1"),
        (changed("joint_classes", [[[0]]]), "joint_classes is uint8 .*with 2 axes"),
        (changed("clusters", []), "clusters is uint8 of shape"),
        (changed("clusters", [0] * 20000), "number of codes is 20000"),
        (changed("left_classes", [0, 0, 1]), r"left_classes has shape \(3,\); expected \(4,\)"),
        (changed("above_classes", [0, 1, 0]), "above_classes has shape"),
        (changed("joint_classes", [[0, 1, 0]]), r"joint_classes has shape \(1, 3\)"),
        (changed("member_contexts", [[0, 0], [0, 1]]), "member_contexts has shape"),
        (changed("clusters", [0, 1, 0, 2]), "clusters holds 2; expected less than 2"),
        (changed("left_classes", [0, 0, 1, 2]), "left_classes holds 2; expected less than 2"),
        (changed("above_classes", [0, 1, 0, 2]), "above_classes holds 2"),
        (changed("joint_classes", np.full((3, 3), 2)), "joint_classes holds 2"),
        (changed("cluster_contexts", np.full((3, 2), 2)), "cluster_contexts holds 2"),
        (changed("rank_codes", [0, 1, 0, 0, 2]), "rank_codes holds 2; expected less than 2"),
        (changed("clusters", [0, 0, 0, 0]), "a cluster has 0 codes, another 4; expected 1 to 256"),
        (changed("member_orders", [0, 1, 0, 1]), r"member_orders has shape \(4,\)"),
        (changed("rank_codes", [0, 1, 0, 0]), r"rank_codes has shape \(4,\); expected \(5,\)"),
        (changed("cluster_orders", [[0, 1], [1, 1]]), "context 1 does not list each of 2 symbols"),
        (changed("member_orders", [0, 1, 0, 1, 0, 7]), "context 4 does not list each of 2"),
        (changed("code_lengths", [[1, 1, 0], [1, 2, 13]]), "code_lengths: 13 bits and 3 ranks"),
        (changed("code_lengths", [[1] * 257] * 2), "257 ranks; expected at most 12 and 256"),
        (changed("code_lengths", [[1, 1, 0]] * 257), "number of codes of ranks is 257"),
        (changed("code_lengths", [[1, 1, 0], [1, 2, 3]]), "code 1 of ranks: .*make 0.875"),
        (changed("code_lengths", [[1, 1, 0], [1, 1, 1]]), "code 1 of ranks: .*make 1.5"),
        (changed("code_lengths", [[1, 1, 0], [2, 2, 1]]), "code 1 of ranks: lengths that do not"),
        (changed("code_lengths", [[1, 0, 1], [1, 2, 2]]), "code 0 of ranks"),
        (changed("code_lengths", [[0, 0, 0], [1, 2, 2]]), "context 0 has 2 symbols, but its code"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        GridTables(**tensors)


def test_too_many_contexts_are_refused() -> None:
    orders = np.tile(np.array([[0, 1]], np.uint8), (1 << 14, 1))
    codes = np.zeros((1 << 14) + 3, np.uint8)
    with pytest.raises(ShardError, match="number of contexts is 16387"):
        GridTables(**TINY | {"cluster_orders": orders, "rank_codes": codes})


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(TABLE_NAMES), st.integers(0, 2**32), st.integers(0, 70_000))
def test_any_changed_table_is_refused_or_stays_in_bounds(name: str, place: int, value: int) -> None:
    tensors = random_tables(2)
    table = tensors[name].copy()
    table.flat[place % table.size] = value % (np.iinfo(table.dtype).max + 1)
    try:
        codec = codec_of(tensors | {name: table}, (3, 4))
    except ShardError:
        return
    data = np.random.default_rng(place).integers(0, 256, 400).astype(np.uint8)
    for end in range(0, 40):
        try:
            ids = codec.decode(data[:end])
        except ShardError:
            continue
        assert ids.max() < codec.num_codes
        naive = NaiveGrid(tensors | {name: table})
        assert naive.decode(data[:end].tobytes(), 3, 4) == ids.tolist()
