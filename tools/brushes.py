"""Brushes of the procedural demo scenes: gradients, noise, lit balls, Pillow's pen."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.float64]  # (h, w, 3) in [0, 1], or (h, w) for a mask or a height field
Colour = tuple[float, float, float]


def rgb(code: str) -> Colour:
    """Colour of a six-digit hex code."""
    return (int(code[0:2], 16) / 255, int(code[2:4], 16) / 255, int(code[4:6], 16) / 255)


def axes(width: int, height: int) -> tuple[Pixels, Pixels]:
    """Columns and rows as x, y in [0, 1], each (h, w)."""
    y, x = np.mgrid[0:height, 0:width]
    return x / width, y / height


def gradient(width: int, height: int, stops: list[tuple[float, str]]) -> Pixels:
    """Vertical gradient through (position, hex colour) stops."""
    y = np.linspace(0, 1, height)
    at = [position for position, _ in stops]
    channels = [np.interp(y, at, [rgb(code)[c] for _, code in stops]) for c in range(3)]
    return np.repeat(np.stack(channels, axis=-1)[:, None, :], width, axis=1)


def cloud(rng: np.random.Generator, width: int, height: int, cells: int = 4) -> Pixels:
    """Fractal noise in [0, 1], (h, w): octaves of smoothly enlarged random grids."""
    total = np.zeros((height, width))
    for octave in range(6):
        n = cells * 2**octave
        grid = rng.random((max(2, n * height // width), n)).astype(np.float32)
        layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float64) * 0.5**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def ridge(rng: np.random.Generator, width: int, cells: int) -> Pixels:
    """Outline of a hill range in [0, 1], (w,)."""
    return cloud(rng, width, 8, cells)[4]


def blend(below: Pixels, above: Pixels | Colour, mask: Pixels) -> Pixels:
    """Lay a colour or a picture over another through a mask in [0, 1]."""
    return below + (np.asarray(above) - below) * np.clip(mask, 0, 1)[..., None]


def rippled(mirror: Pixels, drift: NDArray[np.int_]) -> Pixels:
    """Shift each row of a mirrored picture sideways by its own number of pixels."""
    rows = [np.roll(row, step, axis=0) for row, step in zip(mirror, drift, strict=True)]
    return np.stack(rows)


def ball(picture: Pixels, x: float, y: float, r: float, colour: str, gloss: float = 0.6) -> Pixels:
    """A lit sphere at (x, y) of radius r, all in units of the picture's width."""
    height, width = picture.shape[:2]
    columns, rows = axes(width, height)
    u, v = (columns - x) / r, (rows * height / width - y) / r
    inside = u * u + v * v
    z = np.sqrt(np.clip(1 - inside, 0, 1))
    light = np.clip(-0.5 * u - 0.6 * v + 0.62 * z, 0, 1)
    shine = np.clip(-0.3 * u - 0.38 * v + 0.87 * z, 0, 1) ** 40 * gloss
    shaded = np.asarray(rgb(colour)) * (0.22 + 0.85 * light)[..., None] + shine[..., None]
    return blend(picture, shaded, (1 - np.sqrt(inside)) * r * width)


def shadow(picture: Pixels, x: float, y: float, r: float, strength: float = 0.55) -> Pixels:
    """A soft flat shadow on the ground."""
    height, width = picture.shape[:2]
    columns, rows = axes(width, height)
    distance = ((columns - x) / r) ** 2 + ((rows * height / width - y) / (0.3 * r)) ** 2
    return picture * (1 - strength * np.exp(-1.6 * distance))[..., None]


def drawn(picture: Pixels, draw: Callable[[ImageDraw.ImageDraw], None]) -> Pixels:
    """Let Pillow draw on the picture."""
    image = Image.fromarray(np.uint8(np.clip(picture, 0, 1) * 255 + 0.5))
    draw(ImageDraw.Draw(image))
    return np.asarray(image) / 255.0
