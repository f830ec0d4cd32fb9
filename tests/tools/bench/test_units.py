import json

import numpy as np
import pytest

from im2sp.tools.bench import units as bench_units


# webdataset leaves a file that is not read to its end to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_each_kind_in_the_formats_at_hand(tmp_path, capsys):
    pytest.importorskip("webdataset")
    flags = ["--num-samples", "300", "--num-rounds", "1", "--seconds", "0.001"]
    assert bench_units.main(["--dir", str(tmp_path / "new"), *flags]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    sizes = {(row["kind"], row["format"]): row.get("bytes_a_sample") for row in rows}
    assert len(sizes) == len(bench_units.KINDS) * len(bench_units.FORMATS)
    for kind, column in bench_units.KINDS.items():
        of_npy = sizes[kind, ".npy in tars"]
        assert of_npy > 1000
        num_units = column.num_fixed * (100 if column.num_variable else 1)
        assert sizes[kind, "im2sp"] == pytest.approx(num_units * column.bits / 8, rel=0.15, abs=60)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_arrays_are_padded_at_the_end_of_the_last_axis():
    batch = bench_units.padded([np.ones((2, 3), np.uint16), np.zeros((2, 1), np.uint16)])
    assert batch.tolist() == [[[1, 1, 1]] * 2, [[0, -1, -1]] * 2]
