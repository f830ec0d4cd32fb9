"""Centres of every form, and attacks on the form that joblib writes."""

import pickle
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from im2sp.pipeline.speech_tokenizer.weights import load_centroids
from im2sp.pipeline.tensors import read_weights
from im2sp.shards.weights.pickles import WeightsError
from support.damage import refusals_of_flipped_bytes
from support.hubert import joblib_bytes, km_bytes, stand_in

TABLE = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def write(tmp_path, data):
    path = tmp_path / "km.bin"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("alignment", [None, 16, 64])
def test_km_bin_of_every_age(tmp_path, protocol, alignment):
    path = write(tmp_path, km_bytes(TABLE, protocol, alignment))
    before = set(sys.modules)
    assert torch.equal(load_centroids(path), torch.from_numpy(TABLE))
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    "table", [TABLE.astype(np.float64), np.asfortranarray(TABLE), TABLE.astype(">f4")]
)
def test_km_bin_of_every_layout(tmp_path, table):
    path = write(tmp_path, km_bytes(table))
    assert torch.equal(load_centroids(path), torch.from_numpy(TABLE))


def test_several_arrays_of_any_shape_come_back(tmp_path):
    arrays = [np.arange(6).reshape(1, 2, 3), np.float32(2) * np.ones(()), np.ones((0, 4))]
    found = read_weights(write(tmp_path, joblib_bytes({"a": arrays, "b": "text"}))).content
    for array, expected in zip(found["a"], arrays, strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
    assert found["b"] == "text"


def test_other_forms(tmp_path):
    tensor = torch.from_numpy(TABLE)
    np.save(tmp_path / "a.npy", TABLE.astype(np.float64))
    save_file({"centres": tensor, "more": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    save_file({"any": tensor.half()}, tmp_path / "b.safetensors")
    torch.save(tensor, tmp_path / "a.pt")
    for name in ("a.npy", "a.safetensors", "a.pt"):
        assert torch.equal(load_centroids(tmp_path / name), tensor)
    assert torch.equal(load_centroids(str(tmp_path / "b.safetensors")), tensor.half().float())
    assert torch.equal(load_centroids(write(tmp_path, joblib_bytes(TABLE))), tensor)
    assert torch.equal(load_centroids(TABLE), tensor)
    assert load_centroids(tensor).data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.ones(5), r"shape \[5\], expected real numbers of shape \[units, width\]"),
        (np.ones((2, 3), np.int64), "torch.int64 of shape"),
        (np.ones((0, 3)), r"shape \[0, 3\]"),
        (np.ones((65_537, 1)), "at most 65536 units"),
        (np.array([[np.nan, 1]]), "the table of centroids holds values that are not finite"),
    ],
)
def test_tables_that_are_refused(table, message):
    with pytest.raises(WeightsError, match=message):
        load_centroids(table)


def test_files_without_centroids(tmp_path):
    save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="2 tensors such as 'a', expected the k-means centroids"):
        load_centroids(tmp_path / "x.safetensors")
    unfitted = joblib_bytes(stand_in("sklearn.cluster._kmeans", "KMeans", n_clusters=3))
    with pytest.raises(WeightsError, match=r"an object of sklearn.cluster._kmeans.KMeans without"):
        load_centroids(write(tmp_path, unfitted))
    with pytest.raises(WeightsError, match="found nothing here"):
        load_centroids(tmp_path / "none.bin")


# Attacks ------------------------------------------------------------------------------------------


def wrapper(**changes):
    """A joblib array with a false description, with 24 bytes of numbers after it."""
    state = {
        "subclass": np.ndarray,
        "shape": (2, 3),
        "order": "C",
        "dtype": np.dtype("<f4"),
        "numpy_array_alignment_bytes": None,
        **changes,
    }
    state = {key: value for key, value in state.items() if value is not ...}
    data = joblib_bytes(stand_in("joblib.numpy_pickle", "NumpyArrayWrapper", **state), 2)
    assert data.endswith(b"b.")
    return data[:-1] + bytes(24) + b"."


def test_the_honest_wrapper_is_read(tmp_path):
    assert read_weights(write(tmp_path, wrapper())).content.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": (2**62, 2**62)}, "bytes where the file has 25 left"),
        ({"shape": (3, 3)}, "36 bytes where the file has 25 left"),
        ({"shape": (-1, 3)}, "not a short list of counts"),
        ({"shape": (True, 3)}, "not a short list of counts"),
        ({"shape": (1,) * 40}, "not a short list of counts"),
        ({"shape": 6}, "damaged pickle"),
        ({"shape": "ab"}, "not a short list of counts"),
        ({"dtype": np.dtype("O")}, "something other than numbers"),
        ({"dtype": np.dtype([("a", "f4")])}, "something other than numbers"),
        ({"dtype": "f4"}, "something other than numbers"),
        ({"dtype": ...}, "something other than numbers"),
        ({"order": "K"}, "unknown order, expected C or F"),
        ({"order": ...}, "unknown order, expected C or F"),
    ],
)
def test_a_false_description(tmp_path, changes, message):
    path = write(tmp_path, wrapper(**changes))
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_padding_beyond_the_end(tmp_path):
    data = wrapper(numpy_array_alignment_bytes=16)
    path = write(tmp_path, data[:-25] + b"\xff" * 5)
    with pytest.raises(WeightsError, match="24 bytes where the file has 0 left"):
        read_weights(path)
    write(tmp_path, data[:-25])
    with pytest.raises(WeightsError, match="expected a whole weights file"):
        read_weights(path)


def test_a_wrapper_with_arguments_or_a_call_in_its_state(tmp_path):
    called = b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n(X\x01\x00\x00\x00atR."
    with pytest.raises(WeightsError, match="damaged pickle"):
        read_weights(write(tmp_path, called))
    state = b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81K\x05b."
    with pytest.raises(WeightsError, match="a joblib array without a description"):
        read_weights(write(tmp_path, state))

    class Call:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    with pytest.raises(WeightsError, match=r"holds .*open"):
        read_weights(write(tmp_path, km_bytes(TABLE, note=Call())))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name", ["joblib.numpy_pickle.load", "sklearn.utils.shell", "numpy.random._pickle.run"]
)
def test_other_calls_into_these_libraries(tmp_path, name):
    module, _, function = name.rpartition(".")
    data = (
        b"\x80\x02" + f"c{module}\n{function}\n".encode() + pickle.dumps("x", 2)[2:-1] + b"\x85R."
    )
    with pytest.raises(WeightsError, match=f"holds a call of {name}"):
        read_weights(write(tmp_path, data))


def test_a_file_cut_anywhere_is_refused(tmp_path):
    data = km_bytes(TABLE, random_state_=None)
    path = tmp_path / "km.bin"
    for size in range(0, len(data), 3):
        path.write_bytes(data[:size])
        with pytest.raises(WeightsError):
            load_centroids(path)


def test_any_flipped_byte_is_read_or_refused_but_never_crashes(tmp_path):
    data = km_bytes(TABLE, random_state_=None)
    path = tmp_path / "km.bin"
    messages = refusals_of_flipped_bytes(path, data, load_centroids)
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)
