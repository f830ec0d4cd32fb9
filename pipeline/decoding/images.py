"""Safe image decoding: any common format to upright RGB, or one clear error.

The rules, in the order in which they are applied:

1. The format is detected from the content; the file name is ignored.
2. The declared size is checked from the header, before memory for the pixels is allocated.
3. A file that declares more data than it holds is cut, and is refused (`image_checks`, `jpeg`):
   otherwise half an image would be stored with a complete caption.
4. Only the first frame of an animation is used.
5. 16-bit values are scaled to 8 bits, CMYK is converted to RGB, transparency is composited on
   white; ICC profiles are ignored.
6. The EXIF orientation is applied; one that does not exist (0, 9) or cannot be read is ignored.

This module does not change Pillow's global settings, start another program or access the network.
"""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageFile

from im2sp.pipeline.decoding.image_formats import Format, find_format
from im2sp.pipeline.decoding.jpeg import SplitJpeg, split_jpeg
from im2sp.pipeline.decoding.media import (
    DEFAULT_MAX_PIXELS,
    ByteRange,
    ImageError,
    Location,
    MediaError,
    read_bytes,
    refusal,
)

__all__ = ["DEFAULT_MAX_PIXELS", "ByteRange", "ImageError", "read_image"]

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: Location | bytes, *, name: str, max_pixels: int = DEFAULT_MAX_PIXELS
) -> Image.Image:
    """Read one complete image as upright RGB.

    Args:
        source: Location of a file, or the bytes of one.
        name: Name of the image in messages.
        max_pixels: Limit of width times height.

    Raises:
        ImageError: The image is missing, damaged, cut, too large or not an image. The message
            starts with `name`. No other exception is raised, whatever the content.
    """
    try:
        data = read_bytes(source)
        image_format = find_format(data)
        # Pillow warns about unusual metadata; the rules above decide what is refused.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(image_format, data, max_pixels)
    except MediaError as error:
        raise ImageError(refusal(name, error)) from None
    except Exception as error:  # per-item boundary: any error of a decoder is one refusal
        raise ImageError(refusal(name, error)) from error


def _decode(image_format: Format, data: bytes, max_pixels: int) -> Image.Image:
    """Check, decode, convert and rotate; `data` has the signature of `image_format`."""
    if image_format.declared_size is not None:
        _check_size(image_format.declared_size(data), max_pixels)
    jpeg = split_jpeg(data) if image_format.name == "JPEG" else None
    if jpeg is not None:
        data = jpeg.join()
    elif image_format.check is not None:
        data = image_format.check(data)
    image = image_format.open(BytesIO(data))
    _check_size(image.size, max_pixels)
    rgb = _to_rgb(image) if jpeg is None else _decode_jpeg(jpeg, image)
    # After loading: Pillow rotates a TIFF when it loads it, and removes the tag.
    orientation = _orientation(image)
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _decode_jpeg(jpeg: SplitJpeg, image: ImageFile.ImageFile) -> Image.Image:
    """Decode a JPEG that must be complete; `image` is the same one, opened by Pillow."""
    is_cmyk = image.mode == "CMYK"
    pixels = jpeg.decode("CMYK" if is_cmyk else "RGBX")
    if pixels is None or is_cmyk:
        return _to_rgb(image)
    # Pillow stores four bytes per pixel, which are copied faster than three.
    return Image.frombytes("RGB", image.size, pixels.data, "raw", "RGBX")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width <= 0 or height <= 0:
        raise ImageError(f"declares {width} x {height} pixels; expected at least 1 x 1")
    if width * height > max_pixels:
        raise ImageError(
            f"declares {width} x {height} = {width * height:,} pixels, over the limit of "
            f"{max_pixels:,}"
        )


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF orientation; 1 if there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # invalid EXIF block: the image is kept as stored
        return 1
    return orientation if isinstance(orientation, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to RGB."""
    if image.mode.startswith("I"):
        return _scale_16_bit(image)
    if image.mode == "F":
        return _scale_float(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode == "RGB":
        return image.copy() if isinstance(image, ImageFile.ImageFile) else image
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Convert integer gray with 0 as black and 65,535 as white: scaled by 1/257 and rounded."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"integer gray values from {low} to {high}; only 0 to 65535 have an agreed white"
        )
    gray = (values.astype(np.uint32) + 128) // 257
    opaque = Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        opaque.paste((255, 255, 255), mask=Image.fromarray(values == transparent))
    return opaque


def _scale_float(image: Image.Image) -> Image.Image:
    """Convert float gray with 0 as black and 1 as white."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise ImageError("float gray values that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise ImageError(
            f"float gray values from {low:g} to {high:g}; only 0 to 1 have an agreed white"
        )
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
