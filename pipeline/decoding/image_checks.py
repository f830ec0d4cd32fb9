"""Checks that Pillow does not make when it decodes, and sizes to check before it allocates memory.

Pillow itself refuses nearly every cut file while it decodes the first frame, the only one that is
used. Each check takes the bytes of a file, returns those to decode, and raises `ImageError` for a
file that is cut or damaged. JPEG is handled in `jpeg`.
"""

import struct
from io import BytesIO

from PIL import PngImagePlugin, TiffImagePlugin

from im2sp.pipeline.decoding.media import ImageError

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
_PNG_ORIENTATION = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
"""Keywords of texts that can hold an orientation."""
_MAX_PNG_TEXT_BYTES = 2**20

_TIFF_PARTS = ((273, 279), (324, 325))
"""Tags of the offsets and sizes of strips and of tiles."""


def check_png(data: bytes) -> bytes:
    """Return a PNG up to its end chunk without colour profile and texts; verifies all checksums.

    Pillow refuses a file whose texts or profile inflate to megabytes, though pixels do not need
    them.
    """
    parts, at = [_PNG_MAGIC], 8
    while at < len(data) and parts[-1][4:8] != b"IEND":
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind, body = data[at + 4 : at + 8], data[at + 8 : end - 4]
        is_text = kind in _PNG_TEXT and (
            not body.startswith(_PNG_ORIENTATION) or len(body) > _MAX_PNG_TEXT_BYTES
        )
        if not is_text and kind != b"iCCP":
            parts.append(data[at:end])
        at = end
    data = b"".join(parts)
    try:
        PngImagePlugin.PngImageFile(BytesIO(data)).verify()
    except (SyntaxError, OSError) as error:
        raise ImageError(f"damaged or cut PNG: {error}") from None
    return data


def check_webp(data: bytes) -> bytes:
    """Check that the declared length of a WebP is within the file."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise ImageError(f"cut: the WebP declares {end:,} bytes, the file holds {len(data):,}")
    return data


def check_tiff(data: bytes) -> bytes:
    """Check that all strips or tiles of the first image of a TIFF are within the file."""
    tags = TiffImagePlugin.TiffImageFile(BytesIO(data)).tag_v2
    for offsets_tag, sizes_tag in _TIFF_PARTS:
        for start, size_bytes in zip(
            tags.get(offsets_tag, ()), tags.get(sizes_tag, ()), strict=False
        ):
            if start + size_bytes > len(data):
                raise ImageError(
                    f"cut: a TIFF strip or tile is at bytes {start:,} to {start + size_bytes:,}, "
                    f"the file holds {len(data):,}"
                )
    return data


def gif_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas that the first frame of a GIF needs."""
    try:
        at = 13 + _gif_color_bytes(data[10])
        while data[at] == 0x21:  # extension: a label, then blocks up to an empty one
            at += 2
            while data[at]:
                at += data[at] + 1
            at += 1
        if data[at] != 0x2C:
            raise ImageError(f"damaged: no frame of the GIF begins at byte {at:,}")
        left, top, width, height = struct.unpack_from("<HHHH", data, at + 1)
        canvas_width, canvas_height = struct.unpack_from("<HH", data, 6)
    except (IndexError, struct.error):
        raise ImageError("cut: the GIF ends before its first frame") from None
    return max(canvas_width, left + width), max(canvas_height, top + height)


def _gif_color_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas of a WebP, from its first chunk."""
    kind, header = data[12:16], data[20:30]
    if len(header) < 10:
        raise ImageError(f"cut: {len(data)} bytes are less than a WebP header")
    if kind == b"VP8X":
        width, height = (int.from_bytes(header[at : at + 3], "little") for at in (4, 7))
        return width + 1, height + 1
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", header, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(f"damaged: the WebP begins with chunk {ascii(kind)[2:-1]}")


def ico_size(data: bytes) -> tuple[int, int]:
    """Width and height of the largest image of an ICO; all images must be within the file."""
    num_entries = int.from_bytes(data[4:6], "little")
    if not num_entries or len(data) < 6 + 16 * num_entries:
        raise ImageError(f"damaged or cut: an ICO of {num_entries} images in {len(data):,} bytes")
    largest = (0, 0)
    for index in range(num_entries):
        size_bytes, at = struct.unpack_from("<II", data, 6 + 16 * index + 8)
        if at + size_bytes > len(data) or size_bytes < 24:
            raise ImageError(
                f"cut: image {index} of the ICO is at bytes {at:,} to {at + size_bytes:,}, "
                f"the file holds {len(data):,}"
            )
        is_png = data[at : at + 8] == _PNG_MAGIC
        width, height = struct.unpack_from(
            *((">II", data, at + 16) if is_png else ("<ii", data, at + 4))
        )
        largest = max(largest, (abs(width), abs(height)), key=lambda size: size[0] * size[1])
    return largest
