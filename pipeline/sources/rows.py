"""Conversion of rows (of a Karpathy file or source list) to items: keys, captions, paths."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from im2sp.pipeline.sources.captions import Place
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    Utterance,
    assign_keys,
    clean_key,
    is_utf8,
    printable_utf8,
    reject_repeated_keys,
    strip_suffix,
)
from im2sp.pipeline.sources.roots import Resolver, path_problem
from im2sp.shards.stores import (
    is_url,
    shown_url,
    url_path,
)


class RowClip(NamedTuple):
    """Clip listed in a row."""

    audio: str
    """Path of the clip, relative or absolute."""

    text: str | None
    """Transcript, if the row has one."""

    where: str
    """Name of its row in messages."""


@dataclass(kw_only=True, slots=True)
class Row:
    """One row of the file."""

    where: str
    """Name in messages: `line 7`, `row 3`, `images[12]`."""

    image: str = ""
    """Path of the image, relative or absolute; empty for speech without an image."""

    key: str = ""
    """Key; empty to derive one from `image`."""

    split: str = ""
    """Name of the split."""

    captions: list[str] = field(default_factory=list)
    """Captions without speech."""

    speech: list["RowClip"] = field(default_factory=list["RowClip"])
    """Clips, with their transcripts."""

    key_candidates: tuple[str, ...] = ()
    """Keys to choose from when `key` is empty, preferred first; by default from `image`."""

    error: str | None = None
    """Problem that makes the row itself unusable."""

    image_where: str = ""
    """Name of the later row that has the image; empty for this one."""

    contents: dict[str, Place] = field(default_factory=dict[str, Place])
    """Images and clips whose content the row itself holds, by their names in `image`, `speech`."""


def items_of_rows(
    rows: Iterable[Row], resolve: Resolver, find_audio: Resolver | None = None
) -> list[SourceItem]:
    """Convert rows to one item per sample; rows that repeat key and image add captions and clips.

    A row that contradicts an earlier one with its key (another image, another split, the same clip)
    is a reject, and so is an invalid row. For a missing clip, only the clip is a reject.

    Args:
        rows: Rows of the file, in order.
        resolve: Finds images.
        find_audio: Finds clips; needed if a row has any.
    """
    samples: list[Row] = []
    first_rows: dict[tuple[str, str], Row] = {}
    clips: dict[tuple[int, str], str] = {}
    for row in rows:
        row.error = row.error or _text_problem(row) or _repeated_clip(row, row, {})
        first = row if row.error else first_rows.setdefault(_identity(row), row)
        row.error = row.error or _contradiction(first, row)
        row.error = row.error or _repeated_clip(first, row, clips)
        if first is row or row.error:
            samples.append(row)
        else:
            if row.image and not first.image:
                first.image, first.image_where = row.image, row.where
            first.split = first.split or row.split
            first.captions.extend(row.captions)
            first.speech.extend(row.speech)
            first.contents |= row.contents
    keys = assign_keys([_key_candidates(row) for row in samples])
    items = [_item(row, key, resolve, find_audio) for row, key in zip(samples, keys, strict=True)]
    return reject_repeated_keys(items)


def _identity(row: Row) -> tuple[str, str]:
    """Sample that a row belongs to: by its key, else its image, else its clip."""
    if row.key:
        return "key", row.key
    return ("image", row.image) if row.image else ("audio", row.speech[0].audio)


def _key_candidates(row: Row) -> tuple[str, ...]:
    path = path_of(row.image or (row.speech[0].audio if row.speech else ""))
    if row.error:
        # The row's name keeps an invalid row from changing the key of a valid one.
        return (f"{row.key or clean_key(strip_suffix(path))} ({row.where})",)
    if row.key:
        return (row.key,)
    return row.key_candidates or (clean_key(strip_suffix(path)), clean_key(path))


def _item(row: Row, key: str, resolve: Resolver, find_audio: Resolver | None) -> SourceItem:
    first_path = row.image or (row.speech[0].audio if row.speech else "")
    name = shown_path(first_path) or row.where
    place = None
    if row.image and not row.error:
        place = row.contents.get(row.image) or resolve(row.image)
    error = f"{row.where}: {row.error}" if row.error else None
    if isinstance(place, str):
        error, place = f"{row.image_where or row.where}: {place}", None
    captions = () if row.error else tuple(row.captions)
    split = "" if row.error else row.split
    utterances = ()
    if error is None and row.speech:
        assert find_audio is not None
        find = partial(_find_clip, row.contents, find_audio)
        utterances = tuple(clip_utterance(clip, find) for clip in row.speech)
    return SourceItem(
        key=printable_utf8(key),
        image=place,
        name=name,
        split=split,
        captions=captions,
        utterances=utterances,
        error=error,
    )


def _find_clip(contents: dict[str, Place], find_audio: Resolver, name: str) -> Place:
    return contents.get(name) or find_audio(name)


def clip_utterance(clip: RowClip, find_audio: Resolver) -> Utterance:
    """Convert a clip of a row; it is a reject if its file cannot be used."""
    place = find_audio(clip.audio)
    name = shown_path(clip.audio)
    if isinstance(place, str):
        error = f"{clip.where}: {place}"
        return Utterance(audio=None, name=name, text=clip.text, error=error)
    return Utterance(audio=place, name=name, text=clip.text)


def _contradiction(first: Row, row: Row) -> str | None:
    if row.image and first.image and row.image != first.image:
        where = first.image_where or first.where
        return f"key {row.key!r} has another image in {where}: {shown_path(first.image)}"
    if row.split and first.split and row.split != first.split:
        return f"split {row.split!r}, but {first.split!r} in {first.where} for the same sample"
    return None


def _repeated_clip(first: Row, row: Row, clips: dict[tuple[int, str], str]) -> str | None:
    """Problem with adding a row's clips to the sample of `first`; else records them in `clips`."""
    for clip in row.speech:
        where = clips.get((id(first), clip.audio))
        if where is not None:
            return f"audio {shown_path(clip.audio)!r} is already in {where} for the same sample"
        clips[id(first), clip.audio] = row.where
    return None


def _text_problem(row: Row) -> str | None:
    """Problem with storing a row's text as UTF-8, or with the path of its image."""
    if not row.image and not row.speech:
        return "no image path"
    if row.image not in row.contents and (problem := path_problem(row.image, "image")):
        return problem
    for name, text in [
        ("key", row.key),
        ("split", row.split),
        *(("caption", c) for c in row.captions),
        *(("caption", clip.text or "") for clip in row.speech),
    ]:
        if not is_utf8(text):
            return f"the {name} is not valid UTF-8 text"
    return None


def path_of(name: str) -> str:
    """Path in a row, for keys; of a URL the part that is one."""
    return url_path(name) if is_url(name) else name


def shown_path(name: str) -> str:
    """Path in a row, for messages; of a URL without what may be secret."""
    return printable_utf8(shown_url(name) if is_url(name) else name)


class ImageNames:
    """Index of valid items by the path of their image or, if unique, its file name."""

    def __init__(self, items: list[SourceItem]) -> None:
        self._by_path: dict[str, int] = {}
        self._by_file_name: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            if item.error is None:
                self._by_path[item.name] = index
                self._by_file_name.setdefault(item.name.rpartition("/")[2], []).append(index)

    def find(self, image: str) -> int | str | None:
        """Return the index of an image's item, why it is ambiguous, or None if there is none."""
        index = self._by_path.get(image)
        if index is not None:
            return index
        file_name = image.rpartition("/")[2]
        indices = self._by_file_name.get(file_name, [])
        if len(indices) > 1:
            return f"{len(indices)} images are called {file_name}; give the path of one"
        return indices[0] if indices else None


def check_some_found(path: Path, items: list[SourceItem], image_root: Path) -> None:
    """Refuse a source of which no image can be used: the image root is wrong.

    Raises:
        SourceError: Every item is a reject.
    """
    if all(item.error for item in items):
        reasons = Counter(item.error for item in items if item.error)
        raise SourceError(
            f"{path}: none of its {len(items)} images can be used in {image_root} (the first: "
            f"{items[0].name}: {next(iter(reasons))}); give the folder that holds them as "
            "--image-root"
        )


def check_some_audio(
    path: Path, items: list[SourceItem], audio_root: Path, *, unnamed: str, advice: str = ""
) -> None:
    """Refuse a source of which no clip can be used: the audio root is wrong.

    Args:
        path: The source.
        items: Its items.
        audio_root: Folder or tar in which the clips were searched.
        unnamed: Message if no item names a clip, with advice.
        advice: Advice if clips are named but none exists.

    Raises:
        SourceError: No item has a clip that exists.
    """
    utterances = [utterance for item in items for utterance in item.utterances]
    if not utterances:
        raise SourceError(f"{path}: {unnamed}")
    if not any(utterance.audio for utterance in utterances):
        raise SourceError(
            f"{path}: none of its {len(utterances)} audio files can be used in {audio_root} "
            f"(the first: {utterances[0].name}: {utterances[0].error}); "
            + (advice or "give the folder that holds them as --audio-root")
        )
