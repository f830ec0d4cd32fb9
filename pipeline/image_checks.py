"""Is a file whole? What Pillow and its libraries do not ask, format by format.

A decoder is made to show what it can. These checks are made to say whether what the file declares
is there: the end of its container, each part within its bounds, the checksums, and enough
compressed data for the declared pixels. Each check raises `ImageError` and reads only the bytes
given. JPEG has its own file, `jpeg_check`.
"""

import struct
import zlib
from collections.abc import Iterator

from im2sp.pipeline.media import ImageError

_INFLATE_BYTES = 1 << 20


def check_png(data: bytes) -> None:
    """Every chunk whole and with its CRC, an end chunk, and pixel data for the declared size."""
    header = b""
    inflater = zlib.decompressobj()
    num_raw_bytes, expected = 0, 0
    for kind, body in _png_chunks(data):
        if kind == b"IHDR" and not header:
            header = bytes(body)
            expected = _png_raw_bytes(header)
        elif kind == b"IDAT" and num_raw_bytes <= expected:
            num_raw_bytes += _num_inflated(inflater, body, expected - num_raw_bytes)
        elif kind == b"IEND":
            break
    else:
        raise ImageError("cut: the PNG ends without its end chunk (IEND)")
    if num_raw_bytes < expected:
        raise ImageError(
            f"cut: the PNG holds {num_raw_bytes:,} of the {expected:,} bytes its size declares"
        )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each chunk, its CRC checked."""
    view = memoryview(data)
    at = 8
    while at < len(data):
        if at + 12 > len(data):
            raise ImageError(f"cut: the PNG ends within a chunk at byte {at:,}")
        size_bytes, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + size_bytes
        shown_kind = ascii(kind)[2:-1]
        if end > len(data):
            raise ImageError(
                f"cut: PNG chunk {shown_kind} at byte {at:,} declares {size_bytes:,} bytes, "
                f"{len(data) - at - 8:,} follow"
            )
        found = zlib.crc32(view[at + 4 : end - 4])
        (expected,) = struct.unpack_from(">I", data, end - 4)
        if found != expected:
            raise ImageError(
                f"damaged: PNG chunk {shown_kind} at byte {at:,} has CRC {found:08x}, "
                f"it declares {expected:08x}"
            )
        yield kind, view[at + 8 : end - 4]
        at = end


def _png_raw_bytes(header: bytes) -> int:
    """Bytes of all scan lines with their filter bytes, as IHDR declares them."""
    if len(header) != 13:
        raise ImageError(f"damaged: the PNG header holds {len(header)} bytes, expected 13")
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits_per_pixel = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 0)
    passes = [(0, 0, 1, 1)]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]  # fmt: skip  # noqa: E501
    total = 0
    for x0, y0, step_x, step_y in passes:
        columns = max(0, -(-(width - x0) // step_x))
        rows = max(0, -(-(height - y0) // step_y))
        if columns:
            total += rows * (1 + (columns * bits_per_pixel + 7) // 8)
    return total


def _num_inflated(inflater: "zlib._Decompress", body: memoryview, limit: int) -> int:
    """How many bytes a piece of zlib data inflates to; stops soon after `limit`."""
    total = 0
    pending: bytes | memoryview = body
    try:
        while pending and total <= limit and not inflater.eof:
            total += len(inflater.decompress(pending, _INFLATE_BYTES))
            pending = inflater.unconsumed_tail
    except zlib.error as error:
        raise ImageError(f"damaged: the PNG's compressed pixels cannot be read ({error})") from None
    return total


def gif_size(data: bytes) -> tuple[int, int]:
    """The canvas that showing the first frame takes."""
    if len(data) < 13:
        raise ImageError(f"cut: {len(data)} bytes are less than a GIF header")
    width, height = struct.unpack_from("<HH", data, 6)
    for at in _gif_frames(data):
        left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
        return max(width, left + frame_width), max(height, top + frame_height)
    raise ImageError("the GIF holds no frame")


def check_gif(data: bytes) -> None:
    """Every block whole, up to the trailer."""
    for _ in _gif_frames(data):
        pass


def _gif_frames(data: bytes) -> Iterator[int]:
    """Where each frame's descriptor begins; walks all blocks up to the trailer."""
    at = 13 + _gif_color_bytes(data[10])
    try:
        while data[at] != 0x3B:
            if data[at] == 0x21:  # extension: a label, then sub-blocks
                at = _after_sub_blocks(data, at + 2)
            elif data[at] == 0x2C:  # frame: descriptor, colours, code size, then sub-blocks
                flags = data[at + 9]
                yield at
                at = _after_sub_blocks(data, at + 11 + _gif_color_bytes(flags))
            else:
                raise ImageError(f"damaged: no GIF block begins with {data[at]} at byte {at:,}")
    except IndexError:
        raise ImageError("cut: the GIF ends before its trailer") from None


def _gif_color_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_sub_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += data[at] + 1
    return at + 1


def webp_size(data: bytes) -> tuple[int, int]:
    """The canvas of a WebP, from its first chunk."""
    kind, header = data[12:16], data[20:30]
    if len(header) < 10:
        raise ImageError(f"cut: {len(data)} bytes are less than a WebP header")
    if kind == b"VP8X":
        return (
            int.from_bytes(header[4:7], "little") + 1,
            int.from_bytes(header[7:10], "little") + 1,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", header, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(f"damaged: the WebP begins with chunk {ascii(kind)[2:-1]}")


def check_webp(data: bytes) -> None:
    """Every chunk within the declared length, and that within the file."""
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if end > len(data):
        raise ImageError(f"cut: the WebP declares {end:,} bytes, the file holds {len(data):,}")
    at = 12
    while at + 8 <= end:
        size_bytes = struct.unpack_from("<I", data, at + 4)[0]
        if at + 8 + size_bytes > end:
            raise ImageError(
                f"cut: WebP chunk {ascii(data[at : at + 4])[2:-1]} at byte {at:,} declares "
                f"{size_bytes:,} bytes, {end - at - 8:,} follow"
            )
        at += 8 + size_bytes + size_bytes % 2


def check_ico(data: bytes) -> tuple[int, int]:
    """Every picture of an icon file within the file; returns the largest declared size."""
    (num_entries,) = struct.unpack_from("<H", data, 4) if len(data) >= 6 else (0,)
    if not num_entries or len(data) < 6 + 16 * num_entries:
        raise ImageError(f"damaged or cut: an ICO of {num_entries} pictures in {len(data):,} bytes")
    sizes: list[tuple[int, int]] = []
    for index in range(num_entries):
        size_bytes, at = struct.unpack_from("<II", data, 6 + 16 * index + 8)
        if at + size_bytes > len(data) or size_bytes < 24:
            raise ImageError(
                f"cut: picture {index} of the ICO lies at bytes {at:,} to {at + size_bytes:,}, "
                f"the file holds {len(data):,}"
            )
        if data[at : at + 8] == b"\x89PNG\r\n\x1a\n":
            check_png(data[at : at + size_bytes])
            sizes.append(struct.unpack_from(">II", data, at + 16))
        else:
            width, height = struct.unpack_from("<ii", data, at + 4)
            sizes.append((abs(width), abs(height)))
    return max(sizes, key=lambda size: size[0] * size[1])


def check_boxes(data: bytes) -> None:
    """AVIF and JP2: every outermost box within the file, with nothing left over."""
    for _ in boxes(data):
        pass


def boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each outermost ISO box."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise ImageError(f"cut: the file ends within a box at byte {at:,}")
        size_bytes, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size_bytes == 1 and at + 16 <= len(data):
            (size_bytes,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = at + size_bytes if size_bytes else len(data)
        if end > len(data) or end < start:
            raise ImageError(
                f"cut: box {ascii(kind)[2:-1]} at byte {at:,} declares {size_bytes:,} bytes, "
                f"{len(data) - at:,} follow"
            )
        yield kind, start, end
        at = end


def check_jpeg2000(data: bytes) -> None:
    """Every box and tile part whole, and the codestream's end marker."""
    start, end = 0, len(data)
    if data[:4] != b"\xff\x4f\xff\x51":
        for kind, box_start, box_end in boxes(data):
            if kind == b"jp2c":
                start, end = box_start, box_end
                break
        else:
            raise ImageError("cut: the JPEG 2000 file holds no codestream")
    at = start + 2
    try:
        while data[at : at + 2] != b"\xff\xd9":
            if at + 2 > end:
                raise ImageError("cut: the JPEG 2000 codestream ends without its end marker")
            size_bytes = struct.unpack_from(">H", data, at + 2)[0] + 2
            if data[at : at + 2] == b"\xff\x90":  # a tile part declares its own length
                (size_bytes,) = struct.unpack_from(">I", data, at + 6)
                if size_bytes == 0:  # the last one reaches to the end marker
                    if data[end - 2 : end] != b"\xff\xd9":
                        raise ImageError("cut: the JPEG 2000 codestream lacks its end marker")
                    return
            if data[at] != 0xFF:
                raise ImageError(f"damaged: no JPEG 2000 marker at byte {at:,}")
            at += max(size_bytes, 2)
    except (struct.error, IndexError):
        raise ImageError("cut: the JPEG 2000 codestream ends within a marker") from None


def check_pcx(data: bytes) -> None:
    """A palette of 256 colours stands at the end; Pillow takes a file without it for gray."""
    is_palette_image = data[1:2] == b"\x05" and data[3:4] == b"\x08" and data[65:66] == b"\x01"
    if is_palette_image and (len(data) < 128 + 769 or data[-769] != 12):
        raise ImageError("cut: the PCX ends without the palette of its 256 colours")
