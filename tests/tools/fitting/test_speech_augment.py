import pytest
import torch

from im2sp.tools.fitting.speech_corpus import add_noise, disturb


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_noise_is_as_loud_as_asked():
    clip = torch.sin(torch.arange(16_000) * 0.1)
    noise = add_noise(clip, 20.0, generator()) - clip
    ratio_db = 10 * torch.log10(clip.square().mean() / noise.square().mean())
    assert ratio_db.item() == pytest.approx(20.0, abs=0.2)


def test_the_seed_decides_and_most_clips_change():
    clips = torch.randn(64, 8000, generator=generator(1)) * 0.1
    first, second = disturb(clips, generator(2)), disturb(clips, generator(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first.shape == clips.shape
    is_kept = ((first - clips).abs().amax(1) < 1e-4).float().mean().item()
    assert 0.02 < is_kept < 0.3
    assert torch.isfinite(disturb(torch.zeros(4, 8000), generator())).all()


def test_speech_is_still_there():
    clips = torch.randn(64, 8000, generator=generator(1)) * 0.1
    heard = disturb(clips, generator(3))
    alike = torch.nn.functional.cosine_similarity(clips, heard)
    assert alike.min() > 0.3
    assert alike.mean() > 0.85
