"""The paper's Tables 2, 3 and 4 with our rows: as text, Markdown and JSON; and a report of one run.

Table 2 compares image encoders, Table 3 all systems by the scores of their captions, Table 4 the
quality of the speech. `paper` holds the paper's rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from im2sp.tools.evaluation.paper import (
    CAPTION_SCORES,
    COCO,
    FLICKR8K,
    PAPER_ROWS,
    Ends,
    Row,
    Task,
)


@dataclass(frozen=True)
class Column:
    """Column of scores."""

    name: str
    """Key in `Row.scores`."""
    title: str
    digits: int
    """Decimals."""


@dataclass(frozen=True)
class Table:
    """One table: the paper's rows and ours, by dataset."""

    number: int
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]


CAPTION_COLUMNS = [
    Column(name, title, 1)
    for name, title in zip(
        CAPTION_SCORES, ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE"), strict=True
    )
]
_SPEECH_COLUMNS = (
    Column("naturalness", "naturalness", 3),
    Column("descriptiveness", "descriptiveness", 3),
    Column("MOSNet", "MOSNet", 2),
    Column("SpeechLMScore", "SpeechLMScore (lower is better)", 2),
    Column("UTMOS", "UTMOS", 2),
    Column("DNSMOS_OVRL", "DNSMOS OVRL", 2),
    Column("DNSMOS_P808", "DNSMOS P.808", 2),
)
_PREDICTED = ("MOSNet", "UTMOS", "DNSMOS_OVRL", "DNSMOS_P808")
_TITLES = {
    2: "image encoders, image to speech",
    3: "all systems, scores of the captions",
    4: "quality of the speech",
}
_FACTS = (
    ("", "source"),
    ("data set", "data"),
    ("split", "split"),
    ("task", "task"),
    ("system", "system"),
    ("recognizer", "recognizer"),
    ("images", "num_images"),
)
NOTES = (
    "Rows: paper = published in Kim et al. 2023 (arXiv 2309.08531); ours = measured here.",
    "Scores of captions are in hundredths. Ranges are 95 % intervals. - is no score (in the column"
    " recognizer: scored as text, or none needed), ? is not stated.",
    "Naturalness and descriptiveness are opinions of listeners (the paper's: 15 listeners, 20"
    " samples a system); MOSNet, UTMOS and DNSMOS are predicted ones. SpeechLMScore is the negative"
    " mean log-likelihood of a speech unit, and comparable for one language model only.",
)
"""Explanations below the tables."""


def make_tables(ours: Iterable[Row]) -> list[Table]:
    """Tables 2, 3 and 4 with our rows in the blocks of their datasets."""
    ours = list(ours)
    chosen = {
        2: [row for row in ours if row.task == "image to speech" and _has(row, CAPTION_COLUMNS)],
        3: [row for row in ours if _has(row, CAPTION_COLUMNS)],
        4: [row for row in ours if _has(row, _SPEECH_COLUMNS)],
    }
    tables: list[Table] = []
    for number, mine in chosen.items():
        columns = CAPTION_COLUMNS if number != 4 else _SPEECH_COLUMNS
        rows = _by_data([*PAPER_ROWS[number], *mine])
        shown = [c for c in columns if any(c.name in row.scores for row in rows)]
        tables.append(Table(number, _TITLES[number], shown, rows))
    return tables


def _has(row: Row, columns: Iterable[Column]) -> bool:
    return any(column.name in row.scores for column in columns)


def _by_data(rows: Sequence[Row]) -> list[Row]:
    """Flickr8k, COCO, and the other datasets in the order of their first rows."""
    order = list(dict.fromkeys([FLICKR8K, COCO, *(row.data for row in rows)]))
    return sorted(rows, key=lambda row: order.index(row.data))


def row_of(result: Mapping[str, Any]) -> Row:
    """Our row from the content of a scores.json.

    Raises:
        KeyError: It has another structure.
    """
    captions = result["captions"]
    scores = {c.name: 100 * captions[c.name] for c in CAPTION_COLUMNS if c.name in captions}
    intervals = {name: _ends(captions, name, 100) for name in scores}
    opinions = result.get("opinions", {})
    for name in _PREDICTED:
        if name in opinions:
            scores[name], intervals[name] = opinions[name], _ends(opinions, name, 1)
    speech_lm = result.get("likelihood", {})
    if "log_likelihood" in speech_lm:
        low, high = _ends(speech_lm, "log_likelihood", -1)
        scores["SpeechLMScore"] = -speech_lm["log_likelihood"]
        intervals["SpeechLMScore"] = (high, low)
    return Row(
        source="ours",
        data=_data_name(result.get("data") or Path(result.get("shards", "-")).name),
        split=result.get("split") or "all",
        task=_task_of(result),
        system=", ".join(filter(None, [result.get("input"), result["name"]])),
        recognizer=result.get("asr", "-"),
        num_images=max(
            result.get(group, {}).get("num_items", 0)
            for group in ("captions", "opinions", "likelihood")
        ),
        scores=scores,
        intervals=intervals,
    )


def rows_of_opinions(content: Mapping[str, Any], name: str) -> list[Row]:
    """Our rows of Table 4 from what `tools/listening_test.py score --out` wrote.

    Args:
        content: Content of the file.
        name: Name of the dataset.

    Raises:
        KeyError: It has another structure.
    """
    rows: list[Row] = []
    for system in content["systems"]:
        opinions = {scale: one for scale, one in system["opinions"].items() if one is not None}
        rows.append(
            Row(
                source="ours",
                data=_data_name(name),
                split="?",
                task="listening test",
                system=system["name"],
                recognizer="-",
                num_images=system["num_images"],
                scores={scale: one["mean"] for scale, one in opinions.items()},
                intervals={
                    scale: (one["mean"] - one["half_width"], one["mean"] + one["half_width"])
                    for scale, one in opinions.items()
                    if one["half_width"] is not None
                },
            )
        )
    return rows


def _data_name(name: str) -> str:
    """The paper's spelling of its datasets."""
    return {known.lower(): known for known in (FLICKR8K, COCO)}.get(name.lower(), name)


def _task_of(result: Mapping[str, Any]) -> Task:
    if result.get("topline") is not None:
        return "topline"
    if result.get("cascade") is not None:
        return "cascade"
    return "image to text" if result.get("asr") is None else "image to speech"


# Output ------------------------------------------------------------------------------------------


def as_json(tables: Iterable[Table]) -> dict[str, Any]:
    """All rows of the tables as JSON values."""
    return {
        "tables": [
            {
                "number": table.number,
                "title": table.title,
                "columns": [column.name for column in table.columns],
                "rows": [asdict(row) for row in table.rows],
            }
            for table in tables
        ],
        "notes": list(NOTES),
    }


def as_markdown(tables: Iterable[Table]) -> str:
    """Tables in Markdown, our rows in bold, with intervals beside the scores."""
    parts = ["# Tables 2, 3 and 4 of the paper, with our rows"]
    for table in tables:
        titles = [title for title, _ in _FACTS] + [column.title for column in table.columns]
        lines = [f"## Table {table.number}: {table.title}", ""]
        lines += [_pipes(titles), _pipes(["---"] * 6 + ["---:"] * (len(titles) - 6))]
        for row in table.rows:
            cells = [_fact(row, name).replace("|", "\\|") for _, name in _FACTS]
            for column in table.columns:
                score, ends = _cells(row, column)
                cells.append(f"{score} ({ends})" if ends else score)
            if row.source == "ours":
                cells = [f"**{cell}**" for cell in cells]
            lines.append(_pipes(cells))
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, *NOTES]) + "\n"


def _pipes(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def as_text(tables: Iterable[Table]) -> str:
    """Tables for a terminal; intervals are on the line below a row."""
    parts: list[str] = []
    for table in tables:
        lines = [[title for title, _ in _FACTS] + [column.title for column in table.columns]]
        for row in table.rows:
            cells = [_cells(row, column) for column in table.columns]
            lines.append([_fact(row, name) for _, name in _FACTS] + [score for score, _ in cells])
            if row.intervals:
                blank = [""] * len(_FACTS)
                lines.append(blank + [ends for _, ends in cells])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        num_left = len(_FACTS) - 1
        text = [f"Table {table.number}: {table.title}"]
        for line in lines:
            cells = [
                cell.ljust(width) if place < num_left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            text.append("  ".join(cells).rstrip())
        parts.append("\n".join(text))
    return "\n\n".join([*parts, "\n".join(NOTES)])


def _fact(row: Row, name: str) -> str:
    value = getattr(row, name)
    return f"{value:,}" if isinstance(value, int) else value


def _cells(row: Row, column: Column) -> tuple[str, str]:
    """Score and interval; "-" and "" if there is none."""
    if column.name not in row.scores:
        return "-", ""
    score = f"{row.scores[column.name]:.{column.digits}f}"
    if column.name not in row.intervals:
        return score, ""
    low, high = row.intervals[column.name]
    return score, f"{low:.{column.digits}f} to {high:.{column.digits}f}"


def report(result: Mapping[str, Any]) -> str:
    """Report of one evaluation as text: the tables, the other scores, and what is missing."""
    captions = result["captions"]
    parts = [f"{result['name']}: {captions['num_items']:,} images"]
    parts.append(as_text(make_tables([row_of(result)])))
    others = [n for n in ("Bleu_1", "Bleu_2", "Bleu_3") if n in captions]
    rows = [_figure(n, 100 * captions[n], _ends(captions, n, 100)) for n in others]
    parts.append("\n".join(["captions", *rows]))
    missing = dict(captions["missing"])
    for group in ("units", "words", "opinions", "likelihood"):
        figures = result.get(group)
        if figures is None:
            continue
        names = [n for n in figures if n not in ("num_items", "intervals", "missing")]
        title = f"{group} ({figures['num_items']:,} clips)"
        rows = [_figure(n, figures[n], _ends(figures, n, 1)) for n in names]
        parts.append("\n".join([title, *rows]))
        missing |= figures["missing"]
    parts += [f"{name} is missing: {why}" for name, why in missing.items()]
    return "\n\n".join(part for part in parts if part)


def _ends(figures: Mapping[str, Any], name: str, factor: float) -> Ends:
    low, high = figures["intervals"][name]
    return factor * low, factor * high


def _figure(name: str, value: float, ends: Ends) -> str:
    return f"  {name:<24}{value:>10.3f}   [{ends[0]:.3f}, {ends[1]:.3f}]"
