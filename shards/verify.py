"""Verification of a whole dataset: every checksum, every batch, every value."""

import hashlib
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any, cast

import pyarrow as pa
from pyarrow import ipc

from im2sp.shards.codebook import CODEBOOK_NAME, codebook_name, read_tensors
from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import ShardError
from im2sp.shards.files import TMP_SUFFIX, lines_of, open_regular, parse_json
from im2sp.shards.layouts.arrow import arrow_errors
from im2sp.shards.layouts.batch import Batch
from im2sp.shards.layouts.shard_info import ShardInfo
from im2sp.shards.layouts.webdataset import list_members
from im2sp.shards.manifest import (
    ADVICE,
    MANIFEST_NAME,
    REJECTS_NAME,
    Manifest,
)
from im2sp.shards.reader import ShardReader
from im2sp.shards.schema import Sample, Schema, check_durations
from im2sp.shards.stores import folder_or_url
from im2sp.shards.stores.copies import DatasetFiles

_CHUNK_SIZE_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem found in a dataset."""

    file: str
    """Name of the file in the dataset's folder."""
    where: str = ""
    """Position in the file, as a byte range; "" for the whole file."""
    found: str
    """Value or state found."""
    expected: str = ""
    """Expected value, if not clear from `found`."""
    advice: str = ADVICE
    """Recommended action."""
    is_note: bool = False
    """True if the dataset is sound nevertheless."""

    def __str__(self) -> str:
        """Format the problem as one line."""
        place = f"{self.file}: {self.where}" if self.where else self.file
        expected = f", expected {self.expected}" if self.expected else ""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{'note: ' if self.is_note else ''}{place}: {self.found}{expected}{advice}"


def verify_dataset(
    path: str | os.PathLike[str], on_progress: Callable[[int], object] | None = None
) -> list[Problem]:
    """Check everything that `dataset.json` lists, and every value in it.

    Args:
        path: The dataset's folder or URL; its files are then copied one after the other.
        on_progress: Called with the number of shard bytes checked since the last call.

    Returns:
        Problems, empty for a sound dataset. Files that the manifest does not list are ignored,
        except left-over temporary files, which are reported as notes.
    """
    place = folder_or_url(path)
    try:
        manifest = Manifest.read(place)
    except ShardError as error:
        text = str(error).removeprefix(f"{place}: ").removeprefix(f"{MANIFEST_NAME}: ")
        return [Problem(file=MANIFEST_NAME, found=text, advice="")]
    is_copied = isinstance(place, str)
    with TemporaryDirectory(prefix="im2sp-") if is_copied else nullcontext() as cache_dir:
        files = manifest.files(place, cache_dir)
        check = _Check(files, manifest, on_progress or (lambda _: None))
        check.codebook()
        for shard in manifest.shards:
            check.shard(shard)
            if is_copied:
                (files.folder / shard.file).unlink(missing_ok=True)
        check.rejects()
        check.stale_files()
    return check.problems


class _Check:
    """Problems found so far, and state shared by the checks of all shards."""

    def __init__(
        self, files: DatasetFiles, manifest: Manifest, on_progress: Callable[[int], object]
    ) -> None:
        self.problems: list[Problem] = []
        self._files = files
        self._manifest = manifest
        self._on_progress = on_progress
        self._schema: Schema = manifest.schema
        self._keys: set[str] = set()
        self._num_codes: dict[str, int] = {}
        self._can_decode = True

    def codebook(self) -> None:
        """Check the file with codebooks and coding tables, and store the numbers of codes."""
        name, sha256 = self._manifest.codebook_file, self._manifest.codebook_sha256
        schema = self._schema
        try:
            if name is not None and sha256 is not None:
                tensors = read_tensors(self._files.local(name), sha256)
                self._schema = schema.with_tables(tensors)
                for column in schema.columns:
                    if codebook_name(column) in tensors:
                        self._num_codes[column] = len(tensors[codebook_name(column)])
            _ = self._schema.units
        except (ShardError, OSError) as error:
            self._can_decode = not schema.needs_tables
            self._add_error(name or CODEBOOK_NAME, "", error)
        if schema.version == 1:
            return
        for column, found in self._num_codes.items():
            kind = schema.columns[column]
            if isinstance(kind, UnitColumn) and kind.num_codes != found:
                expected = f"{kind.num_codes}, one for each code"
                self._add(name or "", "", f"codebook of {column} with {found} rows", expected)

    def shard(self, info: ShardInfo) -> None:
        """Check one shard: size, sha256, readability with stock tools, each batch, split counts."""
        layout = self._manifest.layout
        try:
            path = self._files.local(info.file)
            reader = ShardReader(path, info, layout, self._schema)
        except (ShardError, OSError) as error:
            self._add_error(info.file, "", error)
            self._on_progress(info.size_bytes)
            return
        found = _sha256(reader.data)
        if found != info.sha256:
            self._add(info.file, "", f"sha256 {found}", f"{info.sha256} as in {MANIFEST_NAME}")
        try:
            self._check_container(reader)
        except ShardError as error:
            self._add_error(info.file, "", error)
        splits: dict[str, int] | None = {}
        for k, batch in enumerate(info.batches):
            where = f"bytes {batch.offset} to {batch.offset + batch.size_bytes - 1}"
            try:
                views = reader.batch(k)
            except (ShardError, OSError) as error:
                self._add_error(info.file, where, error)
                splits = None
            else:
                self._check_values(info.file, where, views, splits)
            self._on_progress(batch.size_bytes)
        if splits is not None and splits != dict(info.splits):
            self._add(info.file, "", f"splits {splits}", f"{dict(info.splits)}")
        self._on_progress(info.size_bytes - sum(batch.size_bytes for batch in info.batches))

    def rejects(self) -> None:
        """Check the list of rejected inputs against the manifest."""
        manifest = self._manifest
        if manifest.rejects_sha256 is None and not manifest.num_rejects:
            return
        digest, number = hashlib.sha256(), 0
        first_bad = num_bad = 0
        try:
            with open_regular(self._files.local(REJECTS_NAME)) as file:
                for number, line in enumerate(lines_of(file), 1):
                    digest.update(line)
                    try:
                        parse_json(line)
                    except ValueError:
                        first_bad, num_bad = first_bad or number, num_bad + 1
        except ShardError as error:
            self._add_error(REJECTS_NAME, "", error)
            return
        except OSError as error:
            problem = "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
            self._add(REJECTS_NAME, "", problem, f"{manifest.num_rejects} lines")
            return
        found = digest.hexdigest()
        if manifest.rejects_sha256 not in (None, found):
            self._add(REJECTS_NAME, "", f"sha256 {found}", f"{manifest.rejects_sha256}")
        if num_bad:
            more = f", nor are {num_bad - 1} other lines" if num_bad > 1 else ""
            self._add(REJECTS_NAME, f"line {first_bad}", f"not JSON{more}", "one object a line")
        if number != manifest.num_rejects:
            self._add(REJECTS_NAME, "", f"{number} lines", f"{manifest.num_rejects}")

    def stale_files(self) -> None:
        """Report temporary files of a killed run as notes."""
        for path in sorted(self._files.folder.glob(f"*{TMP_SUFFIX}")):
            self.problems.append(
                Problem(
                    file=path.name,
                    found="left over from an interrupted run, not part of the dataset",
                    advice="delete it unless im2sp-tokenize is running",
                    is_note=True,
                )
            )

    def _check_container(self, reader: ShardReader) -> None:
        """Check that stock Arrow or tar readers find the batches of the manifest."""
        info, layout = reader.info, self._manifest.layout
        if layout.kind == "arrow":
            _check_arrow_file(reader.data, info, self._schema.arrow)
            return
        members = list_members(reader.data)
        if layout.is_plain:
            end = info.batches[-1].offset + info.batches[-1].size_bytes
            if not members or members[-1].offset + members[-1].padded_size_bytes != end:
                raise ShardError(
                    "tar members do not end with the last batch; the file is cut or extended"
                )
        elif [(m.offset, m.size_bytes) for m in members] != [
            (batch.offset, batch.size_bytes) for batch in info.batches
        ]:
            raise ShardError("tar members differ from the batches in dataset.json")

    def _check_values(
        self, file: str, where: str, batch: Batch, splits: dict[str, int] | None
    ) -> None:
        """Decode all values of a batch; count its splits and check that keys are unique."""
        for i in range(batch.num_samples):
            key = batch.keys.text(i)
            if not key or key in self._keys:
                self._add(file, where, f"key {key!r} of row {i} is empty or not new", "unique keys")
            self._keys.add(key)
            if splits is not None:
                split = batch.splits.text(i)
                splits[split] = splits.get(split, 0) + 1
            if not self._can_decode:
                continue
            try:
                sample = batch.sample(i)
                self._check_codes(sample)
                check_durations(sample.speech_units, sample.durations)
            except ShardError as error:
                self._add(file, where, f"row {i}: {error}")

    def _check_codes(self, sample: Sample) -> None:
        """Check that all units are in their codebooks."""
        for name, num_codes in self._num_codes.items():
            value: Any = sample.columns[name]
            arrays = cast(list[Any], value if isinstance(value, list) else [value])
            arrays = [array for array in arrays if array is not None]
            largest = max((int(array.max(initial=0)) for array in arrays), default=0)
            if largest >= num_codes:
                raise ShardError(f"{name}: unit {largest}, the codebook has {num_codes} rows")

    def _add(self, file: str, where: str, found: str, expected: str = "") -> None:
        self.problems.append(Problem(file=file, where=where, found=found, expected=expected))

    def _add_error(self, file: str, where: str, error: ShardError | OSError) -> None:
        """Add an error, without the path and position at the start of its text."""
        text = str(error)
        for place in (self._files.folder / file, self._files.shown(file), where):
            text = text.removeprefix(f"{place}: ")
        text = text.removesuffix(f"; {ADVICE}")
        self.problems.append(Problem(file=file, where=where, found=text))


def _check_arrow_file(data: pa.Buffer, info: ShardInfo, schema: pa.Schema) -> None:
    with arrow_errors("not an Arrow IPC file"), ipc.open_file(data) as file:
        found, num_batches = file.schema, file.num_record_batches
    if not found.equals(schema, check_metadata=True):
        raise ShardError("its Arrow schema differs from that in dataset.json")
    if num_batches != len(info.batches):
        raise ShardError(f"{num_batches} record batches, dataset.json lists {len(info.batches)}")


def _sha256(data: pa.Buffer) -> str:
    digest = hashlib.sha256()
    raw = memoryview(data)
    for start in range(0, len(raw), _CHUNK_SIZE_BYTES):
        digest.update(raw[start : start + _CHUNK_SIZE_BYTES])
    return digest.hexdigest()
