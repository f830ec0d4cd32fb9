"""Fit a sentencepiece model on captions, for `im2sp-train --target text --text-model`.

    python tools/fit_text.py SHARDS --out text.model [--split train] [--pieces 4000]
    python tools/fit_text.py captions.txt --out text.model

Takes the captions of a dataset, of one split if there is one to name, or the lines of a text file.
The pieces are lower-case. `im2sp-train` fits such a model by itself where none is given; fit one
here to use it for several datasets or runs. Exit codes: 0 written, 1 not possible, 2 usage.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from im2sp.shards import MANIFEST_NAME, ShardDataset
from im2sp.shards.files import atomic_file
from im2sp.trainer.text import fit_text_model


def read_captions(source: Path, split: str | None) -> Iterator[str]:
    """Captions of a dataset's folder, or the lines of a text file that are not empty.

    Raises:
        ShardError: The dataset is damaged, or has no such split.
        ValueError: It is neither, or a split is named for a text file.
    """
    if (source / MANIFEST_NAME).is_file():
        for sample in ShardDataset(source, split):
            yield from (caption for caption in sample.captions if caption)
        return
    if not source.is_file():
        raise ValueError(f"{source}: neither a dataset's folder nor a text file")
    if split is not None:
        raise ValueError(f"{source}: a text file has no splits; leave out --split")
    try:
        text = source.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not UTF-8 text ({error.reason} at {error.start})") from None
    yield from (line.strip() for line in text.splitlines() if line.strip())


def main(args: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a dataset, or a text file")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--split", help="split of the dataset; all samples unless given")
    parser.add_argument("--pieces", type=int, default=4000, help="most pieces (default: 4000)")
    options = parser.parse_args(args)
    try:
        model = fit_text_model(read_captions(options.source, options.split), options.pieces)
        with atomic_file(options.out) as file:
            file.write(model.data)
    except (ValueError, OSError) as error:
        print(f"fit_text: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{options.out}: {model.vocabulary.num_ids:,} pieces")
    return 0


if __name__ == "__main__":
    sys.exit(main())
