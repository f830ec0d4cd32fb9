"""What the benchmarks share: cases that take turns, and their rows as a table."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

# The case that all others are compared with.
BASELINE = "plain-fp32"


def check_cases(names: Sequence[str], known: Collection[str]) -> None:
    """Refuse cases that there are not.

    Raises:
        ValueError: Names the first unknown one.
    """
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown case {unknown[0]!r}, expected some of {', '.join(known)}")


def take_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of each case: all cases one after the other, `repeats` times.

    So other load on the machine meets all of them.
    """
    times_s: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run_once in runs.items():
            start = time.perf_counter()
            run_once()
            times_s[name].append(time.perf_counter() - start)
    return times_s


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> str:
    """The rows for reading."""
    lines = [[*columns], *([str(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows of the same names as a table in Markdown, the first column to the left."""
    lines = ["| " + " | ".join(rows[0]) + " |", "| --- " + "| ---: " * (len(rows[0]) - 1) + "|"]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(lines)
