"""Token augmentation: image units changed at random before the model sees them, as SeiT does.

Units are no pixels: none lies between two others, so a resized crop takes the nearest unit, and
nothing is mirrored (a mirrored picture has other units, not the same ones in another order).
"""

import math

import torch
from torch import Tensor

_LOG_RATIO = math.log(4 / 3)


def augment_units(units: Tensor, *, num_codes: int, crop_area: float, code_noise: float) -> Tensor:
    """Crop and resize, then noise; draws from torch's generator of the units' device.

    Args:
        units: (B, rows, columns) int64.
        num_codes: Units are below it.
        crop_area: As in `crop_and_resize`; 1 for no crops.
        code_noise: As in `replace_at_random`; 0 for none.

    Returns:
        (B, rows, columns) int64.
    """
    if crop_area < 1:
        units = crop_and_resize(units, crop_area)
    if code_noise > 0:
        units = replace_at_random(units, num_codes, code_noise)
    return units


def crop_and_resize(units: Tensor, min_area: float) -> Tensor:
    """A random rectangle of each grid, resized to the whole grid by nearest units.

    Args:
        units: (B, rows, columns) int64.
        min_area: Areas are uniform from this share of the grid to 1, proportions between 3:4 and
            4:3 where the grid has the room.

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
    """Rows that `size` rows are taken from; extent and start (B, 1) as shares -> (B, size)."""
    centres = (torch.arange(size, device=extent.device) + 0.5) / size
    return ((start + extent * centres) * size).long().clamp(0, size - 1)


def replace_at_random(units: Tensor, num_codes: int, share: float) -> Tensor:
    """Replace each unit with probability `share` by one that is uniform in [0, num_codes)."""
    others = torch.randint(num_codes, units.shape, device=units.device)
    return torch.where(torch.rand(units.shape, device=units.device) < share, others, units)
