"""Sources: a folder, a tar, a JSON file or a source list as one list of items to tokenize.

Listing opens no image or clip, so that hundreds of thousands are listed in seconds, and its order
is the same on every machine. A problem with one input is stored in the item's `error`, a problem
with one clip in its utterance's; each causes one reject. A problem with the whole source is a
`SourceError`.

| source | key | order | speech |
| --- | --- | --- | --- |
| folder | path relative to it, `/` between parts, without suffix | by path | by name |
| images, clips | file name without suffix | as given | by name |
| `.tar` | member name without suffix | as in the tar | by name |
| Karpathy `dataset_*.json` | file name without suffix | as in the file | from an audio root |
| COCO `captions_*.json` | file name without suffix | as in the file | none |
| `.jsonl`, `.csv`, `.parquet` | `key`, or the path without suffix | as in the file | `audio` |
| `.parquet`, `.arrow` with content | `key`, else path or number of the row | the same | `audio` |
| LJSpeech folder | id | as in `metadata.csv` | `wavs/ID.wav` |

A folder of tars or Parquet files alone stands for these, and one of `Dataset.save_to_disk` for its
Arrow files. If two inputs would share a key, both keep the suffix
(`dup/a.jpg` and `dup/a.png`). Keys of several sources start with its name (`several`).

Speech by name: `a/x.wav` and `a/x_0.wav`, `a/x_1.wav`, ... belong to `a/x.jpg`, in this order. With
an audio root they are located there, under the same path, or under any path if only one image is
named `x`. A clip that belongs to no image is a separate item. An audio root for a Karpathy file has
the layout of Flickr8kAudio (`flickr8k_audio.py`) or of SpokenCOCO (`spoken_coco.py`).
"""

import gc
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from im2sp.pipeline.sources.files import find_containers, list_media, refuse_compressed
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    SourceListing,
    Utterance,
    kind_of_name,
)
from im2sp.pipeline.sources.karpathy import list_karpathy
from im2sp.pipeline.sources.ljspeech import is_ljspeech, list_ljspeech
from im2sp.pipeline.sources.several import expand_sources, list_files, merge_listings
from im2sp.pipeline.sources.tables import TABLE_READERS, list_table

__all__ = ["SourceError", "SourceItem", "SourceListing", "Utterance", "list_source"]

_COMPRESSED_SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")


def list_source(
    source: str | Path | Sequence[str | Path],
    *,
    image_root: Path | None = None,
    audio_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> SourceListing:
    """List one source or several; see the module's table for the kinds.

    Args:
        source: Folders (LJSpeech is detected by its files), `.tar`s, Karpathy or COCO `.json`s,
            `.jsonl`, `.csv`, `.parquet` or `.arrow` source lists, images and clips; also ranges and
            wildcards (`several.expand_sources`).
        image_root: Folder or tar that the image paths of a JSON file or source list are relative
            to; by default the folder of that file.
        audio_root: Folder or tar that holds the clips of a folder's or tar's images, or that the
            audio paths of a source list are relative to (by default the folder of that list); for
            a Karpathy file, the folder of Flickr8kAudio or SpokenCOCO.
        columns: Column of a source list for each field whose column has none of the known names
            (`tables.FIELDS`): `{"caption": "blip_text"}`.

    Raises:
        SourceError: A source does not exist, cannot be read as its kind, or is empty.
    """
    given = [source] if isinstance(source, str | Path) else source
    with _collector_off():
        paths, listings = list[str | None](), list[SourceListing]()
        files: list[str] = []
        ignored: Counter[str] = Counter()
        for path in expand_sources([str(one) for one in given]):
            is_folder = os.path.isdir(path) and not is_ljspeech(Path(path))
            if kind_of_name(path) != "other" and not os.path.isdir(path):
                # Files are listed together, where the first of them is given.
                paths += [] if files else [None]
                files.append(path)
            elif is_folder and (held := find_containers(Path(path))):
                paths += held[0]
                ignored.update(held[1])
            else:
                paths.append(path)
        for path in paths:
            if path is None:
                _check_options(Path(files[0]), image_root, audio_root, columns or {})
                listings.append(list_files(files))
            else:
                listings.append(_list(Path(path), image_root, audio_root, columns or {}))
        return merge_listings(listings, paths, ignored)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Disable the garbage collector, which would traverse millions of new objects repeatedly."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _list(
    path: Path, image_root: Path | None, audio_root: Path | None, columns: Mapping[str, str]
) -> SourceListing:
    suffix = path.suffix.lower()
    _check_options(path, image_root, audio_root, columns)
    if path.is_dir() and is_ljspeech(path):
        return list_ljspeech(path)
    if path.is_dir() or suffix == ".tar":
        return list_media(path, audio_root)
    if suffix == ".json":
        return list_karpathy(path, image_root, audio_root)
    if suffix in TABLE_READERS:
        return list_table(path, image_root, audio_root, columns)
    if suffix in _COMPRESSED_SUFFIXES:
        refuse_compressed(path)
    raise SourceError(
        f"{path}: unknown kind of source: {suffix or 'a file without suffix'}; "
        "expected a folder, a .tar (not compressed) of images or clips, an image or a clip, a "
        "Karpathy or COCO .json, or a .jsonl, .csv or .parquet source list"
    )


def _check_options(
    path: Path, image_root: Path | None, audio_root: Path | None, columns: Mapping[str, str]
) -> None:
    """Raise `SourceError` for an option that does not apply to a source."""
    suffix = path.suffix.lower()
    if columns and suffix not in TABLE_READERS:
        raise SourceError(
            f"{path}: --columns {' '.join(f'{f}={c}' for f, c in columns.items())} applies to a "
            ".jsonl, .csv or .parquet source list; leave it out"
        )
    is_file = kind_of_name(str(path)) != "other" and not path.is_dir()
    if image_root is not None and (path.is_dir() or suffix == ".tar" or is_file):
        raise SourceError(
            f"{path}: an image root ({image_root}) applies to a JSON file or a source list; "
            "this source contains its images, so leave it out"
        )
    if audio_root is not None and (is_file or (path.is_dir() and is_ljspeech(path))):
        kind = "image and audio files" if is_file else "LJSpeech, which contains its audio"
        raise SourceError(
            f"{path}: an audio root ({audio_root}) does not apply to {kind}; leave it out"
        )
