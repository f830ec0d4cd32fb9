"""The sound that a listening test plays: folders of im2sp-speak, and a reference by image name."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from im2sp.pipeline.images import read_image
from im2sp.tools.speak_folder import PAGE_NAME, SPOKEN_NAME

_COMPARED_PX = 32
# Mean difference of 8-bit values up to which two small pictures are the same picture, saved twice.
_SAME_LEVELS = 8.0


@dataclass(frozen=True, kw_only=True)
class System:
    """What one system says of images."""

    name: str
    folder: Path
    sounds: Mapping[str, Path]
    """Files by the image's key."""
    pictures: Mapping[str, Path]
    """JPEG files by the image's key; a system that spoke units has none."""


def read_spoken(name: str, folder: Path) -> System:
    """A folder that im2sp-speak wrote.

    Raises:
        ValueError: It is none, is not finished, or lists what is not there.
    """
    if not folder.is_dir():
        raise ValueError(f"{name}={folder}: no such folder; give one that im2sp-speak wrote")
    for file in (SPOKEN_NAME, PAGE_NAME):
        if not (folder / file).is_file():
            raise ValueError(
                f"{name}={folder}: holds no {file}, so im2sp-speak did not finish there; run it"
                " again, or give the folder of its --out"
            )
    sounds: dict[str, Path] = {}
    lines = (folder / SPOKEN_NAME).read_bytes().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key, wav = row["key"], folder / Path(row["wav"]).name
            if not isinstance(key, str):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{folder / SPOKEN_NAME}:{number}: expected a row with key and wav; run im2sp-speak"
                " again"
            ) from None
        if not wav.is_file():
            raise ValueError(f"{wav}: missing, but {SPOKEN_NAME} lists it; run im2sp-speak again")
        sounds[key] = wav
    pictures = {key: wav.with_suffix(".jpg") for key, wav in sounds.items()}
    return System(
        name=name,
        folder=folder,
        sounds=sounds,
        pictures={key: path for key, path in pictures.items() if path.is_file()},
    )


def read_reference(name: str, folder: Path, keys: Iterable[str]) -> System:
    """Wav files by image name: `x.wav`, or the first of `x_0.wav`, `x_1.wav`, .. for the image x.

    An image whose key has folders in it, such as `a/x`, may have its sound in `a/` or at the top.

    Args:
        name: What the table calls it.
        folder: Searched at any depth.
        keys: Of the images that need a reference.

    Raises:
        ValueError: No such folder, or no wav file in it.
    """
    if not folder.is_dir():
        raise ValueError(f"--reference {name}={folder}: no such folder")
    plain: dict[str, Path] = {}
    numbered: dict[str, tuple[int, Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() != ".wav":
            continue
        stem = path.relative_to(folder).with_suffix("").as_posix()
        plain.setdefault(stem, path)
        found = re.fullmatch(r"(.+)_(\d+)", stem)
        if found:
            one = (int(found[2]), path)
            numbered[found[1]] = min(one, numbered.get(found[1], one))
    if not plain:
        raise ValueError(
            f"--reference {name}={folder}: no wav file; expected x.wav or x_0.wav for the image x"
        )
    sounds: dict[str, Path] = {}
    for key in keys:
        for stem in (key, key.rpartition("/")[2]):
            if stem in plain or stem in numbered:
                sounds[key] = plain[stem] if stem in plain else numbered[stem][1]
                break
    return System(name=name, folder=folder, sounds=sounds, pictures={})


def common_images(systems: Sequence[System]) -> list[str]:
    """Keys of the images of which every system speaks and one has the picture, sorted."""
    with_picture = {key for system in systems for key in system.pictures}
    return sorted(with_picture.intersection(*(system.sounds for system in systems)))


def picture_of(key: str, systems: Sequence[System]) -> tuple[Path, Image.Image]:
    """File and content of an image, which must look alike in all systems that have it.

    Raises:
        ValueError: A file is damaged, or two systems mean two pictures.
    """
    paths = [system.pictures[key] for system in systems if key in system.pictures]
    pictures = [read_image(path, name=str(path)) for path in paths]
    small = [
        np.asarray(picture.resize((_COMPARED_PX, _COMPARED_PX)), np.float32) for picture in pictures
    ]
    for path, other in zip(paths[1:], small[1:], strict=True):
        difference = float(np.abs(other - small[0]).mean())
        if difference > _SAME_LEVELS:
            raise ValueError(
                f"{path}: another picture than {paths[0]} (they differ by {difference:.0f} of 255"
                f" levels), though both are the image {key!r}; speak the same pictures with each"
                " system"
            )
    return paths[0], pictures[0]
