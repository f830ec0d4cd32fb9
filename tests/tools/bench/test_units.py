import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from im2sp.tools.bench import units as bench_units


def test_two_kinds_in_two_formats(tmp_path, capsys, monkeypatch):
    pytest.importorskip("webdataset")
    kinds = {name: bench_units.KINDS[name] for name in ("16x16, 14 bits", "8xT, 11 bits")}
    formats = {name: bench_units.FORMATS[name] for name in ("im2sp", ".npy in tars")}
    monkeypatch.setattr(bench_units, "KINDS", kinds)
    monkeypatch.setattr(bench_units, "FORMATS", formats)
    monkeypatch.setattr(bench_units, "measured", lambda *_: 7.0)
    monkeypatch.setattr(bench_units, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    flags = ["--num-samples", "300", "--num-rounds", "1"]
    assert bench_units.main(["--dir", str(tmp_path / "new"), *flags]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    sizes = {(row["kind"], row["format"]): row["bytes_a_sample"] for row in rows}
    assert len(sizes) == 4
    for kind, column in kinds.items():
        assert sizes[kind, ".npy in tars"] > 1000
        num_units = column.num_fixed * (100 if column.num_variable else 1)
        assert sizes[kind, "im2sp"] == pytest.approx(num_units * column.bits / 8, rel=0.15, abs=60)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# webdataset leaves a file that is not read to its end to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ["im2sp", ".npy in tars", "datasets"])
def test_a_reader_is_measured(tmp_path, name):
    pytest.importorskip({".npy in tars": "webdataset"}.get(name, "datasets"))
    column = bench_units.KINDS["8xT, 11 bits"]
    form = bench_units.FORMATS[name]
    form.write(tmp_path, column, bench_units.samples(column, 300))
    assert bench_units.measured(name, tmp_path, column, 0.001) > 0


def test_arrays_are_padded_at_the_end_of_the_last_axis():
    batch = bench_units.padded([np.ones((2, 3), np.uint16), np.zeros((2, 1), np.uint16)])
    assert batch.tolist() == [[[1, 1, 1]] * 2, [[0, -1, -1]] * 2]
