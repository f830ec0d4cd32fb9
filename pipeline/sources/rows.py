"""From rows (of a Karpathy file or a manifest) to items: keys, gathered captions, image paths."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from im2sp.pipeline.decoding.images import ByteRange
from im2sp.pipeline.sources.files import Place, tar_members
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

Resolver = Callable[[str], Path | ByteRange | str]
"""From an image path of a row to the image, or to the reason why it cannot be had."""

NO_AUDIO_FILE = "no such audio file"


class Spoken(NamedTuple):
    """A clip as a row names it."""

    audio: str
    """The sound's path, relative or absolute."""

    text: str | None
    """What is said, where the row tells."""

    where: str
    """What messages call its row."""


@dataclass(kw_only=True, slots=True)
class Row:
    """One row as it stands in the file."""

    where: str
    """What messages call it: `line 7`, `row 3`, `images[12]`."""

    image: str = ""
    """The image's path, relative or absolute; empty for speech without a picture."""

    key: str = ""
    """The key it gives; empty to derive one from `image`."""

    split: str = ""
    """The split it gives."""

    captions: list[str] = field(default_factory=list)
    """Its captions without speech."""

    speech: list["Spoken"] = field(default_factory=list["Spoken"])
    """Its spoken clips."""

    key_candidates: tuple[str, ...] = ()
    """Keys to choose from when `key` is empty, preferred first; by default from `image`."""

    error: str | None = None
    """Why the row itself cannot be used."""

    image_where: str = ""
    """The later row that the image stands in; empty for this one."""


def items_of_rows(
    rows: Iterable[Row], resolve: Resolver, find_audio: Resolver | None = None
) -> list[SourceItem]:
    """One item a sample: repeated rows of one key and image gather captions and clips in order.

    A row that contradicts an earlier one of its key (another image, another split, the same clip)
    is a reject, and so is one that is broken itself. A clip that is not there is a reject alone.

    Args:
        rows: What the file says, in its order.
        resolve: How the images are found.
        find_audio: How the sound files are found; needed where a row has any.
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
    keys = assign_keys([_key_candidates(row) for row in samples])
    items = [_item(row, key, resolve, find_audio) for row, key in zip(samples, keys, strict=True)]
    return reject_repeated_keys(items)


def _identity(row: Row) -> tuple[str, str]:
    """A row without a key belongs to the sample of its image, one with a key to that key's."""
    if row.key:
        return "key", row.key
    return ("image", row.image) if row.image else ("audio", row.speech[0].audio)


def _key_candidates(row: Row) -> tuple[str, ...]:
    path = row.image or (row.speech[0].audio if row.speech else "")
    if row.error:
        # The place keeps a broken row from changing a good one's key.
        return (f"{row.key or clean_key(strip_suffix(path))} ({row.where})",)
    if row.key:
        return (row.key,)
    return row.key_candidates or (clean_key(strip_suffix(path)), clean_key(path))


def _item(row: Row, key: str, resolve: Resolver, find_audio: Resolver | None) -> SourceItem:
    first_path = row.image or (row.speech[0].audio if row.speech else "")
    name = printable_utf8(first_path) or row.where
    place = None if row.error or not row.image else resolve(row.image)
    error = f"{row.where}: {row.error}" if row.error else None
    if isinstance(place, str):
        error, place = f"{row.image_where or row.where}: {place}", None
    captions = () if row.error else tuple(row.captions)
    split = "" if row.error else row.split
    utterances = ()
    if error is None and row.speech:
        assert find_audio is not None
        utterances = tuple(spoken_utterance(spoken, find_audio) for spoken in row.speech)
    return SourceItem(
        key=printable_utf8(key),
        image=place,
        name=name,
        split=split,
        captions=captions,
        utterances=utterances,
        error=error,
    )


def spoken_utterance(spoken: Spoken, find_audio: Resolver) -> Utterance:
    """A clip that a row names, as a reject where it cannot be had."""
    place = find_audio(spoken.audio)
    name = printable_utf8(spoken.audio)
    if isinstance(place, str):
        error = f"{spoken.where}: {place}"
        return Utterance(audio=None, name=name, text=spoken.text, error=error)
    return Utterance(audio=place, name=name, text=spoken.text)


def _contradiction(first: Row, row: Row) -> str | None:
    if row.image and first.image and row.image != first.image:
        where = first.image_where or first.where
        return f"key {row.key!r} has another image in {where}: {first.image}"
    if row.split and first.split and row.split != first.split:
        return f"split {row.split!r}, but {first.split!r} in {first.where} for the same sample"
    return None


def _repeated_clip(first: Row, row: Row, clips: dict[tuple[int, str], str]) -> str | None:
    """Why a row's clips cannot be added to the sample of `first`; else `clips` notes them."""
    for spoken in row.speech:
        where = clips.get((id(first), spoken.audio))
        if where is not None:
            return f"audio {spoken.audio!r} is already in {where} for the same sample"
        clips[id(first), spoken.audio] = row.where
    return None


def _text_problem(row: Row) -> str | None:
    """Why a row's text cannot be stored as UTF-8, or its image cannot be opened at all."""
    if not row.image and not row.speech:
        return "no image path"
    if problem := path_problem(row.image, "image"):
        return problem
    for name, text in [
        ("key", row.key),
        ("split", row.split),
        *(("caption", c) for c in row.captions),
        *(("caption", spoken.text or "") for spoken in row.speech),
    ]:
        if not is_utf8(text):
            return f"the {name} is not valid UTF-8 text"
    return None


def path_problem(path: str, what: str) -> str | None:
    """Why no file can have this path."""
    if "://" in path:
        return f"{path!r} is an address; nothing is fetched, download it first"
    return f"the {what} path holds a zero byte" if "\0" in path else None


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
        if path.exists():
            return "not a regular file"
        return "no such image file" + _spelling_hint(path)
    except OSError as error:  # for example a name that is too long
        return f"image file cannot be looked up: {error.strerror}"


def _spelling_hint(path: Path) -> str:
    """Which file was probably meant where a path leads nowhere; empty if there is none."""
    if "\\" in path.name and (as_posix := Path(str(path).replace("\\", "/"))).is_file():
        return f"; {as_posix} is there: write / for \\"
    here = _names_by_folded(path.parent).get(_folded(path.name))
    if here is None:
        return ""
    same_case = unicodedata.normalize("NFC", here) == unicodedata.normalize("NFC", path.name)
    how = "in another Unicode form (NFC or NFD)" if same_case else "in other letter case"
    return f"; {printable_utf8(here)} is there, {how}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


@lru_cache(maxsize=16)
def _names_by_folded(folder: Path) -> dict[str, str]:
    """The files of a folder, by their names in one Unicode form and one letter case."""
    try:
        return {_folded(name): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}


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


def make_audio_finder(audio_root: Path) -> Resolver:
    """How audio paths are found below `audio_root`, a folder or an uncompressed tar.

    Below a folder an absolute path is taken as it is, and each folder that is asked about is read
    once, so that 100,000s of clips cost no look-up each.

    Raises:
        SourceError: There is no such folder or tar.
    """
    if audio_root.is_dir():
        find = _FolderIndex(audio_root).find
    elif audio_root.is_file():
        members = {os.path.normpath(name): place for name, place in tar_members(audio_root) if name}
        find = partial(_find_member, members, audio_root.name)
    else:
        raise SourceError(
            f"{audio_root}: no such audio root; expected a folder or a .tar of sound files"
        )
    return lambda audio: path_problem(audio, "audio") or find(audio)


def _find_member(members: dict[str, Place], tar: str, name: str) -> Place:
    return members.get(os.path.normpath(name), f"no member {printable_utf8(name)} in {tar}")


class _FolderIndex:
    """Which files there are in folders, each of them read when it is first asked about."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._folders: dict[str, dict[str, bool] | str] = {}

    def find(self, name: str) -> Path | ByteRange | str:
        """The path of a file below the root, or why it cannot be read."""
        path = os.path.join(self._root, name)
        folder, _, file_name = path.rpartition("/")
        files = self._folders.get(folder)
        if files is None:
            files = self._folders[folder] = read_folder(folder or "/")
        if isinstance(files, str):
            return files
        is_file = files.get(file_name)
        if is_file:
            return Path(path)
        return NO_AUDIO_FILE if is_file is None else "not a regular file"


def read_folder(folder: str) -> dict[str, bool] | str:
    """True if each entry of a folder is a regular file, or why none can be had."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: _is_file(entry) for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return NO_AUDIO_FILE
    except OSError as error:  # for example a name that is too long
        return f"audio file cannot be looked up: {error.strerror}"


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads round in a circle
        return False


class ImageNames:
    """Good items by the image path or, where only one has it, the file name of their image."""

    def __init__(self, items: list[SourceItem]) -> None:
        self._by_path: dict[str, int] = {}
        self._by_file_name: dict[str, list[int]] = {}
        for index, item in enumerate(items):
            if item.error is None:
                self._by_path[item.name] = index
                self._by_file_name.setdefault(item.name.rpartition("/")[2], []).append(index)

    def find(self, image: str) -> int | str | None:
        """The index of an image's item, why that cannot be told, or None for an image of none."""
        index = self._by_path.get(image)
        if index is not None:
            return index
        file_name = image.rpartition("/")[2]
        indices = self._by_file_name.get(file_name, [])
        if len(indices) > 1:
            return f"{len(indices)} images are called {file_name}; cannot tell which one is meant"
        return indices[0] if indices else None


def check_some_audio(
    path: Path, items: list[SourceItem], audio_root: Path, *, unnamed: str, advice: str = ""
) -> None:
    """Refuse a source none of whose clips is there: the audio root is wrong.

    Args:
        path: The source.
        items: Its items.
        audio_root: Where the clips were looked for.
        unnamed: What is missing where no item has even the name of a clip, and what to do.
        advice: What to do where clips are named but none is there.

    Raises:
        SourceError: No item has a clip that is there.
    """
    utterances = [utterance for item in items for utterance in item.utterances]
    if not utterances:
        raise SourceError(f"{path}: {unnamed}")
    if not any(utterance.audio for utterance in utterances):
        raise SourceError(
            f"{path}: none of its {len(utterances)} sound files can be used below {audio_root} "
            f"(the first: {utterances[0].name}: {utterances[0].error}); "
            + (advice or "give the folder that holds them as --audio-root")
        )
