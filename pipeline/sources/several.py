"""Sources of one command: ranges and wildcards, and the keys of several sources.

If there are several sources, each key and each name in a reject starts with that of its source:
`00012.tar` and `00013.tar` give `00012/x` and `00013/x`. As many parent folders are kept as make
them differ. A single source, and images and clips that are given as files, get no prefix.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    SourceListing,
    kind_of_name,
    printable_utf8,
    reject_repeated_keys,
)
from im2sp.pipeline.sources.pairs import Found, items_of_found

MAX_SOURCES = 1_000_000
"""Limit of the sources that one range may name."""

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|-?\d+\.\.-?\d+(?:\.\.\d+)?)\}")
_WILDCARDS = re.compile(r"[*?\[]")


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Return the paths that sources name, in their order.

    `x/{0000..0099}.tar` is a range of numbers, `{a,b}` a list, both as in a shell; `*`, `?`, `[..]`
    and `**` (any folders) select existing files, sorted by path. A path that exists is used as it
    is.

    Raises:
        SourceError: A path does not exist, nothing matches, or a source is given twice.
    """
    paths: list[str] = []
    for source in sources:
        found = [source] if os.path.exists(source) else list(_expand(source))
        missing = [path for path in found if not os.path.exists(path)]
        if missing:
            if address := re.match(r"[a-z0-9+]{2,}:/", source):
                raise SourceError(
                    f"{source}: {address[0]}/ is an address; nothing is fetched, download it first"
                )
            part = f" ({len(missing):,} of the {len(found):,} sources of {source})"
            raise SourceError(
                f"{missing[0]}: no such file or folder{part if len(found) > 1 else ''}; check the "
                "path of the source"
            )
        paths += found
    refuse_repeated(paths)
    return paths


def refuse_repeated(paths: Sequence[str]) -> None:
    """Raise `SourceError` for a source that is given twice."""
    seen: set[str] = set()
    for path in paths:
        place = os.path.abspath(path)
        if place in seen:
            raise SourceError(f"{path}: this source is given twice; give it once")
        seen.add(place)


def _expand(source: str) -> Iterator[str]:
    for number, pattern in enumerate(_without_braces(source)):
        if number >= MAX_SOURCES:
            raise SourceError(f"{source}: names more than {MAX_SOURCES:,} sources; give fewer")
        if os.path.exists(pattern) or not _WILDCARDS.search(pattern):
            yield pattern
            continue
        matches = sorted(glob.iglob(pattern, recursive=True))
        if not matches:
            raise SourceError(f"{pattern}: no file or folder matches; check the pattern")
        yield from matches


def _without_braces(pattern: str) -> Iterator[str]:
    """`{0..2}{a,b}` -> `0a`, `0b`, `1a`, ...: braces are replaced from the first to the last."""
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    before, after = pattern[: found.start()], pattern[found.end() :]
    for option in _options(found[1]):
        yield from _without_braces(before + option + after)


def _options(inside: str) -> Iterator[str]:
    if "," in inside:
        yield from inside.split(",")
        return
    ends = inside.split("..")
    first, last, step = int(ends[0]), int(ends[1]), int(ends[2]) if len(ends) > 2 else 1
    is_padded = any(re.match(r"-?0\d", end) for end in ends[:2])
    width = max(len(end) for end in ends[:2]) if is_padded else 0
    step = max(step, 1)
    for number in range(first, last + 1, step) if first <= last else range(first, last - 1, -step):
        yield f"{number:0{width}d}"


def prefixes(paths: Sequence[str]) -> list[str]:
    """Return what distinguishes each source from the others.

    Their names without suffix; with parent folders or with suffix where these are equal.
    `["a/x.tar", "b/x.tar"]` -> `["a/x", "b/x"]`.
    """
    absolute = [os.path.abspath(path).split(os.sep) for path in paths]
    for depth in range(1, max(map(len, absolute)) + 1):
        names = ["/".join(parts[-depth:]) for parts in absolute]
        for options in ([os.path.splitext(name)[0] for name in names], names):
            if len(set(options)) == len(options):
                return [printable_utf8(option.strip("/")) for option in options]
    raise AssertionError("refuse_repeated was not called")


def list_files(paths: Sequence[str]) -> SourceListing:
    """List images and clips that are given as files; they pair by name as in a folder.

    The key is the file name, with the folders that are not common to all files.
    """
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    found: list[Found] = []
    for path in paths:
        name = os.path.relpath(os.path.abspath(path), folder)
        place = Path(path) if os.path.isfile(path) else "not a regular file"
        kind = kind_of_name(name)
        found.append(Found(name=name, shown=printable_utf8(name), place=place, kind=kind))
    return SourceListing(kind="files", items=items_of_found(found), ignored={})


def merge_listings(
    listings: Sequence[SourceListing], paths: Sequence[str | None], ignored: Counter[str]
) -> SourceListing:
    """Merge the listings of several sources into one.

    Args:
        listings: Listings in the order of the command.
        paths: Path of each source; None for the files, which get no prefix.
        ignored: Counts of the files that belong to no listing.
    """
    for listing in listings:
        ignored.update(listing.ignored)
    if len(listings) == 1:
        return replace(listings[0], ignored=dict(sorted(ignored.items())))
    known = [path for path in paths if path is not None]
    refuse_repeated(known)
    by_path = dict(zip(known, prefixes(known), strict=True))
    items: list[SourceItem] = []
    notes: list[str] = []
    for listing, path in zip(listings, paths, strict=True):
        if path is None:
            items += listing.items
            continue
        prefix, own_name = by_path[path], f"{Path(path).name}/"
        shown = f"{prefix.removesuffix(Path(path).suffix)}{Path(path).suffix}"
        notes += [f"{shown}: {note}" for note in listing.notes]
        # Names of members already start with that of their tar.
        cut = own_name if listing.kind == "tar" else ""
        items += [
            replace(
                item,
                key=f"{prefix}/{item.key}",
                name=f"{shown}/{item.name.removeprefix(cut)}",
                utterances=tuple(
                    replace(one, name=f"{shown}/{one.name.removeprefix(cut)}")
                    for one in item.utterances
                ),
            )
            for item in listing.items
        ]
    kinds = dict.fromkeys(listing.kind for listing in listings)
    return SourceListing(
        kind="+".join(kinds),
        items=reject_repeated_keys(items),
        ignored=dict(sorted(ignored.items())),
        notes=tuple(notes),
    )
