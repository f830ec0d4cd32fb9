import numpy as np
import torch

from im2sp.tools.speech_features import Cepstra


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
