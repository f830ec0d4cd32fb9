import json
import subprocess
import sys
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


def test_engines_alternate(capsys, monkeypatch):
    calls = []

    def run_once(*_, flags):
        calls.append(flags)
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: 0"])
        return {"num_encoded": 3, "encode_s": len(calls)}

    monkeypatch.setattr(bench_job, "run_once", run_once)
    flags = ["--size", "tiny", "--num-images", "3", "--repeats", "2", "--engines"]
    assert bench_job.main([str(DEMO_DIR), *flags]) == 0
    assert calls == 2 * list(bench_job.ENGINES.values())
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[:3]]
    assert [row["encode_s"] for row in rows] == [2.5, 3.5, 4.5]
    assert all(row["cpu_s_min"] >= 0.2 for row in rows)


def test_too_few_images_is_one_line(capsys):
    assert bench_job.main([str(DEMO_DIR), "--size", "tiny", "--num-images", "99"]) == 1
    assert "have 12 images, expected 99" in capsys.readouterr().err
