import json
from pathlib import Path

from im2sp.tools import bench_job

DEMO_DIR = Path(__file__).resolve().parents[2] / "docs" / "demo-images"


def test_the_job_is_timed_against_its_encoder(capsys):
    flags = ["--size", "tiny", "--num-images", "3", "--repeats", "1"]
    assert bench_job.main([str(DEMO_DIR), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    encoder, job = (json.loads(line) for line in lines[:2])
    assert encoder["num_images"] == job["num_images"] == 3
    assert job["share"] > 0
    assert "job, tiny.safetensors, fp32" in lines[-1]


def test_memory_is_that_of_the_command(capsys):
    assert bench_job.main([str(DEMO_DIR), "--size", "tiny", "--memory", "2"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["case"] == "memory, 2 images"
    assert row["peak_mb"] > 50


def test_too_few_images_is_one_line(capsys):
    assert bench_job.main([str(DEMO_DIR), "--num-images", "99"]) == 1
    assert "hold 12 images; 99 were asked for" in capsys.readouterr().err
