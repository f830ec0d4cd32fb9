"""A folder or tar as a source: its images and clips, which are paired by name.

Members of a tar are read in place and never extracted.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

from im2sp.pipeline.containers.tars import tar_members
from im2sp.pipeline.decoding.media import Url, read_bytes
from im2sp.pipeline.sources.captions import MAX_CAPTION_BYTES, CaptionFiles
from im2sp.pipeline.sources.items import (
    HIDDEN,
    LINKED_FOLDER,
    SPOKEN,
    SPOKEN_LIST,
    SourceError,
    SourceListing,
    count_ignored,
    kind_of_name,
    nothing_found,
    printable_utf8,
)
from im2sp.pipeline.sources.pairs import Found, items_of_found
from im2sp.shards.files import parse_json
from im2sp.shards.stores import (
    StoredFile,
    StoreError,
    as_url,
    check_url,
    find_urls,
    is_url,
    shown_url,
)

_ARROW_STATE = "state.json"


def list_media(path: Path | str, audio_root: Path | None) -> SourceListing:
    """List the images and clips of a folder, by path, or of an uncompressed tar, in its order.

    The folder may be the URL of one in a store; a tar is local.

    The clips of an image are in the same folder or, with `audio_root` (a folder or tar), only
    there; the source's own clips are then ignored. A clip that matches no image is a separate item.
    Captions are those of files beside the media (`captions`).

    Raises:
        SourceError: There is nothing to list, or no image has a clip in `audio_root`.
    """
    ignored: Counter[str] = Counter()
    texts = CaptionFiles()
    found = _find(path, ("image", "audio") if audio_root is None else ("image",), ignored, texts)
    captions, rejects = texts.read((one.name for one in found), ignored)
    if not found:
        raise SourceError(nothing_found(path, ignored))
    apart = [] if audio_root is None else _find_apart(audio_root)
    items = items_of_found(found, apart, captions) + rejects
    if audio_root is not None and not any(item.image and item.utterances for item in items):
        num_images = sum(item.image is not None for item in items)
        raise SourceError(
            f"{audio_root}: none of its {len(apart)} audio files (the first: {apart[0].shown}) "
            f"belongs to one of the {num_images} images of {path} (the first: {found[0].shown}); "
            "expected x.wav or x_0.wav, x_1.wav and so on for x.jpg; check the audio root"
        )
    listed = dict(sorted(ignored.items()))
    is_tar = not is_url(path) and Path(path).is_file()
    return SourceListing(kind="tar" if is_tar else "folder", items=items, ignored=listed)


def _find(
    path: Path | str,
    kinds: Collection[str],
    ignored: Counter[str],
    texts: CaptionFiles | None = None,
) -> list[Found]:
    if is_url(path):
        return _find_in_store(as_url(path), kinds, ignored, texts)
    path = Path(path)
    find = _find_in_folder if path.is_dir() else _find_in_tar
    return find(path, kinds, ignored, texts)


@lru_cache(maxsize=4)
def stored_files(url: str) -> dict[str, StoredFile]:
    """List the files below a folder in a store, by their paths relative to it.

    Raises:
        SourceError: The store cannot be listed, or there is no file.
    """
    try:
        check_url(url)
        found = find_urls(url)
    except StoreError as error:
        raise SourceError(str(error)) from None
    start = len(url.rstrip("/")) + 1
    files = {one.url[start:]: one for one in found if one.url[start:]}
    if not files:
        raise SourceError(f"{shown_url(url)}: no such file or folder; check the URL of the source")
    return dict(sorted(files.items()))


def _find_in_store(
    url: str, kinds: Collection[str], ignored: Counter[str], texts: CaptionFiles | None
) -> list[Found]:
    """List all files below a folder in a store, as `_find_in_folder` does."""
    found: list[Found] = []
    for name, stored in stored_files(url).items():
        kind, place = kind_of_name(name), Url(url=stored.url, version=stored.version)
        shown = printable_utf8(name)
        if _is_hidden(name):
            ignored[HIDDEN] += 1
        elif kind in kinds:
            found.append(Found(name=name, shown=shown, place=place, kind=kind))
        elif texts is None or not texts.add(name, shown, place):
            count_ignored(name, ignored)
    return found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _find_apart(audio_root: Path) -> list[Found]:
    """List the clips in an audio root.

    Raises:
        SourceError: The audio root does not exist, or holds no clips.
    """
    if not is_url(audio_root) and not audio_root.exists():
        raise SourceError(
            f"{audio_root}: no such audio root; expected a folder or a .tar of audio files"
        )
    ignored: Counter[str] = Counter()
    found = _find(audio_root, ("audio",), ignored)
    if not found:
        others = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
        raise SourceError(
            f"{audio_root}: the audio root holds no audio files (found {others or 'no files'}); "
            "expected files with a suffix such as .wav or .flac"
        )
    return found


def _find_in_folder(
    folder: Path, kinds: Collection[str], ignored: Counter[str], texts: CaptionFiles | None
) -> list[Found]:
    """List all files below a folder whose name is of one of `kinds`, sorted by path.

    Caption files are added to `texts`; hidden and other files are counted in `ignored`. Links are
    followed, even out of the folder.
    """
    found: list[Found] = []
    base = str(folder)
    for name, entry in _walk(base, "", ignored):
        shown = printable_utf8(name)
        if isinstance(entry, str):
            found.append(Found(name=name, shown=shown, place=entry, kind="other"))
            continue
        kind, path = kind_of_name(name), Path(f"{base}/{name}")
        if kind not in kinds:
            if texts is None or not texts.add(name, shown, _file_problem(entry) or path):
                count_ignored(name, ignored)
            continue
        place = _file_problem(entry) or path
        found.append(Found(name=name, shown=shown, place=place, kind=kind))
    found.sort(key=lambda one: one.name)
    return _without_spoken(base, found, ignored)


def _without_spoken(base: str, found: list[Found], ignored: Counter[str]) -> list[Found]:
    """Leave out what im2sp-speak wrote, unless there is nothing else."""
    written: dict[str, Collection[str]] = {}
    kept: list[Found] = []
    for one in found:
        folder, _, name = one.name.rpartition("/")
        if folder not in written:
            written[folder] = _spoken_files(os.path.join(base, folder))
        if name not in written[folder]:
            kept.append(one)
    if not kept or len(kept) == len(found):
        return found
    ignored[SPOKEN] += len(found) - len(kept)
    return kept


def _spoken_files(folder: str) -> Collection[str]:
    """Names of the files that im2sp-speak wrote into a folder."""
    try:
        return set(parse_json(read_bytes(Path(folder, SPOKEN_LIST), MAX_CAPTION_BYTES))["files"])
    except (ValueError, KeyError, TypeError):
        return ()


def count_files(folder: Path, used: Collection[str]) -> dict[str, int]:
    """Count the files below a folder by suffix, without those whose relative path is in `used`."""
    ignored: Counter[str] = Counter()
    for name, _ in _walk(str(folder), "", ignored):
        if name not in used:
            count_ignored(name, ignored)
    return dict(sorted(ignored.items()))


def find_containers(folder: str) -> tuple[list[str], dict[str, int]] | None:
    """Return the tars or tables that make up a folder that holds no images and clips.

    That are its `.tar`s, else the `.arrow` files of `Dataset.save_to_disk`, else its `.parquet`s.

    Args:
        folder: Path, or URL of a folder in a store.

    Returns:
        Their paths or URLs in order, and counts of the other files by suffix; None if there are no
        such files, or media beside them.
    """
    ignored: Counter[str] = Counter()
    names: list[str] = []
    for name in stored_files(folder) if is_url(folder) else _names_in(folder, ignored):
        if kind_of_name(name) != "other":
            return None
        names.append(name)
    names.sort()
    found = [name for name in names if name.lower().endswith(".tar")]
    if not found:
        states = [name for name in names if os.path.basename(name) == _ARROW_STATE]
        listed = {file for state in states for file in _files_of_state(folder, state)}
        found = [name for name in names if name in listed]
    found = found or [name for name in names if name.lower().endswith(".parquet")]
    for name in set(names).difference(found):
        count_ignored(name, ignored)
    places = [f"{folder.rstrip('/')}/{name}" for name in found]
    return (places, dict(sorted(ignored.items()))) if found else None


def _names_in(folder: str, ignored: Counter[str]) -> Iterator[str]:
    return (name for name, _ in _walk(folder, "", ignored))


def _files_of_state(folder: str, state: str) -> list[str]:
    """Arrow files that a `state.json` of the datasets library lists, relative to the folder."""
    path = f"{folder.rstrip('/')}/{state}"
    try:
        content = read_bytes(Url(url=path) if is_url(path) else Path(path), MAX_CAPTION_BYTES)
        listed = parse_json(content)["_data_files"]
        return [os.path.join(os.path.dirname(state), one["filename"]) for one in listed]
    except (ValueError, KeyError, TypeError):
        return []


def _walk(
    folder: str, prefix: str, ignored: Counter[str]
) -> Iterator[tuple[str, "os.DirEntry[str] | str"]]:
    """Yield relative posix path and entry of each file; a message if a folder cannot be listed.

    Links to folders are followed last. Each folder is entered once, and parents of the first one
    never, so that circular links end; a link to such a folder is counted in `ignored`.
    """
    above = os.path.realpath(folder).rstrip(os.sep) + os.sep
    pending, links = [(folder, prefix)], list[tuple[str, str]]()
    entered = set[tuple[int, int] | None]()
    while pending or links:
        if not pending:
            links.sort(key=lambda link: link[1])
            pending.append(links.pop(0))
            if above.startswith(os.path.realpath(pending[0][0]).rstrip(os.sep) + os.sep):
                ignored[LINKED_FOLDER] += 1
                pending.clear()
                continue
        folder, prefix = pending.pop()
        identity = _identity(folder)
        if identity is not None and identity in entered:
            ignored[LINKED_FOLDER] += 1
            continue
        entered.add(identity)
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            yield prefix.rstrip("/"), f"folder cannot be listed: {error.strerror}"
            continue
        for entry in entries:
            if entry.name.startswith("."):
                ignored[HIDDEN] += 1
            elif entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, f"{prefix}{entry.name}/"))
            elif entry.is_symlink() and os.path.isdir(entry.path):
                links.append((entry.path, f"{prefix}{entry.name}/"))
            else:
                yield prefix + entry.name, entry


def _identity(folder: str) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:  # listing it will report the reason
        return None
    return status.st_dev, status.st_ino


def _file_problem(entry: "os.DirEntry[str]") -> str | None:
    """Reason why the entry of a candidate cannot be read; None if it can."""
    try:
        if entry.is_file():
            return None
    except OSError:  # a circular link
        return "link to nothing"
    return "link to nothing" if entry.is_symlink() else "not a regular file"


def _find_in_tar(
    path: Path, kinds: Collection[str], ignored: Counter[str], texts: CaptionFiles | None
) -> list[Found]:
    """List all members of an uncompressed tar whose name is of one of `kinds`, in its order.

    Caption files are added to `texts`; hidden and other members are counted in `ignored`. Symbolic
    links, sparse members and names that leave the archive are rejects. The rest of an archive after
    a cut or damage is one reject, as its number of members is unknown.

    Raises:
        SourceError: The file cannot be read, is compressed, or is not a tar.
    """
    found: list[Found] = []
    for name, place in tar_members(path):
        kind = kind_of_name(name)
        shown = printable_utf8(f"{path.name}/{name}".rstrip("/"))
        if _is_hidden(name):
            ignored[HIDDEN] += 1
        elif name == "" or kind in kinds:
            found.append(Found(name=name, shown=shown, place=place, kind=kind))
        elif texts is None or not texts.add(name, shown, place):
            count_ignored(name, ignored)
    return found
