import pytest

from im2sp.trainer.metrics import MetricsLog, draw_curves, read_metrics


def test_rows_after_the_resumed_step_are_removed(tmp_path):
    log = MetricsLog(tmp_path, 0, False)
    for step in range(1, 5):
        log.add({"step": step, "loss": 1 / step})
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # a kill
    MetricsLog(tmp_path, 3, False).add({"step": 4, "loss": 9.0})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": pytest.approx(1 / 3)},
        {"step": 4, "loss": 9.0},
    ]


def test_curves(tmp_path):
    assert draw_curves(tmp_path) is None
    log = MetricsLog(tmp_path, 0, False)
    for step in range(1, 9):
        log.add({"step": step, "loss": 1 / step, "learning_rate": 0.1, "grad_norm": 2.0})
    log.add({"step": 8, "val_loss": 0.2, "val_bleu": 0.3})
    data = draw_curves(tmp_path).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
