"""From rows (of a Karpathy file or a manifest) to items: keys, gathered captions, image paths."""

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from im2sp.pipeline.images import ByteRange
from im2sp.pipeline.source_items import (
    SourceError,
    SourceItem,
    assign_keys,
    clean_key,
    printable_utf8,
    reject_repeated_keys,
    strip_suffix,
)
from im2sp.pipeline.source_tar import tar_members

Resolver = Callable[[str], Path | ByteRange | str]
"""From an image path of a row to the image, or to the reason why it cannot be had."""


@dataclass(kw_only=True, slots=True)
class Row:
    """One row as it stands in the file."""

    where: str
    """What messages call it: `line 7`, `row 3`, `images[12]`."""

    image: str = ""
    """The image's path, relative or absolute."""

    key: str = ""
    """The key it gives; empty to derive one from `image`."""

    split: str = ""
    """The split it gives."""

    captions: list[str] = field(default_factory=list)
    """Its captions."""

    key_candidates: tuple[str, ...] = ()
    """Keys to choose from when `key` is empty, preferred first; by default from `image`."""

    error: str | None = None
    """Why the row itself cannot be used."""


def items_of_rows(rows: Iterable[Row], resolve: Resolver) -> list[SourceItem]:
    """One item a sample: repeated rows of one key and image gather their captions in order.

    A row that contradicts an earlier one of its key (another image, another split) is a reject,
    and so is one that is broken itself.
    """
    samples: list[Row] = []
    first_rows: dict[tuple[str, str], Row] = {}
    for row in rows:
        # A row without a key belongs to the sample of its image, one with a key to that key's.
        identity = ("key", row.key) if row.key else ("image", row.image)
        row.error = row.error or _text_problem(row)
        first = row if row.error else first_rows.setdefault(identity, row)
        if first is row:
            samples.append(row)
        elif problem := _contradiction(first, row):
            row.error = problem
            samples.append(row)
        else:
            first.split = first.split or row.split
            first.captions.extend(row.captions)
    keys = assign_keys([_key_candidates(row) for row in samples])
    items = [_item(row, key, resolve) for row, key in zip(samples, keys, strict=True)]
    return reject_repeated_keys(items)


def _key_candidates(row: Row) -> tuple[str, ...]:
    if row.error:
        # The place keeps a broken row from changing a good one's key.
        return (f"{row.key or clean_key(strip_suffix(row.image))} ({row.where})",)
    if row.key:
        return (row.key,)
    return row.key_candidates or (clean_key(strip_suffix(row.image)), clean_key(row.image))


def _item(row: Row, key: str, resolve: Resolver) -> SourceItem:
    name = printable_utf8(row.image) or row.where
    place = None if row.error else resolve(row.image)
    error = f"{row.where}: {row.error}" if row.error else None
    if isinstance(place, str):
        error, place = f"{row.where}: {place}", None
    captions = () if row.error else tuple(row.captions)
    split = "" if row.error else row.split
    return SourceItem(
        key=printable_utf8(key), image=place, name=name, split=split, captions=captions, error=error
    )


def _contradiction(first: Row, row: Row) -> str | None:
    if row.image != first.image:
        return f"key {row.key!r} has another image in {first.where}: {first.image}"
    if row.split and first.split and row.split != first.split:
        return f"split {row.split!r}, but {first.split!r} in {first.where} for the same sample"
    return None


def _text_problem(row: Row) -> str | None:
    """Why a row's text cannot be stored as UTF-8, or its image cannot be opened at all."""
    if not row.image:
        return "no image path"
    if "://" in row.image:
        return f"{row.image!r} is an address; nothing is fetched, download it first"
    if "\0" in row.image:
        return "the image path holds a zero byte"
    for name, text in [
        ("key", row.key),
        ("split", row.split),
        *(("caption", c) for c in row.captions),
    ]:
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"the {name} is not valid UTF-8 text"
    return None


def make_resolver(image_root: Path) -> Resolver:
    """How image paths are found below `image_root`, a folder or an uncompressed tar.

    Raises:
        SourceError: There is no such folder or tar.
    """
    if image_root.is_dir():
        return lambda image: _find_file(image_root, image)
    if image_root.is_file():
        members = {os.path.normpath(name): place for name, place in tar_members(image_root) if name}
        return lambda image: members.get(
            os.path.normpath(image), f"no member {printable_utf8(image)} in {image_root.name}"
        )
    raise SourceError(f"{image_root}: no such image root; expected a folder or a .tar of images")


def _find_file(image_root: Path, image: str) -> Path | str:
    """The image's path (an absolute one is taken as it is), or why it cannot be read."""
    path = image_root / image
    try:
        if path.is_file():
            return path
        return "not a regular file" if path.exists() else "no such image file"
    except OSError as error:  # for example a name that is too long
        return f"image file cannot be looked up: {error.strerror}"


def check_some_found(path: Path, items: list[SourceItem], image_root: Path) -> None:
    """Refuse a source none of whose images are there: the image root is wrong.

    Raises:
        SourceError: Every item is a reject.
    """
    if all(item.error for item in items):
        reasons = Counter(item.error for item in items if item.error)
        raise SourceError(
            f"{path}: none of its {len(items)} images can be used below {image_root} (the first: "
            f"{items[0].name}: {next(iter(reasons))}); give the folder that holds them as "
            "--image-root"
        )
