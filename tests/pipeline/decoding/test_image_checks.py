import io
import random
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from im2sp.pipeline.decoding.images import (
    ImageError,
    read_image,
)
from support.pictures import HEIGHT, WIDTH, chunk, encoded, pixels_of, png, refusal_of, scene

FRAMES = [scene(1), scene(2)]
FORMATS = {
    "jpeg": lambda: encoded("JPEG"),
    "jpeg-444": lambda: encoded("JPEG", subsampling=0, quality=95),
    "jpeg-gray": lambda: encoded("JPEG", scene().convert("L"), optimize=True),
    "jpeg-cmyk": lambda: encoded("JPEG", scene().convert("CMYK")),
    "jpeg-restart": lambda: encoded("JPEG", restart_marker_blocks=2),
    "jpeg-progressive": lambda: encoded("JPEG", progressive=True),
    "jpeg-progressive-restart": lambda: encoded("JPEG", progressive=True, restart_marker_rows=1),
    "png": lambda: encoded("PNG"),
    "png-palette": lambda: encoded("PNG", scene().convert("P")),
    "png-1-bit": lambda: encoded("PNG", scene().convert("1")),
    "apng": lambda: encoded("PNG", save_all=True, append_images=FRAMES),
    "gif": lambda: encoded("GIF", scene().convert("P")),
    "gif-animated": lambda: encoded("GIF", save_all=True, append_images=FRAMES),
    "webp": lambda: encoded("WEBP"),
    "webp-lossless": lambda: encoded("WEBP", lossless=True),
    "webp-animated": lambda: encoded("WEBP", save_all=True, append_images=FRAMES),
    "bmp": lambda: encoded("BMP"),
    "bmp-palette": lambda: encoded("BMP", scene().convert("P")),
    "tiff": lambda: encoded("TIFF"),
    "tiff-lzw": lambda: encoded("TIFF", compression="tiff_lzw"),
    "tiff-jpeg": lambda: encoded("TIFF", compression="jpeg"),
    "tiff-big": lambda: encoded("TIFF", big_tiff=True),
    "tiff-pages": lambda: encoded("TIFF", save_all=True, append_images=FRAMES),
    "jpeg2000": lambda: encoded("JPEG2000"),
    "jpeg2000-codestream": lambda: encoded("JPEG2000", no_jp2=True),
    "ppm": lambda: encoded("PPM"),
    "pgm": lambda: encoded("PPM", scene().convert("L")),
    "ico": lambda: encoded("ICO", sizes=[(16, 16), (24, 24)]),
    "ico-bmp": lambda: encoded("ICO", sizes=[(16, 16), (24, 24)], bitmap_format="bmp"),
}


@pytest.fixture(scope="module", params=FORMATS)
def whole(request) -> bytes:
    return FORMATS[request.param]()


def test_every_format_reads_as_pillow_shows_it(whole):
    with Image.open(io.BytesIO(whole)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels_of(whole), expected)


def test_a_cut_file_is_refused_or_lacks_nothing(whole):
    expected = pixels_of(whole)
    has_frames = whole in (FORMATS["gif-animated"](), FORMATS["tiff-pages"]())
    for end in {*range(0, len(whole), 1 + len(whole) // 150), *range(len(whole) - 24, len(whole))}:
        try:
            found = pixels_of(whole[:end])
        except ImageError:
            continue
        np.testing.assert_array_equal(found, expected, err_msg=f"cut at {end} of {len(whole)}")
        if not has_frames:
            assert end > len(whole) - 30, "only an end mark or further frames may be missing"


def test_flipped_bits_raise_nothing_but_image_errors(whole):
    rng = random.Random(0)
    for attempt in range(60):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            end = len(data) if attempt % 2 else min(100, len(data))
            data[rng.randrange(end)] ^= 1 << rng.randrange(8)
        start = time.perf_counter()
        refusal = refusal_of(bytes(data), "flipped")
        assert not refusal or re.fullmatch("flipped: [^\n]+", refusal)
        assert time.perf_counter() - start < 2


def test_random_bytes_behind_each_magic_raise_nothing_but_image_errors(whole):
    rng = random.Random(1)
    for size_bytes in (0, 1, 7, 30, 400):
        with pytest.raises(ImageError):
            read_image(whole[:12] + rng.randbytes(size_bytes), name="x")


@pytest.mark.parametrize(
    "kind", [name for name in FORMATS if name.startswith("jpeg-") or name == "jpeg"]
)
def test_a_jpeg_cut_and_closed_again_is_refused(kind):
    whole = FORMATS[kind]()
    expected = pixels_of(whole)
    scan = whole.index(b"\xff\xda")
    for end in range(scan, len(whole) - 2, 3):
        closed = whole[:end] + b"\xff\xd9"
        try:
            found = pixels_of(closed)
        except ImageError:
            continue
        np.testing.assert_array_equal(found, expected)
        assert end > len(whole) - 6


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    whole = FORMATS["jpeg-progressive"]()
    scans = [at for at in range(len(whole)) if whole[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        # What stands before a scan's header may be its table; without the scan it changes nothing.
        with pytest.raises(ImageError, match="components still lack data after"):
            read_image(whole[:at] + b"\xff\xd9", name="x")


def test_a_jpeg_whose_restart_interval_is_lost_is_refused():
    whole = FORMATS["jpeg-restart"]()
    first, second = whole.index(b"\xff\xd0"), whole.index(b"\xff\xd1")
    with pytest.raises(ImageError, match="found marker 0xd1 instead of RST0"):
        read_image(whole[:first] + whole[second:], name="x")


def test_a_jpeg_without_its_end_marker_is_whole():
    whole = FORMATS["jpeg"]()
    np.testing.assert_array_equal(pixels_of(whole[:-2]), pixels_of(whole))
    with pytest.raises(ImageError, match=r"without its end marker, 49\d bytes follow"):
        read_image(whole[:-2] + bytes(500), name="x")


def test_bytes_after_the_end_are_ignored(whole):
    np.testing.assert_array_equal(pixels_of(whole + b"\0stray bytes"), pixels_of(whole))


def test_a_gif_whose_frame_is_short_of_pixels_is_refused():
    whole = FORMATS["gif"]()
    frame = whole.rindex(b"\x2c\0\0\0\0" + struct.pack("<HH", WIDTH, HEIGHT))
    first = frame + 11 + (3 << ((whole[frame + 9] & 7) + 1) if whole[frame + 9] & 0x80 else 0)
    with pytest.raises(ImageError):
        read_image(whole[: first + 1 + whole[first]] + b"\0;", name="x")


def test_a_png_that_inflates_to_less_than_declared_is_refused():
    raw = b"".join(b"\0" + bytes(WIDTH) for _ in range(HEIGHT))
    assert pixels_of(png(WIDTH, HEIGHT, 8, 0, raw)).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="image file is truncated"):
        read_image(png(WIDTH, HEIGHT, 8, 0, raw[:-1]), name="x")


def test_png_checksums_are_asked():
    data = bytearray(encoded("PNG"))
    at = bytes(data).index(b"IEND") - 5
    data[at] ^= 1
    with pytest.raises(ImageError, match="damaged or cut PNG: .*checksum in b'IDAT'"):
        read_image(bytes(data), name="x")


@pytest.mark.parametrize("place", ["before", "after"])
def test_text_and_profiles_of_a_png_are_passed_over(place):
    megabytes = b"a" * 1_500_000
    packed = zlib.compress(megabytes)
    extra = b"".join(
        [
            chunk(b"tEXt", b"Comment\0" + megabytes),
            chunk(b"zTXt", b"Comment\0\0" + packed),
            chunk(b"iTXt", b"Comment\0\1\0\0\0" + packed),
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + megabytes),
            chunk(b"iCCP", b"profile\0\0" + packed),
        ]
    )
    whole = encoded("PNG")
    at = whole.index(b"IDAT" if place == "before" else b"IEND") - 4
    np.testing.assert_array_equal(pixels_of(whole[:at] + extra + whole[at:]), pixels_of(whole))


def test_a_text_of_a_png_that_turns_it_is_kept():
    plain = encoded("PNG")
    xmp = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>')
    turned = pixels_of(plain[:33] + xmp + plain[33:])
    np.testing.assert_array_equal(turned, pixels_of(plain)[::-1, ::-1])


@pytest.mark.parametrize("kind", ["gif", "gif-animated"])
def test_a_gif_without_trailer_is_read(kind):
    whole = FORMATS[kind]()
    for end in (b"", bytes(20), bytes(20) + b";"):
        np.testing.assert_array_equal(pixels_of(whole[:-1] + end), pixels_of(whole))


def test_an_icon_of_many_entries_for_one_image_is_quick():
    whole = FORMATS["ico"]()
    entry = whole[6:22]
    image = whole[int.from_bytes(entry[12:], "little") :][: int.from_bytes(entry[8:12], "little")]
    entry = entry[:12] + (6 + 16 * 65_535).to_bytes(4, "little")
    icon = b"\0\0\1\0\xff\xff" + 65_535 * entry + image
    start = time.process_time()
    assert pixels_of(icon).shape == (12, 16, 3)
    assert time.process_time() - start < 5


def test_a_tiff_strip_past_the_end_is_named():
    data = bytearray(FORMATS["tiff"]())
    tags = TiffImagePlugin.TiffImageFile(io.BytesIO(data)).tag_v2
    (size_bytes,) = tags[279]
    data = data.replace(
        struct.pack("<HHII", 279, 4, 1, size_bytes), struct.pack("<HHII", 279, 4, 1, 10**6)
    )
    with pytest.raises(ImageError, match="cut: a TIFF strip or tile is at bytes 140 to 1,000,140"):
        read_image(bytes(data), name="x")


def test_interlaced_png():
    # First column and row and the steps of the seven passes; this image of 3 x 5 has no second.
    passes = ["0088", "4088", "0448", "2044", "0224", "1022", "0112"]
    raw = b""
    for x, y, step_x, step_y in (map(int, digits) for digits in passes):
        num_columns = len(range(x, 3, step_x))
        raw += len(range(y, 5, step_y)) * bytes(1 + num_columns) if num_columns else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 5, 8, 0, 0, 0, 1))
    start, end = b"\x89PNG\r\n\x1a\n" + header, chunk(b"IEND", b"")
    assert pixels_of(start + chunk(b"IDAT", zlib.compress(raw)) + end).shape == (5, 3, 3)
    with pytest.raises(ImageError, match="image file is truncated"):
        read_image(start + chunk(b"IDAT", zlib.compress(raw[:-1])) + end, name="x")


def test_pillow_is_left_as_it_was(whole):
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    read_image(whole, name="x")
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert before[1] is False
