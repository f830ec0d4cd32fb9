"""Small generated images for tests of decoding."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from im2sp.pipeline.decoding.images import ByteRange, ImageError, read_image

WIDTH, HEIGHT = 40, 30


def scene(seed: int = 0) -> Image.Image:
    """Gradients with a band of noise, so that any truncation is visible."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x * 6, y * 8, 128 + 100 * np.sin(x / 5)], -1).astype(np.uint8)
    pixels[10:15] = rng.integers(0, 256, (5, WIDTH, 3))
    return Image.fromarray(pixels)


def encoded(file_format: str, image: Image.Image | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or scene()).save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes, **options) -> np.ndarray:
    image = read_image(data, name="x", **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal_of(source: Path | bytes | ByteRange, name: str) -> str:
    """Error message for an image, "" if it is read."""
    try:
        read_image(source, name=name)
    except ImageError as error:
        return str(error)
    return ""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, raw: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + data + chunk(b"IEND", b"")
