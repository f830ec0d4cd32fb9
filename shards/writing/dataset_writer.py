"""`DatasetWriter`: write samples of any columns to a dataset."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from im2sp.shards.codebook import CODEBOOK_NAME, codebook_name, tensors_to_bytes
from im2sp.shards.columns.codecs import TABLES, fit
from im2sp.shards.columns.own import OWN_TYPES
from im2sp.shards.columns.stored import StoredUnits
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import ShardError, check_int
from im2sp.shards.files import atomic_file, file_lock, remove_leftovers
from im2sp.shards.layouts.shard_info import Kind, Layout, ShardInfo
from im2sp.shards.manifest import Manifest
from im2sp.shards.schema import Schema, batch_of_rows, entries_of
from im2sp.shards.writing.parts import (
    MAX_PARTS,
    PARTS_DIR,
    Part,
    check_new,
    drop_part,
    join_parts,
    part_path,
    shard_name,
    shards_of_part,
    write_part,
)
from im2sp.shards.writing.shard_file import ShardFile, max_rows

_MAX_BATCH_BYTES = 1 << 26
Columns = Mapping[str, UnitColumn | str]
Row = dict[str, Any]


class DatasetWriter:
    """Writer of a dataset, for use in a `with` block.

    >>> columns = {"image_units": UnitColumn(shape=(16, 16), num_codes=16384), "url": "string"}
    >>> with DatasetWriter("out/", columns=columns) as writer:  # doctest: +SKIP
    ...     writer.write(key="a", captions=["a dog"], image_units=codes, url="https://..")

    The manifest is written last, when the block ends well; after an exception no dataset and no
    file of the writer is left. The same samples with the same settings give the same bytes.

    Any number of processes can write a dataset, each a part: `DatasetWriter(out, part=(3, 16),
    ...)`, with the same other arguments; then `join_parts(out)` writes the manifest. A part that
    was interrupted is written again; `coded` columns need the same `tables` in all parts.

    The keys of all samples are kept in memory to find duplicates: about 100 bytes a sample.

    Attributes:
        manifest: The manifest, after the block; None for a part.
    """

    def __init__(
        self,
        out: str | Path,
        *,
        columns: Columns,
        layout: Kind = "arrow",
        samples_per_member: int = 256,
        samples_per_shard: int = 16384,
        tokenizers: Mapping[str, Mapping[str, Any]] | None = None,
        codebooks: Mapping[str, ArrayLike] | None = None,
        tables: Mapping[str, NDArray[Any]] | None = None,
        settings: Mapping[str, Any] | None = None,
        part: tuple[int, int] | None = None,
    ) -> None:
        """Check the settings; nothing is written yet.

        Args:
            out: Folder of the dataset; created if it does not exist.
            columns: Column -> `UnitColumn`, or the type of an own column: string, bool, int,
                float, bytes or "list of string". Key, split and captions are always there.
            layout: `arrow` (mapped, random access) or `webdataset` (tar files).
            samples_per_member: webdataset only: samples in one tar member, 1 to 256.
            samples_per_shard: Samples in one shard file.
            tokenizers: Unit column -> record of what made its units, such as name and
                fingerprint; JSON values. The trainer never mixes units of different fingerprints.
            codebooks: Unit column -> (num_codes, width) float32 vectors of its units.
            tables: Coding tables of `coded` columns, from `ShardDataset.tensors` or `fit_tables`;
                by default fitted to the first shard's worth of samples.
            settings: JSON values to record in the manifest.
            part: (number, number of parts), for one of several writers.

        Raises:
            ShardError: A setting is invalid, or a codebook does not fit its column.
        """
        self.out = Path(out)
        self.manifest: Manifest | None = None
        self._layout = Layout(kind=layout, samples_per_member=samples_per_member)
        check_int("samples_per_shard", samples_per_shard, 1, 1 << 40)
        self._samples_per_shard = samples_per_shard
        self._is_part = part is not None
        self._number, self._num_parts = part or (0, 1)
        check_int("number of parts", self._num_parts, 1, MAX_PARTS)
        check_int("part", self._number, 0, self._num_parts - 1)
        for name, column in columns.items():
            if not isinstance(column, UnitColumn) and column not in OWN_TYPES:
                raise ShardError(
                    f"column {name}: {column!r}, expected a UnitColumn or one of "
                    f"{', '.join(OWN_TYPES)}"
                )
        self._columns = dict(columns)
        self._settings, self._tokenizers = dict(settings or {}), dict(tokenizers or {})
        self._check_names("tokenizers", self._tokenizers)
        self._codebooks = self._checked_codebooks(codebooks or {})
        self._schema = Schema(2, entries_of(columns), tables)
        self._waiting: list[Row] | None = None
        if self._schema.needs_tables and not tables:
            if part is not None:
                raise ShardError("coded columns in parts need the same tables; give tables=")
            # Until tables are fitted, samples wait in packed form.
            self._waiting = []
            self._schema = Schema(2, entries_of(_packed(columns)))
        _ = self._schema.units
        self._tables = dict(tables or {})
        self._stack: ExitStack | None = None
        self._file: ShardFile | None = None
        self._rows: list[Row] = []
        self._num_bytes = 0
        self._shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._rejects: list[dict[str, str]] = []
        self._raw: dict[str, int] = {}

    def _check_names(self, what: str, names: Iterable[str]) -> None:
        for name in names:
            if not isinstance(self._columns.get(name), UnitColumn):
                raise ShardError(f"{what}: {name!r} is no unit column of {sorted(self._columns)}")

    def _checked_codebooks(self, codebooks: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        self._check_names("codebooks", codebooks)
        checked: dict[str, NDArray[Any]] = {}
        for name, values in codebooks.items():
            column = cast(UnitColumn, self._columns[name])
            codebook = np.asarray(values)
            is_fit = codebook.ndim == 2 and len(codebook) == column.num_codes
            if not is_fit or codebook.dtype.kind != "f" or not np.isfinite(codebook).all():
                raise ShardError(
                    f"column {name}: codebook of {codebook.dtype} and shape {codebook.shape}, "
                    f"expected finite floats of shape ({column.num_codes}, width)"
                )
            checked[codebook_name(name)] = codebook.astype(np.float32)
        return checked

    def __enter__(self) -> Self:
        """Create the folder and lock the part.

        Raises:
            ShardError: The folder holds a dataset or foreign files with names of shards, or
                another process writes this part.
        """
        is_new = not self.out.exists()
        lock_path = part_path(self.out, self._number, self._num_parts).with_suffix(".lock")
        check_new(self.out)
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        is_retry = lock_path.exists()
        with ExitStack() as stack:
            stack.callback(self._tidy, is_new)
            if not stack.enter_context(file_lock(lock_path)):
                raise ShardError(
                    f"{self.out}: another process writes part {self._number} of {self._num_parts} "
                    "here; wait for it or choose another folder"
                )
            stack.callback(lock_path.unlink, missing_ok=True)
            drop_part(self.out, self._number, self._num_parts)
            found = shards_of_part(self.out, self._number, self._num_parts, self._layout)
            if found and not is_retry:
                raise ShardError(f"{found[0]}: exists and is of no dataset; move it away")
            for path in found:  # of a writer that was killed
                path.unlink()
            if is_retry:
                remove_leftovers(self.out)
            self._stack = stack.pop_all()
        return self

    def _tidy(self, is_new: bool) -> None:
        """Remove folders that hold nothing."""
        with suppress(OSError):
            (self.out / PARTS_DIR).rmdir()
        if is_new:
            with suppress(OSError):
                self.out.rmdir()

    def write(
        self, *, key: str, split: str = "", captions: Iterable[str] = (), **values: Any
    ) -> None:
        """Add a sample; one that is refused is not added, and the writer can be used further.

        Args:
            key: Name of the sample, unique and not empty.
            split: train, val, or another; "" if there are no splits.
            captions: Texts.
            values: A value for each column: an integer array of the column's shape, a list of
                them if the column has many, or an own value; None for none.

        Raises:
            ShardError: A value is missing, unknown or does not fit, or the key was written before;
                names sample and column, found and expected.
        """
        if self._stack is None:
            raise ShardError("the writer is not open; use it in a with block")
        captions = captions if isinstance(captions, str) else list(captions)
        self._accept(
            self._schema.encode_row({"key": key, "split": split, "captions": captions, **values})
        )

    def write_stored(self, row: Mapping[str, Any], schema: Schema) -> None:
        """Add a sample as another dataset with the same columns stores it.

        Its units are decoded only where the two datasets code them differently.

        Args:
            row: A row of that dataset, see `Batch.row`.
            schema: Its schema.

        Raises:
            ShardError: A value does not fit, or the key was written before.
        """
        coded = {name: row[name] for name in self._schema.arrow.names}
        for name, stored in self._schema.units.items():
            if stored != schema.units[name] and row[name] is not None:
                try:
                    coded[name] = _recoded(row[name], schema.units[name], stored)
                except ShardError as error:
                    raise ShardError(f"sample {row['key']!r}: column {name}: {error}") from None
        self._accept(coded)

    def _accept(self, row: Row) -> None:
        """Add a coded row, unless its key was written before."""
        key = row["key"]
        if key in self._keys:
            raise ShardError(f"sample {key!r}: written before; every sample needs a unique key")
        self._keys.add(key)
        if self._waiting is None:
            self._add(row)
            return
        self._waiting.append(row)
        if len(self._waiting) >= self._samples_per_shard:
            self._fit()

    def reject(self, file: str, reason: str) -> None:
        """Add a row to `rejects.jsonl`: an input that gave no sample."""
        self._rejects.append({"file": file, "reason": reason})

    def add_raw(self, **counts: int) -> None:
        """Add to the manifest's `raw`: counts and sizes of the inputs, such as num_images."""
        for name, count in counts.items():
            self._raw[name] = self._raw.get(name, 0) + count

    def _fit(self) -> None:
        """Fit the tables to the waiting samples, and add them."""
        waiting, packed = self._waiting or [], self._schema
        self._waiting = None
        rows = [packed.decode_row(row) for row in waiting]
        self._tables = fit_tables(self._columns, rows)
        self._schema = Schema(2, entries_of(self._columns), self._tables)
        for row in rows:
            self._add(self._schema.encode_row(row))

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        self._num_bytes += sum(_size_bytes(value) for value in row.values())
        num_left = self._samples_per_shard - (self._file.num_samples if self._file else 0)
        is_full = len(self._rows) >= min(max_rows(self._layout), num_left)
        if is_full or self._num_bytes >= _MAX_BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Write the rows as one batch; complete the shard if it is full."""
        if not self._rows:
            return
        if self._file is None:
            name = shard_name(self._number, self._num_parts, len(self._shards), self._layout)
            self._file = ShardFile(self.out / name, self._schema, self._layout)
            self._file.__enter__()
        self._file.write(batch_of_rows(self._rows, self._schema.arrow))
        self._rows, self._num_bytes = [], 0
        if self._file.num_samples >= self._samples_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.__exit__(None, None, None)
            self._shards.append(file.info)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Complete the dataset or part, or remove what was written after an exception."""
        stack, self._stack = self._stack, None
        assert stack is not None
        with stack:
            if kind is not None:
                self._abort(kind, error, trace)
                return
            try:
                self._finish()
            except BaseException as failure:
                self._abort(type(failure), failure, failure.__traceback__)
                raise

    def _finish(self) -> None:
        if self._waiting is not None:
            self._fit()
        self._flush()
        self._close_shard()
        codebook = None
        tensors = self._codebooks | self._tables
        if tensors:
            data = tensors_to_bytes(tensors)
            codebook = hashlib.sha256(data).hexdigest()
            if self._number == 0:
                with atomic_file(self.out / CODEBOOK_NAME) as file:
                    file.write(data)
        part = Part(
            shared={
                "columns": self._schema.entries,
                "layout": asdict(self._layout),
                "tokenizers": self._tokenizers,
                "settings": self._settings,
                "codebook": codebook,
            },
            shards=self._shards,
            rejects=self._rejects,
            raw=self._raw,
        )
        write_part(self.out, self._number, self._num_parts, part)
        if not self._is_part:
            self.manifest = join_parts(self.out)

    def _abort(self, *failure: Any) -> None:
        if self._file is not None:
            self._file.__exit__(*failure)
        ours = shards_of_part(self.out, self._number, self._num_parts, self._layout)
        codebooks = [self.out / CODEBOOK_NAME] if self._number == 0 else []
        for path in (*ours, *codebooks, part_path(self.out, self._number, self._num_parts)):
            path.unlink(missing_ok=True)


def fit_tables(columns: Columns, samples: Iterable[Mapping[str, Any]]) -> dict[str, NDArray[Any]]:
    """Coding tables of the `coded` columns, fitted to samples, for `DatasetWriter(tables=...)`.

    Args:
        columns: Columns of the dataset.
        samples: Samples as for `DatasetWriter.write`, or as read.
    """
    coded = {
        name: column
        for name, column in columns.items()
        if isinstance(column, UnitColumn) and column.coding == "coded"
    }
    arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in coded}
    for sample in samples:
        for name, column in coded.items():
            value = sample[name]
            if value is not None:
                arrays[name] += [column.checked(one) for one in (value if column.many else [value])]
    entries = entries_of(coded)
    tables: dict[str, NDArray[Any]] = {}
    for name, column in coded.items():
        fitted = fit(column, entries[name], arrays[name])
        tables |= {f"{name}.{table}": fitted[table] for table in TABLES[entries[name]["codec"]]}
    return tables


def _packed(columns: Columns) -> dict[str, UnitColumn | str]:
    """The columns without fitted codecs."""
    return {
        name: UnitColumn(column.shape, column.num_codes, column.many)
        if isinstance(column, UnitColumn) and column.coding == "coded"
        else column
        for name, column in columns.items()
    }


def _recoded(value: Any, old: StoredUnits, new: StoredUnits) -> Any:
    """Bytes of a unit value, or a list of them, that were coded otherwise."""
    if isinstance(value, list):
        return [_recoded(one, old, new) for one in cast(list[bytes], value)]
    return new.encode(old.decode(np.frombuffer(value, np.uint8)))


def _size_bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(len, cast(list[bytes], value)))
    return len(value) if isinstance(value, bytes | str) else 8
