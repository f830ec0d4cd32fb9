"""A folder or a tar as a source: pictures and the sound that pairs with them by name."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from im2sp.pipeline.source_folder import find_in_folder
from im2sp.pipeline.source_items import SourceError, SourceListing, nothing_found
from im2sp.pipeline.source_pairs import Found, items_of_found
from im2sp.pipeline.source_tar import find_in_tar


def list_media(path: Path, audio_root: Path | None) -> SourceListing:
    """The pictures and sound files of a folder, by path, or of an uncompressed tar, in its order.

    Sound of an image lies beside it or, with `audio_root` (a folder or tar), only there; the
    source's own sound files are then ignored. Sound that pairs with no image is an item of its own.

    Raises:
        SourceError: There is nothing to list, or no image has a clip below `audio_root`.
    """
    ignored: Counter[str] = Counter()
    found = _find(path, ("image", "audio") if audio_root is None else ("image",), ignored)
    if not found:
        raise SourceError(nothing_found(path, ignored))
    apart = [] if audio_root is None else _find_apart(audio_root)
    items = items_of_found(found, apart)
    if audio_root is not None and not any(item.image and item.utterances for item in items):
        num_images = sum(item.image is not None for item in items)
        raise SourceError(
            f"{audio_root}: none of its {len(apart)} sound files (the first: {apart[0].shown}) "
            f"belongs to one of the {num_images} images of {path} (the first: {found[0].shown}); "
            "expected x.wav or x_0.wav, x_1.wav and so on for x.jpg; check the audio root"
        )
    listed = dict(sorted(ignored.items()))
    return SourceListing(kind="folder" if path.is_dir() else "tar", items=items, ignored=listed)


def _find(path: Path, kinds: Collection[str], ignored: Counter[str]) -> list[Found]:
    find = find_in_folder if path.is_dir() else find_in_tar
    return find(path, kinds, ignored)


def _find_apart(audio_root: Path) -> list[Found]:
    """The sound below an audio root.

    Raises:
        SourceError: There is no such audio root, or it holds no sound.
    """
    if not audio_root.exists():
        raise SourceError(
            f"{audio_root}: no such audio root; expected a folder or a .tar of sound files"
        )
    ignored: Counter[str] = Counter()
    found = _find(audio_root, ("audio",), ignored)
    if not found:
        others = ", ".join(f"{count} {suffix}" for suffix, count in ignored.most_common(5))
        raise SourceError(
            f"{audio_root}: the audio root holds no sound (found {others or 'nothing at all'}); "
            "expected files with a suffix such as .wav or .flac"
        )
    return found
