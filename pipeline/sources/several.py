"""Sources of one command: ranges and wildcards, the keys of several sources, and many containers.

If there are several sources, each key and each name in a reject starts with that of its source:
`00012.tar` and `00013.tar` give `00012/x` and `00013/x`. As many parent folders are kept as make
them differ. A single source, and images and clips that are given as files, get no prefix.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
from im2sp.shards.stores import (
    StoreError,
    as_url,
    is_url,
    match_urls,
    shown_url,
    stat_url,
    url_path,
)

MAX_SOURCES = 1_000_000
"""Limit of the sources that one range may name."""
_STATS_AT_ONCE = 32

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
    return [f"{number}/{name}" for number, name in enumerate(next(_shortened(paths)))]


def _shortened(paths: Sequence[str]) -> Iterator[list[str]]:
    """Names of the sources: of their files alone, with one folder, with two, and so on."""
    whole = [url_path(path) if is_url(path) else os.path.abspath(path) for path in paths]
    whole = [printable_utf8(path).strip("/") for path in whole]
    for depth in range(1, max(path.count("/") for path in whole) + 2):
        yield ["/".join(path.rsplit("/", depth)[-depth:]) for path in whole]


def prefixed_name(path: str, prefix: str) -> str:
    """Name of one of several sources in rejects: `a/x.tar` for the prefix `a/x`."""
    suffix = os.path.splitext(shown_source(path).rstrip("/"))[1]
    return f"{prefix.removesuffix(suffix)}{suffix}"


def with_prefix(listing: SourceListing, path: str, prefix: str) -> SourceListing:
    """Put the prefix of one of several sources before its keys, names and notes."""
    shown = prefixed_name(path, prefix)
    # Names of members already start with that of their tar.
    cut = f"{os.path.basename(shown_source(path))}/" if listing.kind == "tar" else ""
    items = [
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
    notes = tuple(f"{shown}: {note}" for note in listing.notes)
    return replace(listing, items=items, notes=notes)


def list_files(paths: Sequence[str]) -> SourceListing:
    """List images and clips that are given as files; they pair by name as in a folder.

    The key is the file name without suffix, with as many parent folders as make the names differ.
    """
    options = list(_shortened(paths))
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
        named = listing if path is None else with_prefix(listing, path, by_path[path])
        items += named.items
        notes += named.notes
    kinds = dict.fromkeys(listing.kind for listing in listings)
    return SourceListing(
        kind="+".join(kinds),
        items=reject_repeated_keys(items),
        ignored=dict(sorted(ignored.items())),
        notes=tuple(notes),
    )


# Containers that are listed one by one ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """A tar or table that holds inputs."""

    path: str
    """Path or URL."""
    prefix: str
    """Start of its keys; empty for the only container."""
    size_bytes: int
    """Size of the file; 0 if the server does not state it."""
    version: str
    """Modification time in ns, or what changes when the file does at a URL; "" if unknown."""

    @property
    def name(self) -> str:
        """Name in messages and rejects, and for its suffix."""
        if self.prefix:
            return prefixed_name(self.path, self.prefix)
        return os.path.basename(shown_source(self.path))


def find_containers(paths: Sequence[str]) -> list[Container]:
    """Return containers by their paths and URLs; nothing but their size and version is read.

    Raises:
        SourceError: One is missing or given twice, or keys of two could be equal.
    """
    refuse_repeated(paths)
    names = prefixes(paths) if len(paths) > 1 else [""]
    _check_prefixes(names)
    containers: list[Container] = []
    with ThreadPoolExecutor(_STATS_AT_ONCE) as threads:
        for start in range(0, len(paths), _STATS_AT_ONCE):
            end = start + _STATS_AT_ONCE
            # A store answers slowly, a disk at once.
            run = threads.map if any(map(is_url, paths[start:end])) else map
            statuses = run(_status, paths[start:end])
            for path, prefix, (size_bytes, version) in zip(
                paths[start:end], names[start:end], statuses, strict=True
            ):
                containers.append(
                    Container(path=path, prefix=prefix, size_bytes=size_bytes, version=version)
                )
    return containers


def _status(path: str) -> tuple[int, str]:
    """Size of a container in bytes, and its version."""
    if not is_url(path):
        try:
            status = os.stat(path)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read: {error.strerror}") from None
        return status.st_size, str(status.st_mtime_ns)
    try:
        stored = stat_url(path)
    except StoreError as error:
        raise SourceError(f"{error}; check the URL of the source") from None
    if stored is None:
        raise SourceError(f"{shown_source(path)}: a folder; expected a file")
    return stored.size_bytes or 0, stored.version


def _check_prefixes(names: Sequence[str]) -> None:
    """Raise `SourceError` if keys of two containers could be equal."""
    known = set(names)
    for name in names:
        parts = name.split("/")
        for end in range(1, len(parts)):
            if (outer := "/".join(parts[:end])) in known:
                raise SourceError(
                    f"containers {outer} and {name}: keys of both may start with {name}/; rename "
                    "one, or give --per-container no"
                )
