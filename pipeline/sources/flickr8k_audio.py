"""Flickr8kAudio for a Karpathy file: `wavs/x_0.wav` to `wavs/x_4.wav` are clips of `x.jpg`."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    Utterance,
    kind_of_name,
    printable_utf8,
    strip_suffix,
)
from im2sp.pipeline.sources.pairs import Claim, Found, claim_clips, utterances_of_claims
from im2sp.pipeline.sources.roots import NO_AUDIO_FILE, make_audio_finder, read_folder
from im2sp.pipeline.sources.rows import (
    ImageNames,
    RowClip,
    clip_utterance,
)
from im2sp.shards.files import read_regular

WAVS = "wavs"
WAV2CAPT = "wav2capt.txt"

_NUMBER = re.compile(r"#[0-9]{1,9}")


def add_flickr8k_audio(items: list[SourceItem], audio_root: Path) -> list[SourceItem]:
    """Add the clips of the items' captions.

    If `audio_root` holds `wav2capt.txt` (lines `x_0.wav x.jpg #0`), only that file maps clips to
    captions; captions that it does not list stay without speech. Without it, the number in a clip's
    name is the index of the caption; each caption must have a clip, and a clip without a number or
    with one beyond the captions has no transcript. Speakers (`wav2spk.txt`) are not stored.

    Args:
        items: Items of a Karpathy file; `name` is the image's path there.
        audio_root: Folder that holds `wavs/`.

    Raises:
        SourceError: `wav2capt.txt` or `wavs/` cannot be read.
    """
    if (audio_root / WAV2CAPT).exists():
        return _by_file(items, audio_root)
    return _by_name(items, audio_root)


def _by_name(items: list[SourceItem], audio_root: Path) -> list[SourceItem]:
    """Assign clips by their names only."""
    files = read_folder(str(audio_root / WAVS))
    if isinstance(files, str):
        raise SourceError(f"{audio_root / WAVS}: cannot be listed: {files}; check the audio root")
    clips = [
        Found(
            name=name,
            shown=printable_utf8(f"{WAVS}/{name}"),
            place=audio_root / WAVS / name if is_file else "not a regular file",
            kind="audio",
        )
        for name, is_file in sorted(files.items())
        if kind_of_name(name) == "audio"
    ]
    images = [
        Found(name=item.name, shown=item.name, place="", kind="image")
        for item in items
        if item.error is None
    ]
    claims, image_of = claim_clips(images, [], clips)
    paired = [
        item if item.error else _with_clips(item, claims.get(item.name, [])) for item in items
    ]
    for clip in clips:
        problem = image_of.get(id(clip))
        if isinstance(problem, str):
            paired.append(SourceItem(key=clip.shown, image=None, name=clip.shown, error=problem))
    return paired


def _with_clips(item: SourceItem, claims: list[Claim]) -> SourceItem:
    """Return an item with the clips of its name; the number is the index of the caption."""
    stem = strip_suffix(item.name.rpartition("/")[2])
    numbers = {number for number, _ in claims}
    missing = [
        (number, _missing(f"{WAVS}/{stem}_{number}.wav"))
        for number in range(len(item.captions))
        if number not in numbers
    ]
    claims = sorted([*claims, *missing], key=lambda claim: (claim[0], claim[1].name))
    utterances = tuple(
        replace(utterance, text=_caption(item, number))
        for (number, _), utterance in zip(claims, utterances_of_claims(claims), strict=True)
    )
    return replace(item, captions=(), utterances=utterances)


def _missing(name: str) -> Found:
    return Found(name=name, shown=name, place=NO_AUDIO_FILE, kind="audio")


def _caption(item: SourceItem, number: int) -> str | None:
    return (item.captions[number] or None) if 0 <= number < len(item.captions) else None


def _by_file(items: list[SourceItem], audio_root: Path) -> list[SourceItem]:
    """Assign clips as `wav2capt.txt` lists them."""
    names, find = ImageNames(items), make_audio_finder(audio_root)
    speech: dict[int, list[tuple[int, Utterance]]] = {}
    first_places: dict[str, str] = {}
    rejects: list[SourceItem] = []
    for where, fields in _lines(audio_root / WAV2CAPT):
        if len(fields) != 3 or not _NUMBER.fullmatch(fields[2]):
            problem = "expected a clip, its image and #0, #1, ... for its caption"
            rejects.append(SourceItem(key=where, image=None, name=where, error=problem))
            continue
        wav, image, number = fields[0], fields[1], int(fields[2][1:])
        image_index = names.find(image)
        if isinstance(image_index, str):
            rejects.append(SourceItem(key=where, image=None, name=where, error=image_index))
        elif image_index is not None:
            item = items[image_index]
            clip = RowClip(os.path.join(WAVS, wav), _caption(item, number), where)
            first = first_places.setdefault(wav, where)
            if first is not where:
                utterance = _refused(clip, f"already in {first}")
            elif number >= len(item.captions):
                problem = f"caption #{number}, but the image has {len(item.captions)}"
                utterance = _refused(clip, problem)
            else:
                utterance = clip_utterance(clip, find)
            speech.setdefault(image_index, []).append((number, utterance))
    return [_with_speech(item, speech.get(index)) for index, item in enumerate(items)] + rejects


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield name and fields of each line that is not blank."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(content.split(b"\n"), start=1):
        if fields := line.decode("utf-8", "surrogateescape").split():
            yield f"{path.name} line {number}", fields


def _refused(clip: RowClip, problem: str) -> Utterance:
    name = printable_utf8(clip.audio)
    return Utterance(audio=None, name=name, text=clip.text, error=f"{clip.where}: {problem}")


def _with_speech(item: SourceItem, speech: list[tuple[int, Utterance]] | None) -> SourceItem:
    if not speech:
        return item
    speech.sort(key=lambda numbered: numbered[0])
    listed = {number for number, _ in speech}
    captions = tuple(text for number, text in enumerate(item.captions) if number not in listed)
    return replace(item, captions=captions, utterances=tuple(one for _, one in speech))
