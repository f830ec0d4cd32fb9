"""Sound files that a source names by path: how they are found below an audio root."""

import os
from pathlib import Path

from im2sp.pipeline.images import ByteRange
from im2sp.pipeline.source_items import SourceError, SourceItem, printable_utf8
from im2sp.pipeline.source_rows import Resolver
from im2sp.pipeline.source_tar import tar_members


def make_audio_finder(audio_root: Path) -> Resolver:
    """How audio paths are found below `audio_root`, a folder or an uncompressed tar.

    Below a folder an absolute path is taken as it is, and each folder that is asked about is read
    once, so that 100,000s of clips cost no look-up each.

    Raises:
        SourceError: There is no such folder or tar.
    """
    if audio_root.is_dir():
        return _FolderIndex(audio_root).find
    if audio_root.is_file():
        members = {os.path.normpath(name): place for name, place in tar_members(audio_root) if name}
        return lambda audio: members.get(
            os.path.normpath(audio), f"no member {printable_utf8(audio)} in {audio_root.name}"
        )
    raise SourceError(
        f"{audio_root}: no such audio root; expected a folder or a .tar of sound files"
    )


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
            files = self._folders[folder] = _files_of(folder or "/")
        if isinstance(files, str):
            return files
        is_file = files.get(file_name)
        if is_file:
            return Path(path)
        return "no such audio file" if is_file is None else "not a regular file"


def _files_of(folder: str) -> dict[str, bool] | str:
    """Whether each entry of a folder is a regular file, or why none can be had."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: _is_file(entry) for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return "no such audio file"
    except OSError as error:  # for example a name that is too long
        return f"audio file cannot be looked up: {error.strerror}"


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads round in a circle
        return False


def check_some_audio(path: Path, items: list[SourceItem], audio_root: Path) -> None:
    """Refuse an audio root in which no clip can be used: it is the wrong one.

    Raises:
        SourceError: No item has a clip that is there.
    """
    utterances = [utterance for item in items for utterance in item.utterances]
    if any(utterance.audio for utterance in utterances):
        return
    if not utterances:
        raise SourceError(
            f"{path}: names no sound file, so the audio root {audio_root} has no use; expected "
            "an 'audio' column with paths; add one, or leave the audio root out"
        )
    raise SourceError(
        f"{path}: none of its {len(utterances)} sound files can be used below {audio_root} (the "
        f"first: {utterances[0].name}: {utterances[0].error}); give the folder that holds them as "
        "--audio-root"
    )
