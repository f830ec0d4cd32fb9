import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank

from im2sp.tools.fitting.vocoder_losses import (
    Discriminators,
    MelDistance,
    PeriodDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_distance,
    mel_filters,
)


@pytest.mark.parametrize(("num_mels", "window"), [(80, 1024), (32, 256)])
def test_mel_filters_are_those_of_librosa(num_mels, window):
    expected = mel_filter_bank(
        window // 2 + 1, num_mels, 0, 8000, 16000, norm="slaney", mel_scale="slaney"
    )
    found = mel_filters(num_mels, window)
    np.testing.assert_allclose(found, expected.T, atol=1e-6)
    assert (found.sum(1) > 0).all()


def test_a_mel_spectrum_written_out():
    samples = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    found = MelDistance([1024]).spectrum(samples, 1024)
    assert found.shape == (1, 80, 16)
    padded = np.pad(samples[0].numpy(), 384, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    spectrum = np.abs(np.fft.rfft(padded[5 * 256 : 5 * 256 + 1024] * window))
    expected = np.log(np.maximum(mel_filters(80, 1024).numpy() @ spectrum, 1e-5))
    np.testing.assert_allclose(found[0, :, 5], expected, atol=1e-4)


def test_the_distance_is_none_for_the_same_and_grows():
    random = torch.Generator().manual_seed(0)
    real, noise = torch.randn(2, 2, 8960, generator=random).unbind()
    mel = MelDistance([1024, 256])
    assert mel(real, real) == 0
    near, far = (mel(real + share * noise, real) for share in (0.01, 0.5))
    assert 0 < near < far
    silence = torch.zeros(1, 2048, requires_grad=True)
    mel(silence, real[:1, :2048]).backward()
    assert torch.isfinite(silence.grad).all()


def test_discriminators_of_periods_and_scales():
    torch.manual_seed(0)
    judgements = Discriminators(1 / 32, 3)(torch.randn(2, 3200))
    assert len(judgements) == 8
    assert [len(features) for _, features in judgements] == [6] * 5 + [8] * 3
    assert judgements[0][1][0].shape == (2, 1, 534, 2)  # a third of 1,600 samples of two phases
    assert [judged.shape[1] for judged, _ in judgements[5:]] == [50, 26, 13]
    assert len(Discriminators(1 / 32, 0)(torch.randn(1, 320))) == 5


def test_the_published_numbers_of_channels():
    whole = Discriminators(1.0, 3)
    assert sum(p.numel() for p in whole.periods.parameters()) == pytest.approx(41.1e6, rel=0.01)
    assert sum(p.numel() for p in whole.scales.parameters()) == pytest.approx(29.6e6, rel=0.02)


def test_a_period_sees_only_its_own_phase():
    torch.manual_seed(0)
    discriminator = PeriodDiscriminator(3, 1 / 32)
    samples = torch.randn(1, 300)
    changed = samples.clone()
    changed[0, 100] += 1  # phase 1
    (_, before), (_, after) = discriminator(samples), discriminator(changed)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[..., 0], other[..., 0])
        assert torch.equal(one[..., 2], other[..., 2])
        assert not torch.equal(one[..., 1], other[..., 1])


def test_losses_written_out():
    real = [(torch.tensor([[0.5, 1.0]]), [torch.tensor([1.0, 2.0]), torch.tensor([0.0])])]
    made = [(torch.tensor([[0.25, 0.0]]), [torch.tensor([1.0, 4.0]), torch.tensor([3.0])])]
    assert discriminator_loss(real, made).item() == pytest.approx(0.125 + 0.03125)
    assert adversarial_loss(made).item() == pytest.approx((0.5625 + 1) / 2)
    assert feature_distance(real, made).item() == pytest.approx(1 + 3)
    two = [*real, *real]
    assert feature_distance(two, [*made, *made]).item() == pytest.approx(8)
