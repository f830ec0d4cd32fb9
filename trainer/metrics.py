"""Metrics of a run: rows of `metrics.jsonl`, TensorBoard events, and curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from im2sp.shards.files import atomic_file, parse_json, read_text

METRICS_NAME = "metrics.jsonl"
CURVES_NAME = "curves.png"
TENSORBOARD_NAME = "tensorboard"


class MetricsLog:
    """Writer of metrics. A row has `step` (number of completed steps) and numbers.

    Rows after the step that a run resumes from are removed, as they will be written again.
    """

    def __init__(self, run_dir: Path, step: int, tensorboard: bool) -> None:
        """Open the run's files.

        Args:
            run_dir: Folder of the run.
            step: Steps completed before.
            tensorboard: True to write TensorBoard events too.
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
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run; incomplete rows (of a killed process) are skipped."""
    rows: list[dict[str, Any]] = []
    try:
        lines = read_text(run_dir / METRICS_NAME).splitlines()
    except OSError:
        return rows
    for line in lines:
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"


def draw_curves(run_dir: Path) -> Path | None:
    """Draw loss, scores and learning rate to `curves.png`; None without rows in `metrics.jsonl`."""
    from matplotlib.figure import Figure

    rows = read_metrics(run_dir)
    if not rows:
        return None
    scores = sorted({name for row in rows for name in row if name.startswith("val_")})
    others = [name for name in scores if name != "val_loss"]
    panels = [["loss", "val_loss"], *([name] for name in others), ["learning_rate"], ["grad_norm"]]
    panels = [names for names in panels if any(_points(rows, name)[0] for name in names)]
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    for axes, names in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            steps, values = _points(rows, name)
            if steps:
                marker = "o" if name.startswith("val_") else ""
                axes.plot(steps, values, label=name, marker=marker, markersize=3, linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_title(" and ".join(names), fontsize=10)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=8)
    path = run_dir / CURVES_NAME
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return path


def _points(rows: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in found], [value for _, value in found]
