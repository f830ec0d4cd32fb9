import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from im2sp.pipeline.decoding.images import (
    DEFAULT_MAX_PIXELS,
    ByteRange,
    ImageError,
    read_image,
)
from im2sp.pipeline.sources import list_source
from support.pictures import HEIGHT, WIDTH, chunk, encoded, pixels_of, png, refusal_of, scene

FRAMES = [scene(1), scene(2)]


def test_sizes_are_judged_from_the_header():
    bomb = png(60000, 60000, 8, 2, b"\0" * 100)
    with pytest.raises(
        ImageError, match=r"60000 x 60000 = 3,600,000,000 pixels, over the limit of 89,478,485"
    ):
        read_image(bomb, name="x")
    assert DEFAULT_MAX_PIXELS == 89_478_485
    assert pixels_of(encoded("PNG"), max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(ImageError, match="over the limit of 1,199"):
        read_image(encoded("PNG"), name="x", max_pixels=WIDTH * HEIGHT - 1)
    with pytest.raises(ImageError):
        read_image(png(0, 5, 8, 2, b""), name="x")


def test_a_gif_frame_larger_than_its_screen_counts_for_the_limit():
    data = bytearray(encoded("GIF", scene().convert("P")))
    frame = bytes(data).rindex(b"\x2c\0\0\0\0")
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="65535 x 65535"):
        read_image(bytes(data), name="x")


def test_a_webp_canvas_is_judged_before_it_is_taken():
    data = bytearray(encoded("WEBP", save_all=True, append_images=FRAMES))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\x3e\0\xff\x3e\0"
    with pytest.raises(ImageError, match="16128 x 16128"):
        read_image(bytes(data), name="x")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (bytes(4096), "nothing but 4,096 zero bytes"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "an HTML page"),
        (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"Hello there, this is text.\n" * 30, "it seems to be text"),
        ("é" * 400 + "x", "it seems to be text"),
        (b"%PDF-1.7", "a PDF document"),
        (b"PK\x03\x04" + bytes(90), "a zip archive"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "WAV audio"),
        (b"fLaC\0\0\0\x22", "FLAC audio"),
        (b"\0\0\0\x18ftypheic\0\0\0\0heic", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isom", "an MP4 film"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (encoded("SGI"), "an SGI image, which is not read"),
        (encoded("DDS"), "a DDS texture, which is not read"),
        (encoded("PCX"), "a PCX image, which is not read"),
        (b"8BPS\0\1" + bytes(20), "a Photoshop file, which is not read"),
        (b"qoif" + bytes(20), "a QOI image, which is not read"),
        (encoded("DIB"), "no known kind"),
        (b"\x12\x34\x56\x78" * 4, r"no known kind \(it begins with 12 34 56 78 12 34 56 78\)"),
    ],
)
def test_what_is_no_image_is_named(data, match):
    with pytest.raises(ImageError, match=f"^x: .*{match}"):
        read_image(data.encode() if isinstance(data, str) else data, name="x")


TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_orientation(file_format, options):
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = scene().transpose(TURNED[orientation]) if orientation > 1 else scene()
        data = encoded(file_format, stored, exif=exif, **options)
        np.testing.assert_array_equal(
            pixels_of(data), np.asarray(scene()), err_msg=f"{orientation}"
        )


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(pixels_of(encoded("PNG", exif=exif)), np.asarray(scene()))


@pytest.mark.parametrize(
    "garbage", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 50]
)
def test_garbage_metadata_is_ignored(garbage):
    plain = encoded("JPEG")
    for marker in (b"\xff\xe1", b"\xff\xe2"):
        body = b"ICC_PROFILE\0\x01\x01" + garbage if marker == b"\xff\xe2" else garbage
        segment = marker + struct.pack(">H", len(body) + 2) + body
        np.testing.assert_array_equal(pixels_of(plain[:2] + segment + plain[2:]), pixels_of(plain))


def test_16_bit_gray_is_scaled():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    for file_format in ("PNG", "TIFF", "PPM"):
        found = pixels_of(encoded(file_format, Image.fromarray(values)))
        np.testing.assert_array_equal(found[..., 0], expected)
        np.testing.assert_array_equal(found[..., 2], expected)


def test_16_bit_rgb_is_scaled():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    raw = b"".join(b"\0" + np.stack([row] * 3, -1).astype(">u2").tobytes() for row in values)
    found = pixels_of(png(256, 256, 16, 2, raw))
    np.testing.assert_allclose(found[..., 1], values / 257, atol=1)


def test_wide_values_without_an_agreed_white_are_refused():
    wide = np.full((4, 4), 70_000, np.int32)
    with pytest.raises(ImageError, match="gray values from 70000 to 70000; only 0 to 65535"):
        read_image(encoded("TIFF", Image.fromarray(wide)), name="x")
    for value, match in ((2.5, "from 2.5 to 2.5; only 0 to 1"), (np.nan, "not finite")):
        image = Image.fromarray(np.full((4, 4), value, np.float32))
        with pytest.raises(ImageError, match=match):
            read_image(encoded("TIFF", image), name="x")
    half = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    assert (pixels_of(encoded("TIFF", half)) == 128).all()


def test_transparency_is_composited_on_white():
    alpha = np.zeros((2, 2), np.uint8)
    alpha[0, 1], alpha[1, 0] = 255, 128
    red = Image.merge(
        "RGBA", [*Image.new("RGB", (2, 2), (255, 0, 0)).split(), Image.fromarray(alpha)]
    )
    expected = [[[255, 255, 255], [255, 0, 0]], [[255, 127, 127], [255, 255, 255]]]
    np.testing.assert_array_equal(pixels_of(encoded("PNG", red)), expected)
    np.testing.assert_array_equal(pixels_of(encoded("TIFF", red)), expected)
    black = Image.merge("LA", [Image.new("L", (2, 2), 0), Image.fromarray(alpha)])
    assert pixels_of(encoded("PNG", black))[..., 0].tolist() == [[255, 0], [127, 255]]


def test_one_transparent_colour_is_composited_on_white():
    raw = b"\0" + bytes([0, 1, 2, 3])
    palette = chunk(b"PLTE", bytes(12)) + chunk(b"tRNS", b"\xff\x00")
    assert pixels_of(png(4, 1, 8, 3, raw, palette))[0, :, 0].tolist() == [0, 255, 0, 0]
    gray = chunk(b"tRNS", b"\0\2")
    assert pixels_of(png(4, 1, 8, 0, raw, gray))[0, :, 0].tolist() == [0, 1, 255, 3]
    deep = b"\0" + np.array([0, 257, 514], ">u2").tobytes()
    key = chunk(b"tRNS", struct.pack(">H", 257))
    assert pixels_of(png(3, 1, 16, 0, deep, key))[0, :, 0].tolist() == [0, 255, 2]


def test_the_first_frame_counts():
    first = pixels_of(encoded("WEBP", lossless=True))
    for file_format, options in (("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encoded(file_format, save_all=True, append_images=FRAMES, **options)
        np.testing.assert_array_equal(pixels_of(data), first)


def test_files_and_byte_ranges(tmp_path):
    data = encoded("PNG")
    path = tmp_path / "no suffix"
    path.write_bytes(data)
    np.testing.assert_array_equal(np.asarray(read_image(path, name="x")), pixels_of(data))
    packed = tmp_path / "packed"
    packed.write_bytes(b"before" + data + b"behind")
    part = ByteRange(path=packed, offset=6, size_bytes=len(data))
    np.testing.assert_array_equal(np.asarray(read_image(part, name="x")), pixels_of(data))
    past = ByteRange(path=packed, offset=12 + len(data), size_bytes=9)
    with pytest.raises(ImageError, match="cut: packed ends after 0 of its 9 bytes"):
        read_image(past, name="x")


def test_what_cannot_be_read_as_a_file_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"^gone\.jpg: cannot be read: No such file"):
        read_image(tmp_path / "gone.jpg", name="gone.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path, name="folder.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg", name="pipe.jpg")


def test_names_stay_on_one_line():
    with pytest.raises(ImageError, match=r"^line\\nbreak é\.jpg: the file is empty"):
        read_image(b"", name="line\nbreak é.jpg")


def test_every_shared_input_behaves_as_its_manifest_says(shared_data: Path):
    folder = shared_data / "broken"
    entries = json.loads((folder / "manifest.json").read_bytes())
    found: dict[str, np.ndarray] = {}
    verdicts = {"ok": 0, "reject": 0, "note": 0}
    archives: dict[str, dict] = {}
    for entry in (entry for entry in entries if entry["kind"] == "image"):
        name, source = entry["file"], folder / entry["file"]
        if archive := entry.get("archive"):
            if archive not in archives:
                items = list_source(folder / archive).items
                archives[archive] = {item.name.split("/", 1)[1]: item for item in items}
            item = archives[archive].get(name)
            source = item.image if item else None
            assert source is not None or entry["expect"] == "note"
        verdicts[entry["expect"]] += 1
        refusal = refusal_of(source, name) if source else "not listed"
        assert entry["expect"] != "ok" or not refusal, refusal
        assert entry["expect"] != "reject" or name in refusal
        if source and not refusal:
            found[name] = np.asarray(read_image(source, name=name))
    assert verdicts == {"ok": 51, "reject": 22, "note": 8}
    for entry in entries:
        if entry["file"] in found and "same_as" in entry:
            first, second = found[entry["file"]], found[entry["same_as"]]
            difference = np.abs(first.astype(int) - second.astype(int)).max()
            assert difference <= entry.get("max_abs_pixel_diff", 0), entry["file"]


def test_real_photographs_are_not_refused(shared_data: Path):
    for archive, step in (("flickr8k/images-val-0.tar", 20), ("coco-sample/images.tar", 4)):
        for item in list_source(shared_data / archive).items[::step]:
            assert item.image is not None
            assert read_image(item.image, name=item.name).mode == "RGB"
