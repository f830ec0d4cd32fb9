"""What a run tells while it goes on: rows of `metrics.jsonl`, and the same for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from im2sp.shards.files import atomic_file

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_NAME = "tensorboard"


class MetricsLog:
    """Writes rows as they come. A row has `step` (steps that were done) and numbers.

    Rows after the step that a run goes on from are removed: they will come once more.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool) -> None:
        """Open the run's files.

        Args:
            run_dir: Folder of the run.
            step: Steps that were done before.
            tensorboard: Whether to write events, too.
        """
        self._path = run_dir / METRICS_NAME
        kept = [row for row in read_metrics(run_dir) if row["step"] <= step]
        with atomic_file(self._path) as file:
            file.write("".join(map(_line, kept)).encode())
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(run_dir / TENSORBOARD_NAME)
            self._writer = SummaryWriter(folder, purge_step=step + 1 if step else None)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(_line(row))
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    group = "val" if name.startswith("val_") else "train"
                    self._writer.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        """Finish the events."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run, those that a kill has cut left out."""
    rows: list[dict[str, Any]] = []
    try:
        lines = (run_dir / METRICS_NAME).read_text("utf-8").splitlines()
    except OSError:
        return rows
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
