import numpy as np
import pytest
import torch
from PIL import Image

from im2sp.pipeline.decoding.views import VIEWS


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_names_and_sizes():
    sizes = {name: view.image_size_px for name, view in VIEWS.items()}
    upright = {"squash-224": 224, "squash-256-crop": 256, "center-224": 224}
    mirrored = {f"{name}-mirrored": size for name, size in upright.items()}
    assert sizes == upright | mirrored
    assert list(VIEWS)[0] == "squash-224"
    assert all(view.name == name for name, view in VIEWS.items())
    for name in ("random-224-1", "random-224-999999999"):
        assert name in VIEWS
        assert (VIEWS[name].name, VIEWS[name].image_size_px) == (name, 224)
    for name in ("random-224", "random-224-0", "random-224-1x", "random-256-1", None):
        assert name not in VIEWS
        with pytest.raises(KeyError):
            VIEWS[name]


@pytest.mark.parametrize("size", [(300, 200), (3, 400), (1, 1), (224, 225), (1000, 10)])
@pytest.mark.parametrize("name", VIEWS)
def test_pixels_are_contiguous_bytes(name, size):
    view = VIEWS[name]
    pixels = view.apply(noise(*size))
    assert pixels.shape == (view.image_size_px, view.image_size_px, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("name", ["squash-224", "squash-256-crop"])
def test_squash_is_pillows_bicubic(name):
    side = VIEWS[name].image_size_px
    image = noise(500, 333)
    expected = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(VIEWS[name].apply(image), expected)


@pytest.mark.parametrize("name", ["squash-224", "squash-256-crop", "center-224"])
@pytest.mark.parametrize("size", [(300, 200), (224, 224)])
def test_mirrored_changes_left_and_right_alone(name, size):
    image = noise(*size)
    pixels = VIEWS[f"{name}-mirrored"].apply(image)
    np.testing.assert_array_equal(pixels, VIEWS[name].apply(image)[:, ::-1])


@pytest.mark.parametrize("name", ["squash-224", "squash-256-crop", "center-224"])
def test_the_right_size_is_not_resampled(name):
    side = VIEWS[name].image_size_px
    image = noise(side, side)
    np.testing.assert_array_equal(VIEWS[name].apply(image), np.asarray(image))


@pytest.mark.parametrize(
    ("size", "left", "top"), [((301, 224), 38, 0), ((224, 230), 0, 3), ((225, 224), 0, 0)]
)
def test_center_keeps_the_pixels_of_the_middle(size, left, top):
    image = noise(*size)
    expected = np.asarray(image)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(VIEWS["center-224"].apply(image), expected)


def test_center_is_resizing_first_and_cropping_then():
    image = noise(896, 448)  # twice the size: the resized image has whole pixels
    small = image.resize((448, 224), Image.Resampling.BICUBIC).crop((112, 0, 336, 224))
    np.testing.assert_array_equal(VIEWS["center-224"].apply(image), np.asarray(small))


def test_center_takes_no_memory_for_what_it_cuts():
    # Resized first, this strip would be 224 x 2,240,000.
    assert VIEWS["center-224"].apply(noise(2, 20_000)).shape == (224, 224, 3)


def test_crop_units():
    units = np.arange(2 * 32 * 32).reshape(2, 32, 32)
    np.testing.assert_array_equal(VIEWS["squash-256-crop"].crop_units(units), units[:, 2:30, 2:30])
    tensor = torch.arange(28 * 28).reshape(28, 28)
    for name in ("squash-224", "center-224"):
        assert torch.equal(VIEWS[name].crop_units(tensor), tensor)


@pytest.mark.parametrize(("name", "side"), [("squash-224", 32), ("squash-256-crop", 28)])
def test_units_of_another_view_are_refused(name, side):
    with pytest.raises(ValueError, match=rf"view {name}: units have shape \(1, {side}, {side}\)"):
        VIEWS[name].crop_units(np.zeros((1, side, side)))


def slopes(width: int, height: int) -> Image.Image:
    """Red rises to the right, green downwards; blue is the same everywhere."""
    x = np.broadcast_to(np.linspace(60, 180, width), (height, width))
    y = np.broadcast_to(np.linspace(60, 180, height)[:, None], (height, width))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 120)], -1).astype(np.uint8))


def test_a_random_view_depends_on_the_image_and_its_number_alone():
    image = slopes(300, 200)
    one, two = VIEWS["random-224-1"], VIEWS["random-224-2"]
    np.testing.assert_array_equal(one.apply(image), one.apply(image.copy()))
    assert (one.apply(image) != two.apply(image)).any()
    other = image.copy()
    other.putpixel((0, 0), (0, 0, 0))
    assert np.abs(one.apply(image).astype(int) - one.apply(other)).mean() > 1


def test_random_views_crop_flip_and_jitter_the_image():
    areas, ratios, is_mirrored, brightness = [], [], [], []
    for number in range(30):
        image = slopes(300 + number, 200)
        for draw in range(1, 9):
            pixels = VIEWS[f"random-224-{draw}"].apply(image).astype(float)
            # Contrast stretches both slopes alike and saturation nearly so.
            x, y = np.ptp(pixels[:, :, 0].mean(0)), np.ptp(pixels[:, :, 1].mean(1))
            ratios.append(x / y)
            areas.append(x * y / 120**2)
            is_mirrored.append(pixels[0, 0, 0] > pixels[0, -1, 0])
            brightness.append(pixels[:, :, 2].mean() / 120)
    assert 0.65 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.5
    assert min(areas) < 0.3
    assert 90 <= sum(is_mirrored) <= 150
    assert min(brightness) < 0.8
    assert max(brightness) > 1.2
