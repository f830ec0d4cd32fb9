import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from im2sp.shards import (
    DEFAULT_COLUMNS,
    Layout,
    Manifest,
    Sample,
    ShardDataset,
    ShardError,
    UnitColumn,
    encode_batch,
    verify_dataset,
    write_codebook,
    write_shard,
)
from im2sp.shards.cli import main
from im2sp.shards.codebook import tensors_to_bytes
from im2sp.shards.schema import ARROW_SCHEMA, Schema, batch_of_rows, entries_of

Make = Callable[..., list[Sample]]
Write = Callable[..., Manifest]


def publish(dataset_dir: Path, batches: list[Any], **fields: Any) -> None:
    """Write batches as one shard with a matching manifest."""
    shard = write_shard(dataset_dir / "00000.arrow", batches)
    Manifest(
        num_samples=shard.num_samples,
        splits=shard.splits,
        layout=Layout(),
        columns=DEFAULT_COLUMNS,
        shards=(shard,),
        **fields,
    ).write(dataset_dir)


def lines(dataset_dir: Path) -> list[str]:
    return [str(problem) for problem in verify_dataset(dataset_dir)]


def test_sound_datasets(
    tmp_path: Path, layout: str, make_samples: Make, write_dataset: Write
) -> None:
    manifest = write_dataset(tmp_path, make_samples(27), layout, with_extras=True)
    (tmp_path / "unrelated.py").write_text("import nothing")
    seen: list[int] = []
    assert verify_dataset(tmp_path, seen.append) == []
    assert sum(seen) == sum(shard.size_bytes for shard in manifest.shards)


def test_stale_temporary_files_are_noted(
    tmp_path: Path, make_samples: Make, write_dataset: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, make_samples(3))
    (tmp_path / "00001.arrow.tmp").write_bytes(b"half")
    (problem,) = verify_dataset(tmp_path)
    assert problem.is_note
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--quiet"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("note: 00001.arrow.tmp: left over from an interr")


def test_keys_that_occur_twice(tmp_path: Path) -> None:
    publish(tmp_path, [encode_batch([Sample(key="a"), Sample(key="b")])] * 2)
    found = lines(tmp_path)
    assert len(found) == 2
    assert "key 'a' of row 0 is empty or not new, expected unique keys" in found[0]


def test_values_that_the_writer_would_refuse(tmp_path: Path) -> None:
    sample = Sample(key="k", speech_units=[np.array([1, 2])], durations=[np.array([1, 2])])
    good = encode_batch([sample]).to_pylist()[0]
    for change, message in (
        ({"durations": [b"\x00"]}, "row 0: durations and speech_units differ in number or length"),
        ({"durations": []}, "row 0: durations and speech_units differ"),
        ({"durations": [b"\x80"]}, "sample 'k': column durations: varint: id 0 is cut off"),
        ({"key": ""}, "key '' of row 0 is empty"),
    ):
        publish(tmp_path, [batch_of_rows([good | change], ARROW_SCHEMA)])
        (found,) = lines(tmp_path)
        assert message in found
        assert found.startswith("00000.arrow: bytes ")


def test_units_outside_the_codebook(tmp_path: Path) -> None:
    units = np.zeros((28, 28), np.uint16)
    units[27, 27] = 391
    sha256 = write_codebook(tmp_path, np.zeros((391, 32)))
    tokenizer = {"codebook_file": "codebook.safetensors", "codebook_sha256": sha256}
    samples = [Sample(key="a", image_units=units - (units > 0)), Sample(key="b", image_units=units)]
    publish(tmp_path, [encode_batch(samples)], image_tokenizer=tokenizer)
    (found,) = lines(tmp_path)
    assert "row 1: image_units: unit 391, the codebook has 391 rows" in found


def test_wrong_split_counts(
    tmp_path: Path,
    layout: str,
    make_samples: Make,
    write_dataset: Write,
    forge: Callable[..., None],
) -> None:
    write_dataset(tmp_path, make_samples(6), layout)

    def change(content: dict[str, Any]) -> None:
        content["splits"] = content["shards"][0]["splits"] = {"train": 5, "val": 1}

    forge(tmp_path, change)
    (problem,) = verify_dataset(tmp_path)
    assert problem.found == "splits {'train': 2, 'val': 2, '': 2}"
    assert problem.expected == "{'train': 5, 'val': 1}"


def test_rejects(tmp_path: Path) -> None:
    rows = b'{"file":"a.jpg","reason":"cut"}\n'
    path = tmp_path / "rejects.jsonl"
    batches = [encode_batch([Sample(key="a")])]
    publish(tmp_path, batches, num_rejects=1, rejects_sha256=hashlib.sha256(rows).hexdigest())
    assert lines(tmp_path)[0].startswith("rejects.jsonl: missing, expected 1 lines")
    path.write_bytes(rows)
    assert lines(tmp_path) == []
    path.write_bytes(rows + b"{\n")
    found = lines(tmp_path)
    assert [("sha256" in line, "line 2" in line, "2 lines" in line) for line in found] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_cli_reports(
    tmp_path: Path, make_samples: Make, write_dataset: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_dataset(tmp_path, make_samples(12))
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--quiet"])
    assert caught.value.code == 0
    assert capsys.readouterr() == ("", "")
    path = tmp_path / "00001.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    size_bytes = manifest.shards[1].size_bytes
    assert out.splitlines() == [
        f"00001.arrow: {size_bytes - 1} bytes, dataset.json says {size_bytes}; copy the file again "
        "or rebuild the dataset with im2sp-tokenize",
        f"{tmp_path}: 2 shards, 12 samples: 1 problem",
    ]
    assert "verify: 100%" in err
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--json", "--quiet"])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert (report["ok"], report["num_shards"], report["num_samples"]) == (False, 2, 12)
    assert report["problems"][0]["file"] == "00001.arrow"


def write_2(
    dataset_dir: Path, columns: dict[str, Any], rows: list[dict[str, Any]], **more: Any
) -> None:
    """Publish coded rows of version 2, as a writer without checks would."""
    entries = entries_of(columns)
    batch = batch_of_rows(rows, Schema(2, entries).arrow)
    shard = write_shard(dataset_dir / "00000.arrow", [batch])
    Manifest(
        format_version=2, num_samples=len(rows), splits=shard.splits, layout=Layout(),
        columns=entries, shards=(shard,), **more,
    ).write(dataset_dir)  # fmt: skip


def test_values_of_version_2(tmp_path: Path) -> None:
    columns = {
        "grid": UnitColumn((2,), 9),
        "speech_units": UnitColumn((None,), 200, many=True),
        "durations": UnitColumn((None,), 65536, many=True, coding="varint"),
    }
    good = {"key": "k", "split": "", "captions": [], "grid": b"\x88", "speech_units": [b"\x01\x05"],
            "durations": [b"\x07"]}  # fmt: skip
    write_2(tmp_path, columns, [good])
    assert lines(tmp_path) == []
    for change, message in (
        ({"grid": b"\x98"}, "row 0: sample 'k': column grid: id 1 is 9, not below 9"),
        ({"speech_units": [b"\x02\x05"]}, "column speech_units: packed units are"),
        ({"speech_units": [b"\x01\xc8"]}, "column speech_units: id 0 is 200, not below 200"),
        ({"durations": [b"\x00"]}, "row 0: a duration of 0, expected at least one frame"),
        ({"durations": [b"\x07\x07"]}, "row 0: durations and speech_units differ in number"),
    ):
        write_2(tmp_path, columns, [good | change])
        (found,) = lines(tmp_path)
        assert message in found


def test_codebooks_and_tables_of_version_2(tmp_path: Path) -> None:
    packed, coded = ({"grid": UnitColumn((2,), 9, coding=coding)} for coding in ("packed", "coded"))
    row = {"key": "k", "split": "", "captions": [], "grid": b"\x88"}
    for tensors, columns, message in (
        ({"grid.codebook": np.zeros((8, 2), np.float32)}, packed,
         "codebook of grid with 8 rows, expected 9, one for each code"),
        ({"grid.codebook": np.zeros((9, 2))}, packed, "grid.codebook is float64 of shape"),
        ({"x": np.zeros(3)}, coded,
         "column grid: is coded, and its table 'lengths' is not here"),
        ({"grid.lengths": np.zeros(3)}, coded,
         "column grid: table lengths is float64 (3,); expected (n,) uint8"),
        ({"grid.lengths": np.zeros(3, np.uint8)}, coded,
         "column grid: lengths: 3 bytes do not match"),
    ):  # fmt: skip
        data = tensors_to_bytes(tensors)
        (tmp_path / "codebook.safetensors").write_bytes(data)
        codebook = {"file": "codebook.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
        write_2(tmp_path, columns, [row], codebook=codebook)
        assert any(line.startswith("codebook") and message in line for line in lines(tmp_path))
        if "table" in message:
            with pytest.raises(ShardError, match="column grid: "):
                _ = ShardDataset(tmp_path)[0]


@pytest.mark.parametrize("args", [[], ["--nope"], ["a", "b"], ["/no/such/folder"]])
def test_cli_usage(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err


def test_cli_without_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path), "--quiet"])
    assert caught.value.code == 1
    assert "dataset.json: no such file, so this is not a finished" in capsys.readouterr().out


def test_help_runs_without_torch_and_numba() -> None:
    code = (
        "import sys\nfrom im2sp.shards.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as error:\n    assert error.code == 0\n"
        "assert not {'torch', 'numba'} & set(sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert b"dataset.json" in answer.stdout
