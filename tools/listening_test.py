"""Listening test: human ratings of the naturalness and descriptiveness of spoken descriptions.

    python tools/listening_test.py build ours=spoken/ cascade=flite/ --reference natural=wavs/ \
        --num-images 20 --out test/
    python tools/listening_test.py score test/key.json answers/*.json

`build` takes output folders of im2sp-speak, draws images that all of them describe, and writes
`test/page`, a folder that listeners open from disk (index.html), and `test/key.json`, which
listeners must not get: nothing in the page identifies a system. Each listener rates all samples in
an individual random order, with two scores each from 1 (bad) to 5 (excellent), the scale of ITU-T
P.800, and saves a JSON file. `--reference` adds a folder of clips by image name (x.wav or x_0.wav
for the image x) as another system, such as human speech or flite.

`score` prints the paper's Table 4 of these files: mean opinions with 95 % intervals that
account for strict listeners and difficult images (see `tools/evaluation/intervals.py`).

Exit codes: 0 done, 1 not possible, 2 usage.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from im2sp.shards.command_line import run_command
from im2sp.shards.files import atomic_file, read_json
from im2sp.tools.listening.build import KEY_NAME, PAGE_DIR, build
from im2sp.tools.listening.score import SCORES_FORM, as_json, read_all, read_key, report, score


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """Write a listening test: a page for listeners, and the key that they must not see."""

    systems: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME=FOLDER ...")
    ]
    """Systems and the folders that im2sp-speak wrote with them."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="NAME=FOLDER")] = None
    """One more system: a folder of wav files named after the images."""
    num_images: int = 20
    """Number of images; listeners hear each of them once per system."""
    seed: int | None = None
    """Seed of the choice of images and of sample names, in key.json; by default a secret one. With
    a number that can be guessed, the page is not blind."""
    out: Path
    """Folder to write; must not exist."""

    def __post_init__(self) -> None:
        """Raise ValueError if a value cannot be used."""
        if not self.systems:
            raise ValueError("no systems; expected NAME=FOLDER for each")
        if self.num_images < 1:
            raise ValueError(f"--num-images is {self.num_images}; expected at least 1")
        for text in (*self.systems, *([self.reference] if self.reference is not None else [])):
            named_folder(text)


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Print the mean opinions of listeners."""

    key: tyro.conf.Positional[Path]
    """key.json of the test."""
    answers: tyro.conf.Positional[tuple[Path, ...]]
    """Files that listeners saved."""
    out: Path | None = None
    """Also write the figures to this JSON file."""
    json: bool = False
    """Print the figures as one JSON object instead of a table."""

    def __post_init__(self) -> None:
        """Raise ValueError if there is nothing to score."""
        if not self.answers:
            raise ValueError("no files of answers")


def named_folder(text: str) -> tuple[str, Path]:
    """Name and folder of NAME=FOLDER."""
    name, equals, folder = text.partition("=")
    if not name.strip() or not equals or not folder:
        raise ValueError(f"{text!r}; expected NAME=FOLDER")
    return name.strip(), Path(folder)


def run_build(options: BuildConfig) -> None:
    """Write a listening test and print the next steps."""
    built = build(
        [named_folder(text) for text in options.systems],
        None if options.reference is None else named_folder(options.reference),
        out=options.out,
        num_images=options.num_images,
        seed=options.seed,
    )
    print(
        f"written   {options.out / PAGE_DIR}: {built.num_samples:,} samples, {built.num_images:,}"
        f" of {built.num_common:,} common images by {built.num_systems:,} systems\n"
        f"key       {options.out / KEY_NAME}: do not give it to the listeners\n"
        f"next      give each listener the whole folder {options.out / PAGE_DIR}; index.html opens"
        " in any browser, without network"
    )


def run_score(options: ScoreConfig) -> None:
    """Print the mean opinions, and write them with --out."""
    key = read_key(options.key)
    everyone = read_all(options.answers, key)
    scores = score(key, everyone)
    figures = as_json(key, scores, everyone)
    if options.out is not None:
        _write_scores(options.out, figures)
    if options.json:
        print(json.dumps(figures, ensure_ascii=False))
        return
    print(f"{len(everyone):,} listeners, {len(key.samples):,} samples\n")
    print(report(key, scores, everyone))


def _write_scores(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures; replace only a file of an earlier run."""
    if path.exists():
        try:
            is_ours = read_json(path)["form"] == SCORES_FORM
        except (ValueError, TypeError, KeyError):
            is_ours = False
        if not is_ours:
            raise ValueError(
                f"--out {path}: exists, but not written by an earlier run; choose another file"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write((json.dumps(figures, indent=2, ensure_ascii=False) + "\n").encode())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run_command("listening_test", {"build": BuildConfig, "score": ScoreConfig}, _run, args)


def _run(config: BuildConfig | ScoreConfig) -> None:
    if isinstance(config, BuildConfig):
        run_build(config)
    else:
        run_score(config)


if __name__ == "__main__":
    sys.exit(main())
