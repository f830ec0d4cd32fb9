"""The page of im2sp-info: one HTML file without scripts or external resources, opens from disk."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from im2sp.shards import Sample
from im2sp.shards.errors import counted
from im2sp.tools.inspection.media import Media, Shown
from im2sp.tools.inspection.report import number_range, pairs, shape_text

_LONGEST_TEXT = 1000
_NUM_UNITS_SHOWN = 40
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1b1b1f; --soft: #5b5b66; --line: #d5d5dc;
  --card: #f6f6f8; --bar: #3566c8; }
@media (prefers-color-scheme: dark) { :root { --page: #141417; --text: #ececf1; --soft: #a9a9b4;
  --line: #3a3a42; --card: #1e1e23; --bar: #86abf5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 80rem; padding: 1rem; line-height: 1.45; background: var(--page);
  color: var(--text); font-family: system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: .25rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: .875rem; }
.cards { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  min-width: 0; padding: .75rem; }
img { border-radius: .25rem; display: block; margin: 0 0 .5rem; width: 100%; height: auto;
  image-rendering: pixelated; }
img.photo { image-rendering: auto; }
audio { display: block; margin: .5rem 0; width: 100%; }
ul { margin: .25rem 0; padding-left: 1.1rem; }
li { overflow-wrap: anywhere; }
figure { margin: .75rem 0 0; }
svg { display: block; height: 4.5rem; width: 100%; }
svg path { fill: var(--bar); }
figcaption { font-size: .875rem; }
.ends { border-top: 1px solid var(--line); display: flex; justify-content: space-between; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .75rem .3rem 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 400; }
.narrow { max-width: 36rem; }
a { color: var(--bar); }
nav { margin-top: .5rem; }
td.number { text-align: right; white-space: nowrap; }
"""
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def page(found: Mapping[str, Any], media: Media) -> str:
    """Return the page as HTML.

    Args:
        found: The report, see `report`.
        media: Samples to show.
    """
    title = html.escape(Path(found["dataset"]).name)
    num = found["num_samples"]
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n",
        f"<header>\n<h1>{title}</h1>\n<p>{counted(num, 'sample')}{_splits(found['splits'])},"
        f" {found['bytes']['total']:,} bytes</p>\n{_notes(media.notes)}{_links(found)}</header>\n"
        "<main>\n",
        _sample_cards(media.shown),
        _column_cards(found),
        _bytes(found),
        _rejects(found["rejects"]),
        _records(found),
        "</main>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _links(found: Mapping[str, Any]) -> str:
    names = [
        "Samples",
        "Columns",
        "Bytes",
        *(["Rejects"] if found["rejects"]["num"] else []),
        "Origin",
    ]
    links = " · ".join(f'<a href="#{name.lower()}">{name}</a>' for name in names)
    return f"<nav>{links}</nav>\n"


def _notes(lines: Sequence[str]) -> str:
    return "".join(f'<p class="soft">{html.escape(line)}</p>\n' for line in lines)


def _splits(splits: Mapping[str, int]) -> str:
    named = ", ".join(f"{_text(name)} {num:,}" for name, num in splits.items() if name)
    return f" ({named})" if named else ""


def _text(text: str) -> str:
    """Text of any content: escaped, cut if long, and its writing direction kept to itself."""
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]} .. ({len(text):,} characters)"
    return f"<bdi>{html.escape(text)}</bdi>"


# Samples ------------------------------------------------------------------------------------------


def _sample_cards(shown: Sequence[Shown]) -> str:
    cards = "".join(_sample(one) for one in shown)
    return f'<h2 id="samples">Samples</h2>\n<section class="cards">\n{cards}</section>\n'


def _sample(shown: Shown) -> str:
    sample = shown.sample
    parts = ["<article>\n"]
    if shown.image is not None:
        kind = ' class="photo"' if shown.image.startswith("data:image/jpeg") else ""
        label = html.escape(f"Units of {sample.key[:100]}")
        parts.append(f'<img{kind} src="{shown.image}" alt="{label}">\n')
    parts.append(f"<h3>{_text(sample.key)}</h3>\n")
    if sample.captions:
        items = "".join(f"<li>{_text(caption)}</li>\n" for caption in sample.captions)
        parts.append(f"<ul>\n{items}</ul>\n")
    if shown.sound is not None:
        parts.append(f'<audio controls src="{shown.sound}"></audio>\n')
    parts.append(f'<p class="soft">{_about(shown)}</p>\n</article>\n')
    return "".join(parts)


def _about(shown: Shown) -> str:
    sample, facts = shown.sample, []
    if sample.split:
        facts.append(_text(sample.split))
    if sample.image_units is not None:
        facts.append(f"{shape_text(list(sample.image_units.shape))} image units")
    if sample.speech_units:
        num = len(sample.speech_units)
        first = sample.speech_units[0]
        which = f"utterance 1 of {num}: " if num > 1 else ""
        facts.append(f"{which}{counted(first.size, 'speech unit')}")
        if shown.sound is not None:
            facts[-1] += f", {shown.sound_s:.1f} s"
        else:
            facts.append(_first_units(first))
    return " · ".join(facts + [_fact(*pair) for pair in _others(sample).items()])


def _others(sample: Sample) -> dict[str, Any]:
    """Values of the columns that are not shown elsewhere."""
    shown = ("image_units", "speech_units", "durations")
    return {k: v for k, v in sample.columns.items() if k not in shown and v is not None}


def _fact(name: str, value: Any) -> str:
    """An own value, or the shape and first units of an array."""
    arrays = value if isinstance(value, list) else [value]
    if arrays and isinstance(arrays[0], np.ndarray):
        first = arrays[0]
        num = f"{len(arrays)} x " if isinstance(value, list) else ""
        text = f"{num}{shape_text(first.shape)} units: {_first_units(first)}"
    elif isinstance(value, bytes):
        text = f"{len(value):,} bytes"
    else:
        text = ", ".join(map(str, arrays))
    return f"{html.escape(name)} {_text(text)}"


def _first_units(units: NDArray[Any]) -> str:
    flat = units.reshape(-1)
    return " ".join(map(str, flat[:_NUM_UNITS_SHOWN])) + (
        " .." if flat.size > _NUM_UNITS_SHOWN else ""
    )


# Statistics ---------------------------------------------------------------------------------------


def _column_cards(found: Mapping[str, Any]) -> str:
    columns: Mapping[str, Mapping[str, Any]] = found["columns"]
    full = {name: one for name, one in columns.items() if one["size_bytes"]}
    cards = "".join(_column(name, column) for name, column in full.items())
    empty = ", ".join(name for name in columns if name not in full)
    notes = [f"Empty columns: {empty}."] if empty else []
    if found["num_samples_read"] < found["num_samples"]:
        num = f"{found['num_samples_read']:,} samples"
        notes.append(f"These are the statistics of {num}, evenly spaced over the dataset.")
    return (
        f'<h2 id="columns">Columns</h2>\n{_notes(notes)}'
        f'<section class="cards wide">\n{cards}</section>\n'
    )


def _column(name: str, column: Mapping[str, Any]) -> str:
    lines = [f"<article>\n<h3>{html.escape(name)}</h3>\n"]
    if column["kind"] == "units":
        many = "list of " if column["many"] else ""
        lines += [
            f"<p>{many}{shape_text(column['shape'])} units below {column['num_codes']:,}"
            f" ({column['codec']})</p>\n",
            f"<p>{counted(column['num_arrays'], 'array')}, {column['num_units']:,} units,"
            f" {column['stored_bits']:.2f} bits a unit on disk</p>\n",
            f"<p>{column['codes_used']:,} codes used, entropy"
            f" {column['entropy_bits']:.2f} bits a unit</p>\n",
            _code_figure(column["histogram"]),
            _length_figure("units an array", column["lengths"]),
            _length_figure("arrays a sample", column["per_sample"]),
        ]
    else:
        lines += [
            f"<p>{html.escape(column['kind'])}</p>\n",
            f"<p>{counted(column['num_values'], 'value')}</p>\n",
            f"<p>{number_range(column)}</p>\n" if "min" in column else "",
            _length_figure("words a value", column.get("words")),
            _length_figure("values a sample", column.get("per_sample")),
        ]
    return "".join([*lines, "</article>\n"])


def _code_figure(histogram: Mapping[str, Any]) -> str:
    counts, width = histogram["counts"], histogram["codes_per_bin"]
    title = "frequency of codes" if width == 1 else f"frequency of codes, in ranges of {width:,}"
    return _figure(title, counts, 0, len(counts) * width - 1)


def _length_figure(name: str, lengths: Mapping[str, Any] | None) -> str:
    if lengths is None:
        return ""
    low, high = lengths["min"], lengths["max"]
    if low == high:
        return f"<p>{name}: {low:,}</p>\n"
    title = f"{name}: median {lengths['median']:,}, mean {lengths['mean']:,.1f}"
    return _figure(title, lengths["histogram"]["counts"], low, high)


def _figure(title: str, counts: Sequence[int], first: int, last: int) -> str:
    """A histogram as SVG, with its range below."""
    top = max(counts)
    bars = "".join(
        f"M{i} 100h.9v-{100 * num / top:.1f}h-.9z" for i, num in enumerate(counts) if num
    )
    label = html.escape(f"Histogram, {title}; {first:,} to {last:,}")
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>\n"
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {len(counts)} 100"'
        f' preserveAspectRatio="none"><path d="{bars}"/></svg>\n'
        f'<div class="ends soft"><span>{first:,}</span><span>{last:,}</span></div></figure>\n'
    )


def _bytes(found: Mapping[str, Any]) -> str:
    sizes, num = found["bytes"], max(found["num_samples"], 1)
    rows = list((sizes["parts"] or {}).items()) + [("total", sizes["total"])]
    cells = "".join(
        f'<tr><th>{html.escape(name)}</th><td class="number">{size:,}</td>'
        f'<td class="number">{size / num:,.1f}</td></tr>\n'
        for name, size in rows
        if size
    )
    codebook = f"<p>Codebook, once: {sizes['codebook']:,} bytes.</p>\n" if sizes["codebook"] else ""
    return (
        '<h2 id="bytes">Bytes on disk</h2>\n<table class="narrow">\n<tr class="soft"><th>part</th>'
        '<td class="number">bytes</td><td class="number">a sample</td></tr>\n'
        f"{cells}</table>\n{codebook}"
    )


def _rejects(rejects: Mapping[str, Any]) -> str:
    if not rejects["num"]:
        return ""
    cells = "".join(
        f'<tr><td class="number">{row["num"]:,}</td><td>{_text(row["reason"])}</td></tr>\n'
        for row in rejects["reasons"]
    )
    return f"<h2 id='rejects'>Rejects: {rejects['num']:,}</h2>\n<table>\n{cells}</table>\n"


def _records(found: Mapping[str, Any]) -> str:
    names = ("image_tokenizer", "speech_tokenizer", "raw", "settings")
    rows = [(name, pairs(found[name])) for name in names if found[name]]
    rows.append(("format version", str(found["format_version"])))
    cells = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{_text(text)}</td></tr>\n"
        for name, text in rows
    )
    return f"<h2 id='origin'>Origin</h2>\n<table>\n{cells}</table>\n"
