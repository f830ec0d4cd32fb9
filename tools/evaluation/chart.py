"""Bar chart of the tables: a row of panels for each dataset, a panel for each score."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from im2sp.shards.files import atomic_file
from im2sp.tools.evaluation.paper import Row
from im2sp.tools.evaluation.tables import Column, Table

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

_COLORS = {"paper": "#9aa5b1", "ours": "#d1495b"}
_PANEL_WIDTH, _BAR_HEIGHT, _MARGIN = 1.9, 0.24, 0.95
_NAMES_WIDTH = 4.2


def draw_chart(tables: Sequence[Table], path: Path) -> None:
    """Draw Tables 2 and 3 together, then Table 4, as SVG; error bars are 95 % intervals."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    blocks: list[tuple[str, Sequence[Column], list[Row]]] = []
    for title, chosen in (("Tables 2 and 3", tables[:2]), ("Table 4", tables[2:])):
        rows: list[Row] = []
        for table in chosen:
            rows += [row for row in table.rows if row not in rows]
        columns = chosen[0].columns
        for data in dict.fromkeys(row.data for table in chosen for row in table.rows):
            blocks.append((f"{title}: {data}", columns, [r for r in rows if r.data == data]))
    heights = [_MARGIN + _BAR_HEIGHT * len(rows) for _, _, rows in blocks]
    num_panels = max(len(columns) for _, columns, _ in blocks)
    size = (_NAMES_WIDTH + _PANEL_WIDTH * num_panels, sum(heights))
    # The same tables give the same file: no clock, no random ids.
    with mpl.rc_context({"svg.hashsalt": "im2sp", "svg.fonttype": "none"}):
        figure = Figure(figsize=size)
        parts = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part, height, (title, columns, rows) in zip(parts, heights, blocks, strict=True):
            _draw_block(part, size[0], height, title, columns, rows)
        with atomic_file(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def _draw_block(
    part: "SubFigure",
    width: float,
    height: float,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
) -> None:
    """Panels of one dataset; the names of the systems are on the left."""
    part.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    panels: Any = part.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    part.subplots_adjust(
        left=_NAMES_WIDTH / width, right=0.99, bottom=0.3 / height, top=1 - 0.55 / height
    )
    places = range(len(rows))
    for axes, column in zip(panels, columns, strict=True):
        for place, row in zip(places, rows, strict=True):
            score = row.scores.get(column.name)
            if score is None:
                continue
            axes.barh(place, score, color=_COLORS[row.source], height=0.75)
            if column.name in row.intervals:
                low, high = row.intervals[column.name]
                axes.plot([low, high], [place, place], color="black", linewidth=1.2)
        axes.set_title(column.title.replace(" (", "\n("), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    names = [_label(row) for row in rows]
    panels[0].set_yticks(list(places), names, fontsize=7)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)


def _label(row: Row) -> str:
    """Source, task and system of a bar; ours with split and number of images."""
    if row.source == "paper":
        return f"paper, {row.task}: {row.system}"
    return f"ours, {row.task}: {row.system}, {row.split} ({row.num_images:,})"
