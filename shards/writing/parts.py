"""Parts of a dataset, written by any number of processes, and `join_parts`.

While a dataset is being written, its folder holds `.im2sp-parts/` with two files for each part:

    00003-of-00016.lock    held while the part is written
    00003-of-00016.json    the finished part: its shards, rejects and counts, and the settings that
                           all parts must share

`join_parts` makes the manifest of them and removes the folder.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from im2sp.shards.codebook import CODEBOOK_NAME
from im2sp.shards.errors import ShardError, counted
from im2sp.shards.files import atomic_file, read_json, size_of
from im2sp.shards.layouts.shard_info import BatchInfo, Layout, ShardInfo
from im2sp.shards.manifest import (
    MANIFEST_NAME,
    REJECTS_NAME,
    Manifest,
)
from im2sp.shards.stores import as_url, is_url, shown_url
from im2sp.shards.writing.card import write_card

PARTS_DIR = ".im2sp-parts"
MAX_PARTS = 99_999
_RECORD = re.compile(r"(\d{5})-of-(\d{5})\.json")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished part."""

    shared: Mapping[str, Any]
    """Settings that all parts share: `columns`, `layout`, `tokenizers`, `settings`, `codebook`."""
    shards: list[ShardInfo] = field(default_factory=list[ShardInfo])
    """Its shards."""
    rejects: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """Rows of `rejects.jsonl`."""
    raw: dict[str, int] = field(default_factory=dict[str, int])
    """Counts and sizes of its inputs."""


def part_path(out: Path, number: int, num_parts: int) -> Path:
    """File of a finished part."""
    return out / PARTS_DIR / f"{number:05d}-of-{num_parts:05d}.json"


def shard_name(number: int, num_parts: int, shard: int, layout: Layout) -> str:
    """Name of a shard: `00002.arrow`, and `00003-00002.arrow` in part 3 of several."""
    if num_parts == 1:
        return f"{shard:05d}{layout.suffix}"
    return f"{number:05d}{f'-{shard:05d}' if shard else ''}{layout.suffix}"


def shards_of_part(out: Path, number: int, num_parts: int, layout: Layout) -> list[Path]:
    """Files with names of a part's shards."""
    stem = r"\d{5,}" if num_parts == 1 else rf"{number:05d}(-\d{{5,}})?"
    pattern = re.compile(stem + re.escape(layout.suffix))
    return [path for path in out.iterdir() if pattern.fullmatch(path.name)]


def write_part(out: Path, number: int, num_parts: int, part: Part) -> None:
    """Record a finished part."""
    with atomic_file(part_path(out, number, num_parts)) as file:
        file.write(json.dumps(asdict(part)).encode())


def read_part(path: Path) -> Part:
    """Read the record of a finished part.

    Raises:
        OSError: It cannot be read.
        ShardError: It is missing or damaged.
    """
    try:
        content = read_json(path)
        shards: list[ShardInfo] = []
        for shard in content.pop("shards"):
            shard["batches"] = tuple(BatchInfo(**batch) for batch in shard["batches"])
            shards.append(ShardInfo(**shard))
        return Part(shards=shards, **content)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not the record of a part ({error}); write it again") from None


def drop_part(out: Path, number: int, num_parts: int) -> None:
    """Remove a finished part and its shards; nothing if it is not there.

    If it is killed, the lock file shows the next writer of the part that its shards are its own'.
    """
    path = part_path(out, number, num_parts)
    if path.exists():
        part = read_part(path)
        lock_path = path.with_suffix(".lock")
        is_locked = lock_path.exists()
        lock_path.touch()
        path.unlink()
        for shard in part.shards:
            (out / shard.file).unlink(missing_ok=True)
        if not is_locked:
            lock_path.unlink()


def drop_parts(out: Path, num_parts: int) -> None:
    """Remove all finished parts and the codebook, after one that failed."""
    if part_path(out, 0, num_parts).exists():
        (out / CODEBOOK_NAME).unlink(missing_ok=True)
    for number in range(num_parts):
        drop_part(out, number, num_parts)
    for folder in (out / PARTS_DIR, out):
        with suppress(OSError):
            folder.rmdir()


def join_parts(out: str | Path, settings: Mapping[str, Any] | None = None) -> Manifest:
    """Make one dataset of the parts that were written to a folder: write its manifest.

    Samples are in the order of the parts. Nothing is copied, and keys are not compared between
    parts; `im2sp-verify` does so.

    Args:
        out: Folder of the parts.
        settings: Settings to record beside those that the parts share.

    Returns:
        The manifest.

    Raises:
        ShardError: A part is missing or damaged, or the parts differ in columns or settings.
    """
    out = Path(out)
    manifest, rejects = joined(out, lambda name: size_of(out / name), settings)
    with atomic_file(out / REJECTS_NAME) as file:
        file.write(rejects)
    write_card(out, manifest)
    manifest.write(out)
    shutil.rmtree(out / PARTS_DIR, ignore_errors=True)
    return manifest


def joined(
    out: Path, size_in: Callable[[str], int | None], settings: Mapping[str, Any] | None = None
) -> tuple[Manifest, bytes]:
    """Manifest and rejects of the dataset that the parts in a folder make; nothing is written.

    Args:
        out: Folder of the parts.
        size_in: Function that returns the size of a shard in bytes; None if it is missing.
        settings: As for `join_parts`.

    Raises:
        ShardError: As for `join_parts`.
    """
    parts = _finished_parts(out / PARTS_DIR)
    shared = parts[0].shared
    for number, part in enumerate(parts):
        for name in shared:
            if part.shared[name] != shared[name]:
                raise ShardError(
                    f"{out}: {name} of part {number} is {str(part.shared[name])[:80]}, expected "
                    f"{str(shared[name])[:80]} as in part 0; write it again"
                )
        for shard in part.shards:
            if size_in(shard.file) != shard.size_bytes:
                raise ShardError(
                    f"{out / shard.file}: missing, or not of {shard.size_bytes} bytes; write part "
                    f"{number} again"
                )
    rejects = "".join(json.dumps(row) + "\n" for part in parts for row in part.rejects).encode()
    return _manifest_of(parts, rejects, settings or {}), rejects


def _finished_parts(parts_dir: Path) -> list[Part]:
    """All parts in order."""
    found: dict[int, Path] = {}
    numbers: set[int] = set()
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in parts_dir.iterdir():
            if match := _RECORD.fullmatch(path.name):
                found[int(match[1])] = path
                numbers.add(int(match[2]))
    if len(numbers) != 1:
        what = f"parts of {sorted(numbers)}" if numbers else "no finished parts"
        raise ShardError(f"{parts_dir}: {what}, expected all parts of one number")
    (num_parts,) = numbers
    missing = sorted(set(range(num_parts)) - set(found))
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        raise ShardError(
            f"{parts_dir}: {counted(len(missing), 'part')} of {num_parts} missing: {shown}; write "
            "them, then join again"
        )
    return [read_part(found[number]) for number in range(num_parts)]


def _manifest_of(parts: list[Part], rejects: bytes, settings: Mapping[str, Any]) -> Manifest:
    shards = [shard for part in parts for shard in part.shards]
    splits: dict[str, int] = {}
    for shard in shards:
        for split, count in shard.splits.items():
            splits[split] = splits.get(split, 0) + count
    raw: dict[str, int] = {}
    for part in parts:
        for name, count in part.raw.items():
            raw[name] = raw.get(name, 0) + count
    shared = dict(parts[0].shared)
    tokenizers = dict(shared["tokenizers"])
    sha256 = shared["codebook"]
    return Manifest(
        format_version=2,
        num_samples=sum(shard.num_samples for shard in shards),
        splits=splits,
        layout=Layout(**shared["layout"]),
        columns=shared["columns"],
        image_tokenizer=tokenizers.pop("image_units", None),
        speech_tokenizer=tokenizers.pop("speech_units", None),
        tokenizers=tokenizers,
        codebook=None if sha256 is None else {"file": CODEBOOK_NAME, "sha256": sha256},
        raw=raw,
        num_rejects=sum(len(part.rejects) for part in parts),
        rejects_sha256=hashlib.sha256(rejects).hexdigest(),
        settings={**shared["settings"], **settings},
        shards=tuple(shards),
    )


def check_new(out: Path) -> None:
    """Refuse a URL, and a folder that holds a dataset."""
    if is_url(out):
        raise ShardError(
            f"{shown_url(as_url(out))}: datasets are written to folders; write to one, and copy it "
            "to the store, dataset.json last"
        )
    if (out / MANIFEST_NAME).exists():
        raise ShardError(f"{out}: holds a {MANIFEST_NAME}; choose another folder, or remove it")
