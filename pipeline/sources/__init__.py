"""Sources: a folder, a tar, a JSON file or a source list as one list of items to tokenize.

Listing opens no picture and no sound, so that hundreds of thousands are listed in seconds, and its
order is the same on every machine. What is wrong with one input is that item's `error`, what is
wrong with one clip its utterance's: either costs one reject. What is wrong with the whole source is
a `SourceError`.

| source | key | order | speech |
| --- | --- | --- | --- |
| folder | path below it, `/` between parts, without suffix | by path | by name |
| `.tar` | name of the member without suffix | as in the tar | by name |
| Karpathy `dataset_*.json` | file name without suffix | as in the file | below an audio root |
| COCO `captions_*.json` | file name without suffix | as in the file | none |
| `.jsonl`, `.csv`, `.parquet` | `key`, or the path without suffix | as in the file | `audio` |
| LJSpeech's folder | id | as in `metadata.csv` | `wavs/ID.wav` |

Where two inputs would share a key, both keep the suffix (`dup/a.jpg` and `dup/a.png`).

Speech by name: `a/x.wav` and `a/x_0.wav`, `a/x_1.wav`, ... belong to `a/x.jpg`, in this order. With
an audio root they lie there, under the same path, or under any if only one image is called `x`.
Sound that belongs to no image is an item of its own. An audio root for a Karpathy file has the
layout of Flickr8kAudio (`source_flickr8k_audio.py`) or of SpokenCOCO (`source_spoken_coco.py`).
"""

import gc
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from im2sp.pipeline.sources.files import list_media
from im2sp.pipeline.sources.items import SourceError, SourceItem, SourceListing, Utterance
from im2sp.pipeline.sources.karpathy import list_karpathy
from im2sp.pipeline.sources.ljspeech import is_ljspeech, list_ljspeech
from im2sp.pipeline.sources.tables import TABLE_READERS, list_table

__all__ = ["SourceError", "SourceItem", "SourceListing", "Utterance", "list_source"]


def list_source(
    path: Path,
    *,
    image_root: Path | None = None,
    audio_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> SourceListing:
    """List a source; see the module's table for the kinds.

    Args:
        path: A folder (LJSpeech's is known by its files), a `.tar`, a Karpathy or COCO `.json`, or
            a `.jsonl`, `.csv` or `.parquet` source list.
        image_root: Folder or tar against which a JSON file's or a source list's image paths are
            resolved; by default the folder that holds `path`.
        audio_root: Folder or tar that holds the sound of a folder's or tar's images, or against
            which a source list's audio paths are resolved (by default the folder that holds
            `path`); for a Karpathy file the folder of Flickr8kAudio or SpokenCOCO.
        columns: Columns of a source list by the fields that they stand for, where the names that
            are known (`source_tables.FIELDS`) do not fit: `{"caption": "blip_text"}`.

    Raises:
        SourceError: There is no such source, it cannot be read as what it is, or it holds nothing.
    """
    with _collector_off():
        return _list(Path(path), image_root, audio_root, columns or {})


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without the garbage collector, which would walk millions of new objects again and again."""
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
    if not path.exists():
        if address := re.match(r"[a-z0-9+]{2,}:/", str(path)):
            raise SourceError(
                f"{path}: {address[0]}/ is an address; nothing is fetched, download it first"
            )
        raise SourceError(f"{path}: no such file or folder; check the path of the source")
    suffix = path.suffix.lower()
    if columns and suffix not in TABLE_READERS:
        raise SourceError(
            f"{path}: --columns {' '.join(f'{f}={c}' for f, c in columns.items())} goes with a "
            ".jsonl, .csv or .parquet source list; leave it out"
        )
    is_folder_or_tar = path.is_dir() or suffix == ".tar"
    if is_folder_or_tar and image_root is not None:
        raise SourceError(
            f"{path}: an image root ({image_root}) goes with a JSON file or a source list; "
            "this source holds its own images, so leave it out"
        )
    if path.is_dir() and is_ljspeech(path):
        if audio_root is not None:
            raise SourceError(
                f"{path}: an audio root ({audio_root}) has no use for LJSpeech, which holds its "
                "own sound; leave it out"
            )
        return list_ljspeech(path)
    if is_folder_or_tar:
        return list_media(path, audio_root)
    if suffix == ".json":
        return list_karpathy(path, image_root, audio_root)
    if suffix in TABLE_READERS:
        return list_table(path, image_root, audio_root, columns)
    raise SourceError(
        f"{path}: cannot tell what kind of source {suffix or 'a file without suffix'} is; "
        "expected a folder, a .tar (not compressed) of images or clips, a Karpathy or COCO .json, "
        "or a .jsonl, .csv or .parquet source list"
    )
