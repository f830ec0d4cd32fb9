"""Tools that read a dataset read one in a store."""

import json
import subprocess
import sys

import fsspec
import pytest
from torch.utils.data import DataLoader

from im2sp.shards import Manifest, ShardDataset, ShardError, ShardLoader
from im2sp.shards.cli import main as verify
from im2sp.tools.bitcount import count_bits
from im2sp.tools.bitcount import main as bitcount
from im2sp.tools.convert import main as convert
from im2sp.tools.fit_text import read_captions
from im2sp.tools.info import main as info
from im2sp.tools.speaking.inputs import read_units
from im2sp.trainer.cli import main as train
from support.datasets import make_samples, write_dataset
from support.remote import put_dataset
from support.training import make_shards


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


# S3


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return make_shards(tmp_path / "local")


def exit_code(main, *args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    return left.value.code


@pytest.mark.s3
def test_a_dataset_in_s3(bucket, shards, tmp_path, capsys):
    url = put_dataset(shards, f"{bucket.url}/set")
    assert exit_code(verify, url) == 0
    assert capsys.readouterr().out == f"{url}: 1 shard, 11 samples: sound\n"
    assert exit_code(info, url, "--quiet") == 0
    assert bitcount([url]) == 0
    (copied,) = (tmp_path / "cache/im2sp/datasets").iterdir()
    for path in copied.iterdir():
        assert path.read_bytes() == (shards / path.name).read_bytes()
    settings = {"batch_size": 2, "target": "speech", "split": "train"}
    pairs = zip(ShardLoader(url, **settings), ShardLoader(shards, **settings), strict=True)
    assert all(there.ids.equal(here.ids) for there, here in pairs)
    capsys.readouterr()
    command = ["--shards", f"{url}=0.7", f"{shards}=0.3", "--out", tmp_path / "run", "--steps", 2]
    quick = ["--preset", "tiny", "--batch-size", 2, "--device", "cpu", "--no-tensorboard"]
    assert exit_code(train, *command, *quick) == 0
    text, log = capsys.readouterr()
    assert text.startswith("trained   2 steps")
    assert log.count("\rcopy:   0%") == 1  # nothing of the folder
    assert f"im2sp-train: reading {url}, {shards} ..." in log
    assert f'"{url}=0.7"' in (tmp_path / "run/config.toml").read_text()
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".toml", ".json", ".jsonl")]
    assert not [path for path in written if "test-secret" in path.read_text()]


@pytest.mark.s3
def test_processes_copy_once(bucket, shards):
    url = put_dataset(shards, f"{bucket.url}/set")
    key = f"GET {url[5:]}/00000.arrow"
    program = "import sys; from im2sp.shards import ShardDataset as S; print(S(sys.argv[1])[0].key)"
    running = [
        subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in running] == ["train0\n"] * 2
    assert bucket.site.requests[key] == 1
    dataset = ShardDataset(url, "train")  # its forked workers read the copy
    batches = DataLoader(dataset.torch(["image_units"]), batch_size=4, num_workers=2)
    assert [batch["image_units"].shape[0] for batch in batches] == [4, 4]
    assert bucket.site.requests[key] == 1


@pytest.mark.s3
def test_workers_copy_in_forks(bucket, shards, tmp_path):
    url = put_dataset(shards, f"{bucket.url}/set")
    dataset = ShardDataset(url, "train", tmp_path / "own")
    batches = DataLoader(dataset.torch(["image_units"]), batch_size=4, num_workers=2)
    assert [batch["image_units"].shape[0] for batch in batches] == [4, 4]
    assert bucket.site.requests[f"GET {url[5:]}/00000.arrow"] == 1


@pytest.mark.s3
@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_fault_of_s3_in_between(bucket, shards, fault):
    url = put_dataset(shards, f"{bucket.url}/set")
    names = ["00000.arrow", "dataset.json"]
    bucket.site.faults |= {f"GET {url[5:]}/{name}": [fault] for name in names}
    assert ShardDataset(url)[0].key == "train0"
    assert not any(bucket.site.faults.values())


@pytest.mark.s3
@pytest.mark.parametrize("damaged", [lambda data: data[:-1], lambda data: data[:-1] + b"x"])
def test_a_shard_in_s3_that_is_wrong(bucket, shards, damaged):
    url = put_dataset(shards, f"{bucket.url}/set")
    dataset = ShardDataset(url)
    fsspec.filesystem("s3").pipe(
        f"{url}/00000.arrow", damaged((shards / "00000.arrow").read_bytes())
    )
    with pytest.raises(ShardError, match=f"^{url}/00000.arrow: .* expected .* as in dataset.json"):
        _ = dataset[0]


@pytest.mark.s3
def test_access_to_s3_that_is_denied(bucket, shards, capsys):
    url = put_dataset(shards, f"{bucket.url}/set")
    bucket.site.faults[f"GET {url[5:]}/dataset.json"] = [403]
    assert exit_code(info, url) == 1
    message = f"im2sp-info: {url}/dataset.json: access denied; check the credentials of the store"
    assert capsys.readouterr().err.splitlines() == [message]
