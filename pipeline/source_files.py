"""A folder or a tar as a source: its images and clips, which pair by name.

Members of a tar are read in place and never written anywhere.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from im2sp.pipeline.images import ByteRange
from im2sp.pipeline.source_items import (
    HIDDEN,
    LINKED_FOLDER,
    SourceError,
    SourceListing,
    count_ignored,
    kind_of_name,
    nothing_found,
    printable_utf8,
)
from im2sp.pipeline.source_pairs import Found, items_of_found

Place = ByteRange | str
"""Where a member's content lies, or why it cannot be read."""


def list_media(path: Path, audio_root: Path | None) -> SourceListing:
    """The pictures and sound files of a folder, by path, or of an uncompressed tar, in its order.

    Sound of an image lies beside it or, with `audio_root` (a folder or tar), only there; the
    source's own sound files are then ignored. Sound that pairs with no image is an item of its own.

    Raises:
        SourceError: There is nothing to list, or no image has a clip below `audio_root`.
    """
    ignored: Counter[str] = Counter()
    found = _find(path, ("image", "audio") if audio_root is None else ("image",), ignored)
    if not found:
        raise SourceError(nothing_found(path, ignored))
    apart = [] if audio_root is None else _find_apart(audio_root)
    items = items_of_found(found, apart)
    if audio_root is not None and not any(item.image and item.utterances for item in items):
        num_images = sum(item.image is not None for item in items)
        raise SourceError(
            f"{audio_root}: none of its {len(apart)} sound files (the first: {apart[0].shown}) "
            f"belongs to one of the {num_images} images of {path} (the first: {found[0].shown}); "
            "expected x.wav or x_0.wav, x_1.wav and so on for x.jpg; check the audio root"
        )
    listed = dict(sorted(ignored.items()))
    return SourceListing(kind="folder" if path.is_dir() else "tar", items=items, ignored=listed)


def _find(path: Path, kinds: Collection[str], ignored: Counter[str]) -> list[Found]:
    find = _find_in_folder if path.is_dir() else _find_in_tar
    return find(path, kinds, ignored)


def _find_apart(audio_root: Path) -> list[Found]:
    """The sound below an audio root.

    Raises:
        SourceError: There is no such audio root, or it holds no sound.
    """
    if not audio_root.exists():
        raise SourceError(
            f"{audio_root}: no such audio root; expected a folder or a .tar of sound files"
        )
    ignored: Counter[str] = Counter()
    found = _find(audio_root, ("audio",), ignored)
    if not found:
        others = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
        raise SourceError(
            f"{audio_root}: the audio root holds no sound (found {others or 'nothing at all'}); "
            "expected files with a suffix such as .wav or .flac"
        )
    return found


def _find_in_folder(folder: Path, kinds: Collection[str], ignored: Counter[str]) -> list[Found]:
    """All files below a folder that are of `kinds` by their name, sorted by path.

    Hidden files, linked folders and other files are left out and counted in `ignored`. A linked
    file counts when what it links to lies in the folder too, else it is a reject.
    """
    found: list[Found] = []
    root = os.path.realpath(folder)
    base = str(folder)
    for name, entry in _walk(base, "", ignored):
        shown = printable_utf8(name)
        if isinstance(entry, str):
            found.append(Found(name=name, shown=shown, place=entry, kind="other"))
            continue
        kind = kind_of_name(name)
        if kind not in kinds:
            count_ignored(name, ignored)
            continue
        place = _file_problem(entry, root) or Path(f"{base}/{name}")
        found.append(Found(name=name, shown=shown, place=place, kind=kind))
    found.sort(key=lambda one: one.name)
    return found


def _walk(
    folder: str, prefix: str, ignored: Counter[str]
) -> Iterator[tuple[str, "os.DirEntry[str] | str"]]:
    """Relative posix path and entry of each file; a message for a folder that cannot be listed."""
    pending = [(folder, prefix)]
    while pending:
        folder, prefix = pending.pop()
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
                ignored[LINKED_FOLDER] += 1
            else:
                yield prefix + entry.name, entry


def _file_problem(entry: "os.DirEntry[str]", root: str) -> str | None:
    """Why a directory entry with a candidate's name cannot be read; None when it can."""
    if not entry.is_symlink():
        return None if entry.is_file(follow_symlinks=False) else "not a regular file"
    target = os.path.realpath(entry.path)
    if not target.startswith(root.rstrip(os.sep) + os.sep):
        return "link that leaves the folder; not followed"
    return None if os.path.isfile(target) else "link to nothing"


def _find_in_tar(path: Path, kinds: Collection[str], ignored: Counter[str]) -> list[Found]:
    """All members of an uncompressed tar that are of `kinds` by their name, in its order.

    Hidden and other members are left out and counted in `ignored`. Links, sparse members and names
    that leave the archive are rejects, and so is what follows the point where an archive is cut or
    damaged (one reject, as nobody knows how much it was).

    Raises:
        SourceError: The file cannot be read, is compressed, or is no tar.
    """
    found: list[Found] = []
    for name, place in tar_members(path):
        kind = kind_of_name(name)
        if any(part.startswith(".") and part not in (".", "..") for part in name.split("/")):
            ignored[HIDDEN] += 1
        elif name == "" or kind in kinds:
            shown = printable_utf8(f"{path.name}/{name}".rstrip("/"))
            found.append(Found(name=name, shown=shown, place=place, kind=kind))
        else:
            count_ignored(name, ignored)
    return found


def tar_members(path: Path) -> Iterator[tuple[str, Place]]:
    """Name and place of every member but folders; the name "" stands for a cut or damaged rest.

    Raises:
        SourceError: The file cannot be opened, is compressed, or does not begin like a tar.
    """
    size_bytes = path.stat().st_size
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115 - closed below, not at the first yield
    except (OSError, tarfile.TarError) as error:
        raise SourceError(
            f"{path}: not a tar that can be read in place ({error}); expected an uncompressed "
            ".tar; unpack or decompress it first"
        ) from None
    with archive:
        try:
            for member in archive:
                # A listing of 100,000s keeps none of tarfile's own records.
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - not in typeshed
                if not member.isdir():
                    yield member.name.removeprefix("./"), _place(path, member, size_bytes)
            problem = _end_problem(path, archive.offset)
        except (OSError, tarfile.TarError, ValueError) as error:
            problem = str(error)
    if problem is not None:
        yield "", f"the tar is cut or damaged at byte {archive.offset:,}: {problem}"


def _place(path: Path, member: tarfile.TarInfo, size_bytes: int) -> Place:
    """Where a member's bytes lie, or why it is refused."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leaves the archive"
    if member.issym() or member.islnk():
        return f"a link (to {printable_utf8(member.linkname)}); links in a tar are not followed"
    if member.issparse():
        return "a sparse member; repack the tar without --sparse"
    if not member.isreg():
        return "not a regular file"
    if member.offset_data + member.size > size_bytes:
        return f"cut: the tar ends before its {member.size:,} bytes do"
    return ByteRange(path=path, offset=member.offset_data, size_bytes=member.size)


def _end_problem(path: Path, offset: int) -> str | None:
    """Why reading stopped at `offset`, if not at the end of the archive.

    `tarfile` takes a header it cannot read for the end.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    return "not a member's header" if block.strip(b"\0") else None
