"""docs/training-loops.md: its program resumes exactly, and ends cleanly with an open iteration."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from im2sp.shards import DatasetWriter, UnitColumn
from support.guides import blocks

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "docs/training-loops.md").read_text("utf-8")


def test_the_program_runs(tmp_path):
    columns = {"image_units": UnitColumn(shape=(28, 28), num_codes=8192)}
    draw = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "build/shards", columns=columns) as writer:
        for number in range(12):
            units = draw.integers(0, 8192, (28, 28))
            writer.write(key=f"{number}", split="train", captions=[], image_units=units)
    [(_, _, text)] = blocks(GUIDE, "python")
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
