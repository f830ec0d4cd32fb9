"""A Karpathy `dataset_*.json` as a source: images, captions and splits in one file."""

import os
from pathlib import Path
from typing import Any

from im2sp.pipeline.source_audio import check_some_audio
from im2sp.pipeline.source_flickr8k_audio import WAVS, add_flickr8k_audio
from im2sp.pipeline.source_items import (
    SourceError,
    SourceItem,
    SourceListing,
    clean_key,
    read_json_list,
    strip_suffix,
)
from im2sp.pipeline.source_rows import Row, check_some_found, items_of_rows, make_resolver
from im2sp.pipeline.source_spoken_coco import SPOKEN_COCO_FILES, add_spoken_coco

_EXPECTED = 'a Karpathy file, {"images": [{"filename", "split", "sentences": [{"raw"}]}]}'


def list_karpathy(path: Path, image_root: Path | None, audio_root: Path | None) -> SourceListing:
    """The images of a Karpathy file with their captions (`sentences[].raw`) and split.

    `split` is taken as it stands: COCO's `restval` stays `restval`, to be trained on or left out by
    choice. An image lies at `image_root/filepath/filename` (COCO has `filepath`) or, where
    `filepath` leads nowhere, at `image_root/filename`. The key is the file name without suffix;
    where two share it, with suffix, and at last with `filepath` before it. Speech comes from an
    `audio_root` in the layout of Flickr8kAudio or SpokenCOCO.

    Raises:
        SourceError: It is no such file, it lists no images, or none of them is there; or the
            audio root is of neither layout, or has no clip for these images.
    """
    images = read_json_list(path, "images", _EXPECTED)
    if not images:
        raise SourceError(f"{path}: lists no images; expected {_EXPECTED}")
    root = path.parent if image_root is None else image_root
    find = make_resolver(root)
    rows = [_row(f"images[{index}]", entry) for index, entry in enumerate(images)]

    def resolve(image: str) -> Any:
        place = find(image)
        if isinstance(place, str) and "/" in image:
            elsewhere = find(image.rsplit("/", 1)[1])
            return place if isinstance(elsewhere, str) else elsewhere
        return place

    items = items_of_rows(rows, resolve)
    check_some_found(path, items, root)
    if audio_root is not None:
        items = _add_speech(items, audio_root)
        unnamed = (
            f"none of its {len(items)} images (the first: {items[0].name}) has speech in "
            f"{audio_root}; check the audio root"
        )
        check_some_audio(path, items, audio_root, unnamed=unnamed)
    return SourceListing(kind="karpathy", items=items, ignored={})


def _add_speech(items: list[SourceItem], audio_root: Path) -> list[SourceItem]:
    """The items with the speech of an audio root, whose layout its files tell."""
    if any((audio_root / name).exists() for name in SPOKEN_COCO_FILES):
        return add_spoken_coco(items, audio_root)
    if (audio_root / WAVS).is_dir():
        return add_flickr8k_audio(items, audio_root)
    held = sorted(os.listdir(audio_root))[:5] if audio_root.is_dir() else "no folder"
    raise SourceError(
        f"{audio_root}: not an audio root for a Karpathy file: found {held}; expected a folder "
        f"with {' or '.join(SPOKEN_COCO_FILES)} (SpokenCOCO), or one with a folder {WAVS}/ of "
        "x_0.wav, x_1.wav and so on for x.jpg (Flickr8kAudio)"
    )


def _row(where: str, entry: Any) -> Row:
    """One entry of `images`; what is wrong with it becomes the row's error."""
    if not isinstance(entry, dict):
        return Row(where=where, error=f"found {type(entry).__name__}, expected an object")
    filename, folder = entry.get("filename"), entry.get("filepath") or ""
    split, sentences = entry.get("split") or "", entry.get("sentences") or []
    if not isinstance(filename, str) or not filename:
        return Row(where=where, error="no filename")
    image = f"{folder.rstrip('/')}/{filename}" if isinstance(folder, str) and folder else filename
    row = Row(where=where, image=image)
    captions = [s.get("raw") if isinstance(s, dict) else None for s in _as_list(sentences)]
    if not isinstance(folder, str) or not isinstance(split, str):
        row.error = "filepath and split must be text"
    elif not isinstance(sentences, list) or not all(isinstance(text, str) for text in captions):
        row.error = "sentences must be a list of objects with a text under 'raw'"
    else:
        row.split = split
        row.captions = [text for text in captions if isinstance(text, str)]
        name = filename.rsplit("/", 1)[-1]
        options = (strip_suffix(name), name, strip_suffix(image), image)
        row.key_candidates = tuple(clean_key(option) for option in options)
    return row


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
