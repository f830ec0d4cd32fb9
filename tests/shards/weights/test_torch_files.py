"""Attacks on the container of the pickle; each test builds the file."""

import collections
import io
import pickle
import struct
import zipfile

import pytest
import torch

from im2sp.pipeline.tensors import read_weights
from im2sp.shards.weights.pickles import WeightsError


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def write_torch_zip(tmp_path, pickled, *, members=(), compression=zipfile.ZIP_STORED):
    path = tmp_path / "evil.ckpt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members:
            archive.writestr(f"archive/{name}", data)
    return path


STORAGE = ("storage", torch.FloatStorage, "0", "cpu", 4)


class Storages(pickle.Pickler):
    """Pickler that writes tuples starting with "storage" as persistent ids."""

    def persistent_id(self, obj):
        return obj if isinstance(obj, tuple) and obj[:1] == ("storage",) else None


def pickled_tensor(offset, size, stride, storage=STORAGE):
    stream = io.BytesIO()
    arguments = (storage, offset, size, stride, False, collections.OrderedDict())
    Storages(stream, 2).dump(Call(torch._utils._rebuild_tensor_v2, *arguments))
    return stream.getvalue()


DATA = struct.pack("<4f", 1, 2, 3, 4)


def test_the_tensor_that_the_attacks_vary_is_readable(tmp_path):
    path = write_torch_zip(tmp_path, pickled_tensor(1, (3,), (1,)), members=[("data/0", DATA)])
    assert read_weights(path).content.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("offset", "size", "stride", "message"),
    [
        (2, (3,), (1,), "reaches element 4 of a storage of 4"),
        (0, (5,), (1,), "reaches element 4 of a storage of 4"),
        (0, (2, 2), (4, 1), "reaches element 5 of a storage of 4"),
        (0, (2,), (2**62,), "reaches element"),
        (4, (1,), (1,), "reaches element 4"),
        (-1, (2,), (1,), "offset is not"),
        (0, (-1,), (1,), "size is not"),
        (0, (2,), (-1,), "stride is not"),
        (0, (2,), (1, 1), "1 sizes and 2 strides"),
        (0, (10**12,), (0,), "a tensor of 1000000000000 elements in a storage of 4"),
        (0, (1,) * 40, (1,) * 40, "size is not a short list"),
        (0.5, (2,), (1,), "offset is not"),
    ],
)
def test_a_view_beyond_its_storage_is_refused(tmp_path, offset, size, stride, message):
    pickled = pickled_tensor(offset, size, stride)
    path = write_torch_zip(tmp_path, pickled, members=[("data/0", DATA), ("data/1", DATA * 100)])
    with pytest.raises(WeightsError, match=message):
        read_weights(path)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (("storage", torch.FloatStorage, "0", "cpu", 5), "has 16 bytes, expected 20"),
        (("storage", torch.FloatStorage, "0", "cpu", 2**60), "has 16 bytes"),
        (("storage", torch.FloatStorage, "0", "cpu", -1), "-1 elements"),
        (("storage", torch.FloatStorage, "9", "cpu", 4), "'data/9' is missing"),
        (("storage", torch.FloatStorage, "../data.pkl", "cpu", 4), "is missing"),
        (("storage", torch.nn.Linear, "0", "cpu", 4), "storage of type torch.nn"),
        (("storage", 7, "0", "cpu", 4), "storage of type"),
        (("storage", torch.FloatStorage, 0, "cpu", 4), "no storage"),
        (("storage", torch.FloatStorage), "damaged|unpack"),
    ],
)
def test_a_storage_that_is_not_there_is_refused(tmp_path, storage, message):
    pickled = pickled_tensor(0, (1,), (1,), storage)
    path = write_torch_zip(tmp_path, pickled, members=[("data/0", DATA)])
    with pytest.raises(WeightsError, match=message):
        read_weights(path)


def test_one_storage_under_two_descriptions_is_refused(tmp_path):
    stream = io.BytesIO()
    other = ("storage", torch.DoubleStorage, "0", "cpu", 2)
    calls = [
        Call(torch._utils._rebuild_tensor_v2, storage, 0, (1,), (1,), False, {})
        for storage in (STORAGE, other)
    ]
    Storages(stream, 2).dump(calls)
    path = write_torch_zip(tmp_path, stream.getvalue(), members=[("data/0", DATA)])
    with pytest.raises(WeightsError, match="described in two ways"):
        read_weights(path)


def test_zip_bombs_and_foreign_zips_are_refused(tmp_path):
    bomb = [("data/0", bytes(50_000_000))]
    path = write_torch_zip(
        tmp_path, pickled_tensor(0, (1,), (1,)), members=bomb, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 200_000
    with pytest.raises(WeightsError, match="is compressed"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(WeightsError, match="without one data.pkl"):
        read_weights(path)
    path = write_torch_zip(
        tmp_path, pickled_tensor(0, (1,), (1,)), members=[("byteorder", "big"), ("data/0", DATA)]
    )
    with pytest.raises(WeightsError, match="byte order b'big'"):
        read_weights(path)


def test_a_zip_directory_that_points_elsewhere_is_refused(tmp_path):
    path = write_torch_zip(tmp_path, pickled_tensor(0, (1,), (1,)), members=[("data/0", DATA)])
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 42 : entry + 46] = struct.pack("<L", 7)
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="outside the file|BadZip|magic"):
        read_weights(path)


def legacy_parts(tmp_path):
    path = tmp_path / "legacy.ckpt"
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    return path, path.read_bytes()


@pytest.mark.parametrize("cut_bytes", [1, 15, 20, 40, 200])
def test_a_cut_file_of_old_is_refused(tmp_path, cut_bytes):
    path, data = legacy_parts(tmp_path)
    path.write_bytes(data[:-cut_bytes])
    with pytest.raises(WeightsError, match=r"legacy\.ckpt"):
        read_weights(path)


def test_a_storage_of_another_size_than_described_is_refused(tmp_path):
    path, data = legacy_parts(tmp_path)
    path.write_bytes(data[:-24] + struct.pack("<q", 3) + data[-16:])
    with pytest.raises(WeightsError, match="has 3 elements or is cut, expected 4"):
        read_weights(path)
