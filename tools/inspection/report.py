"""The report of im2sp-info: all of it as plain JSON values, and as text."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from im2sp.shards import REJECTS_NAME, ShardDataset, ShardError
from im2sp.shards.errors import counted
from im2sp.shards.files import lines_of, open_regular, parse_json
from im2sp.tools.inspection.measure import measure
from im2sp.tools.inspection.sizes import codebook_bytes, part_bytes, total_bytes

_BARS = " ▁▂▃▄▅▆▇█"
_LABEL = 14
_MAX_REASONS = 10


def report(
    dataset: ShardDataset,
    max_samples: int | None = None,
    on_progress: Callable[[int], object] = lambda _: None,
) -> dict[str, Any]:
    """Everything that im2sp-info reports, as plain JSON values; see `measure`."""
    manifest = dataset.manifest
    measured = measure(dataset, max_samples, on_progress)
    is_complete = measured.num_samples == manifest.num_samples
    parts = part_bytes(dataset.files, manifest, measured.sizes) if is_complete else None
    layout = {"kind": manifest.layout.kind}
    if manifest.layout.kind == "webdataset":
        layout |= {"samples_per_member": manifest.layout.samples_per_member}
    return {
        "dataset": str(dataset.path),
        "format_version": manifest.format_version,
        "manifest_sha256": manifest.sha256,
        "num_samples": manifest.num_samples,
        "num_samples_read": measured.num_samples,
        "splits": dict(manifest.splits),
        "layout": layout,
        "num_shards": len(manifest.shards),
        "columns": measured.as_json(),
        "bytes": {
            "total": total_bytes(dataset.files, manifest),
            "codebook": codebook_bytes(dataset.files, manifest),
            "parts": parts,
        },
        "rejects": {
            "num": manifest.num_rejects,
            "reasons": _reasons(dataset.files.local(REJECTS_NAME)) if manifest.num_rejects else [],
        },
        "image_tokenizer": _plain(manifest.image_tokenizer),
        "speech_tokenizer": _plain(manifest.speech_tokenizer),
        "raw": dict(manifest.raw),
        "settings": dict(manifest.settings),
    }


def _plain(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if record is None else dict(record)


def _reasons(path: Path) -> list[dict[str, Any]]:
    """Reasons of the rejects, most frequent first; those that differ in numbers only are one."""
    kinds: Counter[str] = Counter()
    examples: dict[str, dict[str, str]] = {}
    try:
        with open_regular(path) as file:
            for line in lines_of(file):
                row = parse_json(line)
                reason, name = str(row["reason"]), str(row["file"])
                kind = re.sub(r"\d[\d,.]*(?<![,.])", "N", reason)
                kinds[kind] += 1
                examples.setdefault(kind, {"file": name, "reason": reason})
    except FileNotFoundError:
        raise ShardError(f"{path}: missing, but dataset.json lists it") from None
    except (ValueError, KeyError, TypeError):
        raise ShardError(f"{path}: not a list of rejects; run im2sp-verify") from None
    return [
        {
            "num": num,
            "reason": kind if num > 1 else examples[kind]["reason"],
            "example": examples[kind]["file"],
        }
        for kind, num in sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


# Text ---------------------------------------------------------------------------------------------


def as_text(found: dict[str, Any]) -> str:
    """The report as lines of at most 100 columns, apart from names and settings."""
    num, num_read = found["num_samples"], found["num_samples_read"]
    layout = found["layout"]["kind"]
    lines = [
        _line("dataset", found["dataset"]),
        _line(
            "samples",
            f"{num:,} in {counted(found['num_shards'], 'shard')} ({layout},"
            f" format version {found['format_version']})",
        ),
        _line("splits", ", ".join(f"{k or '(none)'} {v:,}" for k, v in found["splits"].items())),
    ]
    if num_read < num:
        lines.append(
            _line("statistics", f"of {num_read:,} samples, evenly spaced over the dataset")
        )
    for name, column in found["columns"].items():
        lines += ["", *(_other_rows if column["kind"] != "units" else _unit_rows)(name, column)]
    lines += ["", *_byte_rows(found)]
    if found["rejects"]["num"]:
        lines += ["", *_reject_rows(found["rejects"])]
    lines.append("")
    for name in ("image_tokenizer", "speech_tokenizer", "raw", "settings"):
        if found[name]:
            lines.append(_line(name.replace("_tokenizer", " tokens"), pairs(found[name])))
    return "\n".join(lines)


def pairs(record: Mapping[str, Any]) -> str:
    """`name compact, view squash-224`; hashes are cut to 12 digits."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in record.items())


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return f"({pairs(value)})"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"{text[:12]}.." if re.fullmatch("[0-9a-f]{64}", text) else text


def shape_text(shape: Sequence[int | None]) -> str:
    """`28 x 28`, `8 x T`."""
    return " x ".join("T" if size is None else f"{size:,}" for size in shape)


def _unit_rows(name: str, column: dict[str, Any]) -> list[str]:
    many = "list of " if column["many"] else ""
    lines = [
        _line(
            name,
            f"{many}{shape_text(column['shape'])} units below {column['num_codes']:,}"
            f" ({column['codec']})",
        )
    ]
    if not column["num_units"]:
        return [*lines, _line("", "none")]
    stored = column["stored_bits"]
    lines.append(
        _line(
            "",
            f"{counted(column['num_arrays'], 'array')}, {column['num_units']:,} units,"
            f" {column['size_bytes']:,} bytes: {stored:.2f} bits a unit",
        )
    )
    if column["lengths"]:
        lines.append(_line("", f"length {_range(column['lengths'])}"))
    if column["per_sample"]:
        lines.append(_line("", f"arrays a sample {_range(column['per_sample'])}"))
    share = column["codes_used"] / column["num_codes"]
    lines.append(
        _line(
            "",
            f"{column['codes_used']:,} codes used ({100 * share:.1f} %),"
            f" entropy {column['entropy_bits']:.2f} bits a unit",
        )
    )
    lines.append(_line("", f"codes |{_sparkline(column['histogram']['counts'])}|"))
    frequent = ", ".join(
        f"{code} ({100 * num / column['num_units']:.1f} %)"
        for code, num in column["most_frequent"][:5]
    )
    lines.append(_line("", f"most frequent {frequent}"))
    return lines


def _other_rows(name: str, column: dict[str, Any]) -> list[str]:
    """Rows of captions and own columns."""
    lines = [_line(name, column["kind"])]
    if not column["num_values"]:
        return [*lines, _line("", "none")]
    size = f"{column['size_bytes']:,} bytes"
    lines.append(_line("", f"{counted(column['num_values'], 'value')}, {size}"))
    if "min" in column:
        lines.append(_line("", number_range(column)))
    for label, lengths in (
        ("words a value", column.get("words")),
        ("characters a value", column.get("characters")),
        ("values a sample", column.get("per_sample")),
    ):
        if lengths:
            lines.append(_line("", f"{label} {_range(lengths)}"))
    return lines


def number_range(column: Mapping[str, Any]) -> str:
    """Range and mean of numbers; the share of True of booleans."""
    if column["kind"] == "bool":
        return f"{100 * column['mean']:.1f} % true"
    low, high = (
        f"{n:,}" if isinstance(n, int) else f"{n:.6g}" for n in (column["min"], column["max"])
    )
    return f"{low} to {high}, mean {column['mean']:,.6g}"


def _byte_rows(found: dict[str, Any]) -> list[str]:
    sizes, num = found["bytes"], max(found["num_samples"], 1)
    each = sizes["total"] / num
    lines = [_line("on disk", f"{sizes['total']:,} bytes, {each:,.1f} a sample")]
    if sizes["codebook"]:
        lines[0] += f", and a codebook of {sizes['codebook']:,} bytes"
    if sizes["parts"] is None:
        return [*lines, _line("", "the bytes of each part need every sample: no --max-samples")]
    for part, size in sizes["parts"].items():
        if size:
            share = 100 * size / sizes["total"]
            lines.append(_line("", f"{part:<14}{size:>15,}{size / num:>12,.1f}{share:>9.1f} %"))
    return lines


def _reject_rows(rejects: dict[str, Any]) -> list[str]:
    lines = [_line("rejects", f"{rejects['num']:,}")]
    for row in rejects["reasons"][:_MAX_REASONS]:
        lines.append(_line("", f"{row['num']:>7,}  {row['reason'][:120]}"))
    if len(rejects["reasons"]) > _MAX_REASONS:
        rest = rejects["reasons"][_MAX_REASONS:]
        num = sum(row["num"] for row in rest)
        lines.append(_line("", f"{num:>7,}  for {counted(len(rest), 'other reason')}; see --json"))
    return lines


def _range(lengths: dict[str, Any]) -> str:
    if lengths["min"] == lengths["max"]:
        return f"{lengths['min']:,}"
    return (
        f"{lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:,},"
        f" mean {lengths['mean']:,.1f}  |{_sparkline(lengths['histogram']['counts'])}|"
    )


def _sparkline(counts: list[int]) -> str:
    """One character a bin, at most 64 of them; a bin with anything in it is never blank."""
    top = max(max(counts), 1)
    return "".join(_BARS[-(-8 * num // top)] for num in counts)


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{text}"
