import json

import pytest

from im2sp.tools.bench import gpu as bench_gpu


def test_it_measures_at_small_sizes_on_a_cpu(capsys):
    slow = ("job", "compiled training")
    names = [name for name in bench_gpu.MEASUREMENTS if name not in slow]
    assert bench_gpu.main(["--device", "cpu", "--quick", "--only", *names]) == 0
    out = capsys.readouterr().out
    rows = [json.loads(line) for line in out.splitlines() if line[:1] == "{"]
    assert list(dict.fromkeys(row["measurement"] for row in rows)) == names
    assert not [row for row in rows if row["case"] == "the rest"]
    assert {row["value"] for row in rows if row["measurement"] == "equality"} == {1.0}
    assert "cores; Python 3." in out
    assert out.count("\n| ") == len(rows) + 2


def test_a_failure_and_the_time_limit_become_rows(monkeypatch):
    def fail(_):
        yield {"case": "first"}
        raise RuntimeError("no kernel")

    monkeypatch.setitem(bench_gpu.MEASUREMENTS, "job", fail)
    rows = list(bench_gpu.measure(bench_gpu.BenchGpuConfig(only=("job",))))
    assert [row["case"] for row in rows] == ["first", "the rest"]
    assert rows[1]["note"] == "failed: RuntimeError: no kernel"
    (late,) = bench_gpu.measure(bench_gpu.BenchGpuConfig(only=("job",), minutes=-1))
    assert late["note"] == "not reached in time"


def test_unknown_measurements_are_refused():
    with pytest.raises(ValueError, match="unknown case 'tpu', expected some of equality, training"):
        bench_gpu.BenchGpuConfig(only=("tpu",))
