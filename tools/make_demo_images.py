"""Paint the demo images: a dozen small procedural scenes, CC0.

    python tools/make_demo_images.py --out docs/demo-images

Each scene is painted from a fixed seed at twice its size and reduced, so the same Pillow and NumPy
give the same files. Nothing here is taken from a photograph.
"""

import argparse
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from im2sp.tools.brushes import (
    Pixels,
    axes,
    ball,
    blend,
    cloud,
    drawn,
    gradient,
    rgb,
    ridge,
    rippled,
    shadow,
)

Scene = Callable[[np.random.Generator, int, int], Pixels]

SCENES: dict[str, tuple[Scene, int, int]] = {}


def scene(name: str, width: int, height: int) -> Callable[[Scene], Scene]:
    """Register a scene under its file name with its size in pixels."""

    def register(paint: Scene) -> Scene:
        SCENES[name] = (paint, width, height)
        return paint

    return register


@scene("mountain-lake", 320, 240)
def mountain_lake(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Four hazy ranges over a lake that mirrors them."""
    shore = int(height * 0.66)
    picture = gradient(width, shore, [(0, "3f7fc4"), (0.7, "bcd9ee"), (1, "f6e7d0")])
    picture = blend(picture, (1, 1, 1), 1.6 * (cloud(rng, width, shore, 3) - 0.55))
    rows = np.arange(shore)[:, None] / shore
    layers = [("8fa6c4", 0.30, 3), ("5f7fa0", 0.48, 4), ("3c6472", 0.66, 6), ("24483f", 0.82, 12)]
    for code, top, cells in layers:
        outline = top + 0.26 * (0.5 - ridge(rng, width, cells))
        rock = np.asarray(rgb(code)) * (0.75 + 0.5 * cloud(rng, width, shore, 9))[..., None]
        snow = np.clip(8 * (outline + 0.09 - rows), 0, 1) * (top < 0.4)
        picture = blend(picture, blend(rock, (0.97, 0.97, 1), snow), (rows - outline) * shore)
    mirror = picture[::-1][: height - shore]
    ripples = (3 * np.sin(np.arange(len(mirror)) * 0.9) + rng.normal(0, 1, len(mirror))).astype(int)
    return np.concatenate([picture, rippled(mirror, ripples) * (0.72, 0.82, 0.9)])


@scene("sunset-sea", 320, 240)
def sunset_sea(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """The sun on the horizon and its path on the water."""
    x, y = axes(width, height)
    sky = gradient(width, height, [(0, "2b2a5e"), (0.35, "a2476d"), (0.6, "fbaa48")])
    sky = blend(sky, rgb("4a2745"), 1.9 * (cloud(rng, width, height, 3) - 0.58) * (y < 0.6))
    distance = np.hypot(x - 0.58, (y - 0.52) * height / width)
    sky = blend(sky, rgb("ffd27a"), 0.8 * np.exp(-(distance**2) / 0.012))
    sky = blend(sky, rgb("fff6d8"), (0.055 - distance) * width)
    sea = gradient(width, height, [(0, "e08a4a"), (0.6, "c9703f"), (0.75, "4b4470"), (1, "141b3a")])
    depth = np.clip(y - 0.6, 1e-3, 1)
    waves = np.sin(8 / (depth + 0.03) + 6 * cloud(rng, width, height, 10)) * 0.5 + 0.5
    path = np.exp(-(((x - 0.58) / (0.05 + 0.5 * depth)) ** 2))
    sea = blend(sea, rgb("ffd9a0"), path * waves**2)
    picture = blend(sky, sea * (0.8 + 0.35 * waves)[..., None], (y - 0.6) * height)

    def boat(draw: ImageDraw.ImageDraw) -> None:
        left, base, size = 0.22 * width, 0.66 * height, 0.1 * width
        draw.polygon([(left, base), (left + size, base), (left + 0.8 * size, base + 0.2 * size),
                      (left + 0.15 * size, base + 0.2 * size)], fill="#1a1226")  # fmt: skip
        draw.polygon([(left + 0.5 * size, base - 1.1 * size), (left + 0.5 * size, base - 4),
                      (left + 0.95 * size, base - 4)], fill="#f3e3d0")  # fmt: skip
        draw.polygon([(left + 0.46 * size, base - size), (left + 0.46 * size, base - 4),
                      (left + 0.1 * size, base - 4)], fill="#d9bfae")  # fmt: skip

    return drawn(picture, boat)


@scene("checkered-floor", 288, 288)
def checkered_floor(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Three balls on tiles that run to the horizon."""
    x, y = axes(width, height)
    wall = gradient(width, height, [(0, "20344a"), (0.45, "5d7f94"), (1, "5d7f94")])
    wall *= 0.92 + 0.16 * cloud(rng, width, height, 5)[..., None]
    depth = 0.42 / np.clip(y - 0.4, 1e-3, 1)
    tiles = (np.floor((x - 0.5) * depth * 4 + 0.2) + np.floor(depth * 4)) % 2
    floor = blend(np.ones((height, width, 3)) * rgb("ece4d4"), rgb("7c2f2b"), tiles)
    fade = np.clip((depth - 1) / 7, 0, 1)
    picture = blend(wall, blend(floor, rgb("5d7f94"), fade), (y - 0.42) * height)
    for bx, by, r, colour in [(0.62, 0.5, 0.1, "3f8f5b"), (0.3, 0.6, 0.16, "e0a92e"),
                              (0.72, 0.74, 0.17, "2f62b5")]:  # fmt: skip
        picture = shadow(picture, bx + 0.4 * r, by + 0.95 * r, 1.3 * r)
        picture = ball(picture, bx, by, r, colour, gloss=0.9)
    return picture


@scene("fruit-table", 320, 256)
def fruit_table(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Oranges, apples and grapes on a wooden table."""
    _, y = axes(width, height)
    wall = gradient(width, height, [(0, "d9cfbd"), (0.5, "b7a58c"), (1, "b7a58c")])
    grain = cloud(rng, width, height, 3)
    rings = 0.5 + 0.5 * np.sin(60 * y + 14 * grain)
    wood = blend(np.ones((height, width, 3)) * rgb("8a5530"), rgb("5b3319"), 0.6 * rings)
    wood *= 0.85 + 0.3 * cloud(rng, width, height, 40)[..., None]
    picture = blend(wall, wood, (y - 0.46) * height)
    fruits = [
        (0.2, 0.36, 0.11, "e8821e"),
        (0.42, 0.33, 0.115, "c62f2b"),
        (0.64, 0.37, 0.11, "8db33a"),
    ]
    fruits += [(0.31, 0.5, 0.12, "d6452f"), (0.53, 0.51, 0.125, "f09a2a")]
    for column, row in [(0, 0), (1, 0), (2, 0), (0.5, 0.85), (1.5, 0.85), (1, 1.6)]:
        fruits.append((0.74 + 0.075 * column, 0.5 + 0.05 * row, 0.045, "5c2a63"))
    for x, row, r, colour in fruits:
        picture = shadow(picture, x + 0.5 * r, row + 0.92 * r, 1.5 * r)
        picture = ball(picture, x, row, r, colour, gloss=0.5)
    picture *= 1 + 0.05 * rng.normal(0, 1, (height, width, 1))

    def stems(draw: ImageDraw.ImageDraw) -> None:
        for x, row, r, colour in fruits[:5]:
            if colour in ("c62f2b", "8db33a", "d6452f"):
                top = (row - 0.86 * r) * width
                draw.line(
                    [(x * width, top), ((x + 0.02) * width, top - 16)], fill="#3b2413", width=5
                )

    return drawn(picture, stems)


@scene("night-sky", 240, 320)
def night_sky(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """The moon, a band of stars and firs."""
    x, y = axes(width, height)
    picture = gradient(width, height, [(0, "050a1f"), (0.6, "142b57"), (1, "35557f")])
    band = np.exp(-(((x - 0.9 + 0.8 * y) / 0.16) ** 2)) * cloud(rng, width, height, 5)
    picture = blend(picture, rgb("b9b3d9"), 0.45 * band)
    light = np.zeros((height, width))
    rows, columns = rng.integers(0, height, 420), rng.integers(0, width, 420)
    light[rows, columns] = rng.random(420) ** 3 * 14
    light = 0.5 * light + 0.2 * sum(np.roll(light, s, axis=a) for s in (1, -1) for a in (0, 1))
    picture = blend(picture, (1, 1, 0.95), light)
    distance = np.hypot(x - 0.28, (y - 0.2) * height / width)
    picture = blend(picture, rgb("9fb4d8"), 0.5 * np.exp(-(distance**2) / 0.02))
    moon = np.asarray(rgb("f3efdc")) * (0.72 + 0.35 * cloud(rng, width, height, 7))[..., None]
    picture = blend(picture, moon, (0.095 - distance) * width)

    def firs(draw: ImageDraw.ImageDraw) -> None:
        for left in np.sort(rng.random(16)):
            tall, foot = rng.uniform(0.12, 0.34) * height, height
            for tier in range(5):
                top, half = foot - tall * (1 - 0.17 * tier), tall * (0.07 + 0.045 * tier)
                middle = left * width
                points = [(middle, top), (middle - half, top + 0.32 * tall)]
                draw.polygon([*points, (middle + half, top + 0.32 * tall)], fill="#060c12")

    return drawn(picture, firs)


@scene("house-garden", 320, 240)
def house_garden(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A house with a red roof behind a lawn and a fence."""
    _, y = axes(width, height)
    picture = gradient(width, height, [(0, "4d97d8"), (0.7, "d5ebf7"), (1, "d5ebf7")])
    picture = blend(picture, (1, 1, 1), 2.2 * (cloud(rng, width, height, 3) - 0.6))
    lawn = gradient(width, height, [(0, "7fae4a"), (0.6, "7fae4a"), (1, "3f7a2c")])
    lawn *= 0.7 + 0.6 * cloud(rng, width, height, 60)[..., None]
    picture = blend(picture, lawn, (y - 0.66) * height)

    def box(
        draw: ImageDraw.ImageDraw, x0: float, y0: float, x1: float, y1: float, fill: str
    ) -> None:
        draw.rectangle((x0 * width, y0 * height, x1 * width, y1 * height), fill=fill)

    def house(draw: ImageDraw.ImageDraw) -> None:
        box(draw, 0.3, 0.4, 0.72, 0.74, "#efe3c8")
        box(draw, 0.6, 0.4, 0.72, 0.74, "#d8c8a6")
        box(draw, 0.58, 0.16, 0.63, 0.34, "#8d4a3a")
        roof = [(0.26, 0.42), (0.36, 0.2), (0.66, 0.2), (0.76, 0.42)]
        draw.polygon([(a * width, b * height) for a, b in roof], fill="#b23a2e")
        for row in np.arange(0.23, 0.42, 0.035):
            slant = 0.26 + 0.1 * (0.42 - row) / 0.22
            ends = [(slant * width, row * height), ((1.02 - slant) * width, row * height)]
            draw.line(ends, fill="#96281f", width=2)
        box(draw, 0.41, 0.53, 0.5, 0.74, "#6a3d22")
        for left in (0.33, 0.53, 0.63):
            box(draw, left, 0.48, left + 0.06, 0.6, "#f8f4ea")
            box(draw, left + 0.006, 0.488, left + 0.054, 0.592, "#5f8fb2")
            box(draw, left + 0.027, 0.48, left + 0.033, 0.6, "#f8f4ea")
        for post in np.arange(0.0, 1.0, 0.045):
            box(draw, post, 0.8, post + 0.018, 0.94, "#fbfaf4")
        box(draw, 0, 0.83, 1, 0.848, "#fbfaf4")
        box(draw, 0, 0.89, 1, 0.908, "#fbfaf4")
        box(draw, 0.125, 0.5, 0.155, 0.76, "#5a3a22")

    picture = drawn(picture, house)
    for _ in range(46):
        a, b = rng.normal(0, 0.055, 2)
        colour = ("3f7d33", "4f9440", "356b2c")[rng.integers(3)]
        picture = ball(picture, 0.14 + a, 0.3 + b, 0.035, colour, gloss=0)
    return picture


@scene("poppy-meadow", 320, 240)
def poppy_meadow(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Poppies and daisies in long grass."""
    picture = gradient(width, height, [(0, "a9d3ec"), (0.3, "e6f1dd"), (0.36, "9dbb62")])

    def plants(draw: ImageDraw.ImageDraw) -> None:
        for row in np.sort(rng.random(1500)) ** 0.8:
            near, x = 0.3 + row, rng.random() * width
            foot, tall = (0.36 + 0.7 * row) * height, 60 * near
            shade = int(70 + 90 * rng.random())
            tip = (x + rng.normal(0, 9), foot - tall)
            green = (shade * 3 // 5, shade, 30)
            draw.line([(x, foot), tip], fill=green, width=max(1, int(3 * near)))
            if rng.random() < 0.13:
                r = 15 * near
                petal, heart = (
                    ("#d8271f", "#2a1414") if rng.random() < 0.7 else ("#faf7ee", "#e7b422")
                )
                for turn in np.arange(0, 2 * np.pi, np.pi / 3):
                    a, b = tip[0] + r * 0.6 * np.cos(turn), tip[1] + r * 0.5 * np.sin(turn)
                    draw.ellipse((a - 0.6 * r, b - 0.5 * r, a + 0.6 * r, b + 0.5 * r), fill=petal)
                draw.ellipse(
                    (tip[0] - r / 3, tip[1] - r / 3, tip[0] + r / 3, tip[1] + r / 3), fill=heart
                )

    return drawn(picture, plants)


@scene("poster", 240, 320)
def poster(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Large and small print on cream paper."""
    picture = np.ones((height, width, 3)) * rgb("f3ead6")
    picture *= 0.95 + 0.08 * cloud(rng, width, height, 30)[..., None]

    def print_lines(draw: ImageDraw.ImageDraw) -> None:
        draw.rectangle((0, 0, width, 0.3 * height), fill="#1d3d5c")
        draw.text((30, 34), "784", fill="#f6c445", font=ImageFont.load_default(150))
        for i, line in enumerate(["units make", "one image"]):
            draw.text((32, 230 + 70 * i), line, fill="#a82a23", font=ImageFont.load_default(66))
        small = [
            "28 rows of 28 ids, each",
            "of 13 bits: 1,274 bytes.",
            "The picture needs 150,528.",
            "Read it back and look",
            "how much is still there.",
        ]
        for i, line in enumerate(small):
            draw.text((34, 400 + 40 * i), line, fill="#2b2b2b", font=ImageFont.load_default(31))

    return drawn(picture, print_lines)


@scene("city-dusk", 320, 240)
def city_dusk(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Lit windows over a river."""
    shore = int(0.74 * height)
    picture = gradient(width, shore, [(0, "1c2350"), (0.55, "7c5285"), (0.9, "f6ae82")])

    def towers(draw: ImageDraw.ImageDraw) -> None:
        for far in range(3):
            left = -20.0
            while left < width:
                wide, tall = rng.uniform(34, 74), rng.uniform(0.2, 0.52 - 0.06 * far) * height
                top = shore - tall - (2 - far) * 26
                tint = (62 - 18 * far, 58 - 17 * far, 96 - 24 * far)
                draw.rectangle((left, top, left + wide, shore), fill=tint)
                for a in np.arange(left + 6, left + wide - 8, 11):
                    for b in np.arange(top + 8, shore - 6, 14):
                        if rng.random() < 0.2 + 0.16 * far:
                            glow = ("#ffdf8e", "#ffc766", "#fff3cf")[rng.integers(3)]
                            draw.rectangle((a, b, a + 5, b + 7), fill=glow)
                left += wide + rng.uniform(0, 16)

    picture = drawn(picture, towers)
    mirror = np.concatenate([picture[::-1]] * 2)[: height - shore]
    drift = rng.normal(0, 5, len(mirror)).astype(int)
    return np.concatenate([picture, rippled(mirror, drift) * (0.5, 0.55, 0.68)])


@scene("dunes", 320, 200)
def dunes(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Sand lit from the left under a clear sky."""
    x, y = axes(width, height)
    picture = gradient(width, height, [(0, "2f74b8"), (0.5, "b9dcea"), (1, "f3e7cb")])
    for i in range(5):
        phase = rng.random(3) * 6.3
        wave = (3.2 - 0.35 * i) * (x + 0.05 * np.sin(9 * y + phase[0])) + phase[1]
        crest = 1 - np.abs(np.sin(wave))
        top = 0.5 + 0.12 * i - 0.13 * crest**1.3 + 0.02 * np.sin(11 * x + phase[2])
        slope = np.clip(0.5 - 1.75 * np.sin(2 * wave) - 0.7 * (y - top), 0.05, 1)
        sand = blend(np.ones((height, width, 3)) * rgb("7d4a26"), rgb("f7d08c"), slope)
        ripple = 0.03 * np.sin(y * 170 + 22 * cloud(rng, width, height, 3)) * (0.4 + 0.15 * i)
        grain = 0.02 * rng.normal(0, 1, (height, width))
        picture = blend(picture, sand * (1 + ripple + grain)[..., None], (y - top) * height)
    return picture


@scene("balloons", 256, 320)
def balloons(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Striped hot-air balloons between clouds."""
    picture = gradient(width, height, [(0, "2d7fd0"), (0.8, "c9e6f7"), (1, "f4f7ee")])
    picture = blend(picture, (1, 1, 1), 2.4 * (cloud(rng, width, height, 3) - 0.52))
    x, y = axes(width, height)
    for bx, by, r, code, stripe in [
        (0.74, 0.28, 0.1, "f2b632", "c63d2f"),
        (0.3, 0.36, 0.19, "d5362f", "f7efe0"),
        (0.68, 0.82, 0.15, "3d7f4f", "f3d25b"),
    ]:
        u, v = (x - bx) / r, (y * height / width - by) / r
        lower = np.clip(v, 0, 1.35)
        half = np.where(v < 0, np.sqrt(np.clip(1 - v * v, 0, 1)), 1 - 0.42 * lower**2)
        angle = np.arcsin(np.clip(u / np.maximum(half, 0.05), -1, 1))
        fabric = np.where(np.sin(angle * 5.2)[..., None] > 0, rgb(code), rgb(stripe))
        light = np.clip(0.62 - 0.3 * u - 0.28 * v, 0.25, 1.1)
        inside = np.minimum(half - np.abs(u), 1.3 - v) * r * width
        picture = blend(picture, fabric * light[..., None], np.where(v < -1, 0, inside))
        basket = np.minimum(0.17 - np.abs(u), 0.17 - np.abs(v - 1.75)) * r * width
        ropes = (np.abs(np.abs(u) - 0.16) < 0.02) & (v > 1.28) & (v < 1.62)
        picture = blend(picture, rgb("6b4423"), np.maximum(basket, ropes))
    return picture


@scene("koi-pond", 288, 224)
def koi_pond(rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Orange fish and lily leaves on green water."""
    deep = cloud(rng, width, height, 3)
    picture = blend(np.ones((height, width, 3)) * rgb("123f3c"), rgb("3f8270"), deep)

    def fish(draw: ImageDraw.ImageDraw) -> None:
        for i in range(9):
            x, y, turn = rng.random() * width, rng.random() * height, rng.random() * 6.3
            bend, size = rng.normal(0, 0.35), rng.uniform(26, 40)
            fills = [("#f4792b", "#fdf1e3"), ("#fdf1e3", "#e4502a"), ("#f7a935", "#f7d9a0")][i % 3]
            for step in np.linspace(-1.5, 1.5, 60):
                a, b = (
                    x + size * step * np.cos(turn + bend * step),
                    y + size * step * np.sin(turn + bend * step),
                )
                r = size * 0.32 * (np.cos(step) if step > -1.2 else 0.3 + 0.7 * (-1.2 - step))
                r = max(r, 2)
                draw.ellipse((a - r, b - r, a + r, b + r), fill=fills[int(3 * step + 9) % 3 == 0])

    def leaves(draw: ImageDraw.ImageDraw) -> None:
        for _ in range(13):
            x, y, r = rng.random() * width, rng.random() * height, rng.uniform(26, 58)
            start = rng.uniform(0, 360)
            shade = ("#5d9a3a", "#76ad45", "#4c8734")[rng.integers(3)]
            draw.pieslice((x - r, y - 0.8 * r, x + r, y + 0.8 * r), start, start + 330, fill=shade)
            for ray in np.radians(np.arange(start, start + 330, 36)):
                draw.line(
                    [(x, y), (x + r * np.cos(ray), y + 0.8 * r * np.sin(ray))],
                    fill="#8fc163",
                    width=2,
                )

    picture = drawn(picture, fish) * (0.86 + 0.2 * cloud(rng, width, height, 8))[..., None]
    return drawn(picture, leaves)


def paint(name: str) -> Image.Image:
    """Paint one scene at twice its size and reduce it."""
    brush, width, height = SCENES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    picture = np.clip(brush(rng, 2 * width, 2 * height), 0, 1)
    image = Image.fromarray(np.uint8(picture * 255 + 0.5))
    return image.resize((width, height), Image.Resampling.LANCZOS)


def main() -> None:
    """Write every scene as a JPEG."""
    parser = argparse.ArgumentParser(description="Paint the demo images.")
    parser.add_argument("--out", type=Path, default=Path("docs/demo-images"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name in SCENES:
        paint(name).save(out / f"{name}.jpg", quality=88)
        print(f"{out / name}.jpg {(out / name).with_suffix('.jpg').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
