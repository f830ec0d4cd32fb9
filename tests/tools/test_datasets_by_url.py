"""Tools that read a dataset read one in a store."""

import json

import fsspec
import pytest

from im2sp.shards import Manifest
from im2sp.tools.bitcount import count_bits
from im2sp.tools.bitcount import main as bitcount
from im2sp.tools.convert import main as convert
from im2sp.tools.fit_text import read_captions
from im2sp.tools.info import main as info
from im2sp.tools.speaking.inputs import read_units
from support.datasets import make_samples, write_dataset
from support.remote import put_dataset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    names = ("image_tokenizer", "speech_tokenizer")
    fields = {name: {"name": "compact", "num_units": 200} for name in names}
    rejects = b'{"file":"a.jpg","reason":"cut"}\n'
    return write_dataset(tmp_path / "set", make_samples(9, speech=True), rejects=rejects, **fields)


@pytest.fixture
def memory(folder):
    yield put_dataset(folder, "memory://bucket/set")
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_info_and_bitcount(folder, memory, capsys):
    found = {}
    for name in (str(folder), memory):
        with pytest.raises(SystemExit, match="0"):
            info([name, "--json", "--quiet"])
        found[name] = json.loads(capsys.readouterr().out)
        assert found[name].pop("dataset") == name
        assert bitcount([name]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: 9 samples")
    assert found[memory] == found[str(folder)]
    assert count_bits(memory) == count_bits(folder)


def test_a_part_of_a_large_dataset_needs_a_part_of_its_shards(memory, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        info([memory, "--json", "--quiet", "--max-samples", "1"])
    assert json.loads(capsys.readouterr().out)["num_samples_read"] < 9
    assert len(list((tmp_path / "cache").rglob("*.arrow"))) == 1


def test_inputs_of_convert(folder, memory, tmp_path, capsys):
    for command in ("export", "split"):
        assert convert([command, memory, "--out", str(tmp_path / command)]) == 0
    assert convert(["concatenate", memory, "--out", str(tmp_path / "all")]) == 0
    assert len(list((tmp_path / "export").glob("*.json"))) == 9
    origin = {"kind": "split", "manifest_sha256": Manifest.read(folder).sha256, "split": None}
    assert Manifest.read(tmp_path / "split").settings["source"] == origin
    assert Manifest.read(tmp_path / "all").num_samples == 9


def test_captions_and_units(folder, memory):
    assert list(read_captions(memory, "val")) == list(read_captions(folder, "val"))
    found, expected = (read_units(name, None, 5) for name in (memory, folder))
    assert found.clips == expected.clips
