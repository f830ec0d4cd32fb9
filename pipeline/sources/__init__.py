"""Sources: a folder, a tar, a JSON file or a source list as one list of items to tokenize.

Listing opens no image or clip, so that hundreds of thousands are listed in seconds, and its order
is the same on every machine. A problem with one input is stored in the item's `error`, a problem
with one clip in its utterance's; each causes one reject. A problem with the whole source is a
`SourceError`.

| source | key | order | speech |
| --- | --- | --- | --- |
| folder | path relative to it, `/` between parts, without suffix | by path | by name |
| `.tar` | member name without suffix | as in the tar | by name |
| Karpathy `dataset_*.json` | file name without suffix | as in the file | from an audio root |
| COCO `captions_*.json` | file name without suffix | as in the file | none |
| `.jsonl`, `.csv`, `.parquet` | `key`, or the path without suffix | as in the file | `audio` |
| LJSpeech folder | id | as in `metadata.csv` | `wavs/ID.wav` |

If two inputs would share a key, both keep the suffix (`dup/a.jpg` and `dup/a.png`).

Speech by name: `a/x.wav` and `a/x_0.wav`, `a/x_1.wav`, ... belong to `a/x.jpg`, in this order. With
an audio root they are located there, under the same path, or under any path if only one image is
named `x`. A clip that belongs to no image is a separate item. An audio root for a Karpathy file has
the layout of Flickr8kAudio (`flickr8k_audio.py`) or of SpokenCOCO (`spoken_coco.py`).
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
        path: A folder (LJSpeech is detected by its files), a `.tar`, a Karpathy or COCO `.json`, or
            a `.jsonl`, `.csv` or `.parquet` source list.
        image_root: Folder or tar that the image paths of a JSON file or source list are relative
            to; by default the folder of `path`.
        audio_root: Folder or tar that holds the clips of a folder's or tar's images, or that the
            audio paths of a source list are relative to (by default the folder of `path`); for
            a Karpathy file, the folder of Flickr8kAudio or SpokenCOCO.
        columns: Column of a source list for each field whose column has none of the known names
            (`tables.FIELDS`): `{"caption": "blip_text"}`.

    Raises:
        SourceError: The source does not exist, cannot be read as its kind, or is empty.
    """
    with _collector_off():
        return _list(Path(path), image_root, audio_root, columns or {})


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
    if not path.exists():
        if address := re.match(r"[a-z0-9+]{2,}:/", str(path)):
            raise SourceError(
                f"{path}: {address[0]}/ is an address; nothing is fetched, download it first"
            )
        raise SourceError(f"{path}: no such file or folder; check the path of the source")
    suffix = path.suffix.lower()
    if columns and suffix not in TABLE_READERS:
        raise SourceError(
            f"{path}: --columns {' '.join(f'{f}={c}' for f, c in columns.items())} applies to a "
            ".jsonl, .csv or .parquet source list; leave it out"
        )
    is_folder_or_tar = path.is_dir() or suffix == ".tar"
    if is_folder_or_tar and image_root is not None:
        raise SourceError(
            f"{path}: an image root ({image_root}) applies to a JSON file or a source list; "
            "this source contains its images, so leave it out"
        )
    if path.is_dir() and is_ljspeech(path):
        if audio_root is not None:
            raise SourceError(
                f"{path}: an audio root ({audio_root}) does not apply to LJSpeech, which "
                "contains its audio; leave it out"
            )
        return list_ljspeech(path)
    if is_folder_or_tar:
        return list_media(path, audio_root)
    if suffix == ".json":
        return list_karpathy(path, image_root, audio_root)
    if suffix in TABLE_READERS:
        return list_table(path, image_root, audio_root, columns)
    raise SourceError(
        f"{path}: unknown kind of source: {suffix or 'a file without suffix'}; "
        "expected a folder, a .tar (not compressed) of images or clips, a Karpathy or COCO .json, "
        "or a .jsonl, .csv or .parquet source list"
    )
