"""Views: ways to convert an image to the square that is tokenized.

| name | conversion | units kept |
| --- | --- | --- |
| `squash-224` | the whole image resized to 224x224, aspect ratio not kept | 28x28, all |
| `squash-256-crop` | the whole image resized to 256x256 (the paper's released code) | rows and columns 2..29 of 32x32 |
| `center-224` | the central square of the shorter side resized to 224x224 | 28x28, all |

Each has a mirrored version, flipped left to right (`squash-224-mirrored` and so on), for augmented
copies of training images. A mirrored image has other units, not the same ones in another order.

`random-224-1`, `random-224-2` and so on are random augmentations for `im2sp-train --other-view`
(`im2sp-tokenize --view random-224 --view-seed 1`): a crop of 35 to 100 % of the area, with 3:4 to 4:3 times the aspect ratio of the image, resized to
224x224; brightness, contrast and saturation scaled by 0.7 to 1.3 each; flipped or not. The random
numbers depend only on the image's pixels and the view's number, so an image has the same units in
every run and dataset. The crop follows Szegedy et al., "Going Deeper with Convolutions" (2015).

All resizing is Pillow's bicubic filter on the full-size pixels: no JPEG draft mode and no reducing
gap, which are faster but change the result. An image that already has the size is not resampled.
"""  # noqa: E501 - a table row cannot be broken

import hashlib
import math
import re
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

if TYPE_CHECKING:  # imported on use: --help needs only the names of the views
    import numpy as np
    from PIL import Image

ViewName = Literal[
    "squash-224",
    "squash-256-crop",
    "center-224",
    "squash-224-mirrored",
    "squash-256-crop-mirrored",
    "center-224-mirrored",
    "random-224",
]
"""Values of --view; the first is the default. `random-224` is completed by --view-seed."""
RANDOM = "random-224"

UNITS_PER_SIDE = 28
_PATCH_PX = 8
_RANDOM_NAME = re.compile(RANDOM + "-[1-9][0-9]{0,8}")
_MIN_AREA = 0.35
_LOG_RATIO = math.log(4 / 3)
_MAX_JITTER = 0.3
_Units = TypeVar("_Units", bound=Any)


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to crop and resize; `VIEWS` holds all of them."""

    name: str
    """Name in settings and manifests."""

    image_size_px: int
    """Side of the square that is encoded."""

    keep_shape: bool
    """Crop the central square first, instead of resizing the whole image."""

    is_mirrored: bool = False
    """Flip left to right."""

    draw: int = 0
    """Number of the random augmentation, from 1; 0 for none."""

    def apply(self, image: "Image.Image") -> "np.ndarray":
        """Convert an image to the tokenizer's input.

        Args:
            image: Upright RGB, as `read_image` returns it.

        Returns:
            uint8 [image_size_px, image_size_px, 3], contiguous and writable.
        """
        import numpy as np
        from PIL import Image

        if self.draw:
            return _random_view(image, self.image_size_px, self.draw)
        width, height = image.size
        if self.keep_shape:
            # An odd remainder leaves the extra column on the right, the extra row at the bottom.
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            box = (left, top, left + side, top + side)
        else:
            box = (0, 0, width, height)
        size = (self.image_size_px, self.image_size_px)
        if box != (0, 0, *size) or image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC, box=box)
        if self.is_mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.array(image)

    def crop_units(self, units: _Units) -> _Units:
        """Return the 28x28 units that are kept.

        Args:
            units: Array or tensor [..., image_size_px / 8, image_size_px / 8].

        Returns:
            The same kind, [..., 28, 28]; a view on `units`, not a copy.

        Raises:
            ValueError: The last two dimensions do not fit this view.
        """
        side = self.image_size_px // _PATCH_PX
        if tuple(units.shape[-2:]) != (side, side):
            raise ValueError(
                f"view {self.name}: units have shape {tuple(units.shape)}; expected "
                f"[..., {side}, {side}], the units of a {self.image_size_px}-pixel square"
            )
        first = (side - UNITS_PER_SIDE) // 2
        kept = slice(first, first + UNITS_PER_SIDE)
        return units[..., kept, kept]


def _random_view(image: "Image.Image", size_px: int, draw: int) -> "np.ndarray":
    """Random crop, colour jitter and flip; uint8 [size_px, size_px, 3]."""
    import numpy as np
    from PIL import Image, ImageEnhance

    width, height = image.size
    state = hashlib.blake2b(f"{draw} {width} {height} ".encode() + image.tobytes(), digest_size=8)
    rng = Random(int.from_bytes(state.digest(), "little"))
    area = rng.uniform(_MIN_AREA, 1)
    ratio = math.exp(rng.uniform(-_LOG_RATIO, _LOG_RATIO))
    crop_width = width * min(1, (area * ratio) ** 0.5)
    crop_height = height * min(1, (area / ratio) ** 0.5)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    box = (left, top, min(width, left + crop_width), min(height, top + crop_height))
    image = image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(rng.uniform(1 - _MAX_JITTER, 1 + _MAX_JITTER))
    return np.array(image)


def _view(name: str) -> View:
    """Parse the name of a view: KIND-SIZE[-crop][-mirrored] or random-224-NUMBER."""
    kind, size, *more = name.split("-")
    return View(
        name=name,
        image_size_px=int(size),
        keep_shape=kind == "center",
        is_mirrored="mirrored" in more,
        draw=int(more[0]) if kind == "random" else 0,
    )


class _Views(dict[str, View]):
    """The fixed views by name; random ones are found by name, but not listed."""

    def __missing__(self, name: str) -> View:
        if name not in self:
            raise KeyError(name)
        return _view(name)

    def __contains__(self, name: object) -> bool:
        is_random = isinstance(name, str) and _RANDOM_NAME.fullmatch(name) is not None
        return is_random or super().__contains__(name)


VIEWS = _Views({name: _view(name) for name in get_args(ViewName) if name != RANDOM})
"""Views by name; the first is the default. `random-224-N` is known for any N from 1."""
