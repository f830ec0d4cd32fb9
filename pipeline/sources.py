"""Sources: a folder, a tar, a Karpathy file or a manifest as one list of items to tokenize.

Listing opens no picture, so that hundreds of thousands are listed in seconds, and its order is the
same on every machine. What is wrong with one input is that item's `error`, which costs one reject;
what is wrong with the whole source is a `SourceError`.

| source | key | order |
| --- | --- | --- |
| folder | path below the folder, `/` between parts, without suffix | by path |
| `.tar` | name of the member without suffix | as in the tar |
| Karpathy `dataset_*.json` | file name without suffix | as in the file |
| `.jsonl`, `.csv`, `.parquet` | `key`, or else the image's path without suffix | as in the file |

Where two inputs would share a key, both keep the suffix (`dup/a.jpg` and `dup/a.png`).
"""

from pathlib import Path

from im2sp.pipeline.source_items import SourceError, SourceItem, SourceListing, Utterance
from im2sp.pipeline.source_karpathy import list_karpathy
from im2sp.pipeline.source_manifest import MANIFEST_READERS, list_manifest
from im2sp.pipeline.source_media import list_media

__all__ = ["SourceError", "SourceItem", "SourceListing", "Utterance", "list_source"]


def list_source(
    path: Path, *, image_root: Path | None = None, audio_root: Path | None = None
) -> SourceListing:
    """List a source; see the module's table for the kinds.

    Args:
        path: A folder, a `.tar`, a Karpathy `.json`, or a `.jsonl`, `.csv` or `.parquet` manifest.
        image_root: Folder or tar against which a Karpathy file's or a manifest's image paths are
            resolved; by default the folder that holds `path`.
        audio_root: Folder or tar that holds the sound of a folder's or tar's images, or against
            which a manifest's audio paths are resolved (by default the folder that holds `path`).

    Raises:
        SourceError: There is no such source, it cannot be read as what it is, or it holds nothing.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; check the path of the source")
    suffix = path.suffix.lower()
    is_folder_or_tar = path.is_dir() or suffix == ".tar"
    if is_folder_or_tar and image_root is not None:
        raise SourceError(
            f"{path}: an image root ({image_root}) goes with a Karpathy file or a manifest; "
            "this source holds its own images, so leave it out"
        )
    if is_folder_or_tar:
        return list_media(path, audio_root)
    if suffix == ".json":
        return list_karpathy(path, image_root)
    if suffix in MANIFEST_READERS:
        return list_manifest(path, image_root, audio_root)
    raise SourceError(
        f"{path}: cannot tell what kind of source {suffix or 'a file without suffix'} is; "
        "expected a folder, a .tar (not compressed) of images, a Karpathy .json, or a .jsonl, "
        ".csv or .parquet manifest"
    )
