import numpy as np
import pytest
import torch

from im2sp.tools.fitting.speech_targets import Cepstra, align_frames


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


def mel(hz):
    return 1127 * np.log(1 + hz / 700)


def naive_cepstra(samples):
    """The 13 cepstra of each 10 ms, written out."""
    hz = np.arange(257) * 16_000 / 512
    edges = np.linspace(mel(20), mel(7600), 42)
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400].astype(np.float64)
        frame = frame - frame.mean()
        frame = np.concatenate([[0.03 * frame[0]], frame[1:] - 0.97 * frame[:-1]])
        frame *= 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 399)
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        bands = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            rise, fall = (mel(hz) - low) / (middle - low), (high - mel(hz)) / (high - middle)
            bands.append((power * np.clip(np.minimum(rise, fall), 0, None)).sum())
        logs = np.log(np.maximum(bands, 1e-7))
        n = np.arange(40)
        row = [
            (logs * np.cos(np.pi * k * (n + 0.5) / 40)).sum() * np.sqrt(2 / 40) for k in range(13)
        ]
        row[0] /= np.sqrt(2)
        rows.append(row)
    rows = np.array(rows)
    return rows - rows.mean(0)


def test_cepstra_are_those_written_out():
    samples = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    found = Cepstra()(torch.from_numpy(samples)).numpy()
    expected = naive_cepstra(samples)
    assert found.shape == ((4000 - 400) // 320 + 1, 39)
    np.testing.assert_allclose(found[:, :13], expected[::2], atol=2e-3)
    padded = np.concatenate([expected[:1]] * 2 + [expected] + [expected[-1:]] * 2)
    slopes = sum(k * padded[2 + k : 2 + k + len(expected)] for k in range(-2, 3)) / 10
    np.testing.assert_allclose(found[:, 13:26], slopes[::2], atol=2e-3)


def test_silence_is_finite():
    assert torch.isfinite(Cepstra()(torch.zeros(1000))).all()
