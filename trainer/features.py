"""Features of images in a folder, written in advance by a network that sees the pixels.

A folder holds parts of some hundred images, `part-00000.safetensors` and so on: tensors with a row
for each image, float16, and in the metadata the keys of the images and a record of the network.
There are two forms: features of a teacher (`trainer.teacher`), and those of a frozen image encoder,
the input of a model with `--input pixels`: `states` (N, P, C).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from im2sp.shards.files import atomic_file, parse_json

METADATA_KEY = "im2sp"
STATES = "states"
PART_FILES = "part-*.safetensors"


@dataclass(frozen=True)
class FeatureForm:
    """Form of a folder of features, and its words in messages."""

    name: str
    """Name in the metadata."""
    noun: str
    flag: str
    """Flag that names a folder."""
    writer: str
    """Program that writes a folder."""


IMAGE_FEATURES = FeatureForm(
    "im2sp image features 1",
    "features of an image encoder",
    "--features",
    "im2sp-train --input pixels",
)


def part_path(folder: Path, number: int) -> Path:
    """Path of a part of a folder of features."""
    return folder / f"part-{number:05d}.safetensors"


def write_part(
    path: Path,
    form: FeatureForm,
    keys: Sequence[str],
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write a part atomically; the same content gives the same bytes.

    Args:
        path: The file.
        form: Form of the folder.
        keys: N keys of images.
        record: JSON values: name and fingerprint of the network, view.
        tensors: (N, ...) features by name, stored as float16.
    """
    header = {"form": form.name, "record": dict(record), "keys": list(keys)}
    stored = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(stored, {METADATA_KEY: json.dumps(header)})
    with atomic_file(path) as file:
        file.write(data)


def read_header(path: Path, form: FeatureForm) -> dict[str, Any]:
    """Keys and record of a part.

    Raises:
        ValueError: It does not exist, is damaged, or is something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = parse_json((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}; write it again") from None
    if header.get("form") != form.name:
        raise ValueError(f"{path}: not {form.noun}; expected a file of {form.writer}")
    return header


class FeatureParts:
    """Rows of a folder of features by the keys of the images, mapped.

    Attributes:
        folder: The folder.
        record: The network, its fingerprint, and the view.
    """

    def __init__(self, folder: Path, form: FeatureForm) -> None:
        """Open a folder.

        Raises:
            ValueError: It has no parts, a part is damaged, or their records differ.
        """
        self.folder = folder
        paths = sorted(folder.glob(PART_FILES))
        if not paths:
            raise ValueError(
                f"{form.flag} {folder}: holds no features; expected a folder written by"
                f" {form.writer}"
            )
        self._rows: dict[str, tuple[int, int]] = {}
        self._parts: list[Any] = []
        self.record: dict[str, Any] = read_header(paths[0], form)["record"]
        stack = ExitStack()
        for number, path in enumerate(paths):
            header = read_header(path, form)
            if header["record"] != self.record:
                raise ValueError(
                    f"{path}: features of {header['record']}, those of {paths[0].name} are of"
                    f" {self.record}; write them to separate folders"
                )
            self._rows |= {key: (number, row) for row, key in enumerate(header["keys"])}
            self._parts.append(stack.enter_context(safetensors.safe_open(path, "pt")))

    def __contains__(self, key: str) -> bool:
        """True if there are features of this image."""
        return key in self._rows

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an image's features."""
        return tuple(self._parts[0].get_slice(name).get_shape()[1:])

    def row(self, key: str, name: str) -> Tensor:
        """Features of an image, float16."""
        number, row = self._rows[key]
        return self._parts[number].get_slice(name)[row]

    def all_of(self, name: str) -> Iterable[Tensor]:
        """(N, ...) float16 features of each part."""
        return (part.get_tensor(name) for part in self._parts)

    def check_keys(self, keys: Sequence[str], flag: str) -> None:
        """Refuse images without features.

        Raises:
            ValueError: Names their number and the first.
        """
        missing = [key for key in keys if key not in self]
        if missing:
            raise ValueError(
                f"{flag} {self.folder}: lacks {len(missing):,} of {len(keys):,} images, such as"
                f" {missing[0]}"
            )


class ImageFeatures(FeatureParts):
    """Features of a frozen image encoder: the input of a model with `--input pixels`."""

    def __init__(self, folder: Path, encoder: str) -> None:
        """Open a folder with the features of an encoder, given by its name.

        Raises:
            ValueError: See `FeatureParts`; or they are of another encoder.
        """
        super().__init__(folder, IMAGE_FEATURES)
        if (name := self.record["name"]) != encoder:
            raise ValueError(
                f"--features {folder}: features of {name}, expected those of --image-encoder"
                f" {encoder}; give another folder"
            )

    @property
    def states_shape(self) -> tuple[int, int]:
        """P and C: image states and their width."""
        num_states, width = self.shape(STATES)
        return num_states, width

    def take(self, keys: Sequence[str]) -> Tensor:
        """(B, P, C) float16 features of images."""
        return torch.stack([self.row(key, STATES) for key in keys])
