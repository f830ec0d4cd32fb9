"""Units of other tools to im2sp datasets, and back; datasets to larger or smaller ones.

    python tools/convert.py npy codes/ --columns image_units:16x16:16384 --out shards/
    python tools/convert.py webdataset 0.tar --columns audio_units=mimi.npy:8xT:2048 --out shards/
    python tools/convert.py hf saved/ --columns image_units=codes:16x16:16384 --out shards/
    python tools/convert.py seit val_data.bin --labels val_labels.txt --out shards/
    python tools/convert.py export shards/ --out files/
    python tools/convert.py concatenate a/ b/ --out ab/
    python tools/convert.py split shards/ --shares train=0.9 val=0.1 --out split/

A sample that does not fit its columns becomes a
row of `rejects.jsonl`. Exit codes: 0 done, 1 not possible or every sample refused, 2 usage.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from im2sp.shards import ShardDataset, UnitColumn, concatenate, split_samples
from im2sp.shards.command_line import run_command
from im2sp.shards.errors import counted
from im2sp.tools.converting.export import export
from im2sp.tools.converting.members import read_folder, read_stack, read_tars
from im2sp.tools.converting.records import Record, Source
from im2sp.tools.converting.seit import read_seit
from im2sp.tools.converting.specs import ColumnSpec, parse_pairs, parse_specs
from im2sp.tools.converting.tables import read_tables
from im2sp.tools.converting.write import parse_codebooks, parse_tokenizers, write_records

SEIT_SHAPE, SEIT_CODES = (32, 32), 391

Columns = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=FIELD]:SHAPE:CODES ...")]


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Settings of every conversion to a dataset."""

    out: Path
    """Folder of the dataset."""
    split: str = ""
    """Split of samples that name none."""
    tokenizers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=TOKENIZER ...")] = ()
    """Names of the tokenizers that made the units of columns, to be recorded."""
    codebooks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FILE.npy ...")] = ()
    """Codebooks of columns, (codes, width) floats, to be stored with the dataset."""
    layout: Literal["arrow", "webdataset"] = "arrow"
    """Layout of the shards: memory-mapped Arrow files, or tar files."""
    samples_per_shard: int = 16384
    """Samples of one shard."""
    json: bool = False
    """Print one JSON object instead of text."""
    quiet: bool = False
    """No progress bar and no summary."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        parse_tokenizers(self.tokenizers)
        parse_codebooks(self.codebooks)
        if self.samples_per_shard < 1:
            raise ValueError(f"--samples-per-shard is {self.samples_per_shard}; expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig(OutputConfig):
    """Settings of a source whose columns are given."""

    columns: Columns
    """Columns: NAME[=FIELD]:SHAPE:CODES[:many][:coded] of units, T for an axis that varies, or
    NAME[=FIELD]:TYPE of other values (string, bool, int, float, bytes, 'list of string')."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        super().__post_init__()
        if not any(isinstance(spec.column, UnitColumn) for spec in parse_specs(self.columns)):
            raise ValueError("--columns: no unit column; expected NAME[=FIELD]:SHAPE:CODES")


@dataclass(frozen=True, kw_only=True)
class NpyConfig(ColumnsConfig):
    """Read a folder of .npy files, or one .npy file whose first axis counts the samples.

    A file of the folder is KEY.npy, or KEY.COLUMN.npy for several columns; KEY.txt or KEY.json
    beside it have captions, split and own columns. EnCodec's .ecdc files are read, too.
    """

    source: tyro.conf.Positional[Path]
    """The folder or the file."""


@dataclass(frozen=True, kw_only=True)
class WebdatasetConfig(ColumnsConfig):
    """Read WebDataset tars whose samples have .npy members."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Tars, or folders of tars."""


@dataclass(frozen=True, kw_only=True)
class HfConfig(ColumnsConfig):
    """Read datasets of the datasets library (save_to_disk), or Parquet or Arrow files."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Folders or files."""
    key: str | None = None
    """Column of the keys; by default key, __key__ or id, else file and row number."""
    captions: str | None = None
    """Column of the captions; by default captions, caption or text."""


@dataclass(frozen=True, kw_only=True)
class SeitConfig(OutputConfig):
    """Read a token stream of SeiT: NAME_data.bin with NAME_index.npy beside it."""

    source: tyro.conf.Positional[Path]
    """The file that ends with data.bin."""
    labels: Path | None = None
    """File of labels, one per line; they become the column label."""
    num_codes: int = SEIT_CODES
    """Size of the vocabulary."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the arrays of a dataset as .npy files, and the rest of each sample as .json."""

    dataset: tyro.conf.Positional[Path]
    """Folder or URL (s3://..) with dataset.json."""
    out: Path
    """Folder to write; must not exist."""
    split: str | None = None
    """Split to write, all by default."""


@dataclass(frozen=True, kw_only=True)
class ConcatenateConfig:
    """Write the samples of several datasets to one."""

    datasets: tyro.conf.Positional[tuple[Path, ...]]
    """Folders or URLs (s3://..) with dataset.json."""
    out: Path
    """Folder of the new dataset."""
    split: str | None = None
    """Take only this split, all by default."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Write a dataset whose shards hold one split each."""

    dataset: tyro.conf.Positional[Path]
    """Folder or URL (s3://..) with dataset.json."""
    out: Path
    """Folder of the new dataset."""
    shares: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPLIT=SHARE ...")] = ()
    """New splits and their shares, drawn by key; by default the splits stay."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        parse_shares(self.shares)


CONFIGS: dict[str, type[Any]] = {
    "npy": NpyConfig,
    "webdataset": WebdatasetConfig,
    "hf": HfConfig,
    "seit": SeitConfig,
    "export": ExportConfig,
    "concatenate": ConcatenateConfig,
    "split": SplitConfig,
}


def parse_shares(texts: Sequence[str]) -> dict[str, float]:
    """Parse `--shares`."""
    try:
        pairs = parse_pairs("--shares", texts, "SHARE")
        return {name: float(share) for name, share in pairs.items()}
    except ValueError as error:
        raise ValueError(f"--shares: {error}; expected such as train=0.9 val=0.1") from None


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("convert", CONFIGS, _run, args)


def _run(config: Any) -> None:
    if isinstance(config, ExportConfig):
        num = export(ShardDataset(config.dataset, config.split), config.out)
        print(f"written   {counted(num, 'array')} to {config.out}")
    elif isinstance(config, ConcatenateConfig):
        sources = [ShardDataset(path, config.split) for path in config.datasets]
        _print_written(config.out, concatenate(sources, config.out).num_samples)
    elif isinstance(config, SplitConfig):
        shares = parse_shares(config.shares) or None
        manifest = split_samples(config.dataset, config.out, shares, config.seed)
        _print_written(config.out, manifest.num_samples)
    else:
        _convert(config)


def _print_written(out: Path, num_samples: int) -> None:
    print(f"written   {counted(num_samples, 'sample')} to {out}")


def _convert(config: NpyConfig | WebdatasetConfig | HfConfig | SeitConfig) -> None:
    records, source, kind = _records(config)
    converted = write_records(
        records,
        source,
        config.out,
        kind=kind,
        tokenizers=parse_tokenizers(config.tokenizers),
        codebooks=parse_codebooks(config.codebooks),
        quiet=config.quiet,
        layout=config.layout,
        samples_per_shard=config.samples_per_shard,
    )
    if config.json:
        print(json.dumps(converted.as_json(), ensure_ascii=False))
    elif not config.quiet:
        print(converted.as_text())


def _records(
    config: NpyConfig | WebdatasetConfig | HfConfig | SeitConfig,
) -> tuple[Iterator[Record], Source, str]:
    """Records of a source, its settings, and its kind."""
    if isinstance(config, SeitConfig):
        units = UnitColumn(SEIT_SHAPE, config.num_codes)
        specs = [ColumnSpec(name="image_units", field=None, column=units)]
        if config.labels is not None:
            specs.append(ColumnSpec(name="label", field=None, column="int"))
        source = Source(specs=specs, split=config.split)
        return read_seit(config.source, config.labels, source), source, "seit"
    source = Source(specs=parse_specs(config.columns), split=config.split)
    if isinstance(config, HfConfig):
        records = read_tables(config.sources, source, config.key, config.captions)
        return records, source, "hf"
    if isinstance(config, WebdatasetConfig):
        return read_tars(config.sources, source), source, "webdataset"
    if config.source.is_file():
        return read_stack(config.source, source), source, "npy"
    return read_folder(config.source, source), source, "npy"


if __name__ == "__main__":
    sys.exit(main())
