"""Token augmentation of image units, as in SeiT.

Units cannot be interpolated, so a resized crop takes the nearest unit, and nothing is mirrored (a
mirrored image has different units, not the same ones in another order).
"""

import math

import torch
from torch import Tensor

_LOG_RATIO = math.log(4 / 3)


def augment_units(units: Tensor, *, num_codes: int, crop_area: float, code_noise: float) -> Tensor:
    """Crop and resize, then add noise; draws from torch's generator of the units' device.

    Args:
        units: (B, rows, columns) int64 in [0, num_codes).
        num_codes: Size of the codebook.
        crop_area: `min_area` of `crop_and_resize`; 1 disables crops.
        code_noise: `share` of `replace_at_random`; 0 disables noise.

    Returns:
        (B, rows, columns) int64.
    """
    if crop_area < 1:
        units = crop_and_resize(units, crop_area)
    if code_noise > 0:
        units = replace_at_random(units, num_codes, code_noise)
    return units


def crop_and_resize(units: Tensor, min_area: float) -> Tensor:
    """Cut a random rectangle out of each grid and resize it to the whole grid (nearest units).

    Args:
        units: (B, rows, columns) int64.
        min_area: Areas are uniform from this share of the grid to 1; aspect ratios are between
            3:4 and 4:3 as far as they fit into the grid.

    Returns:
        (B, rows, columns) int64.
    """
    num, rows, columns = units.shape
    draws = torch.rand(4, num, 1, device=units.device)
    area = min_area + (1 - min_area) * draws[0]
    ratio = torch.exp(_LOG_RATIO * (2 * draws[1] - 1))
    height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
    places_y = _places(rows, height, (1 - height) * draws[2])
    places_x = _places(columns, width, (1 - width) * draws[3])
    image = torch.arange(num, device=units.device)[:, None, None]
    return units[image, places_y[:, :, None], places_x[:, None, :]]


def _places(size: int, extent: Tensor, start: Tensor) -> Tensor:
    """Source indices of `size` rows; extent and start (B, 1) as shares -> (B, size)."""
    midpoints = (torch.arange(size, device=extent.device) + 0.5) / size
    return ((start + extent * midpoints) * size).long().clamp(0, size - 1)


def replace_at_random(units: Tensor, num_codes: int, share: float) -> Tensor:
    """Replace each unit with probability `share` by one drawn uniformly from [0, num_codes)."""
    others = torch.randint(num_codes, units.shape, device=units.device)
    return torch.where(torch.rand(units.shape, device=units.device) < share, others, units)
