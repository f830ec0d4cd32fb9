"""The paper's Table 1 for a dataset: storage of its parts in bits.

    python tools/bitcount.py SHARDS [--json]

Raw media are counted as in the paper: images of 224 x 224 pixels of 24 bits, and audio at 16 kHz of
16 bits. Everything else is measured on the dataset's files: the values of each column, the
checksums in `dataset.json`, the coding tables of speech, and the rest as container. The parts add
up to the bytes on disk. The codebook is listed separately: its size does not depend on the dataset.

Exit codes: 0 counted, 1 the dataset is missing or damaged, 2 usage.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from numpy.typing import NDArray

from im2sp.shards import Manifest, Sample, ShardDataset, ShardError
from im2sp.shards.coding import Codec, ColumnCodecs, make_codecs
from im2sp.shards.command_line import run_command
from im2sp.shards.manifest import MANIFEST_NAME, REJECTS_NAME

RAW_BITS_PER_IMAGE = 224 * 224 * 24
RAW_BITS_PER_FRAME = 320 * 16  # one speech unit is 20 ms at 16 kHz
PAPER_IMAGE_BITS = 28 * 28 * 13
PAPER_IMAGE_SHARE = PAPER_IMAGE_BITS / RAW_BITS_PER_IMAGE

PART_NAMES = {
    "image_units": "image units",
    "speech_units": "speech units",
    "durations": "durations",
    "text": "captions",
    "keys": "keys and splits",
    "tables": "codec tables of speech",
    "container": "container",
    "checksums": "checksums",
}


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Sizes of the samples' values, without the container."""

    num_images: int
    num_utterances: int
    num_speech_units: int
    speech_frames: int | None
    """Sum of all durations; None if an utterance has no durations."""
    parts: dict[str, int]
    """Bytes per column: image_units, speech_units, durations, text, keys."""


@dataclass(frozen=True, kw_only=True)
class BitCount:
    """Storage table of one dataset."""

    num_samples: int
    num_images: int
    num_utterances: int
    unit_bits_per_image: int
    image_file_bytes: int
    """Size of the original image files; 0 if the manifest does not record it."""
    num_speech_units: int
    speech_frames: int | None
    audio_samples: int
    """Samples of the speech at 16 kHz; 0 if the manifest does not record it."""
    audio_file_bytes: int
    """Size of the original audio files; 0 if the manifest does not record it."""
    parts: dict[str, int]
    """Bytes on disk by part; they sum to `total_bytes`."""
    codebook_bytes: int

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
        """Bytes stored for the images: all but the codebook, captions and speech."""
        return self.without_text_bytes - self.speech_bytes - self.parts["tables"]

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
        raw_bits = self.num_images * RAW_BITS_PER_IMAGE
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
            "speech_units_of_raw": ratio(8 * self.num_speech_units, raw_speech_bits),
            "speech_units_on_disk_of_raw": ratio(8 * self.parts["speech_units"], raw_speech_bits),
            "durations_on_disk_of_raw": ratio(8 * self.parts["durations"], raw_speech_bits),
            "speech_on_disk_of_raw": ratio(8 * self.speech_bytes, raw_speech_bits),
            "paper_image_of_raw": PAPER_IMAGE_SHARE,
            "paper_speech_of_raw_below": 0.002,
        }


def ratio(part: float, whole: float | None) -> float | None:
    """Share of the part in the whole, or None without a whole."""
    return part / whole if whole else None


def coded_bytes(arrays: Iterable[NDArray[np.uint16]], codec: Codec) -> int:
    """Total bytes of id arrays, coded one by one."""
    return sum(len(codec.encode(array)) for array in arrays)


def measure(samples: Iterable[Sample], codecs: ColumnCodecs) -> Payload:
    """Add up the sizes of all samples' values in the dataset's codecs."""
    parts = dict.fromkeys(["image_units", "speech_units", "durations", "text", "keys"], 0)
    num_images = num_utterances = num_speech_units = frames = 0
    known = True
    for sample in samples:
        if sample.image_units is not None:
            num_images += 1
            parts["image_units"] += codecs.image_size_bytes
        num_utterances += len(sample.speech_units)
        num_speech_units += sum(len(units) for units in sample.speech_units)
        parts["speech_units"] += coded_bytes(sample.speech_units, codecs.speech_units)
        if sample.durations is not None:
            parts["durations"] += coded_bytes(sample.durations, codecs.durations)
            frames += sum(int(d.sum(dtype=np.int64)) for d in sample.durations)
        elif sample.speech_units:
            known = False
        parts["text"] += sum(len(caption.encode()) for caption in sample.captions)
        parts["keys"] += len(sample.key.encode()) + len(sample.split.encode())
    return Payload(
        num_images=num_images,
        num_utterances=num_utterances,
        num_speech_units=num_speech_units,
        speech_frames=frames if known else None,
        parts=parts,
    )


def checksum_bytes(node: Any) -> int:
    """Bytes of all checksums below a JSON node, as JSON text with quotes."""
    if isinstance(node, list):
        return sum(checksum_bytes(child) for child in node)
    if not isinstance(node, dict):
        return 0
    return sum(
        len(json.dumps(value))
        if any(word in name for word in ("sha256", "crc32", "checksum"))
        and isinstance(value, str | int)
        else checksum_bytes(value)
        for name, value in node.items()
    )


def table_bytes(dataset_dir: Path, manifest: Manifest) -> int:
    """Bytes of the coding tables of speech in `dataset.json` and in each shard's metadata."""
    tables = {
        columns["lengths"].encode() for columns in manifest.columns.values() if "lengths" in columns
    }
    if not tables:
        return 0
    total = 0
    for name in (MANIFEST_NAME, *(shard.file for shard in manifest.shards)):
        data = (dataset_dir / name).read_bytes()
        total += sum(len(table) * data.count(table) for table in tables)
    return total


def file_bytes(path: Path, expected: int | None = None) -> int:
    """Size of a dataset's file; ShardError if the manifest records another size."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ShardError(f"{path}: missing, but {MANIFEST_NAME} lists it") from None
    if expected is not None and size != expected:
        raise ShardError(
            f"{path}: {size:,} bytes, {MANIFEST_NAME} says {expected:,}; run im2sp-verify"
        )
    return size


def count_bits(dataset_dir: Path) -> BitCount:
    """Measure a dataset.

    Raises:
        ShardError: A file is missing, damaged, or of another size than in the manifest.
    """
    dataset = ShardDataset(dataset_dir)
    manifest = dataset.manifest
    codecs = make_codecs(manifest.columns)
    payload = measure(dataset, codecs)

    total = file_bytes(dataset_dir / MANIFEST_NAME)
    total += sum(file_bytes(dataset_dir / s.file, s.size_bytes) for s in manifest.shards)
    if manifest.num_rejects or manifest.rejects_sha256 is not None:
        total += file_bytes(dataset_dir / REJECTS_NAME)
    codebook = manifest.codebook_file

    checksums = checksum_bytes(json.loads((dataset_dir / MANIFEST_NAME).read_text("utf-8")))
    parts = payload.parts | {"tables": table_bytes(dataset_dir, manifest), "checksums": checksums}
    parts["container"] = total - sum(parts.values())
    return BitCount(
        num_samples=manifest.num_samples,
        num_images=payload.num_images,
        num_utterances=payload.num_utterances,
        unit_bits_per_image=(codecs.image_units.count or 0) * codecs.image_units.bits,
        image_file_bytes=manifest.raw.get("image_file_bytes", 0),
        num_speech_units=payload.num_speech_units,
        speech_frames=payload.speech_frames,
        audio_samples=manifest.raw.get("audio_samples", 0),
        audio_file_bytes=manifest.raw.get("audio_file_bytes", 0),
        parts=parts,
        codebook_bytes=file_bytes(dataset_dir / codebook) if codebook else 0,
    )


def percent(part: float, whole: float | None) -> str:
    """Share as text; `-` without a whole."""
    share = ratio(part, whole)
    return "-" if share is None else f"{100 * share:.3f} %"


def image_rows(count: BitCount) -> list[str]:
    """Rows of the paper's Table 1 for images: bits per image and their share of the raw bits."""
    n = max(count.num_images, 1)
    files = 8 * count.image_file_bytes / n
    disk = 8 * count.image_side_bytes / n
    rows = [
        ("raw pixels (224 x 224 x 24 bits)", RAW_BITS_PER_IMAGE),
        ("original files", files),
        (f"image units ({count.unit_bits_per_image:,} bits)", count.unit_bits_per_image),
        ("on disk (units, keys, container, checksums)", disk),
        ("the paper (28 x 28 x 13 bits)", PAPER_IMAGE_BITS),
    ]
    lines = [f"{'images':<44}{'bits per image':>15}{'of raw':>12}{'of files':>12}"]
    lines += [
        f"{name:<44}{value:>15,.0f}{percent(value, RAW_BITS_PER_IMAGE):>12}"
        + f"{percent(value, files):>12}"
        for name, value in rows
    ]
    if not count.image_file_bytes:
        del lines[2]  # the manifest does not record the size of the files
    return lines


def speech_rows(count: BitCount) -> list[str]:
    """Likewise for speech: bits per second and their share, if the length is known."""
    lines = [f"{'speech':<44}{'bits per second':>15}{'of raw':>12}{'of files':>12}"]
    if not count.raw_speech_bits:
        return [*lines, "raw length unknown: the utterances have no durations"]
    seconds = count.raw_speech_bits / 256_000
    files = 8 * count.audio_file_bytes / seconds
    rows = [
        ("raw audio (16 kHz x 16 bits)", 256_000.0),
        ("original files", files),
        ("speech units (8 bits each)", 8 * count.num_speech_units / seconds),
        ("speech units on disk", 8 * count.parts["speech_units"] / seconds),
        ("durations on disk", 8 * count.parts["durations"] / seconds),
        ("codec tables on disk", 8 * count.parts["tables"] / seconds),
        ("the paper (under 50 x 8 bits)", 400.0),
    ]
    lines += [
        f"{name:<44}{value:>15,.0f}{percent(value, 256_000):>12}{percent(value, files):>12}"
        for name, value in rows
    ]
    if not count.audio_file_bytes:
        del lines[2]  # the manifest does not record the size of the files
    return lines


def disk_rows(count: BitCount) -> list[str]:
    """Rows of the parts on disk."""
    n = max(count.num_samples, 1)
    total = count.total_bytes
    rows = [(name, count.parts[part]) for part, name in PART_NAMES.items()]
    rows += [("total", total), ("total without captions", count.without_text_bytes)]
    lines = [f"{'on disk':<44}{'bytes':>15}{'per sample':>12}{'share':>12}"]
    lines += [
        f"{name:<44}{size:>15,}{size / n:>12,.1f}{percent(size, total):>12}" for name, size in rows
    ]
    lines.append(f"{'codebook (once per dataset)':<44}{count.codebook_bytes:>15,}")
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
    blocks.append(disk_rows(count))
    return "\n\n".join("\n".join(block) for block in blocks)


@dataclass(frozen=True, kw_only=True)
class BitcountConfig:
    """Storage table of a dataset, as the paper's Table 1: the bits of each part.

    Exit code: 0 counted; 1 the dataset is missing or damaged; 2 wrong usage.
    """

    shards: tyro.conf.Positional[Path]
    """Folder with dataset.json."""
    json: bool = False
    """Print one JSON object."""


def main(args: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("bitcount", BitcountConfig, _run, args)


def _run(config: BitcountConfig) -> None:
    count = count_bits(config.shards)
    print(json.dumps(count.as_json()) if config.json else table(count, str(config.shards)))


if __name__ == "__main__":
    sys.exit(main())
