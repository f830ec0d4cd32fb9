"""The dataset card: `README.md` beside the manifest, as the Hugging Face Hub shows it.

Its YAML front matter names the shards of each split, so that `datasets.load_dataset(folder)` and
the Hub's viewer read them and nothing else. The card states the sha256 of its text; one that
was edited, or that someone else wrote, is never replaced.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from im2sp.shards.columns.units import UnitColumn
from im2sp.shards.errors import counted
from im2sp.shards.files import atomic_file, read_regular
from im2sp.shards.manifest import Manifest

CARD_NAME = "README.md"
_ZEROS = "0" * 64
_MARK = re.compile(r"^<!-- Written by im2sp, sha256 ([0-9a-f]{64})", re.M)
_HUB_SPLIT = re.compile(r"\w+(\.\w+)*", re.ASCII)
_THOUSANDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")


def write_card(dataset_dir: Path, manifest: Manifest) -> bool:
    """Write the card of a dataset, unless the folder has a `README.md` that is not im2sp's.

    Returns:
        True if it was written. The same manifest gives the same bytes.
    """
    path = dataset_dir / CARD_NAME
    if path.is_symlink():
        return False
    try:
        if path.exists() and not is_own_card(read_regular(path)):
            return False
    except OSError:
        return False
    with atomic_file(path) as file:
        file.write(card(manifest).encode())
    return True


def is_own_card(data: bytes) -> bool:
    """True if im2sp wrote the content of a `README.md` and nobody has edited it."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return False
    found = _MARK.search(text)
    return found is not None and _sealed(text.replace(found[1], _ZEROS, 1)) == text


def card(manifest: Manifest) -> str:
    """Text of the card."""
    columns = "\n".join(
        f"| `{name}` | {_content(column, manifest.columns[name])} | {_tokenizer(manifest, name)} |"
        for name, column in sorted(manifest.schema.columns.items())
    )
    splits = "".join(
        f", {num:,} of split `{_code(name)}`"
        for name, num in sorted(manifest.splits.items())
        if name
    )
    size_bytes = sum(shard.size_bytes for shard in manifest.shards)
    text = f"""---
{_front_matter(manifest)}---

<!-- Written by im2sp, sha256 {_ZEROS}; an edited card is never replaced. -->

# Dataset of discrete units

{counted(manifest.num_samples, "sample")} in {counted(len(manifest.shards), "shard")}, {size_bytes:,} bytes{splits}.

| column | content | tokenizer |
| --- | --- | --- |
| `key` | string, unique | |
| `split` | string | |
| `captions` | list of string | |
{columns}

Units are stored as bytes. `im2sp.shards.ShardDataset` reads them as arrays, for training and for decoding to
images and sound; other readers find the format in im2sp's `docs/FORMAT.md`.

```python
from im2sp.shards import ShardDataset

dataset = ShardDataset("FOLDER")
sample = dataset[0]
```

The licence is that of the images, sound and texts behind the units; state it here and as `license` above.
"""  # noqa: E501 - lines of the card
    return _sealed(text)


def _sealed(text: str) -> str:
    return text.replace(_ZEROS, hashlib.sha256(text.encode()).hexdigest(), 1)


def _front_matter(manifest: Manifest) -> str:
    lines = ["pretty_name: Dataset of discrete units"]
    lines += ["size_categories:", f"- {_size(manifest.num_samples)}", "tags:", "- im2sp"]
    groups = _hub_splits(manifest)
    if groups:
        lines += ["configs:", "- config_name: default", "  data_files:"]
    for split, files in groups.items():
        lines += [f"  - split: {json.dumps(split)}", "    path:"]
        lines += [f"    - {json.dumps(file, ensure_ascii=False)}" for file in files]
    return "\n".join(lines) + "\n"


def _size(num_samples: int) -> str:
    """Name of the Hub for a range of sizes."""
    place = len(str(num_samples)) - 4
    if place < 0:
        return "n<1K"
    bounds = _THOUSANDS[place : place + 2]
    return f"{bounds[0]}<n<{bounds[1]}" if len(bounds) == 2 else "n>1T"


def _hub_splits(manifest: Manifest) -> dict[str, list[str]]:
    """Shards of each split.

    Samples without a split are `train`, as on the Hub. If a shard has several splits, or one with a
    name that the Hub does not take, all shards are `mixed`.
    """
    groups: dict[str, list[str]] = {}
    for shard in manifest.shards:
        split = next(iter(shard.splits)) or "train"
        if len(shard.splits) > 1 or split == "all" or not _HUB_SPLIT.fullmatch(split):
            return {"mixed": [one.file for one in manifest.shards]}
        groups.setdefault(split, []).append(shard.file)
    return dict(sorted(groups.items()))


def _content(column: UnitColumn | str, entry: Mapping[str, Any]) -> str:
    """Content of a declared column."""
    if isinstance(column, str):
        return column
    many = "list of " if column.many else ""
    sizes = " x ".join("T" if size is None else str(size) for size in column.shape)
    return f"{many}{sizes} units below {column.num_codes:,}, {entry['codec']}"


def _tokenizer(manifest: Manifest, column: str) -> str:
    record = manifest.tokenizer_of(column)
    if record is None or "name" not in record:
        return ""
    fingerprint = f", `{_code(record['fingerprint'])[:12]}..`" if "fingerprint" in record else ""
    return f"`{_code(record['name'])}`{fingerprint}"


def _code(text: object) -> str:
    """Text for a code span in a table: one line without the characters that end it."""
    return re.sub(r"[`|\s]+", " ", str(text))[:200]
