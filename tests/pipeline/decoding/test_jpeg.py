import io
import random
from collections.abc import Iterator

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from im2sp.pipeline.decoding.images import ImageError, read_image
from support.pictures import encoded, pixels_of, refusal_of

END = b"\xff\xd9"
START_OF_SCAN = b"\xff\xda"


def photo(height: int = 96, width: int = 130, seed: int = 0) -> np.ndarray:
    """uint8 [height, width, 3]: smooth areas, edges and a band of noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 3, y * 2, 128 + 100 * np.sin(x / 15 + y / 9)], -1).astype(np.uint8)
    pixels[height // 3 : height // 2] = rng.integers(0, 256, (height // 2 - height // 3, width, 3))
    return pixels


def jpeg(seed: int = 0, mode: str = "RGB", **options) -> bytes:
    return encoded("JPEG", Image.fromarray(photo(seed=seed)).convert(mode), **options)


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "A camera"
    return block


def adobe(data: bytes, transform: int) -> bytes:
    """The same JPEG with an Adobe marker in place of its JFIF marker."""
    return data[:2] + b"\xff\xee\0\x0eAdobe\0\x64" + bytes([0, 0, 0, 0, transform]) + data[20:]


def gray_with_sampling(factors: int) -> bytes:
    data = bytearray(jpeg(mode="L"))
    data[data.index(b"\xff\xc0") + 11] = factors
    return bytes(data)


def mpo() -> bytes:
    image = Image.fromarray(photo())
    return encoded("MPO", image, save_all=True, append_images=[image])


CAMERAS = {
    "4:4:4": lambda: jpeg(subsampling=0),
    "4:2:2": lambda: jpeg(subsampling=1),
    "4:2:0": lambda: jpeg(subsampling=2),
    "4:4:0": lambda: simplejpeg.encode_jpeg(photo(), colorsubsampling="440"),
    "4:1:1": lambda: simplejpeg.encode_jpeg(photo(), colorsubsampling="411"),
    "optimized": lambda: jpeg(optimize=True, quality=95),
    "progressive": lambda: jpeg(progressive=True),
    "restarts": lambda: jpeg(restart_marker_blocks=3),
    "progressive restarts": lambda: jpeg(progressive=True, restart_marker_rows=1),
    "gray": lambda: jpeg(mode="L"),
    "gray progressive": lambda: jpeg(mode="L", progressive=True),
    "gray 2x2": lambda: gray_with_sampling(0x22),
    "CMYK": lambda: jpeg(mode="CMYK"),
    "CMYK progressive": lambda: jpeg(mode="CMYK", progressive=True),
    "RGB": lambda: jpeg(keep_rgb=True),
    "Adobe RGB": lambda: adobe(jpeg(), 0),
    "Adobe YCbCr": lambda: adobe(jpeg(), 1),
    "Adobe unknown": lambda: adobe(jpeg(), 5),
    "EXIF": lambda: jpeg(exif=exif(6)),
    "large profile": lambda: jpeg(icc_profile=bytes(70_000)),
    "comment": lambda: jpeg(comment=b"a comment"),
    "MPO": mpo,
    "1 x 1": lambda: encoded("JPEG", Image.new("RGB", (1, 1))),
}


@pytest.fixture(scope="module", params=CAMERAS)
def camera_file(request) -> bytes:
    return CAMERAS[request.param]()


def test_pixels_are_those_of_pillow(camera_file):
    with Image.open(io.BytesIO(camera_file)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(pixels_of(camera_file), expected)


def test_oddities_that_concern_no_pixel_are_read(camera_file):
    expected = pixels_of(camera_file)
    body = camera_file[: -len(END)]
    tables = camera_file.index(b"\xff\xdb")
    variants = {
        "zeros before the end": body + bytes(16) + END,
        "many zeros before the end": body + bytes(3000) + END,
        "fill bytes before the end": body + b"\xff" * 100 + END,
        "bytes behind the end": camera_file + random.Random(0).randbytes(5000),
        "a second image": camera_file + camera_file,
        "no end": body,
        "half an end": body + b"\xff",
        "bytes between segments": camera_file[:tables] + bytes(4) + camera_file[tables:],
        "bad profile": camera_file[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + camera_file[2:],
    }
    if camera_file[6:10] == b"JFIF":
        variants["JFIF 2"] = camera_file[:11] + b"\2" + camera_file[12:]
    if b"\xff\xc0" in camera_file:
        last = camera_file.index(START_OF_SCAN)
        last += 6 + 2 * camera_file[last + 4]
        variants["no last coefficient"] = camera_file[:last] + b"\0" + camera_file[last + 1 :]
    for name, data in variants.items():
        np.testing.assert_array_equal(pixels_of(data), expected, err_msg=name)


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "4:1:1", "optimized", "restarts", "gray"])
@pytest.mark.parametrize("num_bytes", [300, 4000])
def test_stray_bytes_after_the_last_block_are_ignored(kind, num_bytes):
    whole = CAMERAS[kind]()
    for stray in (random.Random(4).randbytes(num_bytes).replace(b"\xff", b"!"), b"?" * num_bytes):
        np.testing.assert_array_equal(pixels_of(whole[:-2] + stray + END), pixels_of(whole))


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "4:1:1", "optimized", "gray"])
def test_stray_bytes_that_are_blocks_are_damage(kind):
    # A frame of fewer rows: what stands for the other rows is left over.
    whole = CAMERAS[kind]()
    at = whole.index(b"\xff\xc0") + 5
    with pytest.raises(ImageError, match=r"damaged: [\d,]+ bytes follow the last block"):
        read_image(whole[:at] + b"\0\x50" + whole[at + 2 :], name="x")


def test_motion_jpeg_without_huffman_tables():
    whole = jpeg()
    bare = whole
    while (at := bare.find(b"\xff\xc4")) >= 0:
        bare = bare[:at] + bare[at + 2 + int.from_bytes(bare[at + 2 : at + 4], "big") :]
    assert len(bare) < len(whole) - 400
    np.testing.assert_array_equal(pixels_of(bare), pixels_of(whole))


def test_unusual_subsampling_is_left_to_pillow():
    # 4:1:0: eight luma blocks for one of each colour; every block is gray.
    header = bytearray(encoded("JPEG", Image.new("RGB", (64, 64))))
    header[header.index(b"\xff\xc0") + 11] = 0x42
    header[header.index(b"\xff\xc0") + 14] = header[header.index(b"\xff\xc0") + 17] = 0x11
    bits = (8 * "001010" + 2 * "0000") * 8
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big")
    whole = bytes(header[: header.index(START_OF_SCAN) + 14]) + scan
    assert (pixels_of(whole + END) == 128).all()
    with pytest.raises(ImageError, match="Could not determine subsampling"):
        read_image(whole[:-20], name="x")


def test_every_scan_is_required():
    for options in ({"progressive": True}, {"progressive": True, "restart_marker_rows": 1}):
        whole = jpeg(**options)
        scans = [at for at in range(len(whole)) if whole[at : at + 2] == START_OF_SCAN]
        assert len(scans) == 10
        for at in scans[1:]:
            with pytest.raises(ImageError, match="of 3 JPEG components still lack data after"):
                read_image(whole[:at] + END, name="x")


def test_more_scans_than_any_encoder_writes_are_refused():
    whole = jpeg(progressive=True)
    at = whole.index(START_OF_SCAN)
    following = whole.index(b"\xff\xc4", at)
    with pytest.raises(ImageError, match="a JPEG of more than 100 scans"):
        read_image(whole[:at] + 101 * whole[at:following] + whole[following:], name="x")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"\xff\xda\0\x0c\x03", b"\xff\xda\0\x0c\x09", "header of a JPEG scan is shorter"),
        (b"\xff\xda\0\x0c\x03\x01", b"\xff\xda\0\x0c\x03\x07", "component that no frame declares"),
        (b"\x08\0\x60\0\x82\x03", b"\x08\0\x60\0\x82\x63", "frame header is shorter"),
        (b"\xff\xdb\0\x43", b"\xff\xdb\0\1", "JPEG segment DB at byte 20 declares 1 bytes"),
    ],
)
def test_bad_headers_are_named(old, new, match):
    data = jpeg()
    assert old in data
    with pytest.raises(ImageError, match=match):
        read_image(data.replace(old, new, 1), name="x")


def damaged_copies(data: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    first, end = data.index(START_OF_SCAN) + 14, len(data) - 2
    at = rng.randrange(first, end - 600)
    yield "cut", data[:at]
    yield "cut and closed", data[:at] + END
    yield "512 bytes zeroed", data[:at] + bytes(512) + data[at + 512 :]
    yield "512 bytes missing", data[:at] + data[at + 512 :]
    flipped = bytearray(data)
    for _ in range(3):
        flipped[rng.randrange(first, end)] ^= 1 << rng.randrange(8)
    yield "3 bits flipped", bytes(flipped)


REFUSED_BY_BLOCK_WALK = {
    "cut": 90,
    "cut and closed": 90,
    "512 bytes zeroed": 81,
    "512 bytes missing": 88,
    "3 bits flipped": 34,
}
"""Refusals of the same 90 copies by version 0.1, which itself walked over all codes."""


def test_damage_is_refused_as_often_as_by_a_walk_over_all_codes():
    rng = random.Random(7)
    kinds = ["4:4:4", "4:2:2", "4:2:0", "optimized", "restarts", "progressive"]
    found: dict[str, int] = {}
    for kind in kinds:
        for _ in range(15):
            for damage, data in damaged_copies(CAMERAS[kind](), rng):
                found[damage] = found.get(damage, 0) + bool(refusal_of(data, "x"))
    assert found.keys() == REFUSED_BY_BLOCK_WALK.keys()
    for damage, num_refused in found.items():
        assert num_refused >= REFUSED_BY_BLOCK_WALK[damage], damage
