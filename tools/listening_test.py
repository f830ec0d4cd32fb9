"""A listening test: how natural speech sounds, and how well it describes a picture, by people.

    python tools/listening_test.py build ours=spoken/ cascade=flite/ --reference natural=wavs/ \
        --num-images 20 --out test/
    python tools/listening_test.py score test/key.json answers/*.json

`build` takes folders of im2sp-speak, draws images that all of them describe, and writes
`test/page`, a folder that listeners open from disk (index.html), and `test/key.json`, which they
must not get: nothing in the page tells which system speaks. Each listener hears all samples in an
order of their own, gives each two scores from 1 (bad) to 5 (excellent), the words of ITU-T P.800,
and saves a JSON file. `--reference` adds speech by image name (x.wav or x_0.wav for the image x) as
a system of its own, such as people's or flite's.

`score` prints the paper's Table 4 of these files: mean opinions with 95 % intervals that allow for
strict listeners and hard images (see `tools/intervals.py`).

Exit codes: 0 done, 1 not possible, 2 usage.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from im2sp.shards.files import atomic_file
from im2sp.tools.listening_build import KEY_NAME, PAGE_DIR, build
from im2sp.tools.listening_score import SCORES_FORM, as_json, read_all, read_key, report, score

DEFAULT_NUM_IMAGES = 20


def named_folder(text: str) -> tuple[str, Path]:
    """Name and folder of NAME=FOLDER."""
    name, equals, folder = text.partition("=")
    if not name.strip() or not equals or not folder:
        raise argparse.ArgumentTypeError(f"{text!r}, expected NAME=FOLDER")
    return name.strip(), Path(folder)


def count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1 on")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build_ = commands.add_parser("build", help="write a listening test")
    build_.add_argument(
        "systems",
        nargs="+",
        type=named_folder,
        metavar="NAME=FOLDER",
        help="a system and the folder that im2sp-speak wrote with it",
    )
    build_.add_argument(
        "--reference",
        type=named_folder,
        metavar="NAME=FOLDER",
        help="one more system: a folder of wav files by image name",
    )
    build_.add_argument(
        "--num-images",
        type=count,
        default=DEFAULT_NUM_IMAGES,
        metavar="N",
        help="images of the test, each heard once of every system (default: %(default)s)",
    )
    build_.add_argument(
        "--seed", type=int, default=0, help="chooses the images and names (default: %(default)s)"
    )
    build_.add_argument("--out", type=Path, required=True, help="folder to write; must be new")
    score_ = commands.add_parser("score", help="print the mean opinions of listeners")
    score_.add_argument("key", type=Path, help="key.json of the test")
    score_.add_argument("answers", type=Path, nargs="+", help="files that listeners saved")
    score_.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    return parser


def run_build(options: argparse.Namespace) -> None:
    """Write a listening test and say what to do with it."""
    built = build(
        options.systems,
        options.reference,
        out=options.out,
        num_images=options.num_images,
        seed=options.seed,
    )
    print(
        f"written   {options.out / PAGE_DIR}: {built.num_samples:,} samples, {built.num_images:,}"
        f" of {built.num_common:,} common images by {built.num_systems:,} systems\n"
        f"key       {options.out / KEY_NAME}: keep it from the listeners\n"
        f"next      give each listener the whole folder {options.out / PAGE_DIR}; index.html opens"
        " in any browser, without network"
    )


def run_score(options: argparse.Namespace) -> None:
    """Print the mean opinions, and write them where that is asked."""
    key = read_key(options.key)
    everyone = read_all(options.answers, key)
    scores = score(key, everyone)
    if options.json is not None:
        _write_scores(options.json, as_json(key, scores, everyone))
    print(f"{len(everyone):,} listeners, {len(key.samples):,} samples\n")
    print(report(key, scores, everyone))


def _write_scores(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures; only earlier figures are replaced."""
    if path.exists():
        try:
            is_ours = json.loads(path.read_bytes())["form"] == SCORES_FORM
        except (ValueError, TypeError, KeyError):
            is_ours = False
        if not is_ours:
            raise ValueError(
                f"--json {path}: exists and holds no scores of an earlier run; choose another file"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode())


def main(args: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    options = _parser().parse_args(args)
    try:
        (run_build if options.command == "build" else run_score)(options)
    except (ValueError, OSError) as error:
        print(f"listening_test: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
