"""Folders, tars and stores in which the paths of rows are found."""

import os
import sys
import unicodedata
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from im2sp.pipeline.containers.tars import tar_members
from im2sp.pipeline.decoding.media import SourceError, Url
from im2sp.pipeline.sources.captions import Place
from im2sp.pipeline.sources.items import is_utf8, printable_utf8
from im2sp.shards.stores import StoreError, as_url, check_url, is_url, join_url

Resolver = Callable[[str], Place]
"""Function from a path in a row to the file, or to the reason why it cannot be used."""

NO_AUDIO_FILE = "no such audio file"


def make_resolver(image_root: Path) -> Resolver:
    """Return a function that finds images in `image_root`, a folder or an uncompressed tar.

    A folder may be one in a store. An image that is a URL is used as it is.

    Raises:
        SourceError: The folder or tar does not exist.
    """
    find = _image_finder(image_root)
    return lambda image: Url(url=image) if is_url(image) else find(image)


def _image_finder(image_root: Path) -> Resolver:
    if is_url(image_root):
        return partial(_join, as_url(image_root))
    if image_root.is_dir():
        return lambda image: _find_file(image_root, image)
    if image_root.is_file():
        members = {os.path.normpath(name): place for name, place in tar_members(image_root) if name}
        return lambda image: members.get(
            os.path.normpath(image), f"no member {printable_utf8(image)} in {image_root.name}"
        )
    raise SourceError(f"{image_root}: no such image root; expected a folder or a .tar of images")


def _join(root: str, name: str) -> Place:
    return Url(url=join_url(root, name))


def _find_file(image_root: Path, image: str) -> Path | str:
    """Return the image's path (an absolute one is used as it is), or why it cannot be read."""
    path = image_root / file_system_name(image)
    try:
        if path.is_file():
            return path
        if path.exists():
            return "not a regular file"
        return "no such image file" + _spelling_hint(path)
    except OSError as error:  # for example a name that is too long
        return f"image file cannot be looked up: {error.strerror}"


def _spelling_hint(path: Path) -> str:
    """Hint at an existing file whose path is spelt otherwise; empty if there is none."""
    wanted = Path(str(path).replace("\\", "/"))
    found = _similar(wanted)
    if found is None:
        return ""
    hints = ["write / for \\"] if wanted != path else []
    if found != wanted:
        same_case = _normal(str(found)) == _normal(str(wanted))
        hints.append(
            "in another Unicode form (NFC or NFD)" if same_case else "in other letter case"
        )
    return f"; {printable_utf8(str(found))} is there, {', '.join(hints)}"


def _similar(path: Path) -> Path | None:
    """Return the existing path that is equal but for Unicode form and letter case, if any."""
    if os.path.exists(path):
        return path
    folder = _similar(path.parent) if path != path.parent else None
    name = folder and _names_by_folded(folder).get(_normal(path.name).casefold())
    return folder / name if folder and name else None


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)


@lru_cache(maxsize=16)
def _names_by_folded(folder: Path) -> dict[str, str]:
    """Files of a folder, by their names in one Unicode form and letter case."""
    try:
        return {_normal(name).casefold(): name for name in sorted(os.listdir(folder))}
    except OSError:
        return {}


def file_system_name(name: str) -> str:
    """Return the path as the operating system has it: UTF-8, also in a locale of ASCII."""
    if sys.getfilesystemencoding() == "utf-8" or not is_utf8(name):
        return name
    return os.fsdecode(name.encode("utf-8"))


def make_audio_finder(audio_root: Path) -> Resolver:
    """Return a function that finds clips in `audio_root`, a folder or an uncompressed tar.

    A folder may be one in a store. A clip that is a URL is used as it is, and with a local folder
    an absolute path. Each local folder is listed once, on first use, so that hundreds of thousands
    of clips need no look-up each.

    Raises:
        SourceError: The folder or tar does not exist.
    """
    if is_url(audio_root):
        find = partial(_join, as_url(audio_root))
    elif audio_root.is_dir():
        find = _FolderIndex(audio_root).find
    elif audio_root.is_file():
        members: dict[str, Place] = {}
        members |= {
            os.path.normpath(name): place for name, place in tar_members(audio_root) if name
        }
        find = partial(_find_member, members, audio_root.name)
    else:
        raise SourceError(
            f"{audio_root}: no such audio root; expected a folder or a .tar of audio files"
        )

    def resolve(audio: str) -> Place:
        if problem := path_problem(audio, "audio"):
            return problem
        return Url(url=audio) if is_url(audio) else find(audio)

    return resolve


def _find_member(members: dict[str, Place], tar: str, name: str) -> Place:
    return members.get(os.path.normpath(name), f"no member {printable_utf8(name)} in {tar}")


class _FolderIndex:
    """Index of the files in folders; each folder is listed on first use."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._folders: dict[str, dict[str, bool] | str] = {}

    def find(self, name: str) -> Place:
        """Return the path of a file below the root, or why it cannot be read."""
        path = os.path.join(self._root, file_system_name(name))
        folder, _, file_name = path.rpartition("/")
        files = self._folders.get(folder)
        if files is None:
            files = self._folders[folder] = read_folder(folder or "/")
        is_file = None if isinstance(files, str) else files.get(file_name)
        if is_file:
            return Path(path)
        if is_file is not None:
            return "not a regular file"
        reason = files if isinstance(files, str) else NO_AUDIO_FILE
        return reason + _spelling_hint(Path(path)) * (reason == NO_AUDIO_FILE)


def read_folder(folder: str) -> dict[str, bool] | str:
    """List a folder: for each entry, True if it is a regular file; or why it cannot be listed."""
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
    except OSError:  # a circular link
        return False


def path_problem(path: str, what: str) -> str | None:
    """Problem that excludes a file of this path; None if there is none."""
    if is_url(path):
        try:
            check_url(path)
        except StoreError as error:
            return str(error)
    return f"the {what} path holds a zero byte" if "\0" in path else None
