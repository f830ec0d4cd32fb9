"""Output folder of im2sp-speak, and its page of images, decoded units, sentences and audio.

The page is one HTML file that opens from disk, without scripts or external resources; images and
clips are stored beside it. The folder records its own files, so that a later run replaces only
those.
"""

import html
import json
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from im2sp.pipeline.sources.items import SPOKEN_LIST
from im2sp.shards.errors import counted
from im2sp.shards.files import atomic_file, is_plain_name, read_json

PAGE_NAME = "index.html"
SPOKEN_NAME = "spoken.jsonl"
REJECTS_NAME = "rejects.jsonl"
_TABLES = [PAGE_NAME, SPOKEN_NAME, REJECTS_NAME]
_FORM = "im2sp-speak 1"
_LONGEST_STEM = 80
_STYLE = """
:root { color-scheme: light dark; --line: #d0d0d0; --soft: #595959; --box: #eee; }
@media (prefers-color-scheme: dark) { :root { --line: #444; --soft: #b4b4b4; --box: #262626; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; line-height: 1.4;
  font-family: system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
header p, figcaption, .label, .about { color: var(--soft); font-size: .875rem; margin: 0; }
article { display: grid; gap: .5rem 1rem; padding: 1rem 0; border-top: 1px solid var(--line);
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
header { padding-bottom: 1rem; }
.images { display: flex; gap: .5rem; }
figure { flex: 1 1 0; margin: 0; min-width: 0; max-width: 20rem; }
.box { aspect-ratio: 4 / 3; display: grid; place-items: center; overflow: hidden;
  background: var(--box); border-radius: .25rem; }
img { display: block; height: auto; object-fit: fill; }
h2 { font-size: 1.25rem; margin: 0 0 .5rem; }
audio { display: block; width: 100%; max-width: 30rem; margin: 0 0 .5rem; }
blockquote { margin: 0 0 .5rem; }
ul { margin: 0 0 .5rem; padding-left: 1.25rem; font-size: .875rem; }
"""


@dataclass(frozen=True, kw_only=True)
class PageImage:
    """An image file beside the page, and the size at which it is shown."""

    file: str
    width_px: int
    height_px: int


@dataclass(frozen=True, kw_only=True)
class PageItem:
    """A description on the page."""

    key: str
    text: str | None = None
    """Generated sentence; None without a captioner of text."""
    wav: str | None = None
    """Name of the clip, beside the page; None without a captioner of speech."""
    num_units: int = 0
    duration_s: float = 0.0
    transcript: str | None = None
    """Transcript of a recognizer; None without one."""
    captions: Sequence[str] = ()
    """Captions of the source."""
    picture: PageImage | None = None
    decoded: PageImage | None = None
    """Image decoded from its units."""


def page(title: str, about: Sequence[str], items: Sequence[PageItem]) -> str:
    """Return the page as HTML.

    Args:
        title: Heading.
        about: Lines below the heading.
        items: Descriptions in order.
    """
    lines = "".join(f"<p>{html.escape(line)}</p>\n" for line in about)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{html.escape(title)}</h1>\n{lines}</header>\n<main>\n"
        + "".join(_article(item) for item in items)
        + "</main>\n</body>\n</html>\n"
    )


def _article(item: PageItem) -> str:
    figures = ""
    if item.picture is not None:
        figures += _figure(item.picture, "Image", f"Image {item.key}")
    if item.decoded is not None:
        figures += _figure(item.decoded, "What its units keep", f"{item.key}, from its units")
    images = f'<div class="images">\n{figures}</div>\n' if figures else ""
    parts: list[str] = []
    about = [html.escape(item.key)]
    if item.text is not None:
        parts.append(f"<h2>{_sentence(item.text)}</h2>\n")
    if item.wav is not None:
        wav = _link(item.wav)
        parts.append(
            f'<audio controls preload="metadata" src="{wav}"><a href="{wav}">{wav}</a></audio>\n'
        )
        about += [counted(item.num_units, "unit"), f"{item.duration_s:.1f} s"]
    if item.transcript is not None:
        parts.append(f'<p class="label">Transcript of the sound</p>\n'
                     f"<blockquote>{_sentence(item.transcript)}</blockquote>\n")  # fmt: skip
    if item.captions:
        rows = "".join(f"<li>{html.escape(caption)}</li>\n" for caption in item.captions)
        parts.append(f'<p class="label">Known captions</p>\n<ul>\n{rows}</ul>\n')
    parts.append(f'<p class="about">{", ".join(about)}</p>\n')
    return f"<article>\n{images}<div>\n{''.join(parts)}</div>\n</article>\n"


def _sentence(text: str) -> str:
    return html.escape(text) if text.strip() else "(nothing)"


def _figure(image: PageImage, caption: str, alternative: str) -> str:
    """A figure in a box of 4:3, which a portrait fills in height, with the image's own shape."""
    width, height = image.width_px, image.height_px
    share = min(100.0, 75 * width / height)
    return (
        f'<figure><div class="box"><img src="{_link(image.file)}" alt="{html.escape(alternative)}"'
        f' width="{width}" height="{height}" loading="lazy"'
        f' style="width: {share:.4g}%; aspect-ratio: {width} / {height}">'
        f"</div><figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


def _link(file: str) -> str:
    return html.escape(urllib.parse.quote(file))


class SpeechFolder:
    """Output files of one run of im2sp-speak."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        """Create the folder, record the files to write, and remove the tables of an earlier run.

        Args:
            path: The folder.
            names: Names of all files that may be written, besides the tables.

        Raises:
            ValueError: A file of another origin has one of the names; nothing is changed.
            OSError: The folder cannot be written.
        """
        self.path = path
        self._written: set[str] = set()
        self._former = _own_names(path)
        wanted = {*_TABLES, *names}
        for name in sorted(wanted - self._former):
            if (path / name).exists():
                raise ValueError(
                    f"--out {path}: holds {name}, which im2sp-speak did not write; move it"
                    " away or choose another --out"
                )
        path.mkdir(parents=True, exist_ok=True)
        self._list(self._former | wanted)
        for name in _TABLES:
            (path / name).unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write a file atomically."""
        with atomic_file(self.path / name) as file:
            file.write(data)
        self._written.add(name)

    def write_rows(self, name: str, rows: Sequence[object]) -> None:
        """Write JSON lines."""
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        self.write(name, "".join(lines).encode())

    def finish(self, page: str) -> None:
        """Remove files of earlier runs, and write the page."""
        for name in self._former - self._written - {PAGE_NAME}:
            (self.path / name).unlink(missing_ok=True)
        self.write(PAGE_NAME, page.encode())
        self._list(self._written)

    def _list(self, names: Iterable[str]) -> None:
        content = {"form": _FORM, "files": sorted(names)}
        with atomic_file(self.path / SPOKEN_LIST) as file:
            file.write(json.dumps(content, indent=1).encode() + b"\n")


def _own_names(path: Path) -> set[str]:
    """Names of files that an earlier run wrote, completely or partly."""
    place = path / SPOKEN_LIST
    try:
        content = read_json(place)
        names = content["files"] if content["form"] == _FORM else None
    except FileNotFoundError:
        return set()
    except (ValueError, TypeError, KeyError):
        names = None
    if not isinstance(names, list) or not all(is_plain_name(name) for name in names):
        raise ValueError(f"{place}: not written by im2sp-speak; remove it or choose another --out")
    return set(names)


def file_stems(keys: Sequence[str]) -> list[str]:
    """File names without suffix for keys, unique even if case is ignored.

    file_stems(["a/b.c", "A_B_C", ""]) == ["a_b_c", "A_B_C-2", "_"]
    """
    stems: list[str] = []
    taken: set[str] = set()
    for key in keys:
        first = stem = re.sub(r"[^A-Za-z0-9_-]", "_", key)[:_LONGEST_STEM] or "_"
        number = 1
        while stem.lower() in taken:
            number += 1
            stem = f"{first}-{number}"
        taken.add(stem.lower())
        stems.append(stem)
    return stems
