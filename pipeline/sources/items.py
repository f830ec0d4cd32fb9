"""Items of a source, their listing, and the rules for names and keys."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from im2sp.pipeline.decoding.media import Location, SourceError, place_in_file
from im2sp.shards.columns.arrays import MAX_ITEMS
from im2sp.shards.files import read_json as read_json_file

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib")
    + (".tif", ".tiff", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")
    + (".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".psd", ".dds", ".ico", ".sgi", ".rgb")
    + (".rgba", ".pcx", ".tga")
)
"""Suffixes (lower case) that make a file of a folder or tar a candidate; its content decides."""

AUDIO_SUFFIXES = frozenset(
    (".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".mp3", ".ogg", ".oga", ".opus")
    + (".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist")
)
"""The same for audio; AU, CAF and Wave64 are listed to be refused by name."""

HIDDEN = "(hidden)"
NO_SUFFIX = "(no suffix)"
LINKED_FOLDER = "(linked folder)"
SPOKEN = "(output of im2sp-speak)"
SPOKEN_LIST = ".im2sp-speak.json"
"""File in which im2sp-speak lists the files that it wrote into a folder."""


def read_json(path: Path, expected: str) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.
        expected: Expected form of the file, for messages.

    Raises:
        SourceError: The file cannot be read or is not JSON.
    """
    try:
        return read_json_file(path)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; expected {expected}") from None
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error}); expected {expected}") from None


def read_json_list(path: Path, key: str, expected: str) -> list[Any]:
    """Return the list under a key of a JSON file's object; see `read_json` and `list_under`."""
    return list_under(path, read_json(path, expected), key, expected)


def list_under(path: Path, content: Any, key: str, expected: str) -> list[Any]:
    """Return the list under a key of a JSON file's content.

    Raises:
        SourceError: There is no such list.
    """
    if isinstance(content, dict) and isinstance(content.get(key), list):
        return content[key]
    found = f"keys {sorted(content)[:8]}" if isinstance(content, dict) else type(content).__name__
    raise SourceError(f"{path}: found {found}; expected {expected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One clip of speech that belongs to an input."""

    audio: Location | None
    """Location of the clip; None only together with `error`."""

    name: str
    """Name in messages and rejects: the path relative to the source."""

    text: str | None = None
    """Transcript, if the source has one."""

    error: str | None = None
    """Reason why this clip is a reject, without its name; the rest of the sample stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceItem:
    """One input: an image and its speech, or either, or the reason why it cannot be used."""

    key: str
    """The sample's key; unique among the items without `error`."""

    image: Location | None
    """Location of the image; None together with `error` or for speech without an image."""

    name: str
    """Name in messages and rejects: the path relative to the source."""

    split: str = ""
    """Split as written in the source (`restval` stays `restval`)."""

    captions: tuple[str, ...] = ()
    """Captions without speech, in the order of the source."""

    utterances: tuple[Utterance, ...] = ()
    """Clips in the order of the source."""

    error: str | None = None
    """Reason why this input is a reject, without its name; None if it is valid."""


@dataclass(frozen=True, kw_only=True)
class SourceListing:
    """Inputs of one source."""

    kind: str
    """`folder`, `tar`, `karpathy`, `coco`, `jsonl`, `csv`, `parquet` or `ljspeech`."""

    items: list[SourceItem]
    """Inputs, in an order that depends only on the source."""

    ignored: dict[str, int]
    """Counts of files that are not candidates, by suffix, sorted by it."""

    notes: tuple[str, ...] = ()
    """Other unused parts of the source, a sentence each."""

    def describe(self) -> dict[str, str | int]:
        """Return kind, number of items and a sha256 over all items.

        Two listings with the same description hold the same items in the same order, so a resumed
        job detects that its source has changed. Local paths are not included.
        """
        digest = hashlib.sha256()
        for item in self.items:
            row = [item.key, item.name, item.split, item.captions, item.error]
            row += place_in_file(item.image)
            row += [_describe_utterance(utterance) for utterance in item.utterances]
            digest.update(json.dumps(row).encode() + b"\n")
        return {"kind": self.kind, "num_items": len(self.items), "sha256": digest.hexdigest()}


def _describe_utterance(utterance: Utterance) -> list[object]:
    return [utterance.name, utterance.text, utterance.error, *place_in_file(utterance.audio)]


def kind_of_name(name: str) -> Literal["image", "audio", "other"]:
    """Kind of a file by the suffix of its name."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "audio" if suffix in AUDIO_SUFFIXES else "other"


def split_name(name: str) -> str:
    """Normalise the name of a split: train, val, test for their usual spellings, else unchanged."""
    folded = name.strip().casefold()
    if folded in ("valid", "validation", "dev", "development"):
        return "val"
    return folded if folded in ("train", "val", "test") else name.strip()


def count_ignored(name: str, ignored: Counter[str]) -> None:
    """Count a file that is not a candidate, by its suffix."""
    ignored[printable_utf8(os.path.splitext(name)[1].lower()) or NO_SUFFIX] += 1


def nothing_found(path: Path | str, ignored: Counter[str]) -> str:
    """Message for a source without any candidate."""
    others = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
    return (
        f"{path}: holds no images and no audio files (found {others or 'no files'}); expected "
        "files with a suffix such as .jpg, .png, .webp, .wav or .flac"
    )


def strip_suffix(name: str) -> str:
    """`a/b.c.jpg` -> `a/b.c`."""
    return os.path.splitext(name)[0]


def printable_utf8(name: str) -> str:
    """Convert a file name to valid UTF-8: invalid bytes become backslash escapes."""
    if is_utf8(name):
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_utf8(text: str) -> bool:
    """True if text can be stored; a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_key(name: str) -> str:
    """Make a key from a path: valid UTF-8, no empty, `.` or `..` part.

    clean_key("../x//./y") == "x/y".
    """
    parts = printable_utf8(name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def assign_keys(candidates: list[tuple[str, ...]]) -> list[str]:
    """Assign one key per input: the first candidate that no other input has.

    Inputs that share a key all switch to their next candidate, until no key is shared or there are
    no more candidates. `[("a", "a.jpg"), ("a", "a.png"), ("b", "b.jpg")]` -> `a.jpg, a.png, b`.
    """
    level = [0] * len(candidates)
    keys = [options[0] for options in candidates]
    while True:
        counts = Counter(keys)
        moved = False
        for index, key in enumerate(keys):
            if counts[key] > 1 and level[index] + 1 < len(candidates[index]):
                level[index] += 1
                keys[index] = candidates[index][level[index]]
                moved = True
        if not moved:
            return keys


def reject_repeated_keys(items: list[SourceItem]) -> list[SourceItem]:
    """Return the items; one whose key an earlier valid item has becomes a reject."""
    first_indices: dict[str, int] = {}
    for index, item in enumerate(items):
        first = index if item.error else first_indices.setdefault(item.key, index)
        if first != index:
            error = f"its key {item.key!r} is already that of {items[first].name}"
            items[index] = replace(item, image=None, utterances=(), error=error)
    return items


def reject_long_lists(items: list[SourceItem]) -> list[SourceItem]:
    """Return the items; one with more captions and clips than a sample holds becomes a reject."""
    for index, item in enumerate(items):
        num = len(item.captions) + len(item.utterances)
        if num > MAX_ITEMS and item.error is None:
            error = f"{num:,} captions and clips, expected at most {MAX_ITEMS:,}"
            items[index] = replace(item, image=None, captions=(), utterances=(), error=error)
    return items


def narrowed(
    listing: SourceListing, only: Literal["images", "audio"] | None, name: object
) -> SourceListing:
    """Restrict a listing to its images or to its audio; unchanged for None.

    Without audio, transcripts become captions. Inputs without remaining media are left out; those
    that cannot be used are kept, and will be refused.

    Args:
        listing: Inputs of the source.
        only: Kind of media to keep.
        name: Name of the source in messages.

    Raises:
        SourceError: No input is left.
    """
    if only is None:
        return listing
    items = narrowed_items(listing.items, only)
    if not items:
        raise SourceError(f"{name}: holds no {only}; leave --only {only} out")
    return replace(listing, items=items)


def narrowed_items(
    items: Sequence[SourceItem], only: Literal["images", "audio"]
) -> list[SourceItem]:
    """Restrict items to their images or to their audio; see `narrowed`."""
    kept: list[SourceItem] = []
    for item in items:
        if item.error is not None:
            kept.append(replace(item, utterances=()))
        elif only == "images" and item.image is not None:
            captions = (*texts_of(item.utterances), *item.captions)
            kept.append(replace(item, utterances=(), captions=captions))
        elif only == "audio" and item.utterances:
            kept.append(replace(item, image=None))
    return kept


def has_speech(items: Sequence[SourceItem]) -> bool:
    """True if a speech tokenizer is needed: there is a clip that may be valid."""
    return any(
        utterance.error is None
        for item in items
        if item.error is None
        for utterance in item.utterances
    )


def has_images(items: Sequence[SourceItem]) -> bool:
    """True if an image tokenizer is needed.

    Also true for a source of which no input can be used: these count as missing images.
    """
    return any(item.error is None and item.image is not None for item in items) or not any(
        item.error is None and item.utterances for item in items
    )


def texts_of(utterances: Sequence[Utterance]) -> list[str]:
    """Transcripts of the clips that have one."""
    return [utterance.text for utterance in utterances if utterance.text]
