import json
from pathlib import Path

import pytest

from im2sp.tools.bench import job as bench_job

DEMO_DIR = Path(__file__).resolve().parents[3] / "docs" / "demo-images"


def test_job_and_encoder_tokenize_the_same_images(capsys):
    flags = ["--size", "tiny", "--num-images", "3", "--repeats", "1"]
    assert bench_job.main([str(DEMO_DIR), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    encoder, job = (json.loads(line) for line in lines[:2])
    assert encoder["num_images"] == job["num_images"] == 3
    shares = [float(line.split("|")[3]) for line in lines[-2:]]
    assert shares == [1.0, job["share"]]
    assert job["share"] == pytest.approx(job["images_per_s"] / encoder["images_per_s"], rel=0.05)


def test_too_few_images_is_one_line(capsys):
    assert bench_job.main([str(DEMO_DIR), "--size", "tiny", "--num-images", "99"]) == 1
    assert "have 12 images, expected 99" in capsys.readouterr().err
