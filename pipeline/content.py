"""What a file seems to be that is not what was asked for: words for messages."""

_JPEG = b"\xff\xd8\xff"
_MAGICS = (
    (_JPEG, "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"8BPS", "a Photoshop file, which is not read"),
    (b"qoif", "a QOI image, which is not read"),
    (b"DDS ", "a DDS texture, which is not read"),
    (b"\x01\xda", "an SGI image, which is not read"),
    (b"\x0a\x05\x01", "a PCX image, which is not read"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "PostScript, which is drawn by a program and not read"),
    (b"\xc5\xd0\xd3\xc6", "EPS, which is drawn by a program and not read"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"fLaC", "FLAC sound"),
    (b"OggS", "Ogg sound"),
    (b"ID3", "MP3 sound"),
    (b"\xff\xfb", "MP3 sound"),
    (b"\xff\xf3", "MP3 sound"),
    (b"FORM", "an IFF file, such as AIFF sound"),
    (b"\xff\xf1", "AAC sound, which libsndfile does not read"),
    (b"\xff\xf9", "AAC sound, which libsndfile does not read"),
    (b"#!AMR", "AMR sound, which libsndfile does not read"),
    (b"0&\xb2u", "a Windows Media file, which libsndfile does not read"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM film"),
    (b"\x00\x00\x01\xb3", "an MPEG film"),
    (b"\x00\x00\x01\xba", "an MPEG film"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"\xff\x0a", "JPEG XL, which Pillow does not read"),
    (b"\0\0\0\x0cJXL ", "JPEG XL, which Pillow does not read"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the files themselves"),
)


def seems_to_be(data: bytes) -> str:
    """Words for content that is not what was asked for."""
    head = data[:512]
    if not data.strip(b"\0"):
        return f"it holds nothing but {len(data):,} zero bytes"
    for magic, words in _MAGICS:
        if head.startswith(magic):
            return f"it seems to be {words}"
    if head[:4] == b"RIFF":
        return "it seems to be " + {
            b"WAVE": "WAV sound",
            b"AVI ": "an AVI film",
            b"WEBP": "a WebP picture",
        }.get(head[8:12], "RIFF data")
    if head[4:8] == b"ftyp":
        kinds = {
            b"he": "HEIC, which Pillow does not read",
            b"av": "an AVIF picture",
            b"M4": "M4A sound, which libsndfile does not read",
        }
        return "it seems to be " + kinds.get(head[8:10], "an MP4 film")
    if head[257:262] == b"ustar":
        return "it seems to be a tar archive"
    if _JPEG in head:
        return f"{head.index(_JPEG)} bytes that belong to no format, then perhaps a JPEG"
    return f"it seems to be {_text_kind(head)}"


def _text_kind(head: bytes) -> str:
    """Words for text, or for bytes of no known kind."""
    has_mark = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    # The head may end within a character, so a bad end is no sign.
    text = head.decode("utf-16" if has_mark else "utf-8", errors="replace").rstrip("\ufffd")
    start = text.lstrip("\ufeff \t\r\n").lower()
    if (
        text
        and "\ufffd" not in text
        and all(char.isprintable() or char in "\ufeff\t\r\n\f" for char in text)
    ):
        if "<svg" in start:
            return "SVG (vector graphics)"
        if start.startswith(("<!doctype html", "<html", "<head", "<body")):
            return "an HTML page, such as a download's error message"
        if start.startswith("<"):
            return "XML or HTML text"
        return "JSON text" if start.startswith(("{", "[")) else "plain text"
    return f"data of no known kind (it begins with {head[:8].hex(' ')})"
