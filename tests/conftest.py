"""Settings and fixtures that tests of several folders use."""

import os
from pathlib import Path

import pytest

# One thread for torch: more spin against each other on models this small. Set before torch is
# imported, so that tests without it need not import it; tests of threads set their own number.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The pack of real test data, which stands beside the checkout and not in it."""
    path = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the shared test data (../shared/data) is not beside this checkout")
    return path
