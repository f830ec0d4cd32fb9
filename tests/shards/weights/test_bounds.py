"""Memory and time of reading weights are bounded by the size of the file."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import torch

from im2sp.shards.weights import describe, opcodes, read_weights
from im2sp.shards.weights.pickles import WeightsError

TEXT = b"X" + struct.pack("<I", 1024) + b"a" * 1024 + b"q\x00"
NUM_CALLS = 20_000


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def number(value):
    return b"J" + struct.pack("<i", value)


def calls(head, name, arguments, num_calls=NUM_CALLS):
    """A list of the results of many calls of one function with the same memoized arguments."""
    start = b"\x80\x02" + head + b"0c" + name + b"q\x090]("
    return start + (b"h\x09" + arguments + b"R") * num_calls + b"e."


def many_pairs(count=5_000):
    return b"](" + b"".join(number(i) + b"N\x86" for i in range(count)) + b"eq\x00"


def many_entries(count=5_000):
    return b"}(" + b"".join(number(i) + b"N" for i in range(count)) + b"uq\x00"


def growing_path():
    return b"\x80\x02" + TEXT + b"cpathlib\nPurePosixPath\nh\x00h\x00\x86Rq\x00" * 40 + b"."


def repeated_buffer(size_bytes=1 << 20):
    head = b"B" + struct.pack("<I", size_bytes) + bytes(size_bytes) + b"q\x00"
    head += b"0cnumpy\ndtype\n" + text(b"f4") + b"\x85Rq\x01"
    arguments = b"(h\x00h\x01" + number(size_bytes // 4) + b"\x85" + text(b"C") + b"t"
    return calls(head, b"numpy.core.numeric\n_frombuffer\n", arguments, 5000)


def repeated_state(size_bytes=1 << 20):
    """One array of numpy between creation and state, which is given its state again and again."""
    head = b"B" + struct.pack("<I", size_bytes) + bytes(size_bytes) + b"q\x000"
    head += b"cnumpy\ndtype\n" + text(b"f4") + b"\x85Rq\x010"
    head += b"cnumpy.core.multiarray\n_reconstruct\n)Rq\x020"
    head += b"(K\x01" + number(size_bytes // 4) + b"\x85h\x01\x89h\x00tq\x030"
    return b"\x80\x03" + head + b"](" + b"h\x02h\x03b" * 5000 + b"e."


def repeated_record_state():
    head = many_entries() + b"0"
    return b"\x80\x02" + head + b"](" + b"ca.b\nC\n)\x81h\x00b" * 5000 + b"e."


def pairs_of_texts():
    """Each pair is a text of a megabyte, whose tuple takes eight times as much."""
    head = text(b"a" * (1 << 20)) + b"q\x000](" + b"h\x00" * 1000 + b"eq\x010"
    return b"\x80\x02" + head + b"ccollections\nOrderedDict\nh\x01\x85R."


def nested_torch_file():
    """A tensor whose file is read again and again."""
    buffer = io.BytesIO()
    torch.save([torch.zeros(1)] * 2000, buffer, _use_new_zipfile_serialization=False)
    inner = buffer.getvalue()
    head = b"\x80\x04B" + struct.pack("<I", len(inner)) + inner + b"\x940"
    return head + b"](" + b"ctorch.storage\n_load_from_bytes\nh\x00\x85R" * 2000 + b"e."


BOMBS = {
    "path": growing_path,
    "buffer": repeated_buffer,
    "array state": repeated_state,
    "record state": repeated_record_state,
    "latin1": lambda: calls(
        text(b"a" * (1 << 20)) + b"q\x00",
        b"_codecs\nencode\n",
        b"h\x00" + text(b"latin1") + b"\x86",
    ),
    "ordered dict": lambda: calls(many_pairs(), b"collections\nOrderedDict\n", b"h\x00\x85"),
    "counter": lambda: calls(many_entries(), b"collections\nCounter\n", b"h\x00\x85"),
    "frozenset": lambda: calls(many_entries(), b"builtins\nfrozenset\n", b"h\x00\x85"),
    "nested torch file": nested_torch_file,
    "size": lambda: calls(
        b"(" + b"K\x01" * 32 + b"tq\x00", b"torch\nSize\n", b"h\x00\x85", 1_000_000 // 8
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_copies_what_it_holds_is_refused(tmp_path, name):
    path = tmp_path / "km.bin"
    path.write_bytes(BOMBS[name]())
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(
            WeightsError, match=r"km\.bin: .*(the limit for a file of its size|torch)"
        ):
            read_weights(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < (64 << 20) + 8 * path.stat().st_size
    assert time.process_time() - start < 20


@pytest.mark.parametrize("instruction", [b"]", b"}", b"\x8f", b"N", b"K\x01q\x00"])
def test_many_small_values_are_counted(tmp_path, monkeypatch, instruction):
    monkeypatch.setattr(opcodes, "BASE_BYTES", 1 << 20)
    path = tmp_path / "km.bin"
    path.write_bytes(b"\x80\x04" + instruction * 200_000 + b".")
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match="the limit for a file of its size"):
            read_weights(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < (2 << 20) + 8 * path.stat().st_size


def test_storages_that_overlap_and_are_copied_are_refused(tmp_path):
    """Entries of the directory may all name the same bytes of the file."""
    data = np.zeros(1 << 16, np.uint8).tobytes()
    names = [f"a/data/{i}" for i in range(50)]
    body = b"\x80\x02]("
    for i in range(50):
        body += b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(str(i).encode())
        body += text(b"cpu") + number(len(data) // 4) + b"tQ"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", body + b"e.")
        archive.writestr("a/data/shared.", data)  # of an odd length, so that it is not aligned
        whole = archive.filelist[-1]
        for name in names:
            twin = zipfile.ZipInfo(name)
            for key in ("CRC", "compress_size", "file_size", "header_offset", "compress_type"):
                setattr(twin, key, getattr(whole, key))
            archive.filelist.append(twin)
            archive.NameToInfo[name] = twin
    path = tmp_path / "weights.pt"
    content = buffer.getvalue()
    starts_at = content.index(data)
    path.write_bytes(content)
    if starts_at % 4 == 0:
        pytest.fail("the storage is aligned; the test needs one that is not")
    with pytest.raises(WeightsError, match="overlaps others"):
        read_weights(path)


def test_pairs_that_are_long_texts(tmp_path):
    path = tmp_path / "km.bin"
    path.write_bytes(pairs_of_texts())
    check_bounded(path, "a dictionary of something other than pairs")


def check_bounded(path, message):
    """A file is refused within its memory."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message):
            read_weights(path).arrays()
        assert tracemalloc.get_traced_memory()[1] < 64_000_000 + 8 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_keys_nested_without_end_do_not_overflow_the_stack(tmp_path):
    deep = b")" + b"\x85" * 300_000
    for name in (b"collections\nCounter\n", b"collections\nOrderedDict\n"):
        path = tmp_path / "km.bin"
        path.write_bytes(b"\x80\x02c" + name + b"](" + deep + b"N\x86e\x85R.")
        check_bounded(path, "a key that holds a tuple")


def test_values_that_repeat_each_other_are_not_printed(tmp_path):
    """A list that holds the list before it twice, forty times over."""
    order = b"]" + b"q\x00(h\x00h\x00l" * 40
    content = {"shape": (1,), "dtype": np.dtype("f4")}
    head = b"\x80\x02cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81"
    state = pickle.dumps(content, 2)[2:-2] + text(b"order") + order + b"su"
    path = tmp_path / "km.bin"
    path.write_bytes(head + state.replace(b"}q\x00(", b"}(").replace(b"su", b"u") + b"b.")
    check_bounded(path, "km.bin")


def test_an_array_of_many_names(tmp_path):
    array, path = np.zeros(1 << 20, ">f4"), tmp_path / "weights.pt"
    path.write_bytes(pickle.dumps({f"a{i}": array for i in range(100)}))
    check_bounded(path, "its 100 tensors have 419,430,400 bytes, shared in part")
    storage = torch.zeros(1 << 20)
    torch.save({f"a{i}": storage for i in range(100)}, path)
    check_bounded(path, "its 100 tensors have 419,430,400 bytes, shared in part")
    torch.save({"a": storage, "b": storage}, path)
    assert sorted(read_weights(path).arrays()) == ["a", "b"]


def test_states_and_modules_without_end(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02}q\x00" + text(b"state_dict") + b"h\x00s.")
    check_bounded(path, "its state is nested endlessly")
    assert describe(read_weights(path).content) == "no tensors: its state is nested endlessly"
    # Names of a megabyte that 90 modules inside each other repeat.
    inner = b"ca.b\nC\n)\x81"
    body = text(b"a" * (1 << 20)) + b"q\x000" + text(b"_modules") + b"q\x010"
    for _ in range(90):
        inner = b"ca.b\nC\n)\x81}h\x01}h\x00" + inner + b"ssb"
    path.write_bytes(b"\x80\x02" + body + inner + b".")
    check_bounded(path, "its modules are nested too deeply or endlessly")


def test_headers_and_directories_larger_than_what_they_describe(tmp_path):
    path = tmp_path / "weights.safetensors"
    header = b'{"__metadata__":{' + b",".join(b'"%d":""' % i for i in range(600_000)) + b"}}"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b" ")
    check_bounded(path, "a header of .* bytes in .* bytes")
    entry = b"PK\x01\x02" + bytes(24) + b"\x01" + bytes(17) + b"a"
    count = 200_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(entry) * count, 4, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end)
    check_bounded(path, "a zip whose directory has 9,400,000 bytes")


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_weights_that_are_no_file(tmp_path, kind):
    path = tmp_path / "weights"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(WeightsError, match=f"found a {kind} here, expected a weights file"):
        read_weights(path)


COMPRESSIONS = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
}


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_compressed_pickle_is_read_cut_and_bounded(tmp_path, kind):
    path = tmp_path / "km.bin"
    content = {"table": [1.5, 2.5], "name": "x" * 1000}
    whole = COMPRESSIONS[kind](pickle.dumps(content))
    path.write_bytes(whole)
    found = read_weights(path)
    assert (found.form, found.content) == (f"pickle, {kind}", content)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match=f"cut: its {kind} data have no end|damaged {kind}"):
        read_weights(path)
    path.write_bytes(COMPRESSIONS[kind](b"\x80\x04B" + bytes(40 << 20)))
    with pytest.raises(WeightsError, match=f"bytes of content in [0-9,]+ bytes of {kind}"):
        read_weights(path)
    path.write_bytes(COMPRESSIONS[kind](b"text"))
    with pytest.raises(WeightsError, match=f"{kind} data without a pickle in them"):
        read_weights(path)
