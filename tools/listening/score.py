"""Mean opinion scores from the answers of listeners: the paper's Table 4.

Naturalness and descriptiveness are means over all ratings (1 to 5) of a system, with 95 % intervals
(see `evaluation.intervals` for why they are not bootstrapped). Ratings of samples that were not
played to the end are skipped and counted. Duplicates and answers of other tests are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from im2sp.shards.files import read_json
from im2sp.tools.evaluation.intervals import Opinion, mean_opinion

ANSWERS_FORM = "im2sp-listening-answers 1"
KEY_FORM = "im2sp-listening-key 1"
SCORES_FORM = "im2sp-listening-scores 1"
SCALES = ("naturalness", "descriptiveness")


@dataclass(frozen=True, kw_only=True)
class Key:
    """Key of a test: the system and image of each sample, hidden from listeners."""

    test: str
    """Id of the test, repeated in its answers."""
    systems: tuple[str, ...]
    reference: str | None
    """Name of the system that is the reference."""
    samples: Mapping[str, tuple[str, str]]
    """System and image of each sample, by the sample's id."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers of one listener."""

    listener: str
    file: str
    ratings: Mapping[str, Mapping[str, int]]
    """Scores by scale, of each sample that was played to its end."""
    num_unheard: int
    """Samples that were rated but not played to the end."""

    @property
    def num_complete(self) -> int:
        """Samples with all scores."""
        return sum(len(scores) == len(SCALES) for scores in self.ratings.values())


@dataclass(frozen=True, kw_only=True)
class SystemScore:
    """Opinions of one system; None without ratings."""

    name: str
    is_reference: bool
    num_listeners: int
    num_images: int
    opinions: Mapping[str, Opinion | None]


def read_key(path: Path) -> Key:
    """Read the key that `build` wrote.

    Raises:
        ValueError: It cannot be read, or is not a key.
    """
    content = _read(path, KEY_FORM, "the key.json that build wrote")
    test, systems, samples = (content.get(name) for name in ("test", "systems", "samples"))
    reference = content.get("reference")
    if (
        not isinstance(test, str)
        or not isinstance(systems, list)
        or not isinstance(samples, dict)
        or reference not in (None, *systems)
        or not all(_is_sample(row, systems) for row in samples.values())
    ):
        raise ValueError(
            f"{path}: damaged: test, systems or samples are missing or do not fit; take the"
            " key.json that build wrote"
        )
    placed = {sample: (row["system"], row["image"]) for sample, row in samples.items()}
    return Key(test=test, systems=tuple(systems), reference=reference, samples=placed)


def _is_sample(row: Any, systems: list[Any]) -> bool:
    return (
        isinstance(row, dict) and row.get("system") in systems and isinstance(row.get("image"), str)
    )


def read_answers(path: Path, key: Key) -> Answers:
    """Read the file that a listener saved.

    Raises:
        ValueError: It cannot be read, belongs to another test, or has invalid content.
    """
    content = _read(path, ANSWERS_FORM, "a file that the page's button 'Save answers' wrote")
    if content.get("test") != key.test:
        raise ValueError(
            f"{path}: answers of the test {content.get('test')!r}, the key is of {key.test!r}; give"
            " the key.json that was built with that listener's page"
        )
    listener, answers = content.get("listener"), content.get("answers")
    if not isinstance(listener, str) or not listener or not isinstance(answers, dict):
        raise ValueError(
            f"{path}: listener or answers are missing; ask the listener to save the answers again"
        )
    ratings: dict[str, dict[str, int]] = {}
    num_unheard = 0
    for sample, given in answers.items():
        if sample not in key.samples:
            raise ValueError(
                f"{path}: answers for the sample {sample!r}, which the test does not have; was the"
                " file edited? Ask the listener to save the answers again"
            )
        scores = _scores(f"{path}: sample {sample}", given)
        if scores and given.get("heard") is not True:
            num_unheard += 1
        elif scores:
            ratings[sample] = scores
    return Answers(listener=listener, file=path.name, ratings=ratings, num_unheard=num_unheard)


def _scores(where: str, given: Any) -> dict[str, int]:
    """Given scores by scale."""
    if not isinstance(given, dict):
        raise ValueError(f"{where}: {given!r}, expected heard, {' and '.join(SCALES)}")
    found = {scale: given[scale] for scale in SCALES if given.get(scale) is not None}
    for scale, score in found.items():
        if type(score) is not int or not 1 <= score <= 5:
            raise ValueError(
                f"{where}: {scale} is {score!r}, expected 1, 2, 3, 4 or 5; was the file edited? Ask"
                " the listener to save the answers again"
            )
    return found


def _read(path: Path, form: str, what: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error}); expected {what}") from None
    found = content.get("form") if isinstance(content, dict) else None
    if found != form:
        raise ValueError(f"{path}: form {found!r}, expected {form!r}: {what}")
    return content


def read_all(paths: Sequence[Path], key: Key) -> list[Answers]:
    """Read the files of all listeners.

    Raises:
        ValueError: A file is refused, or two are of the same listener.
    """
    found: dict[str, tuple[Path, Answers]] = {}
    for path in paths:
        answers = read_answers(path, key)
        if answers.listener in found:
            raise ValueError(
                f"{path}: the listener {answers.listener!r} again, who is also in"
                f" {found[answers.listener][0]}; give the later of the two files, or, for two"
                " listeners, let one answer under another name"
            )
        found[answers.listener] = (path, answers)
    return [answers for _, answers in found.values()]


def score(key: Key, everyone: Sequence[Answers]) -> list[SystemScore]:
    """Opinions of each system, in the key's order."""
    images = {image: i for i, image in enumerate(sorted({i for _, i in key.samples.values()}))}
    rows: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for number, answers in enumerate(everyone):
        for sample, scores in answers.ratings.items():
            system, image = key.samples[sample]
            for scale, value in scores.items():
                rows.setdefault((system, scale), []).append((value, number, images[image]))
    found: list[SystemScore] = []
    for system in key.systems:
        of_scale = {scale: rows.get((system, scale), []) for scale in SCALES}
        everything = [row for scale in SCALES for row in of_scale[scale]]
        found.append(
            SystemScore(
                name=system,
                is_reference=system == key.reference,
                num_listeners=len({number for _, number, _ in everything}),
                num_images=len({image for _, _, image in everything}),
                opinions={scale: _opinion(of_scale[scale]) for scale in SCALES},
            )
        )
    return found


def _opinion(rows: Sequence[tuple[int, int, int]]) -> Opinion | None:
    if not rows:
        return None
    table = np.array(rows, np.int64)
    return mean_opinion(table[:, 0].astype(np.float64), table[:, 1], table[:, 2])


def as_json(key: Key, scores: Sequence[SystemScore], everyone: Sequence[Answers]) -> dict[str, Any]:
    """Return all figures as JSON values."""
    return {
        "form": SCORES_FORM,
        "test": key.test,
        "num_samples": len(key.samples),
        "systems": [asdict(one) for one in scores],
        "listeners": [
            {
                "listener": one.listener,
                "file": one.file,
                "num_complete": one.num_complete,
                "num_unheard": one.num_unheard,
            }
            for one in everyone
        ],
    }


def report(key: Key, scores: Sequence[SystemScore], everyone: Sequence[Answers]) -> str:
    """Table of scores, and a line for each listener with missing answers."""
    names = [f"{s.name} (reference)" if s.is_reference else s.name for s in scores]
    width = max(20, *(len(name) for name in names)) + 2
    lines = [
        f"{'mean opinion, 1 to 5':<{width}}{'naturalness':>15}{'descriptiveness':>18}"
        f"{'ratings':>12}{'listeners':>11}{'images':>8}"
    ]
    for name, one in zip(names, scores, strict=True):
        natural, descriptive = (one.opinions[scale] for scale in SCALES)
        lines.append(
            f"{name:<{width}}{_cell(natural):>15}{_cell(descriptive):>18}"
            f"{_counts(natural, descriptive):>12}{one.num_listeners:>11,}{one.num_images:>8,}"
        )
    opinions = [opinion for one in scores for opinion in one.opinions.values()]
    if any(opinion is not None and opinion.half_width is None for opinion in opinions):
        lines.append("± ?: an interval needs at least two listeners and two images")
    unfinished = [
        f"{one.listener}: {one.num_complete:,} of {len(key.samples):,} samples rated in full"
        + (f", {one.num_unheard:,} not played to the end and skipped" if one.num_unheard else "")
        for one in everyone
        if one.num_complete < len(key.samples)
    ]
    if unfinished:
        lines += [
            "",
            f"not complete: {len(unfinished):,} of {len(everyone):,} listeners",
            *unfinished,
        ]
    return "\n".join(lines)


def _cell(opinion: Opinion | None) -> str:
    if opinion is None:
        return "-"
    width = "?" if opinion.half_width is None else f"{opinion.half_width:.2f}"
    return f"{opinion.mean:.2f} ± {width}"


def _counts(natural: Opinion | None, descriptive: Opinion | None) -> str:
    """Number of ratings; of both scales if they differ."""
    both = [0 if opinion is None else opinion.num_ratings for opinion in (natural, descriptive)]
    return f"{both[0]:,}" if both[0] == both[1] else f"{both[0]:,} / {both[1]:,}"
