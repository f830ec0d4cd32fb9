import json

import torch

from im2sp.tools.bench import generate as bench_generate
from im2sp.tools.bench import train as bench_train
from im2sp.tools.bench.train import make_batch, model_flops
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import preset_config
from im2sp.trainer.vocabulary import Vocabulary


def json_rows(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]


def test_generation_is_measured_at_equal_output(capsys):
    arguments = "--preset tiny --batch 2 --beams 1 2 --max-tokens 5 --num-rounds 1 --json"
    bench_generate.main(arguments.split())
    rows = json_rows(capsys)
    assert [(row["batch"], row["beams"], row["units"]) for row in rows] == [(2, 1, 10), (2, 2, 10)]


def test_training_is_measured_at_equal_loss(capsys):
    bench_train.main(["--preset", "tiny", "--images", "2", "--units", "6", "--num-rounds", "1"])
    rows = [row for row in json_rows(capsys) if "case" in row]
    assert [row["case"] for row in rows[:3]] == [
        "ours",
        "transformers, image a caption",
        "transformers, image states repeated",
    ]
    assert [row["precision"] for row in rows] == ["fp32"] * 3 + ["bf16"] * 3
    assert rows[0]["ours is faster by"] == 1


def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    config = preset_config("tiny", Vocabulary(kind="speech", num_ids=200))
    model = Im2SpModel(config, torch.randn(8192, 32))
    batch = make_batch(config, 2, 20)
    with FlopCounterMode(display=False) as counter:
        model.loss(*batch).backward()
    expected = counter.get_total_flops()
    assert 0.75 < model_flops(config, 2, 10, 21) / expected < 1.0
