"""The paper's Table 1 for a dataset: storage of its parts in bits.

    python tools/bitcount.py SHARDS [--image-size 256x256] [--json]

Raw media are counted as in the paper: pixels of 24 bits, and audio at 16 kHz of 16 bits. The size
of the images is that of the dataset's view (224 x 224), or recorded in `raw` (`image_pixels`), or
given by `--image-size`. Everything else is measured on the dataset's files: the values of each
column, the checksums in `dataset.json`, the coding tables of speech, and the rest as container. The
parts add up to the bytes on disk. The codebook is listed separately, with the coding tables of
image units: their size does not depend on the dataset.

The paper's own figures are shown where the units have its shape, bits and image size.

Exit codes: 0 counted, 1 the dataset is missing or damaged, 2 usage.
"""

import json
import math
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

from im2sp.pipeline.decoding.views import VIEWS
from im2sp.shards import Manifest, ShardDataset
from im2sp.shards.command_line import run_command
from im2sp.shards.stores import folder_or_url
from im2sp.tools.inspection.measure import measure
from im2sp.tools.inspection.report import shape_text
from im2sp.tools.inspection.sizes import codebook_bytes, part_bytes

BITS_PER_PIXEL = 24
VIEW_PIXELS = 224 * 224  # of the pixels that a view of im2sp-tokenize keeps
RAW_BITS_PER_FRAME = 320 * 16  # one speech unit is 20 ms at 16 kHz
PAPER_IMAGE_BITS = 28 * 28 * 13
PAPER_IMAGE_SHARE = PAPER_IMAGE_BITS / (VIEW_PIXELS * BITS_PER_PIXEL)
PAPER_SPEECH_CODES = 200

PART_NAMES = {
    "image_units": "image units",
    "speech_units": "speech units",
    "durations": "durations",
    "text": "captions",
    "keys": "keys and splits",
}
OTHER_PART_NAMES = {
    "tables": "codec tables of speech",
    "container": "container",
    "checksums": "checksums",
}
PART_OF_COLUMN = {"captions": "text", "text": "text (column)"}


@dataclass(frozen=True, kw_only=True)
class BitCount:
    """Storage table of one dataset."""

    num_samples: int
    num_images: int
    num_utterances: int
    image_shape: tuple[int | None, ...]
    """Shape of the units of one image; () without a column image_units."""
    image_unit_bits: int
    """Bits of one image unit at a fixed width; 0 without them."""
    unit_bits_per_image: int
    """Bits of the units of one image at a fixed width, the mean if images differ."""
    pixels_per_image: int | None
    """Pixels of one image, the mean if they differ; None if unknown."""
    image_file_bytes: int
    """Size of the original image files; 0 if the manifest does not record it."""
    num_speech_units: int
    speech_unit_bits: int
    """Bits of one speech unit at a fixed width; 0 without them."""
    speech_frames: int | None
    """Sum of all durations; None if an utterance has no durations."""
    audio_samples: int
    """Samples of the speech at 16 kHz; 0 if the manifest does not record it."""
    audio_file_bytes: int
    """Size of the original audio files; 0 if the manifest does not record it."""
    other_units: dict[str, dict[str, Any]]
    """Other unit columns: shape, bits of a unit at a fixed width, num_arrays and num_units."""
    parts: dict[str, int]
    """Bytes on disk by part; they sum to `total_bytes`."""
    codebook_bytes: int
    has_paper_images: bool
    """True if units and images have the shape, bits and size of the paper's."""
    has_paper_speech: bool
    """True if the vocabulary of the speech units has the size of the paper's."""

    @property
    def raw_bits_per_image(self) -> int | None:
        """Bits of the pixels of one image; None if its size is unknown."""
        pixels = self.pixels_per_image
        return None if pixels is None else pixels * BITS_PER_PIXEL

    @property
    def total_bytes(self) -> int:
        """Bytes on disk without the codebook."""
        return sum(self.parts.values())

    @property
    def without_text_bytes(self) -> int:
        """Bytes on disk without the codebook and the captions."""
        return self.total_bytes - self.parts["text"]

    @property
    def image_side_bytes(self) -> int:
        """Bytes stored for the images: all but the codebook, captions, speech and other columns."""
        known = {*PART_NAMES, *OTHER_PART_NAMES}
        others = sum(size for part, size in self.parts.items() if part not in known)
        return self.without_text_bytes - self.speech_bytes - self.parts["tables"] - others

    @property
    def speech_bytes(self) -> int:
        """Bytes of the speech units and their durations."""
        return self.parts["speech_units"] + self.parts["durations"]

    @property
    def raw_speech_bits(self) -> int | None:
        """Bits of the audio at 16 kHz and 16 bits per sample; None if its length is unknown.

        If the manifest does not record the length, it is the sum of the durations, to 20 ms.
        """
        if self.audio_samples:
            return self.audio_samples * 16
        return None if self.speech_frames is None else self.speech_frames * RAW_BITS_PER_FRAME

    def as_json(self) -> dict[str, Any]:
        """Counts, sizes and ratios as plain JSON values; a ratio without a base is null."""
        raw_bits = self.raw_bits_per_image and self.num_images * self.raw_bits_per_image
        raw_speech_bits = self.raw_speech_bits
        return asdict(self) | {
            "raw_image_bits": raw_bits,
            "raw_speech_bits": raw_speech_bits,
            "total_bytes": self.total_bytes,
            "without_text_bytes": self.without_text_bytes,
            "image_bytes_per_image": ratio(self.image_side_bytes, self.num_images),
            "image_files_of_raw": ratio(8 * self.image_file_bytes, raw_bits),
            "image_units_of_raw": ratio(self.unit_bits_per_image * self.num_images, raw_bits),
            "image_on_disk_of_raw": ratio(8 * self.image_side_bytes, raw_bits),
            "image_on_disk_of_files": ratio(self.image_side_bytes, self.image_file_bytes),
            "audio_files_of_raw": ratio(8 * self.audio_file_bytes, raw_speech_bits),
            "speech_units_of_raw": ratio(
                self.speech_unit_bits * self.num_speech_units, raw_speech_bits
            ),
            "speech_units_on_disk_of_raw": ratio(8 * self.parts["speech_units"], raw_speech_bits),
            "durations_on_disk_of_raw": ratio(8 * self.parts["durations"], raw_speech_bits),
            "speech_on_disk_of_raw": ratio(8 * self.speech_bytes, raw_speech_bits),
            "paper_image_of_raw": PAPER_IMAGE_SHARE if self.has_paper_images else None,
            "paper_speech_of_raw_below": 0.002 if self.has_paper_speech else None,
        }


def ratio(part: float, whole: float | None) -> float | None:
    """Share of the part in the whole, or None without a whole."""
    return part / whole if whole else None


def count_bits(dataset_dir: Path | str, image_size: tuple[int, int] | None = None) -> BitCount:
    """Measure a dataset.

    Args:
        dataset_dir: The dataset's folder or URL.
        image_size: Width and height of its images in pixels; None for what it records.

    Raises:
        ShardError: A file is missing, damaged, or of another size than in the manifest.
    """
    dataset = ShardDataset(dataset_dir)
    manifest = dataset.manifest
    measured = measure(dataset)
    columns = dict(measured.columns)
    images, speech, durations = (
        columns.pop(name, None) for name in ("image_units", "speech_units", "durations")
    )
    num_images, num_utterances = (one.num_arrays if one else 0 for one in (images, speech))
    image_bits, speech_bits = (one.column.kind.bits if one else 0 for one in (images, speech))
    shape = images.column.kind.shape if images else ()
    unit_bits = images.num_units * image_bits if images else 0
    pixels = image_pixels(manifest, image_size, num_images)
    sizes = dict.fromkeys(PART_NAMES, 0)
    sizes |= {PART_OF_COLUMN.get(name, name): size for name, size in measured.sizes.items()}
    num_timed = durations.num_arrays if durations else 0
    return BitCount(
        num_samples=manifest.num_samples,
        num_images=num_images,
        num_utterances=num_utterances,
        image_shape=shape,
        image_unit_bits=image_bits,
        unit_bits_per_image=round(unit_bits / max(num_images, 1)),
        pixels_per_image=pixels,
        image_file_bytes=manifest.raw.get("image_file_bytes", 0),
        num_speech_units=speech.num_units if speech else 0,
        speech_unit_bits=speech_bits,
        speech_frames=durations.sum_units if durations and num_timed == num_utterances else None,
        audio_samples=manifest.raw.get("audio_samples", 0),
        audio_file_bytes=manifest.raw.get("audio_file_bytes", 0),
        other_units={
            name: {
                "shape": list(one.column.kind.shape),
                "bits": one.column.kind.bits,
                "num_arrays": one.num_arrays,
                "num_units": one.num_units,
            }
            for name, one in columns.items()
        },
        parts=part_bytes(dataset.files, manifest, sizes),
        codebook_bytes=codebook_bytes(dataset.files, manifest),
        has_paper_images=(shape, image_bits, pixels) == ((28, 28), 13, VIEW_PIXELS),
        has_paper_speech=bool(speech) and speech.column.kind.num_codes == PAPER_SPEECH_CODES,
    )


def image_pixels(
    manifest: Manifest, image_size: tuple[int, int] | None, num_images: int
) -> int | None:
    """Pixels of one image: given, recorded, or those of the view; None if unknown."""
    if image_size is not None:
        return image_size[0] * image_size[1]
    if "image_pixels" in manifest.raw:
        return round(manifest.raw["image_pixels"] / max(num_images, 1))
    view = (manifest.image_tokenizer or {}).get("view")
    return VIEW_PIXELS if view in VIEWS else None


def percent(part: float, whole: float | None) -> str:
    """Share as text; `-` without a whole."""
    share = ratio(part, whole)
    return "-" if share is None else f"{100 * share:.3f} %"


def image_rows(count: BitCount) -> list[str]:
    """Rows of the paper's Table 1 for images: bits per image and their share of the raw bits."""
    n = max(count.num_images, 1)
    raw = count.raw_bits_per_image
    files = 8 * count.image_file_bytes / n
    disk = 8 * count.image_side_bytes / n
    shape = shape_text(count.image_shape)
    rows: list[tuple[str, float]] = []
    if raw is not None:
        assert count.pixels_per_image is not None
        side = math.isqrt(count.pixels_per_image)
        size = f"{side} x {side}" if side**2 == count.pixels_per_image else f"{raw // 24:,} pixels"
        rows.append((f"raw pixels ({size} x 24 bits)", raw))
    if count.image_file_bytes:
        rows.append(("original files", files))
    rows += [
        (f"image units ({shape} x {count.image_unit_bits} bits)", count.unit_bits_per_image),
        ("on disk (units, keys, container, checksums)", disk),
    ]
    if count.has_paper_images:
        rows.append(("the paper (28 x 28 x 13 bits)", PAPER_IMAGE_BITS))
    lines = [f"{'images':<44}{'bits per image':>15}{'of raw':>12}{'of files':>12}"]
    lines += [
        f"{name:<44}{value:>15,.0f}{percent(value, raw):>12}{percent(value, files):>12}"
        for name, value in rows
    ]
    if raw is None:
        lines.append("raw size unknown: give the size of the images with --image-size")
    return lines


def speech_rows(count: BitCount) -> list[str]:
    """Likewise for speech: bits per second and their share, if the length is known."""
    lines = [f"{'speech':<44}{'bits per second':>15}{'of raw':>12}{'of files':>12}"]
    if not count.raw_speech_bits:
        return [*lines, "raw length unknown: the utterances have no durations"]
    seconds = count.raw_speech_bits / 256_000
    files = 8 * count.audio_file_bytes / seconds
    bits = count.speech_unit_bits
    rows = [("raw audio (16 kHz x 16 bits)", 256_000.0)]
    if count.audio_file_bytes:
        rows.append(("original files", files))
    rows += [
        (f"speech units ({bits} bits each)", bits * count.num_speech_units / seconds),
        ("speech units on disk", 8 * count.parts["speech_units"] / seconds),
        ("durations on disk", 8 * count.parts["durations"] / seconds),
        ("codec tables on disk", 8 * count.parts["tables"] / seconds),
    ]
    if count.has_paper_speech:
        rows.append(("the paper (under 50 x 8 bits)", 400.0))
    lines += [
        f"{name:<44}{value:>15,.0f}{percent(value, 256_000):>12}{percent(value, files):>12}"
        for name, value in rows
    ]
    return lines


def other_rows(count: BitCount) -> list[str]:
    """Rows of other unit columns: bits per array, at a fixed width and on disk."""
    lines = [f"{'other units':<44}{'bits per array':>15}{'on disk':>12}{'of fixed':>12}"]
    for name, units in count.other_units.items():
        n = max(units["num_arrays"], 1)
        fixed, disk = units["num_units"] * units["bits"] / n, 8 * count.parts[name] / n
        label = f"{name} ({shape_text(units['shape'])} x {units['bits']} bits)"
        lines.append(f"{label:<44}{fixed:>15,.0f}{disk:>12,.0f}{percent(disk, fixed):>12}")
    return lines


def disk_rows(count: BitCount) -> list[str]:
    """Rows of the parts on disk."""
    n = max(count.num_samples, 1)
    total = count.total_bytes
    names = PART_NAMES | OTHER_PART_NAMES
    rows = [(names.get(part, part), size) for part, size in count.parts.items()]
    rows += [("total", total), ("total without captions", count.without_text_bytes)]
    lines = [f"{'on disk':<44}{'bytes':>15}{'per sample':>12}{'share':>12}"]
    lines += [
        f"{name:<44}{size:>15,}{size / n:>12,.1f}{percent(size, total):>12}" for name, size in rows
    ]
    lines.append(f"{'codebook, image tables (once per dataset)':<44}{count.codebook_bytes:>15,}")
    return lines


def table(count: BitCount, name: str) -> str:
    """Complete report as text."""
    title = (
        f"{name}: {count.num_samples:,} samples, {count.num_images:,} images,"
        f" {count.num_utterances:,} utterances"
    )
    if count.raw_speech_bits:
        title += f" ({count.raw_speech_bits / 256_000 / 3600:,.2f} hours)"
    blocks = [[title]]
    if count.num_images:
        blocks.append(image_rows(count))
    if count.num_utterances:
        blocks.append(speech_rows(count))
    if count.other_units:
        blocks.append(other_rows(count))
    blocks.append(disk_rows(count))
    return "\n\n".join("\n".join(block) for block in blocks)


@dataclass(frozen=True, kw_only=True)
class BitcountConfig:
    """Storage table of a dataset, as the paper's Table 1: the bits of each part.

    Exit code: 0 counted; 1 the dataset is missing or damaged; 2 wrong usage.
    """

    shards: tyro.conf.Positional[Path]
    """Folder or URL (s3://..) with dataset.json."""
    image_size: str | None = None
    """Width and height of the images in pixels, such as 256x256; by default what is recorded."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        """Raise ValueError, naming the flag, if a value cannot be used."""
        parsed_size(self.image_size)


def parsed_size(text: str | None) -> tuple[int, int] | None:
    """Width and height of `--image-size`."""
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if match is None:
        raise ValueError(f"--image-size is {text!r}; expected width and height, such as 256x256")
    return int(match[1]), int(match[2])


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bitcount", BitcountConfig, _run, args)


def _run(config: BitcountConfig) -> None:
    shards = folder_or_url(config.shards)
    count = count_bits(shards, parsed_size(config.image_size))
    print(json.dumps(count.as_json()) if config.json else table(count, str(shards)))


if __name__ == "__main__":
    sys.exit(main())
