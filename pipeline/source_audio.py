"""Sound files that a source names by path, and images that a file beside it speaks about."""

import os
from functools import partial
from pathlib import Path

from im2sp.pipeline.images import ByteRange
from im2sp.pipeline.source_items import SourceError, SourceItem, printable_utf8
from im2sp.pipeline.source_rows import Resolver, path_problem
from im2sp.pipeline.source_tar import Place, tar_members

NO_AUDIO_FILE = "no such audio file"


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
    """Whether each entry of a folder is a regular file, or why none can be had."""
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
