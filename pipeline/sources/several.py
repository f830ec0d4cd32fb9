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

from im2sp.pipeline.decoding.media import Url
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    SourceListing,
    kind_of_name,
    printable_utf8,
    reject_long_lists,
    reject_repeated_keys,
)
from im2sp.pipeline.sources.pairs import Found, items_of_found
from im2sp.shards.stores import StoreError, as_url, is_url, match_urls, shown_url, url_path

MAX_SOURCES = 1_000_000
"""Limit of the sources that one range may name."""

_BRACES = re.compile(r"\{([^{}]*,[^{}]*|-?\d+\.\.-?\d+(?:\.\.\d+)?)\}")


def expand_sources(sources: Sequence[str]) -> list[str]:
    """Return the paths and URLs that sources name, in their order.

    `x/{0000..0099}.tar` is a range of numbers, `{a,b}` a list, both as in a shell; `*`, `?`, `[..]`
    and `**` (any folders) select existing files, sorted by path, also in a store but not on a web
    server. A path that exists is used as it is.

    Raises:
        SourceError: A path does not exist, nothing matches, or a source is given twice.
    """
    paths: list[str] = []
    for source in sources:
        found = list(_expand(as_url(source) if is_url(source) else source))
        missing = [path for path in found if not is_url(path) and not os.path.exists(path)]
        if missing:
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
        place = path if is_url(path) else os.path.abspath(path)
        if place in seen:
            raise SourceError(f"{shown_source(path)}: this source is given twice; give it once")
        seen.add(place)


def shown_source(path: str) -> str:
    """Path or URL for messages, and for its suffix: a URL without its query."""
    return shown_url(path) if is_url(path) else path


def _expand(source: str) -> Iterator[str]:
    if os.path.exists(source):
        yield source
        return
    for number, pattern in enumerate(_without_braces(source)):
        if number >= MAX_SOURCES:
            raise SourceError(
                f"{shown_source(source)}: names more than {MAX_SOURCES:,} sources; give fewer"
            )
        yield from _matches(pattern)


def _matches(pattern: str) -> list[str]:
    is_address = is_url(pattern)
    # A question mark starts the query of a web address.
    wildcards = "*" if is_address and pattern.startswith("http") else "*?["
    if os.path.exists(pattern) or not any(sign in pattern for sign in wildcards):
        return [pattern]
    try:
        matches = match_urls(pattern) if is_address else glob.iglob(pattern, recursive=True)
    except StoreError as error:
        raise SourceError(str(error)) from None
    if not (found := sorted(matches)):
        raise SourceError(f"{pattern}: no file or folder matches; check the pattern")
    return found


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
    for names in _shortened(paths):
        for options in ([os.path.splitext(name)[0] for name in names], names):
            if len(set(options)) == len(options):
                return options
    return [f"{number}/{name}" for number, name in enumerate(_shortened(paths)[0])]


def _shortened(paths: Sequence[str]) -> list[list[str]]:
    """Names of the sources: of their files alone, with one folder, with two, and so on."""
    whole = [url_path(path) if is_url(path) else os.path.abspath(path) for path in paths]
    parts = [printable_utf8(path).strip("/").split("/") for path in whole]
    return [
        ["/".join(one[-depth:]) for one in parts] for depth in range(1, max(map(len, parts)) + 1)
    ]


def list_files(paths: Sequence[str]) -> SourceListing:
    """List images and clips that are given as files; they pair by name as in a folder.

    The key is the file name without suffix, with as many parent folders as make the names differ.
    """
    options = _shortened(paths)
    names = next((one for one in options if len(set(one)) == len(one)), options[-1])
    found: list[Found] = []
    for path, name in zip(paths, names, strict=True):
        is_file = is_url(path) or os.path.isfile(path)
        place = (Url(url=path) if is_url(path) else Path(path)) if is_file else "not a regular file"
        found.append(Found(name=name, shown=name, place=place, kind=kind_of_name(name)))
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
        reject_long_lists(listing.items)
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
        prefix, suffix = by_path[path], os.path.splitext(shown_source(path).rstrip("/"))[1]
        shown = f"{prefix.removesuffix(suffix)}{suffix}"
        notes += [f"{shown}: {note}" for note in listing.notes]
        # Names of members already start with that of their tar.
        cut = f"{os.path.basename(path)}/" if listing.kind == "tar" else ""
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
