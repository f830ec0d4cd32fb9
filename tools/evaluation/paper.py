"""Scores of the paper's Tables 2, 3 and 4.

The paper is Kim et al. 2023, "Towards Practical and Efficient Image-to-Speech Captioning with
Vision-Language Pre-training and Multi-modal Tokens" (arXiv 2309.08531). Its scores are of the test
splits of Karpathy and Fei-Fei (2015); speech was transcribed by wav2vec 2.0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Task = Literal["image to text", "cascade", "image to speech", "topline", "listening test"]
Ends = tuple[float, float]
FLICKR8K, COCO = "Flickr8k", "COCO"
CAPTION_SCORES = ("Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    source: Literal["paper", "ours"]
    data: str
    """Dataset."""
    split: str
    task: Task
    system: str
    recognizer: str
    """Speech recognizer that the scores were computed with; "-" if none, "?" if not stated."""
    num_images: int
    scores: Mapping[str, float]
    """Scores as the paper prints them: those of captions in hundredths."""
    intervals: Mapping[str, Ends]
    """95 % intervals of the scores that have one."""


_TEST_IMAGES = {FLICKR8K: 1000, COCO: 5000}
_LISTENING_IMAGES = 20
_WAV2VEC = "wav2vec 2.0"
_Published = tuple[Task, str, str, tuple[float, ...], tuple[float, ...]]
# Task, system, recognizer, scores on Flickr8k and on COCO, in the order of `CAPTION_SCORES`.
_GIT: _Published = (
    "image to speech",
    "pixels, GIT encoder and decoder",
    _WAV2VEC,
    (20.6, 22.0, 48.4, 53.6, 15.8),
    (25.9, 23.8, 50.4, 81.1, 17.5),
)
_TABLE_2: Sequence[_Published] = (
    (
        "image to speech",
        "pixels, image classifier encoder, new decoder",
        _WAV2VEC,
        (12.9, 17.1, 40.7, 31.4, 10.3),
        (17.4, 19.1, 44.0, 50.5, 12.2),
    ),
    (
        "image to speech",
        "pixels, CLIP encoder, new decoder",
        _WAV2VEC,
        (17.7, 20.6, 45.9, 45.8, 14.0),
        (20.9, 21.3, 46.3, 64.7, 15.1),
    ),
    _GIT,
)
_TABLE_3: Sequence[_Published] = (
    ("image to text", "SAT", "-", (21.3, 20.3), (24.3, 23.9)),
    (
        "image to text",
        "pixels",
        "-",
        (30.8, 26.9, 55.8, 93.8, 20.0),
        (38.7, 29.5, 59.1, 131.2, 23.3),
    ),
    (
        "image to text",
        "image units",
        "-",
        (23.4, 22.0, 48.9, 63.3, 15.4),
        (29.9, 25.2, 52.8, 97.4, 18.6),
    ),
    (
        "cascade",
        "pixels",
        _WAV2VEC,
        (29.1, 26.0, 54.6, 84.9, 18.9),
        (36.1, 28.4, 57.5, 117.2, 21.9),
    ),
    (
        "cascade",
        "image units",
        _WAV2VEC,
        (22.3, 21.3, 48.0, 57.7, 14.6),
        (28.2, 24.3, 51.6, 87.4, 17.5),
    ),
    ("image to speech", "Wang et al.", "?", (3.5, 11.3, 23.2, 8.0), ()),
    (
        "image to speech",
        "SAT-FT-VQ3",
        "?",
        (12.5, 14.5, 39.1, 24.5, 9.5),
        (23.3, 21.2, 47.8, 73.2, 14.9),
    ),
    ("image to speech", "Effendi et al.", "?", (14.8, 17.4, 32.9, 45.8), ()),
    _GIT,
    (
        "image to speech",
        "image units",
        _WAV2VEC,
        (16.7, 19.6, 44.2, 41.2, 13.1),
        (20.1, 21.4, 46.4, 64.0, 15.0),
    ),
)
# System, naturalness and descriptiveness with half their intervals, MOSNet, SpeechLMScore.
_TABLE_4 = (
    ("SAT-FT-VQ3", (2.870, 0.095), (2.978, 0.131), 4.12, 4.25),
    ("pixels, GIT encoder and decoder", (4.275, 0.086), (3.968, 0.108), 4.26, 4.17),
    ("image units", (4.228, 0.089), (3.725, 0.122), 4.33, 4.16),
)


def _caption_rows(published: Sequence[_Published]) -> list[Row]:
    return [
        Row(
            source="paper",
            data=data,
            split="test",
            task=task,
            system=system,
            recognizer=recognizer,
            num_images=_TEST_IMAGES[data],
            scores=dict(zip(CAPTION_SCORES, scores, strict=False)),
            intervals={},
        )
        for data, column in ((FLICKR8K, 0), (COCO, 1))
        for task, system, recognizer, *both in published
        if (scores := both[column])
    ]


def _opinion_rows() -> list[Row]:
    rows: list[Row] = []
    for system, natural, descriptive, mosnet, speech_lm in _TABLE_4:
        opinions = {"naturalness": natural, "descriptiveness": descriptive}
        means = {name: mean for name, (mean, _) in opinions.items()}
        rows.append(
            Row(
                source="paper",
                data=COCO,
                split="test",
                task="image to speech",
                system=system,
                recognizer="-",
                num_images=_LISTENING_IMAGES,
                scores={**means, "MOSNet": mosnet, "SpeechLMScore": speech_lm},
                intervals={name: (mean - w, mean + w) for name, (mean, w) in opinions.items()},
            )
        )
    return rows


PAPER_ROWS: Mapping[int, Sequence[Row]] = {
    2: _caption_rows(_TABLE_2),
    3: _caption_rows(_TABLE_3),
    4: _opinion_rows(),
}
"""The paper's rows by the number of the table."""
