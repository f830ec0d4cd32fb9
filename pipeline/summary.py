"""Summary of a tokenize job."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from im2sp.pipeline.decoding.audio import SAMPLE_RATE_HZ
from im2sp.pipeline.job.run import JobResult, PartResult, RunResult
from im2sp.shards import MANIFEST_NAME, REJECTS_NAME
from im2sp.shards.codebook import table_bytes
from im2sp.shards.errors import counted, shown
from im2sp.shards.files import size_of

_RAW_IMAGE_BITS = 224 * 224 * 24
_RAW_SAMPLE_BITS = 16


def summary_json(dataset_dir: Path | str, result: JobResult) -> str:
    """Return the summary as one JSON object; figures as in `summary`."""
    manifest = result.manifest
    return json.dumps(
        {
            "out": str(dataset_dir),
            "was_finished": result.was_finished,
            "num_inputs": _num_inputs(result),
            "num_ignored": sum(_ignored(result).values()),
            "notes": list(result.inputs.notes),
            "splits": dict(manifest.splits),
            "num_refused": manifest.num_rejects,
            "num_samples": manifest.num_samples,
            "num_shards": len(manifest.shards),
            "num_encoded": result.num_encoded,
            "num_utterances_encoded": result.num_utterances,
            "audio_encoded_s": round(result.audio_s, 3),
            "encode_s": round(result.encode_s, 3),
            "size_bytes": size_bytes(dataset_dir, result),
            "raw": dict(manifest.raw),
            "image_tokenizer": _plain(manifest.image_tokenizer),
            "speech_tokenizer": _plain(manifest.speech_tokenizer),
        }
    )


def summary(source: str, dataset_dir: Path | str, result: JobResult) -> str:
    """Return a few lines: inputs read, refused and ignored, and output written.

    Args:
        source: Name of the source.
        dataset_dir: Folder of the dataset, or its URL as text.
        result: Result of the job.
    """
    manifest, inputs = result.manifest, result.inputs
    lines = [
        f"read      {counted(_num_inputs(result), 'input')} of {source} ({inputs.kind})"
        f"; {_encoded(result)}"
    ]
    lines.append(f"refused   {manifest.num_rejects:,}")
    if manifest.num_rejects:
        reasons = "reason" if manifest.num_rejects == 1 else "reasons"
        lines[-1] += f", listed with {reasons} in {os.path.join(dataset_dir, REJECTS_NAME)}"
    if ignored := _ignored(result):
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in ignored.items())
        lines.append(f"ignored   {counted(sum(ignored.values()), 'file')} ({kinds})")
    lines += [f"not used  {note}" for note in inputs.notes]
    if inputs.has_texts:
        lines.append(f"splits    {_splits(manifest.splits)}")
    total = size_bytes(dataset_dir, result)
    lines.append(
        f"written   {counted(manifest.num_samples, 'sample')} in "
        f"{counted(len(manifest.shards), 'shard')} to {dataset_dir}, {counted(total, 'byte')}"
    )
    raw_bits = manifest.raw.get("num_images", 0) * _RAW_IMAGE_BITS
    raw_bits += manifest.raw.get("audio_samples", 0) * _RAW_SAMPLE_BITS
    if manifest.num_samples:
        noun = "sample" if manifest.speech_tokenizer else "image"
        each = total / manifest.num_samples
        lines[-1] += f": {each:,.0f} {_an(noun)}, {8 * total / raw_bits:.2%} of the raw bits"
    if manifest.speech_tokenizer:
        lines.append(f"holds     {_content(manifest.raw)}")
    image, speech = manifest.image_tokenizer, manifest.speech_tokenizer
    if image:
        lines.append(f"tokenizer {_named(image)}, view {image['view']}")
    if speech:
        lines.append(
            f"tokenizer {_named(speech)}, layer {speech['layer']}, "
            f"{counted(speech['num_units'], 'speech unit')}"
        )
    return "\n".join(map(shown, lines))


def _num_inputs(result: JobResult) -> int:
    """Inputs; where containers were listed one by one, the manifest counts them."""
    inputs = result.inputs
    return result.manifest.raw.get("num_inputs", 0) if inputs.items is None else len(inputs.items)


def _ignored(result: JobResult) -> dict[str, int]:
    """Files that are not candidates, by suffix or place."""
    in_containers = result.manifest.raw.get("num_ignored", 0)
    return dict(result.inputs.ignored) | ({"in containers": in_containers} if in_containers else {})


def part_json(dataset_dir: Path | str, part: str, result: PartResult) -> str:
    """Return the summary of a part as one JSON object; figures as in `part_summary`."""
    return json.dumps(
        {
            "out": str(dataset_dir),
            "part": part,
            "was_finished": result.was_finished,
            "unit": result.inputs.unit,
            "num_inputs": result.num_inputs,
            "num_refused": result.num_refused,
            "num_encoded": result.num_encoded,
            "num_utterances_encoded": result.num_utterances,
            "audio_encoded_s": round(result.audio_s, 3),
            "encode_s": round(result.encode_s, 3),
            "num_left": result.num_left,
        }
    )


def part_summary(source: str, part: str, result: PartResult) -> str:
    """Return a few lines: what this run of a part did, and what is left of the job."""
    unit = result.inputs.unit
    line = f"part {part}  {counted(result.num_inputs, unit)} of {source}; {_encoded(result)}"
    if result.was_finished:
        return shown(f"part {part}  {source}: {_encoded(result)}")
    left = f"{counted(result.num_left, unit)} of other parts" if result.num_left else "nothing"
    return "\n".join(
        [
            shown(line),
            f"refused   {result.num_refused:,}",
            f"left      {left}; run the same command without --part to write the dataset",
        ]
    )


def _splits(splits: Mapping[str, int]) -> str:
    """Samples of each split; what `im2sp-train` does with those of none."""
    named = [f"{count:,} {name}" for name, count in splits.items() if name]
    if not named:
        return "none; im2sp-train trains on all samples and validates on none"
    if "" in splits:
        named.append(f"{splits['']:,} of no split, which im2sp-train leaves out")
    return ", ".join(named)


def _encoded(result: RunResult) -> str:
    """Count and rate of the inputs that this run encoded."""
    if result.was_finished:
        return "already done with the same settings, nothing to do"
    if not result.num_encoded and not result.num_utterances:
        return "nothing left to encode"
    if not result.num_utterances:
        rate = result.num_encoded / result.encode_s
        return f"encoded {result.num_encoded:,} in {result.encode_s:.1f} s, {rate:.1f}/s"
    done = [counted(result.num_utterances, "utterance")]
    rates = [f"{result.audio_s / result.encode_s:.0f} s of audio per second"]
    if result.num_encoded:
        done.insert(0, counted(result.num_encoded, "image"))
        rates.insert(0, f"{result.num_encoded / result.encode_s:.1f} images/s")
    hours = f"{result.audio_s / 3600:.2f} hours"
    return (
        f"encoded {' and '.join(done)} ({hours}) in {result.encode_s:.1f} s: {' and '.join(rates)}"
    )


def _content(raw: Mapping[str, int]) -> str:
    hours = raw.get("audio_samples", 0) / SAMPLE_RATE_HZ / 3600
    images, utterances = raw.get("num_images", 0), raw.get("num_utterances", 0)
    speech = f"{counted(utterances, 'utterance')}, {hours:.2f} hours"
    return f"{counted(images, 'image')} and {speech}" if images else speech


def _named(tokenizer: Mapping[str, Any]) -> str:
    return (
        f"{tokenizer['name']} ({tokenizer['precision']}, fingerprint "
        f"{tokenizer['fingerprint'][:12]})"
    )


def _plain(tokenizer: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if tokenizer is None else dict(tokenizer)


def _an(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def size_bytes(dataset_dir: Path | str, result: JobResult) -> int:
    """Bytes on disk or in a store of all but the codebook, which a dataset has once."""
    manifest = result.manifest
    with TemporaryDirectory() as cache_dir:
        files = manifest.files(dataset_dir, cache_dir)
        paths = map(files.local, (MANIFEST_NAME, REJECTS_NAME))
        total = sum(size_of(path) or 0 for path in paths) + table_bytes(files, manifest)
    return total + sum(shard.size_bytes for shard in manifest.shards)
