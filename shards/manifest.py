"""`dataset.json`, the manifest that defines the content of a dataset.

The text has one top-level field per line and one shard per line, fields in a fixed order. Its first
field is the sha256 of the whole file with that field's 64 digits replaced by zeros, so any change
to the file is detected. Every field is described in `docs/FORMAT.md`.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Self, cast

from im2sp.shards.errors import ShardError
from im2sp.shards.files import (
    MAX_READ_BYTES,
    atomic_file,
    is_plain_name,
    parse_json,
    read_regular,
)
from im2sp.shards.layouts.shard_info import (
    Layout,
    ShardInfo,
    check_number,
    check_sha256,
    check_splits,
    fail,
    json_object,
    shard_from_json,
    shard_to_json,
)
from im2sp.shards.schema import FORMAT_VERSIONS, MAX_BATCH_ROWS, Schema, compact_json
from im2sp.shards.stores import (
    MissingFileError,
    StoreError,
    folder_or_url,
    join_url,
    read_url,
)
from im2sp.shards.stores.copies import DatasetFiles, KnownFile

MANIFEST_NAME = "dataset.json"
REJECTS_NAME = "rejects.jsonl"
FORMAT_NAME = "im2sp"
ADVICE = "copy the file again or rebuild the dataset with im2sp-tokenize"

_ZEROS = "0" * 64
_HEAD = '{"manifest_sha256":"'


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of `dataset.json`; an inconsistent manifest cannot be built."""

    num_samples: int
    """Samples in the dataset."""
    splits: Mapping[str, int]
    """Samples of each split; "" is the split of samples without one."""
    layout: Layout
    """Layout of samples in the shards."""
    columns: Mapping[str, Mapping[str, Any]]
    """Declared column -> its shape, codec and parameters, or its type."""
    shards: Sequence[ShardInfo]
    """The shards, in the order of the samples."""
    format_version: int = 1
    """Version of the format."""
    image_tokenizer: Mapping[str, Any] | None = None
    """Image tokenizer: name, fingerprint, view, precision; in version 1 also codebook_file and
    codebook_sha256."""
    speech_tokenizer: Mapping[str, Any] | None = None
    """Speech tokenizer: name, fingerprint, precision, layer, num_units."""
    tokenizers: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict[str, Mapping[str, Any]]
    )
    """Version 2: tokenizers of other unit columns, by column."""
    codebook: Mapping[str, Any] | None = None
    """Version 2: `file` and `sha256` of the file with codebooks and coding tables."""
    raw: Mapping[str, int] = field(default_factory=dict[str, int])
    """Counts and sizes of the inputs without rejects: num_images, image_file_bytes; with speech
    also num_utterances, audio_samples (at 16 kHz), audio_file_bytes."""
    num_rejects: int = 0
    """Number of rejected inputs; each is a line of `rejects.jsonl`."""
    rejects_sha256: str | None = None
    """sha256 of `rejects.jsonl`; None if there is no such file."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings of the job that determine the content."""

    def __post_init__(self) -> None:
        """Refuse inconsistent values."""
        try:
            self._check()
        except ShardError as error:
            raise ShardError(f"{MANIFEST_NAME}: {error}; {ADVICE}") from None

    def _check(self) -> None:
        _ = self.schema
        names: set[str] = set()
        splits: dict[str, int] = {}
        for shard in self.shards:
            shard.check(self.layout)
            if shard.file in names:
                fail("shard file", shard.file, "each file listed once")
            names.add(shard.file)
            for split, num in shard.splits.items():
                splits[split] = splits.get(split, 0) + num
        check_number("num_samples", self.num_samples, 0, 1 << 62)
        total = sum(shard.num_samples for shard in self.shards)
        if total != self.num_samples:
            fail("samples in all shards", total, f"num_samples {self.num_samples}")
        check_splits("splits", self.splits, self.num_samples)
        if splits != dict(self.splits):
            fail("splits of all shards together", splits, f"{dict(self.splits)}")
        check_number("num_rejects", self.num_rejects, 0, 1 << 62)
        for name, num in self.raw.items():
            check_number(f"raw: {name}", num, 0, 1 << 62)
        if self.rejects_sha256 is not None:
            check_sha256("rejects_sha256", self.rejects_sha256)
        if self.codebook_file is not None:
            if not is_plain_name(self.codebook_file) or self.codebook_file in names:
                fail("codebook_file", self.codebook_file, "a plain file name that is no shard's")
            check_sha256("codebook_sha256", self.codebook_sha256)
        unknown = set(self.tokenizers) - set(self.columns)
        if unknown:
            fail("tokenizers", sorted(unknown), "declared columns")

    @cached_property
    def schema(self) -> Schema:
        """Columns, without tables that the manifest does not hold."""
        return Schema(self.format_version, self.columns)

    @property
    def codebook_file(self) -> str | None:
        """Name of the file with codebooks and coding tables, or None."""
        if self.format_version == 1:
            return (self.image_tokenizer or {}).get("codebook_file")
        return (self.codebook or {}).get("file")

    @property
    def codebook_sha256(self) -> str | None:
        """Sha256 of that file."""
        if self.format_version == 1:
            return (self.image_tokenizer or {}).get("codebook_sha256")
        return (self.codebook or {}).get("sha256")

    def tokenizer_of(self, column: str) -> Mapping[str, Any] | None:
        """Record of what made the units of a column, or None."""
        records = {"image_units": self.image_tokenizer, "speech_units": self.speech_tokenizer}
        return records.get(column) or self.tokenizers.get(column)

    @cached_property
    def text(self) -> str:
        """Text of `dataset.json`, with the checksum."""
        content = {
            "format": FORMAT_NAME,
            "format_version": self.format_version,
            "num_samples": self.num_samples,
            "splits": self.splits,
            "layout": _layout_to_json(self.layout),
            "columns": self.columns,
            "image_tokenizer": self.image_tokenizer,
            "speech_tokenizer": self.speech_tokenizer,
            "tokenizers": self.tokenizers,
            "codebook": self.codebook,
            "raw": self.raw,
            "num_rejects": self.num_rejects,
            "rejects_sha256": self.rejects_sha256,
            "settings": self.settings,
        }
        if self.format_version == 1:
            del content["tokenizers"], content["codebook"]
        lines = [f'"{name}":{compact_json(value)}' for name, value in content.items()]
        shards = ",\n".join(shard_to_json(shard) for shard in self.shards)
        lines.append(f'"shards":[\n{shards}\n]')
        text = f'{_HEAD}{_ZEROS}",\n' + ",\n".join(lines) + "\n}\n"
        return text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest(), 1)

    @property
    def sha256(self) -> str:
        """Checksum in the manifest."""
        return self.text[len(_HEAD) : len(_HEAD) + 64]

    def write(self, dataset_dir: str | Path) -> None:
        """Write `dataset.json` atomically."""
        with atomic_file(Path(dataset_dir) / MANIFEST_NAME) as file:
            file.write(self.text.encode())

    @classmethod
    def read(cls, dataset_dir: str | os.PathLike[str]) -> Self:
        """Read and check `dataset.json` of a folder or URL.

        Raises:
            ShardError: It is missing, of another version, damaged or inconsistent.
        """
        place = folder_or_url(dataset_dir)
        path = place / MANIFEST_NAME if isinstance(place, Path) else join_url(place, MANIFEST_NAME)
        try:
            data = read_regular(path) if isinstance(path, Path) else read_url(path, MAX_READ_BYTES)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, MissingFileError):
            raise ShardError(
                f"{path}: no such file, so this is not a finished dataset; "
                "give the folder that im2sp-tokenize wrote, or run it again to finish"
            ) from None
        except StoreError as error:
            raise ShardError(str(error)) from None
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            return cls.from_bytes(data)
        except ShardError as error:
            raise ShardError(f"{place}: {error}") from None

    def files(
        self, place: Path | str, cache_dir: str | os.PathLike[str] | None = None
    ) -> DatasetFiles:
        """The dataset's files, in its folder or copied from its URL when needed.

        Args:
            place: As of `folder_or_url`.
            cache_dir: Folder for copies; see `DatasetFiles`.
        """
        known = {
            shard.file: KnownFile(size_bytes=shard.size_bytes, sha256=shard.sha256)
            for shard in self.shards
        }
        known[REJECTS_NAME] = KnownFile(sha256=self.rejects_sha256)
        if self.codebook_file is not None:
            known[self.codebook_file] = KnownFile(sha256=self.codebook_sha256)
        return DatasetFiles(place, known, manifest_sha256=self.sha256, cache_dir=cache_dir)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the bytes of a `dataset.json`; see `read`."""
        try:
            content: Any = parse_json(data, _refuse_constant)
        except ValueError as error:
            raise ShardError(f"{MANIFEST_NAME}: not JSON ({error}); {ADVICE}") from None
        if not isinstance(content, dict) or cast(Any, content).get("format") != FORMAT_NAME:
            raise ShardError(
                f'{MANIFEST_NAME}: no "format":"{FORMAT_NAME}" in it; did im2sp write it?'
            )
        content = cast(dict[str, Any], content)
        version = content.get("format_version")
        if type(version) is not int or version not in FORMAT_VERSIONS:
            raise ShardError(
                f"{MANIFEST_NAME}: format version {version!r}, this im2sp reads "
                f"{' and '.join(map(str, FORMAT_VERSIONS))}; update im2sp or rebuild the dataset"
            )
        _check_own_sha256(data)
        try:
            return cls(**_arguments(content))
        except ShardError as error:
            prefix = f"{MANIFEST_NAME}: "
            if str(error).startswith(prefix):
                raise
            raise ShardError(f"{prefix}{error}; {ADVICE}") from None


def _check_own_sha256(data: bytes) -> None:
    head = len(_HEAD)
    zeroed = data[:head] + _ZEROS.encode() + data[head + 64 :]
    found = hashlib.sha256(zeroed).hexdigest()
    expected = data[head : head + 64].decode("ascii", "replace")
    if not data.startswith(_HEAD.encode()) or found != expected:
        raise ShardError(
            f"{MANIFEST_NAME}: checksum {found} != {expected} at its start, so it was damaged or "
            f"edited; {ADVICE}"
        )


def _arguments(content: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from the parsed JSON: types checked, values not yet."""
    layout = json_object(content, "layout")
    columns = json_object(content, "columns")
    for name in columns:
        json_object(columns, name)
    if not isinstance(content.get("shards"), list):
        fail("shards", content.get("shards"), "a list")
    for name in ("image_tokenizer", "speech_tokenizer", "codebook"):
        if content.get(name) is not None:
            json_object(content, name)
    is_v1 = content["format_version"] == 1
    tokenizers = {} if is_v1 else json_object(content, "tokenizers")
    for name in tokenizers:
        json_object(tokenizers, name)
    return {
        "num_samples": content.get("num_samples"),
        "splits": json_object(content, "splits"),
        "layout": Layout(
            kind=cast(Any, layout.get("kind")),
            samples_per_member=layout.get("samples_per_member", MAX_BATCH_ROWS),
        ),
        "columns": columns,
        "format_version": content["format_version"],
        "tokenizers": tokenizers,
        "codebook": None if is_v1 else content.get("codebook"),
        "shards": tuple(shard_from_json(shard) for shard in content["shards"]),
        "image_tokenizer": content.get("image_tokenizer"),
        "speech_tokenizer": content.get("speech_tokenizer"),
        "raw": json_object(content, "raw"),
        "num_rejects": content.get("num_rejects"),
        "rejects_sha256": content.get("rejects_sha256"),
        "settings": json_object(content, "settings"),
    }


def _layout_to_json(layout: Layout) -> dict[str, Any]:
    if layout.kind == "arrow":
        return {"kind": layout.kind}
    return {"kind": layout.kind, "samples_per_member": layout.samples_per_member}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
