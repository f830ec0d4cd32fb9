"""Inputs of im2sp-speak: images, or speech units from a file or a dataset."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from im2sp.pipeline.sources import list_source
from im2sp.pipeline.sources.items import SourceItem, assign_keys, clean_key, is_utf8, strip_suffix
from im2sp.pipeline.sources.tables import TABLE_READERS
from im2sp.shards import MANIFEST_NAME, ShardDataset
from im2sp.shards.files import lines_of, open_regular, parse_json
from im2sp.shards.stores import is_url

Reject = dict[str, str]
_SOURCE_SUFFIXES = (".tar", ".json", *TABLE_READERS)
# One hour of speech; longer inputs are taken for mistakes.
MAX_FRAMES = 180_000


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Speech units to synthesize."""

    key: str
    units: list[int]
    durations: list[int] | None = None
    """Frames of each unit; None to let the vocoder predict them."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """Clips of a file or dataset, and what it records about their units."""

    clips: list[Clip]
    rejects: list[Reject]
    num_units: int | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of a source."""

    items: list[SourceItem]
    rejects: list[Reject] = field(default_factory=list)
    num_without: int = 0
    """Inputs with audio but without an image."""


def list_images(
    paths: Sequence[Path], image_root: Path | None, split: str | None, limit: int | None
) -> Images:
    """List images without opening them.

    Args:
        paths: Image files, or one source: a folder, a tar or a list.
        image_root: Folder or .tar that the paths in a list are relative to.
        split: Use only this split of the source.
        limit: Maximum number of inputs.

    Raises:
        ValueError: A source beside other inputs, a flag that does not apply, or no input.
    """
    sources = [path for path in paths if path.is_dir() or path.suffix.lower() in _SOURCE_SUFFIXES]
    if sources and len(paths) > 1:
        raise ValueError(f"{sources[0]}: a folder, tar or list must be the only input; this run has"
                         f" {len(paths)} inputs")  # fmt: skip
    if sources:
        items = list_source(sources[0], image_root=image_root).items
    else:
        if image_root is not None or split is not None:
            flag = "--image-root" if image_root is not None else "--split"
            raise ValueError(f"{flag} applies to a list of images, not to image files")
        names = [path.as_posix() for path in paths]
        candidates = [
            (clean_key(path.stem), clean_key(path.name), clean_key(strip_suffix(name)), name)
            for path, name in zip(paths, names, strict=True)
        ]
        keys = assign_keys(candidates)
        items = [
            SourceItem(key=key, image=path, name=path.name)
            for key, path in zip(keys, paths, strict=True)
        ]
    if split is not None:
        known = sorted({item.split for item in items})
        items = [item for item in items if item.split == split]
        if not items:
            raise ValueError(f"{paths[0]}: has no split {split!r}, only {known}")
    return _sorted_out(items[:limit])


def _sorted_out(items: Iterable[SourceItem]) -> Images:
    kept: list[SourceItem] = []
    rejects: list[Reject] = []
    num_without = 0
    for item in items:
        if item.error is not None:
            rejects.append({"file": item.name, "reason": item.error})
        elif item.image is None:
            num_without += 1
        else:
            kept.append(item)
    return Images(items=kept, rejects=rejects, num_without=num_without)


def read_units(path: Path, split: str | None, limit: int | None) -> Units:
    """Read the units of a `.jsonl`, a `.npy` (one clip) or an im2sp dataset.

    A line of a `.jsonl` is `{"key": .., "units": [..]}`, with optional `"durations": [..]`.

    Raises:
        ValueError: It is none of these, or unreadable. A bad line is a reject.
    """
    if is_url(path) or path.is_dir():
        return _dataset_units(path, split, limit)
    if split is not None:
        raise ValueError(f"--split applies to a dataset, {path} is a file")
    if path.suffix.lower() == ".npy":
        return Units(clips=[checked_clip(path.stem, _array(path))], rejects=[])
    if path.suffix.lower() == ".jsonl":
        return _listed_units(path, limit)
    raise ValueError(
        f"--units {path}: expected a .jsonl with key and units, a .npy, or a folder with"
        f" {MANIFEST_NAME}"
    )


def _array(path: Path) -> list[int]:
    try:
        open_regular(path).close()
        found = np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"--units {path}: not a .npy file of numbers ({error})") from None
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iu":
        what = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, np.ndarray) else (
            "an archive")  # fmt: skip
        raise ValueError(f"--units {path}: {what}, expected whole numbers of shape [units]")
    return found.tolist()


def _listed_units(path: Path, limit: int | None) -> Units:
    clips: list[Clip] = []
    rejects: list[Reject] = []
    seen: set[str] = set()
    with open_regular(path) as file:
        lines = ((number, line) for number, line in enumerate(lines_of(file), 1) if line.strip())
        for number, line in itertools.islice(lines, limit):
            try:
                clip = _row_clip(line)
                if clip.key in seen:
                    raise ValueError(f"the key {clip.key!r} is also on an earlier line")
            except ValueError as error:
                rejects.append({"file": f"{path.name}:{number}", "reason": str(error)})
            else:
                seen.add(clip.key)
                clips.append(clip)
    return Units(clips=clips, rejects=rejects)


def _row_clip(line: bytes) -> Clip:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(row, dict) or not isinstance(row.get("key"), str) or "units" not in row:
        raise ValueError('expected {"key": text, "units": [numbers]}')
    if not is_utf8(row["key"]):
        raise ValueError(f"the key {row['key'][:80]!a} is not text: it has half of a character")
    return checked_clip(row["key"], row["units"], row.get("durations"))


def checked_clip(key: str, units: Any, durations: Any = None) -> Clip:
    """Check units and durations and return the clip; the vocoder's range is not checked.

    Raises:
        ValueError: Not whole numbers, no units, different lengths, or over an hour.
    """
    for what, values, least in (("units", units, 0), ("durations", durations, 1)):
        if values is None and what == "durations":
            continue
        if not isinstance(values, list) or any(type(v) is not int or v < least for v in values):
            raise ValueError(f"{what} are not a list of whole numbers from {least} on")
    if not units:
        raise ValueError("no units, so there is nothing to synthesize")
    if durations is not None and len(durations) != len(units):
        raise ValueError(f"{len(durations)} durations for {len(units)} units")
    num_frames = len(units) if durations is None else sum(durations)
    if num_frames > MAX_FRAMES:
        raise ValueError(f"{num_frames:,} frames of 20 ms, over the limit of {MAX_FRAMES:,}")
    return Clip(key=key, units=units, durations=durations)


def _dataset_units(path: Path, split: str | None, limit: int | None) -> Units:
    dataset = ShardDataset(path, split)
    record = dataset.manifest.speech_tokenizer
    if record is None:
        raise ValueError(f"--units {dataset.path}: this dataset holds no speech units")
    clips: list[Clip] = []
    rejects: list[Reject] = []
    for key, units, durations in itertools.islice(_utterances(dataset), limit):
        try:
            clips.append(checked_clip(key, units, durations))
        except ValueError as error:
            rejects.append({"file": key, "reason": str(error)})
    return Units(
        clips=clips,
        rejects=rejects,
        num_units=record.get("num_units"),
        fingerprint=record.get("fingerprint"),
    )


def _utterances(dataset: ShardDataset) -> Iterator[tuple[str, list[int], list[int] | None]]:
    """Key, units and durations of each utterance: `x`, or `x_0`, `x_1`, .. if x has several."""
    for sample in dataset:
        for place, units in enumerate(sample.speech_units):
            key = sample.key if len(sample.speech_units) == 1 else f"{sample.key}_{place}"
            durations = None
            if sample.durations:  # a clip that has no list of them is refused
                durations = (
                    sample.durations[place].tolist() if place < len(sample.durations) else []
                )
            yield key, units.tolist(), durations
