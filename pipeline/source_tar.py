"""What a tar holds: its members are read in place and never written anywhere."""

import tarfile
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from im2sp.pipeline.images import ByteRange
from im2sp.pipeline.source_items import (
    HIDDEN,
    SourceError,
    count_ignored,
    kind_of_name,
    printable_utf8,
)
from im2sp.pipeline.source_pairs import Found

Place = ByteRange | str
"""Where a member's content lies, or why it cannot be read."""


def find_in_tar(path: Path, kinds: Collection[str], ignored: Counter[str]) -> list[Found]:
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
