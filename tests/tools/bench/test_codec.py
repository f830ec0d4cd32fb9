import gzip
import json

import pytest

from im2sp.tools.bench import codec as bench_codec


@pytest.fixture(autouse=True)
def any_core(monkeypatch):
    monkeypatch.delattr("os.sched_setaffinity", raising=False)


def test_it_measures_every_case_of_a_file(tmp_path, capsys):
    path = tmp_path / "units.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(8):
            file.write(json.dumps({"units": [1, 1, 2, i, i, i, 3] * 5}) + "\n")
    bench_codec.main([str(path), "--num-units", "9", "--num-rounds", "1", "--json"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["case"], row["values"]) for row in rows] == [
        ("speech_units, packed", 1),
        ("speech_units, huffman", 2),
        ("speech_units, huffman", 1),
        ("durations, varint", 1),
        ("durations, huffman", 2),
        ("durations, huffman", 1),
    ]
    assert rows[0]["bits_an_id"] == 8 > rows[1]["bits_an_id"]


def test_it_makes_up_clips_and_prints_a_table(capsys, monkeypatch):
    clips = bench_codec.synthetic_clips(8)
    monkeypatch.setattr(bench_codec, "synthetic_clips", lambda: clips)
    bench_codec.main(["--num-rounds", "1"])
    text = capsys.readouterr().out
    assert "2 clips, 300 units" in text
    assert text.count("\n| ") == 8


def test_packing_is_that_of_numpy():
    rows = bench_codec.compare_packing(1, sizes=(3,))
    names = ["pack_units", "pack_units, numpy", "unpack_units", "unpack_units, numpy"]
    assert [row["case"] for row in rows] == names
