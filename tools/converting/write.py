"""Writing of records to a dataset, and the summary."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from im2sp.shards import REJECTS_NAME, DatasetWriter, Manifest, ShardError, UnitColumn
from im2sp.shards.errors import counted
from im2sp.tools.converting.records import Record, Source
from im2sp.tools.converting.specs import ColumnSpec, parse_pairs


@dataclass(frozen=True, kw_only=True)
class Converted:
    """Result of a conversion."""

    out: Path
    kind: str
    manifest: Manifest
    unused: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Counts as plain JSON values."""
        manifest = self.manifest
        return {
            "out": str(self.out),
            "kind": self.kind,
            "num_samples": manifest.num_samples,
            "num_rejects": manifest.num_rejects,
            "num_shards": len(manifest.shards),
            "size_bytes": sum(shard.size_bytes for shard in manifest.shards),
            "splits": dict(manifest.splits),
            "unused": dict(self.unused),
        }

    def as_text(self) -> str:
        """Lines for the reader."""
        manifest = self.manifest
        size_bytes = sum(shard.size_bytes for shard in manifest.shards)
        lines = [f"read      {counted(manifest.num_samples + manifest.num_rejects, 'sample')}"]
        if manifest.num_rejects:
            lines.append(
                f"refused   {manifest.num_rejects:,}, listed with reasons in"
                f" {self.out / REJECTS_NAME}"
            )
        if self.unused:
            names = ", ".join(f"{name} ({num:,})" for name, num in sorted(self.unused.items()))
            lines.append(f"not used  {names}")
        lines.append(
            f"written   {counted(manifest.num_samples, 'sample')} in"
            f" {counted(len(manifest.shards), 'shard')} to {self.out}, {size_bytes:,} bytes:"
            f" {size_bytes / manifest.num_samples:,.0f} a sample"
        )
        return "\n".join(lines)


def write_records(
    records: Iterable[Record],
    source: Source,
    out: Path,
    *,
    kind: str,
    tokenizers: Mapping[str, str],
    codebooks: Mapping[str, str],
    quiet: bool,
    **settings: Any,
) -> Converted:
    """Write records to a new dataset; a bad one becomes a row of `rejects.jsonl`.

    Args:
        records: The records.
        source: Settings of the source.
        out: Folder of the dataset.
        kind: Kind of the source, for the manifest.
        tokenizers: Unit column -> name of its tokenizer.
        codebooks: Unit column -> `.npy` file of its codebook.
        quiet: No progress bar.
        settings: Further arguments of `DatasetWriter`.

    Raises:
        ValueError: There is no sample, or every one was refused; no dataset is left then.
    """
    columns = {spec.name: spec.column for spec in source.specs}
    first = ""
    num_samples = num_rejects = 0
    with DatasetWriter(
        out,
        columns=columns,
        tokenizers={name: {"name": tokenizer} for name, tokenizer in tokenizers.items()},
        codebooks={name: _codebook(Path(path)) for name, path in codebooks.items()},
        settings={"source": {"kind": kind}},
        **settings,
    ) as writer:
        for record in tqdm(
            records, desc="convert", unit=" samples", disable=quiet, file=sys.stderr
        ):
            try:
                values = record.read()
                if all(_is_missing(values[name]) for name in _units(source.specs)):
                    raise ShardError(f"sample {record.key!r}: no units in it")
                writer.write(**values)
                num_samples += 1
            except ShardError as error:
                writer.reject(record.name, str(error))
                first = first or str(error)
                num_rejects += 1
        if not num_samples:
            if not num_rejects:
                raise ValueError("no samples found")
            raise ValueError(
                f"{counted(num_rejects, 'sample')} refused and none written; the first: {first}"
            )
    assert writer.manifest is not None
    return Converted(out=out, kind=kind, manifest=writer.manifest, unused=source.unused)


def _units(specs: Sequence[ColumnSpec]) -> list[str]:
    return [spec.name for spec in specs if isinstance(spec.column, UnitColumn)]


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, list) and not value)


def _codebook(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"--codebooks {path}: not a .npy file of numbers ({error})") from None


def parse_tokenizers(texts: Sequence[str]) -> dict[str, str]:
    """Parse `--tokenizers`."""
    return parse_pairs("--tokenizers", texts, "TOKENIZER")


def parse_codebooks(texts: Sequence[str]) -> dict[str, str]:
    """Parse `--codebooks`."""
    return parse_pairs("--codebooks", texts, "FILE.npy")
