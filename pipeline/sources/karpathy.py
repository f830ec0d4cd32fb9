"""A Karpathy `dataset_*.json` or COCO's own `captions_*.json` as a source."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from im2sp.pipeline.sources.captions import Place
from im2sp.pipeline.sources.flickr8k_audio import WAVS, add_flickr8k_audio
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    SourceListing,
    clean_key,
    list_under,
    read_json,
    split_name,
    strip_suffix,
)
from im2sp.pipeline.sources.roots import Resolver, make_resolver
from im2sp.pipeline.sources.rows import (
    Row,
    check_some_audio,
    check_some_found,
    items_of_rows,
)
from im2sp.pipeline.sources.spoken_coco import SPOKEN_COCO_FILES, add_spoken_coco

_EXPECTED = 'a Karpathy file, {"images": [{"filename", "split", "sentences": [{"raw"}]}]}'


def list_karpathy(
    path: Path, image_root: Path | None, audio_root: Path | None, folder: Path
) -> SourceListing:
    """List the images of a Karpathy file with their captions (`sentences[].raw`) and split.

    `split` is kept as written: COCO's `restval` stays `restval`, to be trained on or left out by
    choice. An image is located at `image_root/filepath/filename` (COCO has `filepath`) or, if that
    does not exist, at `image_root/filename`. The key is the file name without suffix; if two images
    share it, with suffix, and if they still do, with `filepath`. Speech comes from an `audio_root`
    in the layout of Flickr8kAudio or SpokenCOCO. Without an image root, `folder` is used.

    Raises:
        SourceError: The file has another form, lists no images, or none of them exists; or the
            audio root has neither layout, or has no clip for these images.
    """
    content = read_json(path, _EXPECTED)
    if isinstance(content, dict) and "annotations" in content:
        return _list_coco(path, content, image_root, audio_root, folder)
    images = list_under(path, content, "images", _EXPECTED)
    if not images:
        raise SourceError(f"{path}: lists no images; expected {_EXPECTED}")
    root = folder if image_root is None else image_root
    find = _either(make_resolver(root), lambda image: image.rsplit("/", 1)[-1])
    rows = [_row(f"images[{index}]", entry) for index, entry in enumerate(images)]
    del content, images  # 0.6 GB for COCO, not to be held beside the file of the clips
    items = items_of_rows(rows, find)
    del rows
    check_some_found(path, items, root)
    if audio_root is not None:
        items = _add_speech(items, audio_root)
        unnamed = (
            f"none of its {len(items)} images (the first: {items[0].name}) has speech in "
            f"{audio_root}; check the audio root"
        )
        check_some_audio(path, items, audio_root, unnamed=unnamed)
    return SourceListing(kind="karpathy", items=items, ignored={})


def _list_coco(
    path: Path,
    content: dict[str, Any],
    image_root: Path | None,
    audio_root: Path | None,
    folder: Path,
) -> SourceListing:
    """List COCO's `captions_NAME.json` (`images[].file_name`, `annotations[].caption`).

    The split is that of NAME (`train2017` is train). An image is located at `image_root/file_name`
    or `image_root/NAME/file_name`; the image root is by default the folder of the file or, if that
    is `annotations`, its parent.

    Raises:
        SourceError: A field is missing, or none of the images exists.
    """
    expected = 'COCO\'s {"images": [{"id", "file_name"}], "annotations": [{"image_id", '
    expected += '"caption"}]}'
    images, annotations = content.get("images"), content["annotations"]
    if audio_root is not None:
        raise SourceError(
            f"{path}: an audio root ({audio_root}) applies to a Karpathy file or a source list"
        )
    if not isinstance(images, list) or not isinstance(annotations, list) or not images:
        raise SourceError(f"{path}: found keys {sorted(content)[:8]}; expected {expected}")
    if annotations and not any(isinstance(a, dict) and "caption" in a for a in annotations):
        raise SourceError(f"{path}: its annotations hold no captions; expected {expected}")
    name = path.stem.removeprefix("captions_")
    split = re.match("train|val|test", name)
    rows: list[Row] = []
    by_id: dict[Any, Row] = {}
    for index, image in enumerate(images):
        file_name = image.get("file_name") if isinstance(image, dict) else None
        row = Row(where=f"images[{index}]")
        if isinstance(file_name, str) and file_name and isinstance(image.get("id"), str | int):
            row.image, row.split = file_name, split[0] if split else ""
            row.key_candidates = (clean_key(strip_suffix(file_name)), clean_key(file_name))
            by_id.setdefault(image["id"], row)
        else:
            row.error = "no id or no file_name"
        rows.append(row)
    for index, annotation in enumerate(annotations):
        entry = annotation if isinstance(annotation, dict) else {}
        image_id, caption = entry.get("image_id"), entry.get("caption")
        row = by_id.get(image_id) if isinstance(image_id, str | int) else None
        if row is None or not isinstance(caption, str):
            error = "no caption" if row else f"no image has the id {image_id!r}"
            rows.append(Row(where=f"annotations[{index}]", error=error))
        else:
            row.captions.append(caption.strip())
    root = image_root
    if root is None:
        root = folder.parent if folder.name == "annotations" else folder
    items = items_of_rows(rows, _either(make_resolver(root), lambda image: f"{name}/{image}"))
    check_some_found(path, items, root)
    return SourceListing(kind="coco", items=items, ignored={})


def _either(find: Resolver, other_path: Callable[[str], str]) -> Resolver:
    """Find an image by its path, or else by another one; the first path's error counts."""

    def resolve(image: str) -> Place:
        place = find(image)
        elsewhere = find(other_path(image)) if isinstance(place, str) else place
        return place if isinstance(elsewhere, str) else elsewhere

    return resolve


def _add_speech(items: list[SourceItem], audio_root: Path) -> list[SourceItem]:
    """Add the speech of an audio root to the items; its files determine its layout."""
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
    """Convert an entry of `images`; a problem with it becomes the row's error."""
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
        row.split = split_name(split)
        row.captions = [text for text in captions if isinstance(text, str)]
        name = filename.rsplit("/", 1)[-1]
        options = (strip_suffix(name), name, strip_suffix(image), image)
        row.key_candidates = tuple(clean_key(option) for option in options)
    return row


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
