import numpy as np
import pytest
import torch

from im2sp.tools.evaluation.image_quality import QualityMeter, psnr, ssim


def naive_ssim(a, b):
    """Windows one by one, as the paper's formula is written."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for channel in range(a.shape[0]):
        for y in range(a.shape[1] - 10):
            for x in range(a.shape[2] - 10):
                p = a[channel, y : y + 11, x : x + 11]
                q = b[channel, y : y + 11, x : x + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp = (window * (p - mp) ** 2).sum()
                vq = (window * (q - mq) ** 2).sum()
                vpq = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 0.01**2) * (2 * vpq + 0.03**2)
                values.append(top / ((mp**2 + mq**2 + 0.01**2) * (vp + vq + 0.03**2)))
    return np.mean(values)


def test_ssim_equals_the_formula_window_by_window():
    rng = np.random.default_rng(0)
    a = rng.random((2, 3, 14, 16))
    b = np.clip(a + 0.1 * rng.standard_normal(a.shape), 0, 1)
    expected = [naive_ssim(p, q) for p, q in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(torch.tensor(a), torch.tensor(b)), expected, rtol=1e-9)


def test_ssim_of_equal_pictures_is_one():
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    assert ssim(picture, picture).item() == pytest.approx(1)


def test_psnr_of_a_constant_difference():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 1.0)])
    assert psnr(a, b).tolist() == pytest.approx([20, 0], abs=1e-4)


def test_the_meter_counts_codes_and_entropy():
    meter = QualityMeter(8)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    meter.add(pixels, pixels * 0.5, torch.tensor([[0, 1], [0, 1]]))
    meter.add(pixels, pixels * 0.5, torch.tensor([[2, 3], [2, 3]]))
    found = meter.result()
    assert (found.num_images, found.num_codes_used) == (4, 4)
    assert found.entropy_bits == pytest.approx(2)
    assert found.perplexity == pytest.approx(4)
    assert found.as_json()["psnr_db"] == pytest.approx(
        psnr(pixels * 0.5, pixels).mean().item(), abs=1e-4
    )
