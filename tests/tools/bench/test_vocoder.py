import json

from im2sp.pipeline.vocoder.vocoder import Vocoder
from im2sp.tools.bench import vocoder as bench_vocoder
from support.vocoder import make_config, random_generator, save_published


def test_it_times_both_precisions(tmp_path, capsys):
    config = make_config()
    path = save_published(tmp_path / "v", config, random_generator(config))
    arguments = ["--vocoder", str(path), "--clips", "2", "--clip-s", "0.1", "--rounds", "1"]
    assert bench_vocoder.main([*arguments, "--json", "--device", "cpu", "--threads", "1"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["precision"] for row in rows] == ["fp32", "bf16"]
    assert {row["vocoder"] for row in rows} == {"v"}
    assert bench_vocoder.main([*arguments, "--precision", "fp32", "--device", "cpu"]) == 0
    assert "x real time" in capsys.readouterr().out


def test_the_published_size_is_a_vocoder():
    weights = bench_vocoder.published_size(num_units=5, channels=64, width=8)
    vocoder = Vocoder(weights, name="v", device="cpu")
    assert len(vocoder.synthesize([1, 2, 3], [1, 1, 1])) == 960


def test_no_such_vocoder_is_one_line(capsys):
    assert bench_vocoder.main(["--vocoder", "/nowhere/v"]) == 1
    assert capsys.readouterr().err.startswith("bench_vocoder: /nowhere/v: there is no such file")
