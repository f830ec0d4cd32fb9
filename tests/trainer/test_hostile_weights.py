"""A small file that declares a huge model is refused before anything of that size is made."""

import json
import time

import pytest
import safetensors.torch
import torch

from im2sp.shards.weights.pickles import WeightsError
from im2sp.trainer.weights import FORM, METADATA_KEY, load_model

STACK = {"width": 64, "depth": 2, "heads": 2, "mlp_width": 256}
CONFIG = {
    "vocabulary": {"kind": "speech", "num_ids": 200},
    "encoder": STACK,
    "decoder": STACK,
    "num_codes": 64,
    "code_width": 4,
}
HUGE = [
    {"encoder": STACK | {"depth": 10**6}},
    {"decoder": STACK | {"depth": 10**9}},
    {"encoder": STACK | {"width": 10**9, "heads": 1}},
    {"encoder": STACK | {"mlp_width": 10**12}},
    {"encoder": STACK | {"mlp_width": 10**30}},
    {"grid": 4 * 10**7},
    {"stem_stride": 2**40, "grid": 2**40},
    {"num_codes": 10**10},
    {"max_positions": 10**10},
    {"vocabulary": {"kind": "speech", "num_ids": 10**10}},
    {"encoder": STACK | {"width": "a"}},
    {"encoder": STACK | {"width": 64.0}},
    {"encoder": STACK | {"depth": float("nan")}},
    {"encoder": STACK | {"heads": True}},
    {"dropout": "x"},
    {"vocabulary": []},
    {"encoder": {}},
]


def write(path, header):
    metadata = {METADATA_KEY: header if isinstance(header, str) else json.dumps(header)}
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata)
    return path


@pytest.mark.parametrize("change", HUGE, ids=lambda change: json.dumps(change)[:60])
def test_sizes_in_the_metadata(tmp_path, change):
    path = write(tmp_path / "model.safetensors", {"form": FORM, "config": CONFIG | change})
    start = time.process_time()
    with pytest.raises(WeightsError, match=r"model\.safetensors: "):
        load_model(path, device="cpu")
    assert time.process_time() - start < 5


@pytest.mark.parametrize("header", ["[]", "null", "3", "[" * 100_000, '{"form": "a"}', "{"])
def test_headers_that_hold_no_configuration(tmp_path, header):
    path = write(tmp_path / "model.safetensors", header)
    with pytest.raises(WeightsError, match=r"model\.safetensors: .*expected"):
        load_model(path, device="cpu")
