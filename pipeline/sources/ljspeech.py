"""LJSpeech as a source: clips and text, no images."""

from collections.abc import Iterator
from pathlib import Path

from im2sp.pipeline.sources.files import count_files
from im2sp.pipeline.sources.items import SourceError, SourceListing, clean_key
from im2sp.pipeline.sources.roots import make_audio_finder
from im2sp.pipeline.sources.rows import (
    Row,
    RowClip,
    check_some_audio,
    items_of_rows,
)
from im2sp.shards.files import open_regular, read_regular

_METADATA = "metadata.csv"
_WAVS = "wavs"
_FIRST_LINE_BYTES = 65_536


def is_ljspeech(folder: Path) -> bool:
    """True if a folder has `wavs/` and a `metadata.csv` whose first line has fields between `|`."""
    metadata = folder / _METADATA
    if not metadata.is_file() or not (folder / _WAVS).is_dir():
        return False
    try:
        with open_regular(metadata) as file:
            return b"|" in file.readline(_FIRST_LINE_BYTES)
    except OSError:
        return False


def list_ljspeech(folder: Path) -> SourceListing:
    """One item per line of `metadata.csv`: `wavs/ID.wav` with its normalised text, key ID.

    Other files of the folder are ignored, and counted.

    A line is `ID|text|normalised text`, without quoting; if the third field is empty or missing,
    the second is used.

    Raises:
        SourceError: The file cannot be read, or none of its clips exists.
    """
    rows = list(_rows(folder / _METADATA))
    items = items_of_rows(rows, lambda _: "no image", make_audio_finder(folder))
    unnamed = f"no line of {_METADATA} is id|text|normalised text; correct it"
    advice = f"put them into {folder / _WAVS}"
    check_some_audio(folder, items, folder, unnamed=unnamed, advice=advice)
    used = {utterance.name for item in items for utterance in item.utterances} | {_METADATA}
    return SourceListing(kind="ljspeech", items=items, ignored=count_files(folder, used))


def _rows(metadata: Path) -> Iterator[Row]:
    try:
        content = read_regular(metadata)
    except OSError as error:
        raise SourceError(f"{metadata}: cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        text = line.decode("utf-8", "surrogateescape").strip("\r")
        if text.strip():
            yield _row(f"line {number}", text.split("|"))


def _row(where: str, fields: list[str]) -> Row:
    if len(fields) not in (2, 3) or not fields[0].strip():
        problem = f"found {len(fields)} fields between |, expected id|text|normalised text"
        return Row(where=where, error=problem)
    name, *texts = (field.strip() for field in fields)
    text = texts[-1] or texts[0]
    clip = RowClip(f"{_WAVS}/{name}.wav", text or None, where)
    return Row(where=where, key=clean_key(name), speech=[clip])
