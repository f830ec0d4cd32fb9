"""The bounds that docs/SECURITY.md states are those of the code."""

import importlib
import re
from pathlib import Path

import pytest

from im2sp.pipeline.job.config import JobConfig
from im2sp.pipeline.job.decode_pool import DEFAULT_TIMEOUT_S
from im2sp.shards.errors import memory_limit

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/SECURITY.md").read_text("utf-8")
BOUNDS = re.findall(r"^\| .* \| ([0-9,]+) \| `(im2sp[\w.]+)` \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("figure", "name"), BOUNDS, ids=[name for _, name in BOUNDS])
def test_a_bound_is_that_of_the_code(figure, name):
    module, _, constant = name.rpartition(".")
    assert getattr(importlib.import_module(module), constant) == int(figure.replace(",", ""))


def test_every_row_of_the_table_is_compared():
    rows = re.findall(r"^\| (?!of what|---).*\|$", TEXT, re.MULTILINE)
    assert len(rows) == len(BOUNDS) >= 20
    assert memory_limit(1000) == 64_008_000
    assert JobConfig.decode_timeout_s == DEFAULT_TIMEOUT_S


def test_the_files_that_it_names_exist():
    names = re.findall(r"`((?:tests|docs)/[\w/.]+)`", TEXT)
    assert len(names) == 5
    assert all((ROOT / name).is_file() for name in names)
