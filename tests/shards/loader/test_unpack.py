import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import im2sp.shards
from im2sp.shards import pack_units, unpack_units, unpack_units_on_device


def test_it_equals_unpack_units() -> None:
    units = np.random.default_rng(0).integers(0, 8192, (5, 784)).astype(np.uint16)
    units[0], units[1] = 8191, 0
    packed = pack_units(units)
    found = unpack_units_on_device(torch.from_numpy(packed))
    assert found.dtype == torch.int64
    assert found.shape == (5, 28, 28)
    np.testing.assert_array_equal(found.reshape(5, 784).numpy(), unpack_units(packed))


@given(bits=st.integers(1, 16), height=st.integers(1, 9), width=st.integers(1, 9))
def test_any_width_and_shape(bits: int, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    units = rng.integers(0, 1 << bits, (2, 3, height * width)).astype(np.uint16)
    units[0, 0] = (1 << bits) - 1
    packed = torch.from_numpy(pack_units(units, bits))
    found = unpack_units_on_device(packed, bits, (height, width))
    np.testing.assert_array_equal(found.numpy(), units.reshape(2, 3, height, width))


def test_no_images() -> None:
    empty = torch.zeros((0, 1274), dtype=torch.uint8)
    assert unpack_units_on_device(empty).shape == (0, 28, 28)


def test_it_compiles_to_one_graph() -> None:
    packed = torch.from_numpy(pack_units(np.arange(2 * 784).reshape(2, 784).astype(np.uint16)))
    compiled = torch.compile(unpack_units_on_device, fullgraph=True, backend="eager")
    assert torch.equal(compiled(packed), unpack_units_on_device(packed))


@pytest.mark.parametrize(
    "packed", [torch.zeros((2, 1273), dtype=torch.uint8), torch.zeros((2, 1274))]
)
def test_what_is_not_packed(packed: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"784 units of 13 bits are torch.uint8 .*, 1274\)"):
        unpack_units_on_device(packed)


def test_the_names_are_there_without_torch() -> None:
    program = (
        "import sys, im2sp.shards as s\n"
        "assert 'torch' not in sys.modules and 'ShardLoader' in s.__all__"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Loader'"):
        im2sp.shards.Loader  # noqa: B018
