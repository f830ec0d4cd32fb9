"""Pairing of images and clips by name: `x.jpg` with `x.wav`, `x_0.wav`, ..."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from im2sp.pipeline.decoding.media import Location
from im2sp.pipeline.sources.items import (
    SourceItem,
    Utterance,
    assign_keys,
    clean_key,
    reject_repeated_keys,
    strip_suffix,
)

_NUMBERED = re.compile(r"(.+)_([0-9]{1,9})", re.DOTALL)
_WITHOUT_NUMBER = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One file of a folder, or one member of a tar."""

    name: str
    """Path relative to the folder or in the tar, `/` between parts; determines pairs and keys."""

    shown: str
    """Name in messages."""

    place: Location | str
    """Location of the content, or why it cannot be read."""

    kind: Literal["image", "audio", "other"]
    """Kind by its name; `other` could not be listed, and is always a reject."""


Claim = tuple[int, Found]
"""Number of a clip (-1 if it has none), and the clip."""


def items_of_found(
    found: Sequence[Found],
    apart: Sequence[Found] = (),
    captions: Mapping[str, tuple[str, ...]] | None = None,
) -> list[SourceItem]:
    """Return one item per image, with its clips in the order of their numbers; then other clips.

    A clip belongs to the image whose path without suffix equals the clip's, or equals it without
    `_` and a number at the end. A clip that matches two images is a reject, and so is the second
    clip with the same number.

    Args:
        found: Files of the source; items are in the same order.
        apart: Clips of an audio root. They pair by relative path, or else with the only image of
            that file name, if it has no clip by path. Clips without an image come last.
        captions: Captions by path without suffix. Those of a clip, a single one if an image has the
            same path, are its transcript.
    """
    captions = captions or {}
    images = [one for one in found if one.kind == "image"]
    clips = [one for one in found if one.kind == "audio"]
    claims, image_of = claim_clips(images, clips, [one for one in apart if one.kind == "audio"])
    kept = [one for one in [*found, *apart] if not isinstance(image_of.get(id(one)), Found)]
    keys = assign_keys([(clean_key(strip_suffix(one.name)), clean_key(one.name)) for one in kept])
    items: list[SourceItem] = []
    for one, key in zip(kept, keys, strict=True):
        problem = image_of.get(id(one))
        if isinstance(problem, str):
            items.append(SourceItem(key=key, image=None, name=one.shown, error=problem))
        elif one.kind == "audio":
            text = " ".join(captions.get(strip_suffix(one.name), ()))
            utterances = (replace(_utterance(one), text=text or None),)
            items.append(SourceItem(key=key, image=None, name=one.shown, utterances=utterances))
        elif isinstance(one.place, str):
            items.append(SourceItem(key=key, image=None, name=one.shown, error=one.place))
        else:
            items.append(_image_item(one, one.place, key, claims.get(one.name, []), captions))
    return reject_repeated_keys(items)


def _image_item(
    image: Found,
    place: Location,
    key: str,
    claims: list[Claim],
    captions: Mapping[str, tuple[str, ...]],
) -> SourceItem:
    stem = strip_suffix(image.name)
    own = captions.get(stem, ())
    utterances: list[Utterance] = []
    clips = [clip for _, clip in sorted(claims, key=_by_number)]
    for clip, utterance in zip(clips, utterances_of_claims(claims), strict=True):
        texts = captions.get(strip_suffix(clip.name), ())
        if strip_suffix(clip.name) == stem:
            # One caption is what the clip says; of several, nothing shows which.
            texts, own = (own, ()) if len(own) == 1 and not utterance.error else ((), own)
        utterances.append(replace(utterance, text=" ".join(texts) or None))
    return SourceItem(
        key=key, image=place, name=image.shown, captions=own, utterances=tuple(utterances)
    )


def _by_number(claim: Claim) -> tuple[int, str]:
    return claim[0], claim[1].name


def utterances_of_claims(claims: list[Claim]) -> tuple[Utterance, ...]:
    """Utterances of one image, sorted by number, the one without a number first."""
    utterances: list[Utterance] = []
    first: dict[int, Found] = {}
    for number, clip in sorted(claims, key=_by_number):
        earlier = first.setdefault(number, clip)
        if earlier is clip:
            utterances.append(_utterance(clip))
        else:
            place = "the clip without a number" if number < 0 else f"clip {number}"
            error = f"{place} of its image is already {earlier.shown}; keep one of them"
            utterances.append(Utterance(audio=None, name=clip.shown, error=error))
    return tuple(utterances)


def claim_clips(
    images: Sequence[Found], clips: Sequence[Found], apart: Sequence[Found] = ()
) -> tuple[dict[str, list[Claim]], dict[int, Found | str]]:
    """Return the clips of each image, by its name, and the image of each clip, by its `id()`.

    A clip that cannot be assigned has a message instead of its image. See `items_of_found` for the
    rules; `clips` are in the folders of the images and pair by path only.
    """
    claims: dict[str, list[Claim]] = {}
    image_of: dict[int, Found | str] = {}

    def claim(clip: Found, claimed: tuple[int, Found] | str) -> None:
        if isinstance(claimed, str):
            image_of[id(clip)] = claimed
        else:
            number, image = claimed
            image_of[id(clip)] = image
            claims.setdefault(image.name, []).append((number, clip))

    by_path = _by_stem(images, lambda name: name)
    for clip in [*clips, *apart]:
        claimed = _claim_by_stem(by_path, clip.name)
        if claimed is not None:
            claim(clip, claimed)
    with_clips = frozenset(claims)
    by_file_name = _by_stem(images, os.path.basename) if apart else {}
    for clip in apart:
        if id(clip) not in image_of:
            claimed = _claim_by_stem(by_file_name, os.path.basename(clip.name))
            if isinstance(claimed, str) or (claimed and claimed[1].name not in with_clips):
                claim(clip, claimed)
    return claims, image_of


def _claim_by_stem(by_stem: dict[str, list[Found]], name: str) -> tuple[int, Found] | str | None:
    """Return number and image of a clip by its name, why it is ambiguous, or None for no image."""
    stem = strip_suffix(name)
    numbered = _NUMBERED.fullmatch(stem)
    options = [(stem, _WITHOUT_NUMBER)]
    if numbered:
        options.append((numbered[1], int(numbered[2])))
    for option, number in options:
        images = by_stem.get(option, [])
        if len(images) > 1:
            names = ", ".join(image.shown for image in images[:3])
            return f"{len(images)} images could claim it: {names}; rename it or them"
        if images:
            return number, images[0]
    return None


def _by_stem(images: Sequence[Found], part: Callable[[str], str]) -> dict[str, list[Found]]:
    """Index images by the stem of (a part of) their name; if a tar repeats a name, the first."""
    by_stem: dict[str, list[Found]] = {}
    for image in images:
        same = by_stem.setdefault(strip_suffix(part(image.name)), [])
        if all(other.name != image.name for other in same):
            same.append(image)
    return by_stem


def _utterance(clip: Found) -> Utterance:
    if isinstance(clip.place, str):
        return Utterance(audio=None, name=clip.shown, error=clip.place)
    return Utterance(audio=clip.place, name=clip.shown)
