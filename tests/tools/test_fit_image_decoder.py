import json
from pathlib import Path

import numpy as np
import pytest
import torch

from im2sp.pipeline import load_image_tokenizer
from im2sp.pipeline.vitvqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.vitvqgan_weights import image_tokenizer_bytes
from im2sp.tools import fit_image_decoder
from im2sp.tools.fit_image_decoder import Pairs, Recipe, Trainer
from im2sp.tools.fit_image_tokenizer import read_pictures

DEMO_DIR = Path(__file__).resolve().parents[2] / "docs" / "demo-images"


@pytest.fixture(scope="module")
def pictures():
    return read_pictures([DEMO_DIR])


def small_tokenizer(path, dtype=torch.float16, seed=0):
    """Random weights of a ViT-VQGAN with one block each."""
    torch.manual_seed(seed)
    stack = TransformerConfig(width=64, depth=1, heads=1, mlp_width=128)
    network = ViTVQGAN(ViTVQGANConfig(encoder=stack, decoder=stack))
    path.write_bytes(image_tokenizer_bytes(network, dtype))
    return load_image_tokenizer(path)


def pairs_of(pictures, units=None):
    shape = (2, len(pictures), 28, 28)
    if units is None:
        units = np.random.default_rng(0).integers(0, 8192, shape).astype(np.uint16)
    return Pairs(pictures=pictures, units=units)


def test_a_batch_holds_pixels_and_units_of_one_place(pictures):
    # Units that tell their picture, its side and their place in the grid.
    grid = np.arange(28 * 28).reshape(28, 28) + 1000 * np.arange(2)[:, None, None, None]
    pairs = pairs_of(pictures[:1], np.broadcast_to(grid, (2, 1, 28, 28)).astype(np.uint16))
    recipe, seen = Recipe(batch_size=6, crop_patches=5), set()
    generator = np.random.default_rng(0)
    for _ in range(8):
        pixels, units, (y, x) = pairs.draw(recipe, whole=False, generator=generator)
        assert (pixels.shape, units.shape) == ((6, 3, 40, 40), (6, 5, 5))
        for crop, part in zip(pixels.numpy(), units.numpy(), strict=True):
            mirrored, first = divmod(int(part[0, 0]), 1000)
            assert first == y * 28 + x
            picture = pictures[0, :, ::-1] if mirrored else pictures[0]
            expected = picture[8 * y : 8 * y + 40, 8 * x : 8 * x + 40].transpose(2, 0, 1)
            np.testing.assert_allclose(crop, expected / np.float32(255), atol=1e-6)
            seen.add(mirrored)
    assert seen == {0, 1}
    pixels, units, place = pairs.draw(recipe, whole=True, generator=generator)
    assert (pixels.shape, units.shape, place) == ((1, 3, 224, 224), (1, 28, 28), (0, 0))


def test_training_lowers_the_error_and_leaves_the_units(pictures, tmp_path):
    tokenizer = small_tokenizer(tmp_path / "t.safetensors")
    before = {name: tensor.clone() for name, tensor in tokenizer.network.state_dict().items()}
    trainer = Trainer(tokenizer, Recipe(block_rate=1e-3, other_rate=1e-3), torch.device("cpu"))
    pixels, units, origin = pairs_of(pictures).draw(
        Recipe(batch_size=4), whole=False, generator=np.random.default_rng(0)
    )
    errors = [trainer.train_step(pixels, units, origin, 0.5) for _ in range(30)]
    assert errors[-1] < 0.8 * errors[0]
    changed = {
        name.split(".")[0]
        for name, tensor in tokenizer.network.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"decoder", "post_quant"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_command_keeps_the_fingerprint_and_goes_on(tmp_path, capsys, dtype):
    tokenizer = small_tokenizer(tmp_path / "t.safetensors", dtype)
    command = ["--tokenizer", str(tmp_path / "t.safetensors"), "--images", str(DEMO_DIR)]
    command += ["--val", str(DEMO_DIR), "--out", str(tmp_path / "out"), "--batch-size", "2"]
    command += ["--crop-patches", "7"]
    assert fit_image_decoder.main([*command, "--minutes", "0.01"]) == 0
    written = load_image_tokenizer(tmp_path / "out" / "tokenizer.safetensors")
    assert written.fingerprint == tokenizer.fingerprint
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["fingerprint"] == tokenizer.fingerprint
    assert card["val"]["num_codes_used"] == card["val_before"]["num_codes_used"]
    assert "before" in capsys.readouterr().out


def test_the_state_goes_on_where_it_was(pictures, tmp_path):
    pairs, recipe = pairs_of(pictures), Recipe(batch_size=2, crop_patches=7)

    def steps(trainer, count):
        for _ in range(count):
            generator = np.random.default_rng(trainer.step)
            batch = pairs.draw(recipe, whole=False, generator=generator)
            trainer.train_step(*batch, 0.5)

    whole, first, second = (
        Trainer(small_tokenizer(tmp_path / "t.safetensors"), recipe, torch.device("cpu"))
        for _ in range(3)
    )
    steps(whole, 4)
    steps(first, 2)
    second.restore(first.state())
    steps(second, 2)
    for name, tensor in whole.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], tensor)


def test_units_of_other_pictures_are_refused(pictures, tmp_path):
    tokenizer = small_tokenizer(tmp_path / "t.safetensors")
    path = tmp_path / "units.npy"
    np.save(path, np.zeros((2, 3, 28, 28), np.uint16))
    with pytest.raises(ValueError, match="units.npy: units of shape .2, 3, 28, 28., expected"):
        fit_image_decoder.encode_pictures(tokenizer, pictures[:2], path)


def test_no_pictures_is_one_line(tmp_path, capsys):
    command = ["--images", str(tmp_path), "--val", str(tmp_path), "--out", str(tmp_path / "out")]
    assert fit_image_decoder.main(command) == 1
    assert "fit_image_decoder: " in capsys.readouterr().err
