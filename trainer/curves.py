"""`curves.png`: how loss, validation scores and learning rate went."""

from pathlib import Path
from typing import Any

from im2sp.shards.files import atomic_file
from im2sp.trainer.metrics import read_metrics

CURVES_NAME = "curves.png"


def draw_curves(run_dir: Path) -> Path | None:
    """Draw the rows of `metrics.jsonl`; None where there are none yet."""
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
