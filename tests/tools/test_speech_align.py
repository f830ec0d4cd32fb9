import numpy as np
import pytest

from im2sp.tools.speech_align import align_frames


def labels(text):
    return np.frombuffer(text.encode(), np.uint8)


@pytest.mark.parametrize(
    ("text", "other", "expected"),
    [
        ("aabb", "aabb", [0, 1, 2, 3]),
        ("ab", "aaabbb", [1, 4]),
        ("aaaabb", "aab", [0, 0, 1, 1, 2, 2]),
        ("axxb", "ab", [0, None, None, 1]),  # a phone that the other reading lacks
        ("ab", "axxb", [0, 3]),
        ("a", "zzz", [2]),
    ],
)
def test_frames_of_the_same_phones_belong_together(text, other, expected):
    found = align_frames(labels(text), labels(other)).tolist()
    assert len(found) == len(expected)
    for frame, wanted in zip(found, expected, strict=True):
        assert wanted is None or frame == wanted


def test_it_goes_forward_and_finds_the_same_phones():
    generator = np.random.default_rng(0)
    phones = generator.integers(0, 40, 30)
    first, second = (
        np.repeat(phones, generator.integers(1, 9, 30)).astype(np.uint8) for _ in range(2)
    )
    frames = align_frames(first, second)
    assert (np.diff(frames) >= 0).all()
    assert frames[0] >= 0
    assert frames[-1] < len(second)
    assert (second[frames] == first).mean() > 0.97


def test_empty_readings_are_refused():
    with pytest.raises(ValueError, match="readings of 0 and 1 frames"):
        align_frames(labels(""), labels("a"))
