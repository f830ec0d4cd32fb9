import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im2sp.shards import ShardError
from im2sp.shards.coding.grid import GridHuffmanCodec
from im2sp.shards.coding.grid_fit import GridSizes, fit_grid_tables, mean_bits
from im2sp.shards.coding.grid_tables import TABLE_NAMES, GridTables

SIZES = GridSizes(clusters=12, left_classes=40, above_classes=40, joint_classes=20, contexts=60)


def smooth_grids(num: int, num_codes: int, seed: int) -> np.ndarray:
    """Grids in which a unit is near the mean of the units to the left and above."""
    rng = np.random.default_rng(seed)
    names = np.random.default_rng(1).permutation(num_codes)
    values = np.zeros((num, 13, 13))
    values[:, 0], values[:, :, 0] = rng.random((num, 13)), rng.random((num, 13))
    noise = 0.05 * rng.normal(size=values.shape)
    for row in range(1, 13):
        for column in range(1, 13):
            near = (values[:, row - 1, column] + values[:, row, column - 1]) / 2
            values[:, row, column] = np.clip(near + noise[:, row, column], 0, 0.999)
    return names[(values * num_codes).astype(int)].astype(np.uint16)


@pytest.fixture(scope="module")
def tables() -> GridTables:
    return fit_grid_tables(smooth_grids(300, 300, 0), 300, SIZES)


def test_neighbours_save_bits_and_all_grids_come_back(tables: GridTables) -> None:
    grids = smooth_grids(20, 300, 7)
    counts = np.bincount(smooth_grids(300, 300, 0).reshape(-1), minlength=300) + 0.5
    order_0 = -np.log2(counts / counts.sum())[grids].mean()
    assert mean_bits(grids, tables) < order_0 - 0.9
    codec = GridHuffmanCodec(shape=(13, 13), tables=tables)
    for grid in [*grids, np.random.default_rng(0).integers(0, 300, (13, 13))]:
        value = np.frombuffer(codec.encode(grid.reshape(-1)), np.uint8)
        assert codec.decode(value).tolist() == grid.reshape(-1).tolist()
        assert value.size == -(-mean_bits(grid[None], tables) * grid.size // 8)


def test_the_same_grids_give_the_same_tables(tables: GridTables) -> None:
    again = fit_grid_tables(smooth_grids(300, 300, 0), 300, SIZES)
    for name in TABLE_NAMES:
        assert np.array_equal(getattr(again, name), getattr(tables, name)), name


@pytest.mark.parametrize("num_codes", [1, 2, 5, 1000])
def test_units_without_structure_take_their_plain_bits(num_codes: int) -> None:
    grids = np.random.default_rng(0).integers(0, num_codes, (40, 4, 5))
    found = mean_bits(grids, fit_grid_tables(grids, num_codes))
    assert found <= (num_codes - 1).bit_length()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 300))
def test_grids_of_any_number_and_shape(num: int, rows: int, columns: int, num_codes: int) -> None:
    grids = np.random.default_rng(0).integers(0, num_codes, (num, rows, columns))
    codec = GridHuffmanCodec(shape=(rows, columns), tables=fit_grid_tables(grids, num_codes))
    for grid in grids[:3]:
        value = np.frombuffer(codec.encode(grid.reshape(-1)), np.uint8)
        assert codec.decode(value).tolist() == grid.reshape(-1).tolist()


@pytest.mark.parametrize(
    ("grids", "num_codes", "message"),
    [
        (np.zeros((2, 3), int), 4, r"grids are int64 \(2, 3\); expected \(n, rows, columns\)"),
        (np.zeros((2, 3, 0), int), 4, r"\(2, 3, 0\)"),
        (np.zeros((2, 3, 3)), 4, "grids are float64"),
        (np.full((2, 3, 3), 4), 4, "grids hold 4 to 4; expected 0 to 3"),
        (np.full((2, 3, 3), -1), 4, "grids hold -1 to -1"),
        (np.zeros((2, 3, 3), int), 20_000, "num_codes is 20000"),
    ],
)
def test_grids_that_do_not_fit_are_refused(grids: np.ndarray, num_codes: int, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        fit_grid_tables(grids, num_codes)
