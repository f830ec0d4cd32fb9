"""Fuzz target of the weights reader: a mutated file is read, or refused with its name."""

import io
import pickle
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from im2sp.shards.weights import describe, read_weights
from im2sp.shards.weights.pickles import WeightsError
from support.fuzz import mutations, refusal

SEEDED = torch.Generator().manual_seed(0)
TENSORS = {
    "a.weight": torch.randn(3, 4, generator=SEEDED),
    "a.bias": torch.zeros(4).half(),
    "n": torch.arange(3),
}


def torch_file(**options) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": TENSORS, "epoch": 3}, buffer, **options)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 4), np.float32))
    return buffer.getvalue()


SEEDS = {
    "safetensors": lambda: safetensors.torch.save(TENSORS, {"im2sp": "{}"}),
    "torch zip": torch_file,
    "torch legacy": lambda: torch_file(_use_new_zipfile_serialization=False),
    "pickle": lambda: pickle.dumps({"table": np.zeros((3, 4), np.float32), "names": ["a"] * 9}),
    "npy": npy,
}


def read_all(path: Path) -> None:
    weights = read_weights(path)
    for array in weights.arrays().values():
        array.tobytes()
    describe(weights.content)


@pytest.mark.parametrize("kind", SEEDS)
def test_weights(tmp_path: Path, kind: str) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = tmp_path / "weights.bin"
    seed = sum(kind.encode())
    for data in mutations(SEEDS[kind](), seed):
        path.write_bytes(data)
        found = refusal(lambda: read_all(path), WeightsError)
        assert not found or str(path) in found
        assert "\n" not in found
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 256 << 10
