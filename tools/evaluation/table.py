"""Text report of an evaluation: the paper's Table 3 with our row, and the other figures.

The paper is Kim et al. 2023, "Towards Practical and Efficient Image-to-Speech Captioning with
Vision-Language Pre-training and Multi-modal Tokens" (arXiv 2309.08531). Its scores, in
hundredths, are of captions transcribed by wav2vec 2.0.
"""

from collections.abc import Mapping
from typing import Any

COLUMNS = ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
_TITLES = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")

PAPER_ROWS: tuple[tuple[str, str, tuple[float | None, ...]], ...] = (
    ("Flickr8k", "paper: no vision-language pre-training", (12.9, 17.1, 40.7, 31.4, 10.3)),
    ("Flickr8k", "paper: CLIP encoder", (17.7, 20.6, 45.9, 45.8, 14.0)),
    ("Flickr8k", "paper: full", (20.6, 22.0, 48.4, 53.6, 15.8)),
    ("Flickr8k", "paper: image units", (16.7, 19.6, 44.2, 41.2, 13.1)),
    ("Flickr8k", "paper: image units to text", (23.4, None, None, None, None)),
    ("COCO", "paper: no vision-language pre-training", (17.4, None, None, None, None)),
    ("COCO", "paper: CLIP encoder", (20.9, None, None, None, None)),
    ("COCO", "paper: full", (25.9, None, None, None, None)),
    ("COCO", "paper: image units", (20.1, None, None, None, None)),
    ("COCO", "paper: image units to text", (29.9, None, None, None, None)),
)
_NAME_WIDTH, _COLUMN_WIDTH = 52, 10


def table(name: str, captions: Mapping[str, Any]) -> str:
    """Table of the paper's rows, ours, our 95 % intervals, and a line for each missing score.

    Args:
        name: Name of our row.
        captions: Result of `Scores.as_json()`.
    """
    lines = [f"{'':<{_NAME_WIDTH}}" + "".join(f"{t:>{_COLUMN_WIDTH}}" for t in _TITLES)]
    lines += [
        _line(f"{data}  {method}", tuple(_cell(value) for value in values))
        for data, method, values in PAPER_ROWS
    ]
    lines.append("-" * len(lines[0]))
    ours = [captions.get(column) for column in COLUMNS]
    lines.append(_line(name, tuple(_cell(None if s is None else 100 * s) for s in ours)))
    ends = [captions["intervals"].get(column) for column in COLUMNS]
    lines.append(_line("  from (95 % interval)", tuple(_cell(e and 100 * e[0]) for e in ends)))
    lines.append(_line("  to", tuple(_cell(e and 100 * e[1]) for e in ends)))
    return "\n".join(lines)


def report(result: Mapping[str, Any]) -> str:
    """Complete report of an evaluation as text."""
    captions = result["captions"]
    parts = [f"{result['name']}: {captions['num_items']:,} images", table("ours", captions)]
    others = [n for n in ("Bleu_1", "Bleu_2", "Bleu_3") if n in captions]
    parts.append("\n".join(_figure(n, 100 * captions[n], _ends(captions, n, 100)) for n in others))
    missing = dict(captions["missing"])
    for group in ("units", "words", "opinions"):
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


def _line(name: str, cells: tuple[str, ...]) -> str:
    return f"{name:<{_NAME_WIDTH}}" + "".join(f"{cell:>{_COLUMN_WIDTH}}" for cell in cells)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _ends(figures: Mapping[str, Any], name: str, factor: float) -> tuple[float, float]:
    low, high = figures["intervals"][name]
    return factor * low, factor * high


def _figure(name: str, value: float, ends: tuple[float, float]) -> str:
    return f"  {name:<24}{value:>10.3f}   [{ends[0]:.3f}, {ends[1]:.3f}]"
