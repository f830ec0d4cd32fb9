"""A GPU in float32 generates what the CPU generates; a run on it resumes."""

import json
from pathlib import Path

import pytest

from im2sp.pipeline.cli import main as tokenize
from im2sp.trainer.cli import main as train
from im2sp.trainer.generation import generate

pytestmark = pytest.mark.cuda
IMAGES = Path(__file__).resolve().parents[2] / "docs/demo-images"


@pytest.mark.parametrize("num_beams", [1, 5])
def test_generated_ids_are_those_of_the_cpu(make_model, make_batch, num_beams):
    model = make_model().eval()
    image_units, _, _ = make_batch(model)
    on_cpu = generate(model, image_units, num_beams, 12)
    assert generate(model.cuda(), image_units.cuda(), num_beams, 12) == on_cpu


def test_a_run_resumes(tmp_path, capsys):
    shards, out = tmp_path / "shards", tmp_path / "run"
    captions = [
        json.dumps({"image": str(path), "caption": path.stem}) for path in IMAGES.glob("*.jpg")
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(captions))
    assert not tokenize([str(tmp_path / "list.jsonl"), "--out", str(shards), "--quiet"])
    command = ["--shards", str(shards), "--out", str(out), "--preset", "tiny", "--target", "text"]
    command += ["--text-pieces", "60", "--batch-size", "2", "--checkpoint-every", "2"]
    for steps in ("2", "4"):
        train([*command, "--steps", steps])
    assert "resuming from" in capsys.readouterr().out
    assert (out / "step-000004/model.safetensors").is_file()
