"""Description of shard files in the manifest: layout, batches, checksums."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast, get_args

from im2sp.shards.errors import ShardError
from im2sp.shards.files import is_plain_name
from im2sp.shards.schema import MAX_BATCH_ROWS, compact_json

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
            fail("layout kind", self.kind, f"one of {get_args(Kind)}")
        check_number("samples_per_member", self.samples_per_member, 1, MAX_BATCH_ROWS)

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
            fail("shard file", self.file, "a plain file name")
        check_sha256(f"{self.file}: sha256", self.sha256)
        check_number(f"{self.file}: size_bytes", self.size_bytes, 1, 1 << 62)
        check_number(f"{self.file}: num_samples", self.num_samples, 1, 1 << 62)
        check_splits(f"{self.file}: splits", self.splits, self.num_samples)
        end = 0
        for i, batch in enumerate(self.batches):
            place = f"{self.file}: batch {i}: "
            check_number(f"{place}num_samples", batch.num_samples, 1, MAX_BATCH_ROWS)
            check_number(f"{place}crc32", batch.crc32, 0, (1 << 32) - 1)
            check_number(f"{place}offset", batch.offset, end, self.size_bytes)
            has_gaps = (layout.kind == "arrow" and i == 0) or not (
                layout.kind == "arrow" or layout.is_plain
            )
            if not has_gaps and batch.offset != end:
                fail(f"{place}offset", batch.offset, f"{end}, where the batch before it ends")
            check_number(f"{place}size_bytes", batch.size_bytes, 1, self.size_bytes - batch.offset)
            end = batch.offset + batch.size_bytes
        total = sum(batch.num_samples for batch in self.batches)
        if total != self.num_samples:
            fail(f"{self.file}: samples in all batches", total, f"num_samples {self.num_samples}")


def shard_from_json(content: object) -> ShardInfo:
    """The entry of a shard from the parsed JSON: types checked, values not yet."""
    if not isinstance(content, dict):
        fail("shard", content, "an object")
    shard = cast(dict[str, Any], content)
    if not isinstance(shard.get("batches"), list):
        fail("shard batches", shard.get("batches"), "a list")
    batches: list[BatchInfo] = []
    for batch in shard["batches"]:
        if not isinstance(batch, dict):
            fail("shard batch", batch, "an object")
        values = cast(dict[str, Any], batch)
        names = ("offset", "size_bytes", "num_samples", "crc32")
        batches.append(BatchInfo(**{name: values.get(name) for name in names}))  # pyright: ignore[reportArgumentType]  # ShardInfo.check refuses other types
    names = ("file", "sha256", "size_bytes", "num_samples")
    arguments: dict[str, Any] = {name: shard.get(name) for name in names}
    return ShardInfo(**arguments, splits=json_object(shard, "splits"), batches=tuple(batches))


def shard_to_json(shard: ShardInfo) -> str:
    """Undo `shard_from_json`; one line of the manifest."""
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


def json_object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object of this name; refuses anything else."""
    value: object = content.get(name)
    if not isinstance(value, dict):
        fail(name, value, "an object")
    return cast(dict[str, Any], value)


def check_number(name: str, value: object, low: int, high: int) -> None:
    """Refuse all but an int (no bool) from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        fail(name, value, f"a whole number from {low} to {high}")


def check_sha256(name: str, value: object) -> None:
    """Refuse all but 64 lower-case hex digits."""
    if not isinstance(value, str) or len(value) != 64 or set(value) - set("0123456789abcdef"):
        fail(name, value, "64 lower-case hex digits")


def check_splits(name: str, splits: Mapping[str, int], num_samples: int) -> None:
    """Refuse counts of splits that do not sum to the samples."""
    for split, num in splits.items():
        check_number(f"{name}: {split!r}", num, 1, 1 << 62)
    if sum(splits.values()) != num_samples:
        fail(f"{name}: sum", sum(splits.values()), f"num_samples {num_samples}")


def fail(name: str, found: object, expected: str) -> NoReturn:
    """Raise an error with the value found and the expected one."""
    shown = repr(found)
    raise ShardError(f"{name}: {shown[:80]}, expected {expected}")
