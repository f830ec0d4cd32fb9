"""Captions in files beside the media: `x.txt` or `x.json` belongs to `x.jpg`, or to `x.wav`.

A `.txt` holds one caption a line. A `.json` is that of img2dataset: an object with a `caption`, or
`captions`, a list; it is read if there is no `.txt`. Other files of these suffixes are ignored.
"""

import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

from im2sp.pipeline.decoding.media import Location, MediaError, read_bytes
from im2sp.pipeline.sources.items import (
    SourceItem,
    clean_key,
    count_ignored,
    is_utf8,
    strip_suffix,
)
from im2sp.shards.files import parse_json

Place = Location | str
"""Location of a file's content, or why it cannot be read."""

CAPTION_SUFFIXES = (".txt", ".json")
"""Suffixes of caption files, preferred first."""
MAX_CAPTION_BYTES = 2**20
"""Size of the largest caption file that is read."""


class CaptionFiles:
    """Files that may hold captions, found while a source is listed."""

    def __init__(self) -> None:
        self._files: dict[str, list[tuple[str, str, Place]]] = {}

    def add(self, name: str, shown: str, place: Place) -> bool:
        """Add a file if its suffix is that of a caption file; return True if it is.

        Args:
            name: Its path relative to the source.
            shown: Its name in messages.
            place: Its content.
        """
        suffix = os.path.splitext(name)[1].lower()
        if suffix not in CAPTION_SUFFIXES:
            return False
        self._files.setdefault(strip_suffix(name), []).append((suffix, shown, place))
        return True

    def read(
        self, names: Iterable[str], ignored: Counter[str]
    ) -> tuple[dict[str, tuple[str, ...]], list[SourceItem]]:
        """Read the captions of some media.

        Args:
            names: Paths of the media relative to the source.
            ignored: Files that are not used are counted here.

        Returns:
            The captions by path without suffix, and a reject for each file that cannot be read.
        """
        captions: dict[str, tuple[str, ...]] = {}
        rejects: list[SourceItem] = []
        stems = {strip_suffix(name) for name in names} if self._files else set()
        for stem, files in sorted(self._files.items()):
            for suffix, shown, place in sorted(files, key=_preferred):
                error = found = None
                if stem in stems and stem not in captions:
                    try:
                        found = _captions(suffix, _content(place))
                    except MediaError as problem:
                        error = str(problem)
                if error is not None:
                    rejects.append(
                        SourceItem(key=clean_key(shown), image=None, name=shown, error=error)
                    )
                elif found:
                    captions[stem] = found
                else:
                    count_ignored(shown, ignored)
        return captions, rejects


def _preferred(file: tuple[str, str, Place]) -> int:
    return CAPTION_SUFFIXES.index(file[0])


def _content(place: Place) -> bytes:
    if isinstance(place, str):
        raise MediaError(place)
    return read_bytes(place, MAX_CAPTION_BYTES)


def _captions(suffix: str, content: bytes) -> tuple[str, ...]:
    """Captions in a file's content."""
    if suffix == ".json":
        texts = _json_captions(content)
    else:
        try:
            texts = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise MediaError(f"not UTF-8 text ({error.reason} at byte {error.start:,})") from None
    return tuple(text.strip() for text in texts if text.strip() and is_utf8(text))


def _json_captions(content: bytes) -> list[str]:
    try:
        entry: Any = parse_json(content)
    except ValueError:
        return []
    if not isinstance(entry, dict):
        return []
    found = entry.get("caption") or entry.get("captions") or []
    texts = found if isinstance(found, list) else [found]
    return [text for text in texts if isinstance(text, str)]
