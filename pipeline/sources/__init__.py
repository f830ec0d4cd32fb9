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
Arrow files. A source may be the URL of a file, or of a folder in a store (`im2sp.shards.stores`),
and the entries of a source list may be URLs. If two inputs would share a key, both keep the suffix
(`dup/a.jpg` and `dup/a.png`). Keys of several sources start with its name (`several`).

Speech by name: `a/x.wav` and `a/x_0.wav`, `a/x_1.wav`, ... belong to `a/x.jpg`, in this order. With
an audio root they are located there, under the same path, or under any path if only one image is
named `x`. A clip that belongs to no image is a separate item. An audio root for a Karpathy file has
the layout of Flickr8kAudio (`flickr8k_audio.py`) or of SpokenCOCO (`spoken_coco.py`).
"""

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from im2sp.pipeline.containers.tars import refuse_compressed
from im2sp.pipeline.sources.files import find_containers, list_media, stored_files
from im2sp.pipeline.sources.items import (
    SourceError,
    SourceItem,
    SourceListing,
    Utterance,
    kind_of_name,
)
from im2sp.pipeline.sources.karpathy import list_karpathy
from im2sp.pipeline.sources.ljspeech import is_ljspeech, list_ljspeech
from im2sp.pipeline.sources.several import (
    expand_sources,
    list_files,
    merge_listings,
    shown_source,
)
from im2sp.pipeline.sources.tables import TABLE_READERS, list_table
from im2sp.shards.stores import StoreError, copy_url, is_url, shown_url

__all__ = ["SourceError", "SourceItem", "SourceListing", "Utterance", "list_source"]

CONTAINER_SUFFIXES = (".tar", ".parquet", ".arrow")
"""Suffixes of files that hold many inputs."""
_LIST_SUFFIXES = (".json", ".jsonl", ".csv")
_COMPRESSED_SUFFIXES = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Settings of how sources are listed."""

    image_root: Path | None = None
    """Folder or tar that the image paths of a JSON file or source list are relative to; by default
    the folder of that file."""

    audio_root: Path | None = None
    """Folder or tar that holds the clips of a folder's or tar's images, or that the audio paths of
    a source list are relative to (by default the folder of that list); for a Karpathy file, the
    folder of Flickr8kAudio or SpokenCOCO."""

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """Column of a source list for each field whose column has none of the known names
    (`tables.FIELDS`): `{"caption": "blip_text"}`."""


@dataclass(frozen=True, kw_only=True)
class ResolvedSources:
    """Sources of one command, with ranges, wildcards and folders of containers replaced."""

    paths: list[str | None]
    """Path or URL of each source, in order; None for the images and clips given as files."""

    files: list[str]
    """Images and clips given as files; they are one source."""

    ignored: dict[str, int]
    """Counts of the files beside containers in their folder that are not used, by suffix."""


def list_source(
    source: str | Path | Sequence[str | Path],
    *,
    image_root: Path | None = None,
    audio_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> SourceListing:
    """List one source or several; see the module's table for the kinds.

    Args:
        source: Paths or URLs of sources; also ranges and wildcards (`several.expand_sources`).
            Tars and tables that contain media must be local.
        image_root: See `SourceOptions`.
        audio_root: See `SourceOptions`.
        columns: See `SourceOptions`.

    Raises:
        SourceError: A source does not exist, cannot be read as its kind, or is empty.
    """
    given = [source] if isinstance(source, str | Path) else source
    options = SourceOptions(image_root=image_root, audio_root=audio_root, columns=columns or {})
    return list_all(resolve_sources([str(one) for one in given]), options)


def list_all(resolved: ResolvedSources, options: SourceOptions) -> SourceListing:
    """List all resolved sources, as one.

    Raises:
        SourceError: As for `list_source`.
    """
    with _collector_off():
        listings = [list_resolved(path, resolved, options) for path in resolved.paths]
        return merge_listings(listings, resolved.paths, Counter(resolved.ignored))


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


def resolve_sources(sources: Sequence[str]) -> ResolvedSources:
    """Expand ranges and wildcards, and replace folders of tars or tables by these.

    Raises:
        SourceError: A source does not exist or is given twice, or a store cannot be listed.
    """
    stored_files.cache_clear()
    paths, files = list[str | None](), list[str]()
    ignored: Counter[str] = Counter()
    for path in expand_sources(sources):
        if kind_of_name(shown_source(path)) != "other" and not os.path.isdir(path):
            # Files are listed together, where the first of them is given.
            paths += [] if files else [None]
            files.append(path)
        elif _holds_files(path) and (held := find_containers(path)):
            paths += held[0]
            ignored.update(held[1])
        else:
            paths.append(path)
    return ResolvedSources(paths=paths, files=files, ignored=dict(ignored))


def _holds_files(path: str) -> bool:
    """True for a folder, other than LJSpeech."""
    if is_url(path):
        return not shown_url(path).lower().endswith((*CONTAINER_SUFFIXES, *_LIST_SUFFIXES))
    return os.path.isdir(path) and not is_ljspeech(Path(path))


def list_resolved(
    path: str | None, resolved: ResolvedSources, options: SourceOptions
) -> SourceListing:
    """List one of the resolved sources; None stands for its files.

    Raises:
        SourceError: It cannot be read as its kind, or is empty.
    """
    if path is None:
        check_options(shown_source(resolved.files[0]), options, is_folder=False)
        return list_files(resolved.files)
    if not is_url(path):
        return list_local(Path(path), options)
    if _holds_files(path):
        check_options(path, options, is_folder=True)
        return list_media(path, options.audio_root)
    if shown_url(path).lower().endswith(_LIST_SUFFIXES):
        with local_copy(path) as copy:
            return list_local(copy, options, path)
    raise SourceError(
        f"{shown_url(path)}: a file of this kind is not read from a store together with other "
        "kinds of sources, an image or audio root, or --per-container no; download it first"
    )


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Copy a file from a store while the block runs; messages about the copy name the URL.

    Raises:
        SourceError: It cannot be copied.
        OSError: The disk of temporary files is full.
    """
    with tempfile.TemporaryDirectory(prefix="im2sp-") as folder:
        copy = Path(folder) / os.path.basename(shown_url(url))
        try:
            copy_url(url, copy)
            yield copy
        except StoreError as error:
            raise SourceError(str(error)) from None
        except SourceError as error:
            raise SourceError(str(error).replace(str(copy), shown_url(url))) from None


def list_local(path: Path, options: SourceOptions, url: str | None = None) -> SourceListing:
    """List a local source, or the copy of a file at a URL, which its relative paths start from.

    Raises:
        SourceError: It cannot be read as its kind, or is empty.
    """
    suffix = path.suffix.lower()
    is_folder = path.is_dir()
    check_options(str(path), options, is_folder=is_folder)
    folder = Path(url.rpartition("/")[0]) if url else path.parent
    if is_folder and is_ljspeech(path):
        return list_ljspeech(path)
    if is_folder or suffix == ".tar":
        return list_media(path, options.audio_root)
    if suffix == ".json":
        return list_karpathy(path, options.image_root, options.audio_root, folder)
    if suffix in TABLE_READERS:
        roots = options.image_root, options.audio_root
        return list_table(path, *roots, options.columns, folder)
    if suffix in _COMPRESSED_SUFFIXES:
        refuse_compressed(path)
    raise SourceError(
        f"{path}: unknown kind of source: {suffix or 'a file without suffix'}; "
        "expected a folder, a .tar (not compressed) of images or clips, an image or a clip, a "
        "Karpathy or COCO .json, or a .jsonl, .csv or .parquet source list"
    )


def check_options(path: str, options: SourceOptions, *, is_folder: bool) -> None:
    """Raise `SourceError` for an option that does not apply to a source."""
    suffix = os.path.splitext(path)[1].lower()
    if options.columns and suffix not in TABLE_READERS:
        given = " ".join(f"{name}={column}" for name, column in options.columns.items())
        raise SourceError(
            f"{path}: --columns {given} applies to a .jsonl, .csv or .parquet source list; leave "
            "it out"
        )
    is_file = kind_of_name(path) != "other" and not is_folder
    if options.image_root is not None and (is_folder or suffix == ".tar" or is_file):
        raise SourceError(
            f"{path}: an image root ({options.image_root}) applies to a JSON file or a source "
            "list; this source contains its images, so leave it out"
        )
    if options.audio_root is not None and (is_file or (is_folder and is_ljspeech(Path(path)))):
        kind = "image and audio files" if is_file else "LJSpeech, which contains its audio"
        raise SourceError(
            f"{path}: an audio root ({options.audio_root}) does not apply to {kind}; leave it out"
        )
