import torch

from im2sp.trainer.augment import augment_units, crop_and_resize, replace_at_random

GRID = torch.arange(28 * 28).view(1, 28, 28)


def test_crops_are_rectangles_in_order():
    torch.manual_seed(0)
    crops = crop_and_resize(GRID.repeat(200, 1, 1), 0.3)
    rows, columns = crops // 28, crops % 28
    assert (rows == rows[:, :, :1]).all()
    assert (columns == columns[:, :1]).all()
    rows, columns = rows[:, :, 0], columns[:, 0]
    for places in (rows, columns):
        steps = places.diff(dim=1)
        assert steps.min() == 0
        assert steps.max() <= 2
    areas = (rows[:, -1] - rows[:, 0] + 1) * (columns[:, -1] - columns[:, 0] + 1) / 784
    assert 0.25 < areas.min() < 0.4
    assert areas.max() > 0.9
    assert len(crops.flatten(1).unique(dim=0)) > 190


def test_disabled_augmentation_keeps_the_units():
    assert augment_units(GRID, num_codes=784, crop_area=1.0, code_noise=0.0) is GRID


def test_noise_replaces_its_share():
    torch.manual_seed(0)
    units = torch.zeros(50, 28, 28, dtype=torch.int64)
    noisy = replace_at_random(units, 1000, 0.2)
    changed = noisy != units
    assert abs(changed.float().mean().item() - 0.2) < 0.01
    assert noisy.max() > 950
    assert noisy.max() < 1000


def test_augmentation_uses_torchs_generator():
    settings = {"num_codes": 784, "crop_area": 0.4, "code_noise": 0.3}
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(augment_units(GRID, **settings))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
