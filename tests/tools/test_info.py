"""im2sp-info: what it prints, its JSON, and what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from im2sp.shards import Sample, ShardDataset
from im2sp.tools.info import main
from im2sp.tools.inspection.report import report
from support.datasets import make_rows, make_samples, write_dataset, write_rows

ROOT = Path(__file__).resolve().parents[2]
REJECTS = (
    b'{"file":"a.wav","reason":"too short: 80 samples at 16 kHz, needs 400"}\n'
    b'{"file":"b.wav","reason":"too short: 1,399 samples at 16 kHz, needs 400"}\n'
    b'{"file":"c.jpg","reason":"cut at byte 12"}\n'
)


def run(*args):
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    return left.value.code


@pytest.fixture
def dataset_dir(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    fields = {"settings": {"view": "squash-224", "source": {"kind": "folder"}}}
    return write_dataset(folder, make_samples(9, speech=True), **fields)


def test_text(dataset_dir, capsys):
    assert run(dataset_dir, "--quiet") == 0
    text, errors = capsys.readouterr()
    assert errors == ""
    for wanted in (
        "9 in 2 shards (arrow, format version 1)",
        "train 5, val 4",
        "28 x 28 units below 8,192 (packed, 13 bits)",
        "9 arrays, 7,056 units, 11,466 bytes: 13.00 bits a unit",
        "list of T units below 256 (packed, 8 bits)",
        "arrays a sample 2",
        "length 5 to 13, median 9, mean 9.0",
        "words a value 2 to 3",
        "fingerprint ffffffffffff..",
        "source (kind folder)",
        "read          9 samples in",
    ):
        assert wanted in text
    assert re.search(r"codes used \(\d+\.\d %\), entropy 1\d\.\d\d bits a unit", text)
    assert re.search(r"image_units +11,466 +1,274\.0", text)
    assert "rejects" not in text


def test_the_progress_bar_is_on_stderr(dataset_dir, capsys):
    assert run(dataset_dir) == 0
    assert "9/9" in capsys.readouterr().err


def test_json_is_one_object_with_everything_that_the_text_has(dataset_dir, capsys):
    assert run(dataset_dir, "--json", "--quiet") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == report(ShardDataset(dataset_dir))
    assert found["num_samples"] == found["num_samples_read"] == 9
    assert found["splits"] == {"train": 5, "val": 4}
    assert list(found["columns"]) == ["image_units", "speech_units", "durations", "captions"]
    on_disk = sum(path.stat().st_size for path in dataset_dir.iterdir())
    assert found["bytes"]["total"] + found["bytes"]["codebook"] == on_disk
    assert sum(found["bytes"]["parts"].values()) == found["bytes"]["total"]
    assert found["image_tokenizer"]["name"] == "compact"
    assert found["speech_tokenizer"] is None
    assert found["settings"]["view"] == "squash-224"


def test_rejects_are_counted_by_reason(tmp_path, capsys):
    write_dataset(tmp_path, make_samples(4), rejects=REJECTS)
    found = report(ShardDataset(tmp_path))["rejects"]
    assert found["num"] == 3
    assert found["reasons"] == [
        {
            "num": 2,
            "reason": "too short: N samples at N kHz, needs N",
            "example": "a.wav",
        },
        {"num": 1, "reason": "cut at byte 12", "example": "c.jpg"},
    ]
    assert run(tmp_path, "--quiet") == 0
    assert "2  too short: N samples at N kHz, needs N" in capsys.readouterr().out


def test_rare_reasons_are_summed_up(tmp_path, capsys):
    lines = "".join(f'{{"file":"f","reason":"reason {"x" * n}"}}\n' for n in range(14))
    write_dataset(tmp_path, make_samples(4), rejects=lines.encode())
    assert run(tmp_path, "--quiet") == 0
    assert "4  for 4 other reasons; see --json" in capsys.readouterr().out


def test_a_part_of_the_samples_is_never_silent(tmp_path, capsys):
    write_dataset(tmp_path, make_samples(600))
    assert run(tmp_path, "--quiet", "--max-samples", 10) == 0
    text = capsys.readouterr().out
    assert "statistics    of 256 samples, evenly spaced over the dataset" in text
    assert "the bytes of each part need every sample: no --max-samples" in text
    found = report(ShardDataset(tmp_path), 10)
    assert (found["num_samples"], found["num_samples_read"]) == (600, 256)
    assert found["bytes"]["parts"] is None


def test_a_column_without_values_is_named(tmp_path, capsys):
    write_dataset(tmp_path, make_samples(4, images=False, speech=True))
    assert run(tmp_path, "--quiet") == 0
    assert re.search(r"image_units .*\n +none\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "dataset.json").unlink(), "dataset.json: no such file"),
        (lambda d: (d / "00001.arrow").unlink(), "00001.arrow: missing"),
        (
            lambda d: os.truncate(d / "00001.arrow", 900),
            "00001.arrow: 900 bytes, dataset",
        ),
        (lambda d: (d / "codebook.safetensors").unlink(), "codebook.safetensors: missing"),
        (lambda d: (d / "rejects.jsonl").unlink(), "rejects.jsonl: missing"),
        (
            lambda d: (d / "rejects.jsonl").write_text("[]\n"),
            "rejects.jsonl: not a list",
        ),
    ],
)
def test_bad_data_is_one_line_and_exit_code_1(tmp_path, capsys, damage, message):
    write_dataset(tmp_path, make_samples(7), rejects=REJECTS)
    damage(tmp_path)
    assert run(tmp_path, "--quiet") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert message in shown.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-samples", "0"], "--max-samples is 0; expected at least 1"),
        (["--num-samples", "0"], "--num-samples is 0; expected at least 1"),
        (["--html", "."], "--html .: is a folder; expected the name of a file"),
        (["--jsn"], "--jsn"),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys, flags, message):
    assert run("set", *flags) == 2
    assert message in capsys.readouterr().err


def test_it_needs_torch_only_for_a_page(dataset_dir):
    program = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['info.py', {str(dataset_dir)!r}, '--quiet'];"
        "runpy.run_path('tools/info.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert "9 in 2 shards" in done.stdout


def test_a_dataset_of_other_shapes(tmp_path, capsys):
    rng = np.random.default_rng(0)
    samples = [
        Sample(key=str(i), image_units=rng.integers(0, 16384, (16, 16), np.uint16))
        for i in range(4)
    ]
    columns = {
        "image_units": {"codec": "packed", "bits": 14, "count": 256, "shape": [16, 16]},
        "speech_units": {"codec": "packed", "bits": 10},
        "durations": {"codec": "varint", "minimum": 1},
    }
    write_dataset(tmp_path, samples, columns=columns, image_tokenizer=None)
    assert run(tmp_path, "--quiet") == 0
    text = capsys.readouterr().out
    assert "16 x 16 units below 16,384 (packed, 14 bits)" in text
    assert "list of T units below 1,024 (packed, 10 bits)" in text


def test_all_columns_of_version_2(tmp_path, capsys):
    rows = make_rows()
    write_rows(tmp_path / "set", rows)
    assert run(tmp_path / "set", "--quiet") == 0
    text = capsys.readouterr().out
    for wanted in (
        "8 x T units below 2,048 (packed, 11 bits)",
        "4 units below 4,294,967,296 (packed, 32 bits)",
        "list of T units below 1,000 (huffman)",
        "0 to 2.75, mean 1.375",
        "-3 to 8, mean 2.5",
        "25.0 % true",
        "tables (column)",
    ):
        assert wanted in text
    found = report(ShardDataset(tmp_path / "set"))
    columns, parts = found["columns"], found["bytes"]["parts"]
    assert sum(parts.values()) == found["bytes"]["total"]
    clips = [row["audio_units"] for row in rows if row["audio_units"] is not None]
    lengths = columns["audio_units"]["lengths"]
    assert (lengths["num"], lengths["sum"]) == (len(clips), sum(one.shape[1] for one in clips))
    assert columns["wide_units"]["codes_used"] == 48
    urls = [row["url"] for row in rows if row["url"]]
    assert columns["url"]["num_values"] == len(urls)
    assert columns["url"]["characters"]["sum"] == parts["url"] == sum(map(len, urls))
    assert columns["blob"] == {"kind": "bytes", "num_values": 12, "size_bytes": 66}
    assert columns["is_new"]["mean"] == 0.25
    tables = sum(t.nbytes for t in ShardDataset(tmp_path / "set").tensors().values() if t.ndim == 1)
    assert (parts["tables (column)"], parts["tables"]) == (96, tables)
    assert columns["tags"]["num_values"] == sum(len(row["tags"]) for row in rows)
