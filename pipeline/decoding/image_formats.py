"""Supported image formats, detected by content.

Pillow's plugins are used directly, chosen by content. Formats that Pillow opens by starting another
program (EPS, WMF), that store no pixels (GRIB, BUFR, HDF5, MPEG) or that no data set uses (PSD,
DDS, SGI, TGA, PCX) are left out on purpose: each adds code that is exposed to malicious files.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from PIL import ImageFile

from im2sp.pipeline.decoding.image_checks import (
    check_png,
    check_tiff,
    check_webp,
    gif_size,
    ico_size,
    webp_size,
)
from im2sp.pipeline.decoding.media import ImageError, seems_to_be

_HEAD_BYTES = 64
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Format:
    """Image format: its signature, Pillow's plugin, and a check of what Pillow does not check."""

    name: str
    """Name in messages."""

    plugin: str
    """`module.class` of the reader in `PIL`."""

    matches: Callable[[bytes], bool]
    """Test of the first (up to 64) bytes of a file."""

    check: Callable[[bytes], bytes] | None = None
    """Check that raises `ImageError` for a cut or damaged file; returns the bytes to decode."""

    declared_size: Callable[[bytes], tuple[int, int]] | None = None
    """Width and height from the header, for plugins that allocate the pixels on opening."""

    def open(self, file: BytesIO) -> ImageFile.ImageFile:
        """Open an image with the plugin, which reads the header only."""
        module_name, class_name = self.plugin.split(".")
        try:
            module = importlib.import_module(f"PIL.{module_name}")
        except ImportError:
            raise ImageError(f"{self.name}: the installed Pillow cannot read it") from None
        try:
            return getattr(module, class_name)(file)
        except (SyntaxError, EOFError) as error:
            raise ImageError(f"{self.name} with a damaged or cut header: {error}") from None


def _begins(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _is_pnm(head: bytes) -> bool:
    return len(head) > 2 and head[:1] == b"P" and head[1] in b"123456f" and head[2] in b" \t\r\n#"


def _is_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def _is_avif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and (head[8:12] in (b"avif", b"avis") or b"avif" in head[16:])


_PNG = b"\x89PNG\r\n\x1a\n"
_JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
_is_jpeg = _begins(_JPEG)
_is_tiff = _begins(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_is_jpeg2000 = _begins(b"\xff\x4f\xff\x51", _JP2)
_is_gif = _begins(b"GIF87a", b"GIF89a")
_is_ico = _begins(b"\0\0\1\0")

FORMATS = (
    Format("JPEG", "JpegImagePlugin.JpegImageFile", _is_jpeg),
    Format("PNG", "PngImagePlugin.PngImageFile", _begins(_PNG), check=check_png),
    Format("GIF", "GifImagePlugin.GifImageFile", _is_gif, declared_size=gif_size),
    Format("WebP", "WebPImagePlugin.WebPImageFile", _is_webp, check_webp, webp_size),
    Format("TIFF", "TiffImagePlugin.TiffImageFile", _is_tiff, check=check_tiff),
    Format("BMP", "BmpImagePlugin.BmpImageFile", _begins(b"BM")),
    Format("AVIF", "AvifImagePlugin.AvifImageFile", _is_avif),
    Format("JPEG 2000", "Jpeg2KImagePlugin.Jpeg2KImageFile", _is_jpeg2000),
    Format("PNM", "PpmImagePlugin.PpmImageFile", _is_pnm),
    Format("ICO", "IcoImagePlugin.IcoImageFile", _is_ico, declared_size=ico_size),
)
"""Supported formats, in the order in which they are tried."""


def find_format(data: bytes) -> Format:
    """Return the format of a file's content.

    Raises:
        ImageError: The format is not supported; the message names what it seems to be.
    """
    if not data:
        raise ImageError("the file is empty (0 bytes)")
    head = data[:_HEAD_BYTES]
    for image_format in FORMATS:
        if image_format.matches(head):
            return image_format
    raise ImageError(f"not an image that is read: {seems_to_be(data)}")
