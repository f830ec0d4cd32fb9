"""Attacks: each test builds a file and checks that it is refused and that nothing ran."""

import io
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from im2sp.pipeline.tensors import read_weights
from im2sp.shards.weights import named_arrays
from im2sp.shards.weights.opcodes import Budget
from im2sp.shards.weights.pickles import GlobalName, InertUnpickler, Record, WeightsError


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def call_by_name(module, name, *arguments):
    """Bytes of a pickle that calls `module.name(*arguments)`."""
    body = pickle.dumps(arguments, 2)[2:-1]
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + body + b"R."


def write(tmp_path, data):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(data)
    return path


EVIL = [
    ("posix", "system", "touch {}"),
    ("os", "system", "touch {}"),
    ("nt", "system", "touch {}"),
    ("builtins", "eval", "open('{}', 'w')"),
    ("builtins", "exec", "open('{}', 'w')"),
    ("__builtin__", "eval", "open('{}', 'w')"),
    ("builtins", "open", "{}"),
    ("builtins", "getattr", "{}"),
    ("builtins", "__import__", "os"),
    ("io", "open", "{}"),
    ("subprocess", "Popen", "touch {}"),
    ("functools", "partial", "{}"),
    ("operator", "attrgetter", "system"),
    ("importlib", "import_module", "os"),
    ("runpy", "run_path", "{}"),
    ("pickle", "loads", b"."),
    ("_pickle", "loads", b"."),
    ("shutil", "rmtree", "{}"),
    ("commands", "getoutput", "touch {}"),
    ("types", "FunctionType", "{}"),
    ("copyreg", "add_extension", "{}"),
    ("collections", "namedtuple", "{}"),
]


@pytest.mark.parametrize(("module", "name", "argument"), EVIL)
def test_a_call_into_the_standard_library_is_named_and_not_made(tmp_path, module, name, argument):
    mark = tmp_path / "ran"
    if isinstance(argument, str):
        argument = argument.format(mark)
    path = write(tmp_path, call_by_name(module, name, argument))
    shown = {"__builtin__": "builtins"}.get(module, module)
    with pytest.raises(WeightsError, match=rf"evil\.ckpt: holds .*{shown}\.{name}") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.hub", "load"),
        ("torch", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("numpy.ctypeslib", "load_library"),
        ("joblib", "load"),
        ("__main__", "run"),
        ("torch._utils", "_rebuild_sparse_tensor"),
    ],
)
def test_a_call_into_another_package_is_named_and_not_made(tmp_path, module, name):
    path = write(tmp_path, call_by_name(module, name, "x"))
    with pytest.raises(WeightsError, match=rf"holds a call of {module}\.{name}"):
        read_weights(path)


def test_a_plausible_checkpoint_with_one_call_inside_is_refused(tmp_path):
    mark = tmp_path / "ran"
    content = {"state_dict": {"w": torch.ones(2)}, "extra": [Call(os.system, f"touch {mark}")]}
    path = tmp_path / "evil.ckpt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"holds posix\.system"):
        read_weights(path)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"holds posix\.system"):
        read_weights(path)
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_refused_by_name(tmp_path, protocol):
    path = write(tmp_path, pickle.dumps(Call(eval, "1"), protocol))
    with pytest.raises(WeightsError, match=r"holds builtins\.eval"):
        read_weights(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        # Old instance and object instructions, with and without arguments.
        (b"(S'touch x'\nios\nsystem\n.", r"holds os\.system"),
        (b"(cos\nsystem\nS'touch x'\no.", r"holds os\.system"),
        (b"(S'touch x'\nitorch.hub\nload\n.", r"holds a call of torch\.hub\.load"),
        # An object made with arguments or keywords.
        (b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00x\x85\x81.", "a call of torch.hub.load"),
        (b"\x80\x04ctorch\nx\n)}X\x01\x00\x00\x00ax\x92.", "damaged pickle"),
        (b"\x80\x04ctorch\nx\n)}(X\x01\x00\x00\x00aK\x01u\x92.", "keyword arguments"),
        # copyreg with a base class or state that would be passed to a call.
        (b"ccopyreg\n_reconstructor\n(ctorch\nx\ncbuiltins\nlist\n(lp0\ntR.", "a call of torch.x"),
        # A call of something other than a name: a number, a record, a rebuilt tensor's class.
        (b"\x80\x02K\x01)R.", "a call of something that is not a name"),
        (b"\x80\x02ctorch\nx\n)\x81)R.", "a call of something that is not a name"),
        # Setting state or items on a name.
        (b"\x80\x02ctorch\nx\n}X\x01\x00\x00\x00aK\x01sb.", "a state for a GlobalName"),
        (b"\x80\x02ctorch\nx\nK\x01a.", "items for a GlobalName"),
        (b"\x80\x02ctorch\nx\nK\x01K\x02s.", "keys and values for a GlobalName"),
        (b"\x80\x02K\x01}b.", "a state for a int"),
        # The extension registry, out-of-band buffers, data outside.
        (b"\x80\x02\x82\x01.", "EXT1 is not allowed"),
        (b"\x80\x05\x97.", "NEXT_BUFFER is not allowed"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "data outside the pickle"),
        (b"\x80\x02Pabc\n.", "data outside the pickle"),
        # Invalid names.
        (b"\x80\x02cos;import x\na\n.", "holds 'os;import"),
        (b"\x80\x04K\x01K\x02\x93.", "a global whose name is not text"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"holds os\.system"),
        # Damage.
        (b"\x80\x02", "damaged pickle"),
        (b"\x80\x02.", "damaged pickle"),
        (b"\x80\x02(.", "damaged pickle"),
        (b"\x80\x02h\x05.", "damaged pickle"),
        (b"\x80\x02t.", "damaged pickle"),
        (b"\x80\x02}(K\x01u.", "damaged pickle"),
        (b"\x80\x02\xff.", "unknown"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.", "bytes8"),
        (b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00abc.", "bytes8"),
        (b"\x80\x02\x8b\xff\xff\xff\x7fabc.", "long4"),
    ],
)
def test_hand_written_attacks(tmp_path, code, message):
    with pytest.raises(WeightsError, match=message) as caught:
        read_weights(write(tmp_path, code))
    assert "evil.ckpt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deep_nesting_costs_no_stack(tmp_path):
    deep = read_weights(write(tmp_path, b"\x80\x02)" + b"\x85" * 100_000 + b".")).content
    assert type(deep) is tuple
    # Hashing it would overflow the C stack.
    path = write(tmp_path, b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.")
    with pytest.raises(WeightsError, match="a key that holds a tuple"):
        read_weights(path)
    path = write(tmp_path, b"\x80\x04(" + b")" + b"\x85" * 100_000 + b"\x91.")
    with pytest.raises(WeightsError, match="a key that holds a tuple"):
        read_weights(path)


def test_a_memo_index_takes_no_memory(tmp_path):
    path = write(tmp_path, b"\x80\x02K\x07r\xff\xff\xff\x7fj\xff\xff\xff\x7f\x86.")
    assert read_weights(path).content == (7, 7)


def test_modules_that_hold_themselves_are_refused():
    module = Record(GlobalName("torch.nn", "Module"))
    module.state["_modules"] = {"inner": module}
    with pytest.raises(ValueError, match="nested too deeply or endlessly"):
        named_arrays(module)


def test_modules_shared_again_and_again_are_refused():
    """Twenty pairs of references make a million paths."""
    module = Record(GlobalName("torch.nn", "Module"))
    for _ in range(25):
        outer = Record(GlobalName("torch.nn", "Module"))
        outer.state["_modules"] = {"a": module, "b": module}
        module = outer
    with pytest.raises(ValueError, match="nested too deeply or endlessly"):
        named_arrays(module)


def test_objects_of_other_classes_are_records():
    stream = io.BytesIO(b"\x80\x02cenhancing.modules\nViTVQ\n)\x81}X\x01\x00\x00\x00aK\x01sb.")
    record = InertUnpickler(stream, Budget(100), {}).load()
    assert str(record.kind) == "enhancing.modules.ViTVQ"
    assert record.state == {"a": 1}


def test_a_torch_file_inside_a_plain_pickle_cannot_hide_a_call(tmp_path):
    mark = tmp_path / "ran"
    inner = io.BytesIO()
    torch.save(Call(os.system, f"touch {mark}"), inner)
    path = write(tmp_path, call_by_name("torch.storage", "_load_from_bytes", inner.getvalue()))
    with pytest.raises(WeightsError, match=r"posix\.system"):
        read_weights(path)
    inner = call_by_name("torch.storage", "_load_from_bytes", b"x")
    with pytest.raises(WeightsError, match=r"a tensor that is not a torch file"):
        read_weights(write(tmp_path, call_by_name("torch.storage", "_load_from_bytes", inner)))
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4")]),
    ],
)
def test_arrays_of_other_than_numbers_are_refused(tmp_path, value):
    with pytest.raises(WeightsError, match="something other than numbers"):
        read_weights(write(tmp_path, pickle.dumps(value, 2)))


def test_an_array_larger_than_its_bytes_is_refused(tmp_path):
    data = pickle.dumps(np.zeros(7, dtype="u1"), 2)
    path = write(tmp_path, data.replace(b"K\x07\x85", b"K\x09\x85"))
    with pytest.raises(WeightsError, match="cannot reshape"):
        read_weights(path)


def test_a_module_is_read_although_its_class_is_gone(tmp_path):
    class Gone(nn.Sequential):
        pass

    Gone.__qualname__, Gone.__module__ = "Gone", "a_package_that_is_not_here"
    path = tmp_path / "module.ckpt"
    module = Gone(nn.Linear(2, 3), nn.BatchNorm1d(3))
    stream = io.BytesIO()

    class Writer(pickle._Pickler):
        """Python's pickler without the lookup of the class."""

        def save_global(self, obj, name=None):
            if obj is Gone:
                self.write(b"ca_package_that_is_not_here\nGone\n")
            else:
                super().save_global(obj, name)

        dispatch = {**pickle._Pickler.dispatch, type: save_global}

    Writer(stream, 2).dump(module)
    path.write_bytes(stream.getvalue())
    tensors = read_weights(path).tensors()
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in module.state_dict().items()
    }


def test_an_array_with_two_names_and_a_type_of_two_arrays(tmp_path):
    """Pickles refer to an array, and to its type with the byte order, before they have a state."""
    first, second = np.arange(3, dtype=">f4"), np.arange(5, dtype=">f4")
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps({"a": first, "b": first, "c": second}))
    arrays = read_weights(path).arrays()
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "a": [0, 1, 2],
        "b": [0, 1, 2],
        "c": [0, 1, 2, 3, 4],
    }
