"""Writer of a listening test: a blind page with its media in one folder, and a separate key.

The clips come from folders of im2sp-speak and from a reference folder, by image name.

    OUT/page/index.html      for listeners, with media/ beside it
    OUT/page/media/*.wav     16 kHz, 16 bit, mono, without metadata; the level is unchanged
    OUT/page/media/*.jpg
    OUT/key.json             system of each sample

Samples and images have random names and are written in the order of these names, so nothing in the
page's folder identifies a system. The same input and seed give the same bytes; by default the seed
is drawn at random and kept in key.json alone, as whoever guesses it knows all systems.
"""

import hashlib
import io
import json
import random
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from PIL import Image

from im2sp.pipeline.decoding.audio import SAMPLE_RATE_HZ, read_audio
from im2sp.pipeline.decoding.images import read_image
from im2sp.shards.files import atomic_dir, atomic_file, parse_json, read_regular, remove_leftovers
from im2sp.tools.listening.page import PageSample, page
from im2sp.tools.listening.score import KEY_FORM
from im2sp.tools.speaking.page import PAGE_NAME, SPOKEN_NAME

KEY_NAME = "key.json"
PAGE_DIR = "page"
MEDIA_DIR = "media"
INDEX_NAME = "index.html"
_NAME_BYTES = 6
_COMPARED_PX = 32
# Up to this mean difference of 8-bit values, two thumbnails show the same image, encoded twice.
_SAME_LEVELS = 8.0


@dataclass(frozen=True, kw_only=True)
class System:
    """Clips and images of one system."""

    name: str
    folder: Path
    sounds: Mapping[str, Path]
    """Clips by the image's key."""
    pictures: Mapping[str, Path]
    """JPEG files by the image's key; none if the system synthesized given units."""


def read_spoken(name: str, folder: Path) -> System:
    """Read an output folder of im2sp-speak.

    Raises:
        ValueError: It is not one, is not complete, or lists missing files.
    """
    if not folder.is_dir():
        raise ValueError(f"{name}={folder}: no such folder; give an output folder of im2sp-speak")
    for file in (SPOKEN_NAME, PAGE_NAME):
        if not (folder / file).is_file():
            raise ValueError(
                f"{name}={folder}: holds no {file}, so im2sp-speak did not finish there; run it"
                " again, or give the folder of its --out"
            )
    sounds: dict[str, Path] = {}
    lines = read_regular(folder / SPOKEN_NAME).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
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
    """Find wav files by image name: `x.wav`, or the first of `x_0.wav`, `x_1.wav`, .. for image x.

    If an image's key contains folders, such as `a/x`, its clip may be in `a/` or at the top.

    Args:
        name: Name in the table.
        folder: Folder, searched recursively.
        keys: Keys of the images that need a reference.

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
    """Sorted keys of images with a clip of every system and an image file of at least one."""
    with_image = {key for system in systems for key in system.pictures}
    return sorted(with_image.intersection(*(system.sounds for system in systems)))


def image_of(key: str, systems: Sequence[System]) -> tuple[Path, Image.Image]:
    """File and content of an image, which must look the same in all systems that have it.

    Raises:
        ValueError: A file is damaged, or two systems have different images for the key.
    """
    paths = [system.pictures[key] for system in systems if key in system.pictures]
    images = [read_image(path, name=str(path)) for path in paths]
    small = [np.asarray(image.resize((_COMPARED_PX, _COMPARED_PX)), np.float32) for image in images]
    for path, other in zip(paths[1:], small[1:], strict=True):
        difference = float(np.abs(other - small[0]).mean())
        if difference > _SAME_LEVELS:
            raise ValueError(
                f"{path}: another image than {paths[0]} (they differ by {difference:.0f} of 255"
                f" levels), though both have the key {key!r}; use the same images with each"
                " system"
            )
    return paths[0], images[0]


@dataclass(frozen=True, kw_only=True)
class Built:
    """Counts of a written test."""

    test: str
    num_samples: int
    num_images: int
    num_common: int
    """Images that all systems have."""
    num_systems: int


@dataclass(frozen=True, kw_only=True)
class _Sample:
    id: str
    system: System
    image: str


def build(
    systems: Sequence[tuple[str, Path]],
    reference: tuple[str, Path] | None,
    *,
    out: Path,
    num_images: int,
    seed: int | None = None,
) -> Built:
    """Write a listening test.

    Args:
        systems: Names and output folders of im2sp-speak.
        reference: Name and folder of wav files by image name.
        out: Folder that does not exist or is empty.
        num_images: Number of common images to draw.
        seed: Secret of the draw and of the names; None draws one of 128 bits.

    Raises:
        ValueError: An unusable folder or file, too few common images, or `out` is not empty.
        OSError: The folder cannot be written.
    """
    _check_new(out)
    names = [name for name, _ in (*systems, *([reference] if reference else []))]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name}: two systems have this name; give each its own name")
    folders: dict[Path, str] = {}
    for name, folder in (*systems, *([reference] if reference else [])):
        if (other := folders.setdefault(folder.resolve(), name)) != name:
            raise ValueError(f"{name}={folder}: the folder of {other}, too; give each its own")
    spoken = [read_spoken(name, folder) for name, folder in systems]
    if reference is not None:
        spoken = [read_reference(*reference, common_images(spoken)), *spoken]
    common = common_images(spoken)
    if len(common) < num_images:
        counts = ", ".join(f"{one.name} {len(one.sounds):,}" for one in spoken)
        raise ValueError(
            f"--num-images {num_images}: {len(common):,} images with a file are in all systems"
            f" ({counts}); use the same images with each, or ask for fewer"
        )
    seed = secrets.randbits(128) if seed is None else seed
    images = sorted(random.Random(seed).sample(common, num_images))
    ids = _names(seed, num_images * (1 + len(spoken)))
    photos = dict(zip(images, ids[:num_images], strict=True))
    pairs = [(system, image) for system in spoken for image in images]
    samples = [
        _Sample(id=id_, system=system, image=image)
        for id_, (system, image) in zip(ids[num_images:], pairs, strict=True)
    ]
    samples.sort(key=lambda sample: sample.id)
    out.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out.parent, out.name)
    with atomic_dir(out) as folder:
        test = _write(folder, samples, photos, spoken, seed, reference and reference[0])
    return Built(
        test=test,
        num_samples=len(samples),
        num_images=num_images,
        num_common=len(common),
        num_systems=len(spoken),
    )


def _names(seed: int, count: int) -> list[str]:
    """Distinct names of 12 hexadecimal digits, from which the seed cannot be computed."""
    found: dict[str, None] = {}
    place = 0
    while len(found) < count:
        digest = hashlib.sha256(f"{seed} {place}".encode()).digest()
        found[digest[:_NAME_BYTES].hex()] = None
        place += 1
    return list(found)


def _check_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"--out {out}: exists; a listening test is never overwritten, since answers may belong"
            " to it. Choose another --out, or remove it"
        )


def _write(
    folder: Path,
    samples: Sequence[_Sample],
    photos: dict[str, str],
    systems: Sequence[System],
    seed: int,
    reference: str | None,
) -> str:
    """Write all files; return the test's id, a hash of everything that listeners get."""
    media = folder / PAGE_DIR / MEDIA_DIR
    media.mkdir(parents=True)
    digest = hashlib.sha256()
    sizes: dict[str, tuple[int, int]] = {}
    for image, name in sorted(photos.items(), key=lambda item: item[1]):
        path, content = image_of(image, systems)
        data = read_regular(path)
        _publish(media / f"{name}.jpg", data)
        digest.update(name.encode() + hashlib.sha256(data).digest())
        sizes[image] = content.size
    shown: list[PageSample] = []
    for sample in samples:
        data = wav_bytes(sample.system.sounds[sample.image])
        _publish(media / f"{sample.id}.wav", data)
        photo = photos[sample.image]
        digest.update((sample.id + photo).encode() + hashlib.sha256(data).digest())
        width, height = sizes[sample.image]
        shown.append(
            PageSample(
                id=sample.id,
                wav=f"{MEDIA_DIR}/{sample.id}.wav",
                photo=f"{MEDIA_DIR}/{photo}.jpg",
                width_px=width,
                height_px=height,
            )
        )
    test = digest.hexdigest()[:16]
    key = {
        "form": KEY_FORM,
        "test": test,
        "seed": seed,
        "systems": [system.name for system in systems],
        "reference": reference,
        "samples": {
            sample.id: {
                "system": sample.system.name,
                "image": sample.image,
                "wav": sample.system.sounds[sample.image].name,
            }
            for sample in samples
        },
    }
    _publish(folder / KEY_NAME, (json.dumps(key, indent=1, ensure_ascii=False) + "\n").encode())
    _publish(folder / PAGE_DIR / INDEX_NAME, page(test, shown).encode())
    return test


def _publish(path: Path, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write(data)


def wav_bytes(path: Path) -> bytes:
    """Convert a clip to the form of all samples: 16 kHz, 16 bit, mono, without metadata.

    A clip that has this format already keeps its sample values.

    Raises:
        ValueError: The clip is missing or damaged.
    """
    file = io.BytesIO()
    sf.write(file, read_audio(path, name=str(path)), SAMPLE_RATE_HZ, "PCM_16", format="WAV")
    return file.getvalue()
