"""Members of uncompressed tars, read in place and never extracted."""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from im2sp.pipeline.decoding.media import ByteRange, SourceError
from im2sp.shards.errors import shown
from im2sp.shards.files import open_regular

MemberPlace = ByteRange | str
"""Location of a member's content, or why it cannot be read."""

MAX_GLOBAL_HEADERS = 1000
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""Programs by the first bytes of what they write."""


def tar_members(path: Path) -> Iterator[tuple[str, MemberPlace]]:
    """Yield name and place of every member but folders; the name "" is a cut or damaged rest.

    Concatenated archives are read completely, as by `tar -i`.

    Raises:
        SourceError: The file cannot be opened, is compressed, or does not start like a tar.
    """
    size_bytes = path.stat().st_size
    refuse_compressed(path)
    places: dict[str, MemberPlace] = {}
    with open_regular(path) as file:
        start: int | None = 0
        while start is not None:
            file.seek(start)
            try:
                archive = tarfile.TarFile(fileobj=file)
            except (OSError, tarfile.TarError, RecursionError) as error:
                if start == 0:
                    raise SourceError(
                        f"{path}: not a tar that can be read in place ({error}); expected an "
                        "uncompressed .tar; unpack or decompress it first"
                    ) from None
                yield "", _cut_at(start, str(error))
                return
            try:
                for member in _members(archive):
                    name = member.name.removeprefix("./")
                    place = places[name] = _place(path, member, size_bytes, places)
                    yield name, place
            except (OSError, tarfile.TarError, ValueError, RecursionError) as error:
                yield "", _cut_at(archive.offset, str(error))
                return
            start = _next_archive(file, archive.offset)
            if start == archive.offset:
                yield "", _cut_at(archive.offset, "not a member's header")
                return


def refuse_compressed(path: Path) -> None:
    """Raise `SourceError` for an unreadable file, or a compressed one without places of members."""
    try:
        with open_regular(path) as file:
            head = file.read(6)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
    for magic, program in _COMPRESSIONS.items():
        if head.startswith(magic):
            plain = f"{path.name.split('.')[0]}-plain.tar"
            raise SourceError(
                f"{path}: not a tar that can be read in place (compressed with {program}); "
                f"decompress it first: {program} -dc {path.name} > {plain}"
            )


def _cut_at(offset: int, problem: str) -> str:
    return f"the tar is cut or damaged at byte {offset:,}: {problem}"


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members that are not folders.

    Raises:
        ValueError: A member's size is negative, so that the start of the next one is unknown; or
            there are more than `MAX_GLOBAL_HEADERS`, which tarfile copies to every member.
    """
    for member in archive:
        # Saves memory: tarfile would keep a record of every member.
        archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - not in typeshed
        if len(archive.pax_headers) > MAX_GLOBAL_HEADERS:
            raise ValueError(f"{len(archive.pax_headers):,} global headers")
        if member.size < 0:
            raise ValueError(f"a member of {member.size:,} bytes")
        if not member.isdir():
            yield member


def _place(
    path: Path, member: tarfile.TarInfo, size_bytes: int, earlier: Mapping[str, MemberPlace]
) -> MemberPlace:
    """Location of a member's bytes (of a hard link, its target's), or why it is refused."""
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "its name leaves the archive"
    if member.issym():
        return f"a link (to {shown(member.linkname)}); links in a tar are not followed"
    if member.islnk():
        missing = f"a hard link to {shown(member.linkname)}, which does not come before it"
        return earlier.get(member.linkname.removeprefix("./"), missing)
    if member.issparse():
        return "a sparse member; repack the tar without --sparse"
    if not member.isreg():
        return "not a regular file"
    if member.offset_data + member.size > size_bytes:
        return f"cut: the tar ends before its {member.size:,} bytes do"
    return ByteRange(path=path, offset=member.offset_data, size_bytes=member.size)


def _next_archive(file: BinaryIO, offset: int) -> int | None:
    """Offset of the first block that is not zero; None if there is none.

    An archive ends with blocks of zeros, after which another one may follow. `tarfile` also treats
    a header that it cannot read as the end: then the result is `offset` itself.
    """
    file.seek(offset)
    while chunk := file.read(tarfile.RECORDSIZE * 16):
        rest = chunk.lstrip(b"\0")
        if rest:
            return offset + (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        offset += len(chunk)
    return None
