"""Fixtures that tests of several rooms use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The pack of real test data, which stands beside the checkout and not in it."""
    path = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("the shared test data (../shared/data) is not beside this checkout")
    return path
