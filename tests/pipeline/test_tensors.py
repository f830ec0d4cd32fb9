import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from im2sp.pipeline.tensors import (
    check_precision,
    describe,
    float32_products,
    read_weights,
)
from im2sp.shards.weights.pickles import Record, WeightsError
from support.damage import refusals_of_flipped_bytes

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def make_module():
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
    return nn.ModuleDict({"a": inner, "b": nn.Conv2d(2, 2, 1)})


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_type_come_back(tmp_path, dtype, zipped):
    path = tmp_path / "x.pt"
    base = torch.arange(24).reshape(4, 6).to(dtype)
    tensors = {
        "whole": base,
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "scalar": base[1, 1],
        "empty": torch.zeros(0, 3, dtype=dtype),
        "parameter": nn.Parameter(base.clone(), requires_grad=False),
    }
    torch.save({"state_dict": tensors}, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path).tensors()
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_gives_its_state_dict(tmp_path, zipped):
    path, module = tmp_path / "x.pt", make_module()
    torch.save(module, path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path).tensors()
    expected = module.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_every_protocol(tmp_path, protocol):
    path, module = tmp_path / "x.pkl", make_module()
    content = {
        "module": module,
        "arrays": [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(3, 2))],
        "big_endian": np.arange(3, dtype=">i4"),
        "number": np.float32(1.5),
        "plain": (1, -(2**70), 2.5, None, True, "é", b"\xff", {1, 2}, frozenset({3}), [()]),
        "options": argparse.Namespace(depth=3),
        "path": Path("a/b"),
    }
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_weights(path).content
    assert set(read_weights(path).tensors()) == set(module.state_dict())
    for array, expected in zip(found["arrays"], content["arrays"], strict=True):
        np.testing.assert_array_equal(array, expected)
    np.testing.assert_array_equal(found["big_endian"], [0, 1, 2])
    assert found["number"] == 1.5
    assert found["plain"] == content["plain"]
    assert found["path"] == "a/b"
    assert isinstance(found["options"], Record)
    assert found["options"].state == {"depth": 3}


def test_safetensors_and_npy(tmp_path):
    tensors = {"b": torch.ones(2, 3, dtype=torch.float16), "a": torch.arange(4)}
    save_file(tensors, tmp_path / "x.safetensors", {"im2sp": "{}"})
    weights = read_weights(tmp_path / "x.safetensors")
    assert weights.metadata == {"im2sp": "{}"}
    assert all(torch.equal(weights.tensors()[name], tensors[name]) for name in tensors)
    np.save(tmp_path / "x.npy", np.ones((2, 3), dtype=np.float32))
    assert torch.equal(read_weights(tmp_path / "x.npy").tensors()[""], torch.ones(2, 3))


def test_arrays_in_another_byte_order_or_type(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0, dtype=">f8").reshape(2, 3)[:, ::-1])
    found = read_weights(tmp_path / "x.npy").tensors()[""]
    assert found.tolist() == [[2, 1, 0], [5, 4, 3]]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": np.ones(2, dtype="c8")}, 2))
    assert read_weights(tmp_path / "x.pkl").tensors() == {}


def test_writing_to_what_was_read_leaves_the_file_alone(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(5)}, path)
    before = path.read_bytes()
    read_weights(path).tensors()["w"].fill_(7)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\xff\xd8\xff\xe0 a picture", "it starts with"),
        (b"PK\x03\x04 not a zip", "zip"),
        (b"\x93NUMPY\x01\x00", "expected a whole weights file"),
        (b"\x40\x00\x00\x00\x00\x00\x00\x00{" + b" " * 80, "expected a whole weights file"),
        (b"\x80\x02\x8a\x0a" + bytes(20), "expected a whole weights file"),
    ],
)
def test_what_is_no_weights_file_is_named(tmp_path, data, message):
    path = tmp_path / "x.ckpt"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(WeightsError, match="found nothing here"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(WeightsError, match="found a folder here"):
        read_weights(tmp_path)


def test_a_zip_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(5)}, path)
    data = path.read_bytes()
    for size in range(1, len(data), 37):
        path.write_bytes(data[:size])
        with pytest.raises(WeightsError):
            read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_any_flipped_byte_is_read_or_refused_but_never_crashes(tmp_path, zipped):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    messages = refusals_of_flipped_bytes(path, data, read_weights)
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"feature_extractor.conv_layers.0.0.weight": torch.ones(1)}, "HuBERT"),
        ({"a": torch.ones(1), "b": torch.ones(1)}, "2 tensors such as 'a'"),
        (torch.ones(3, 4), "one tensor of shape [3, 4]"),
        ([1], "a list without tensors"),
        ({}, "a dict without tensors"),
    ],
)
def test_descriptions(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pt")
    assert message in describe(read_weights(tmp_path / "x.pt").content)


def test_products_on_a_gpu_are_in_the_precision_asked_for_and_then_as_before(float32_backends):
    for backend, value in zip(float32_backends, ("none", "tf32"), strict=True):
        backend.fp32_precision = value
    for precision, inside in (("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")):
        with float32_products(precision, torch.device("cuda")):
            assert [backend.fp32_precision for backend in float32_backends] == [inside, inside]
        assert [backend.fp32_precision for backend in float32_backends] == ["none", "tf32"]


def test_tf32_needs_a_gpu():
    check_precision("tf32")
    check_precision("tf32", torch.device("cuda"))
    with pytest.raises(ValueError, match="precision 'tf32' needs a CUDA device, found cpu"):
        check_precision("tf32", torch.device("cpu"))
