"""What a tokenize job tells the user."""

import json
from pathlib import Path

from im2sp.pipeline.job import JobResult
from im2sp.shards import MANIFEST_NAME, REJECTS_NAME

_RAW_BITS = 224 * 224 * 24


def summary_json(dataset_dir: Path, result: JobResult) -> str:
    """The summary as one JSON object; figures as `summary` has them."""
    manifest = result.manifest
    return json.dumps(
        {
            "out": str(dataset_dir),
            "was_finished": result.was_finished,
            "num_inputs": len(result.listing.items),
            "num_ignored": sum(result.listing.ignored.values()),
            "num_refused": manifest.num_rejects,
            "num_samples": manifest.num_samples,
            "num_shards": len(manifest.shards),
            "num_encoded": result.num_encoded,
            "encode_s": round(result.encode_s, 3),
            "size_bytes": size_bytes(dataset_dir, result),
            "image_tokenizer": dict(manifest.image_tokenizer or {}),
        }
    )


def summary(source: Path, dataset_dir: Path, result: JobResult) -> str:
    """A few lines: what was read, refused, ignored and written."""
    manifest, listing = result.manifest, result.listing
    lines = [f"read      {counted(len(listing.items), 'input')} of {source} ({listing.kind})"]
    if result.was_finished:
        lines[0] += "; all done before with the same settings, nothing to do"
    elif result.num_encoded:
        rate = result.num_encoded / result.encode_s
        lines[0] += f"; encoded {result.num_encoded:,} in {result.encode_s:.1f} s, {rate:.1f}/s"
    else:
        lines[0] += "; nothing left to encode"
    lines.append(f"refused   {manifest.num_rejects:,}")
    if manifest.num_rejects:
        reasons = "reason" if manifest.num_rejects == 1 else "reasons"
        lines[-1] += f", listed with {reasons} in {dataset_dir / REJECTS_NAME}"
    if listing.ignored:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in listing.ignored.items())
        lines.append(f"ignored   {counted(sum(listing.ignored.values()), 'file')} ({kinds})")
    total = size_bytes(dataset_dir, result)
    lines.append(
        f"written   {counted(manifest.num_samples, 'sample')} in "
        f"{counted(len(manifest.shards), 'shard')} to {dataset_dir}, {counted(total, 'byte')}"
    )
    if manifest.num_samples:
        per_image = total / manifest.num_samples
        share = 8 * per_image / _RAW_BITS
        lines[-1] += f": {per_image:,.0f} an image, {share:.2%} of the raw bits"
    tokenizer = manifest.image_tokenizer or {}
    lines.append(
        f"tokenizer {tokenizer['name']} ({tokenizer['precision']}, fingerprint "
        f"{tokenizer['fingerprint'][:12]}), view {tokenizer['view']}"
    )
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """`1 shard`, `2,000 shards`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size_bytes(dataset_dir: Path, result: JobResult) -> int:
    """Bytes on disk of everything but the codebook, which a dataset has once."""
    names = [MANIFEST_NAME, REJECTS_NAME]
    paths = [dataset_dir / name for name in names]
    files = sum(path.stat().st_size for path in paths if path.is_file())
    return files + sum(shard.size_bytes for shard in result.manifest.shards)
