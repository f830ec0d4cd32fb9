"""`dataset.json`, the manifest that defines the content of a dataset.

The text has one top-level field per line and one shard per line, fields in a fixed order. Its first
field is the sha256 of the whole file with that field's 64 digits replaced by zeros, so any change
to the file is detected. Every field is described in `docs/FORMAT.md`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, cast, get_args

from im2sp.shards.coding import make_codecs
from im2sp.shards.errors import ShardError
from im2sp.shards.files import atomic_file, is_plain_name
from im2sp.shards.schema import FORMAT_VERSION, MAX_BATCH_ROWS, compact_json

MANIFEST_NAME = "dataset.json"
REJECTS_NAME = "rejects.jsonl"
FORMAT_NAME = "im2sp"
ADVICE = "copy the file again or rebuild the dataset with im2sp-tokenize"

_ZEROS = "0" * 64
_HEAD = '{"manifest_sha256":"'

Kind = Literal["arrow", "webdataset"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout of samples in shard files."""

    kind: Kind = "arrow"
    """`arrow`: IPC files, mapped into memory. `webdataset`: tar files."""
    samples_per_member: int = MAX_BATCH_ROWS
    """webdataset only: samples in one tar member, 1 to 256; 1 means plain files per sample."""

    def __post_init__(self) -> None:
        """Refuse unknown kinds and sizes."""
        if self.kind not in get_args(Kind):
            _fail("layout kind", self.kind, f"one of {get_args(Kind)}")
        _check_int("samples_per_member", self.samples_per_member, 1, MAX_BATCH_ROWS)

    @property
    def is_plain(self) -> bool:
        """Return True if every sample has separate tar members."""
        return self.kind == "webdataset" and self.samples_per_member == 1

    @property
    def suffix(self) -> str:
        """File name extension of shards of this layout."""
        return ".arrow" if self.kind == "arrow" else ".tar"


@dataclass(frozen=True, kw_only=True)
class BatchInfo:
    """One checked byte range of a shard, with up to 256 samples."""

    offset: int
    """Start of the range in the shard file."""
    size_bytes: int
    """Length of the range."""
    num_samples: int
    """Samples in the range, 1 to 256."""
    crc32: int
    """CRC-32 of the range, as computed by zlib."""


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard file."""

    file: str
    """File name in the dataset's folder."""
    sha256: str
    """sha256 of the file, 64 lower-case hex digits."""
    size_bytes: int
    """Size of the file."""
    num_samples: int
    """Samples in the file."""
    splits: Mapping[str, int]
    """Samples of each split in the file."""
    batches: Sequence[BatchInfo]
    """Batches of the file, in order."""

    def check(self, layout: Layout) -> None:
        """Raise `ShardError` if the numbers contradict each other."""
        if not is_plain_name(self.file):
            _fail("shard file", self.file, "a plain file name")
        _check_sha256(f"{self.file}: sha256", self.sha256)
        _check_int(f"{self.file}: size_bytes", self.size_bytes, 1, 1 << 62)
        _check_int(f"{self.file}: num_samples", self.num_samples, 1, 1 << 62)
        _check_splits(f"{self.file}: splits", self.splits, self.num_samples)
        end = 0
        for i, batch in enumerate(self.batches):
            place = f"{self.file}: batch {i}: "
            _check_int(f"{place}num_samples", batch.num_samples, 1, MAX_BATCH_ROWS)
            _check_int(f"{place}crc32", batch.crc32, 0, (1 << 32) - 1)
            _check_int(f"{place}offset", batch.offset, end, self.size_bytes)
            has_gaps = (layout.kind == "arrow" and i == 0) or not (
                layout.kind == "arrow" or layout.is_plain
            )
            if not has_gaps and batch.offset != end:
                _fail(f"{place}offset", batch.offset, f"{end}, where the batch before it ends")
            _check_int(f"{place}size_bytes", batch.size_bytes, 1, self.size_bytes - batch.offset)
            end = batch.offset + batch.size_bytes
        total = sum(batch.num_samples for batch in self.batches)
        if total != self.num_samples:
            _fail(f"{self.file}: samples in all batches", total, f"num_samples {self.num_samples}")


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
    """Coded column -> its codec and parameters."""
    shards: Sequence[ShardInfo]
    """The shards, in the order of the samples."""
    image_tokenizer: Mapping[str, Any] | None = None
    """Image tokenizer: name, fingerprint, view, precision, codebook_file and codebook_sha256."""
    speech_tokenizer: Mapping[str, Any] | None = None
    """Speech tokenizer: name, fingerprint, precision, layer, num_units."""
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
        make_codecs(self.columns)
        names: set[str] = set()
        splits: dict[str, int] = {}
        for shard in self.shards:
            shard.check(self.layout)
            if shard.file in names:
                _fail("shard file", shard.file, "each file listed once")
            names.add(shard.file)
            for split, num in shard.splits.items():
                splits[split] = splits.get(split, 0) + num
        _check_int("num_samples", self.num_samples, 0, 1 << 62)
        total = sum(shard.num_samples for shard in self.shards)
        if total != self.num_samples:
            _fail("samples in all shards", total, f"num_samples {self.num_samples}")
        _check_splits("splits", self.splits, self.num_samples)
        if splits != dict(self.splits):
            _fail("splits of all shards together", splits, f"{dict(self.splits)}")
        _check_int("num_rejects", self.num_rejects, 0, 1 << 62)
        for name, num in self.raw.items():
            _check_int(f"raw: {name}", num, 0, 1 << 62)
        if self.rejects_sha256 is not None:
            _check_sha256("rejects_sha256", self.rejects_sha256)
        if self.codebook_file is not None:
            if not is_plain_name(self.codebook_file) or self.codebook_file in names:
                _fail("codebook_file", self.codebook_file, "a plain file name that is no shard's")
            tokenizer = self.image_tokenizer or {}
            _check_sha256("codebook_sha256", tokenizer.get("codebook_sha256"))

    @property
    def codebook_file(self) -> str | None:
        """Name of the codebook's file, or None."""
        return (self.image_tokenizer or {}).get("codebook_file")

    @cached_property
    def text(self) -> str:
        """Text of `dataset.json`, with the checksum."""
        content = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "num_samples": self.num_samples,
            "splits": self.splits,
            "layout": _layout_to_json(self.layout),
            "columns": self.columns,
            "image_tokenizer": self.image_tokenizer,
            "speech_tokenizer": self.speech_tokenizer,
            "raw": self.raw,
            "num_rejects": self.num_rejects,
            "rejects_sha256": self.rejects_sha256,
            "settings": self.settings,
        }
        lines = [f'"{name}":{compact_json(value)}' for name, value in content.items()]
        shards = ",\n".join(_shard_to_json(shard) for shard in self.shards)
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
    def read(cls, dataset_dir: str | Path) -> Self:
        """Read and check `dataset.json`.

        Raises:
            ShardError: It is missing, of another version, damaged or inconsistent.
        """
        path = Path(dataset_dir) / MANIFEST_NAME
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ShardError(
                f"{path}: no such file, so this is not a finished dataset; "
                "give the folder that im2sp-tokenize wrote, or run it again to finish"
            ) from None
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
        try:
            return cls.from_bytes(data)
        except ShardError as error:
            raise ShardError(f"{path.parent}: {error}") from None

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the bytes of a `dataset.json`; see `read`."""
        try:
            content: Any = json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{MANIFEST_NAME}: not JSON ({error}); {ADVICE}") from None
        if not isinstance(content, dict) or cast(Any, content).get("format") != FORMAT_NAME:
            raise ShardError(
                f'{MANIFEST_NAME}: no "format":"{FORMAT_NAME}" in it; did im2sp write it?'
            )
        content = cast(dict[str, Any], content)
        version = content.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise ShardError(
                f"{MANIFEST_NAME}: format version {version!r}, this im2sp reads "
                f"{FORMAT_VERSION}; update im2sp or rebuild the dataset"
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
    layout = _object(content, "layout")
    columns = _object(content, "columns")
    for name in columns:
        _object(columns, name)
    if not isinstance(content.get("shards"), list):
        _fail("shards", content.get("shards"), "a list")
    for name in ("image_tokenizer", "speech_tokenizer"):
        if content.get(name) is not None:
            _object(content, name)
    return {
        "num_samples": content.get("num_samples"),
        "splits": _object(content, "splits"),
        "layout": Layout(
            kind=cast(Any, layout.get("kind")),
            samples_per_member=layout.get("samples_per_member", MAX_BATCH_ROWS),
        ),
        "columns": columns,
        "shards": tuple(_shard_from_json(shard) for shard in content["shards"]),
        "image_tokenizer": content.get("image_tokenizer"),
        "speech_tokenizer": content.get("speech_tokenizer"),
        "raw": _object(content, "raw"),
        "num_rejects": content.get("num_rejects"),
        "rejects_sha256": content.get("rejects_sha256"),
        "settings": _object(content, "settings"),
    }


def _shard_from_json(content: object) -> ShardInfo:
    if not isinstance(content, dict):
        _fail("shard", content, "an object")
    shard = cast(dict[str, Any], content)
    if not isinstance(shard.get("batches"), list):
        _fail("shard batches", shard.get("batches"), "a list")
    batches: list[BatchInfo] = []
    for batch in shard["batches"]:
        if not isinstance(batch, dict):
            _fail("shard batch", batch, "an object")
        values = cast(dict[str, Any], batch)
        names = ("offset", "size_bytes", "num_samples", "crc32")
        batches.append(BatchInfo(**{name: values.get(name) for name in names}))  # pyright: ignore[reportArgumentType]  # ShardInfo.check refuses other types
    names = ("file", "sha256", "size_bytes", "num_samples")
    arguments: dict[str, Any] = {name: shard.get(name) for name in names}
    return ShardInfo(**arguments, splits=_object(shard, "splits"), batches=tuple(batches))


def _shard_to_json(shard: ShardInfo) -> str:
    batches = ",".join(
        f'{{"offset":{batch.offset},"size_bytes":{batch.size_bytes},'
        f'"num_samples":{batch.num_samples},"crc32":{batch.crc32}}}'
        for batch in shard.batches
    )
    return (
        f'{{"file":{compact_json(shard.file)},"sha256":"{shard.sha256}",'
        f'"size_bytes":{shard.size_bytes},"num_samples":{shard.num_samples},'
        f'"splits":{compact_json(shard.splits)},"batches":[{batches}]}}'
    )


def _layout_to_json(layout: Layout) -> dict[str, Any]:
    if layout.kind == "arrow":
        return {"kind": layout.kind}
    return {"kind": layout.kind, "samples_per_member": layout.samples_per_member}


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    value: object = content.get(name)
    if not isinstance(value, dict):
        _fail(name, value, "an object")
    return cast(dict[str, Any], value)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        _fail(name, value, f"a whole number from {low} to {high}")


def _check_sha256(name: str, value: object) -> None:
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        _fail(name, value, "64 lower-case hex digits")


def _check_splits(name: str, splits: Mapping[str, int], num_samples: int) -> None:
    for split, num in splits.items():
        _check_int(f"{name}: {split!r}", num, 1, 1 << 62)
    if sum(splits.values()) != num_samples:
        _fail(f"{name}: sum", sum(splits.values()), f"num_samples {num_samples}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _fail(name: str, found: object, expected: str) -> NoReturn:
    shown = repr(found)
    raise ShardError(f"{name}: {shown[:80]}, expected {expected}")
