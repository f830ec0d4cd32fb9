import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from im2sp.pipeline import load_image_tokenizer
from im2sp.pipeline.image_tokenizer.network import ViTVQGAN
from im2sp.tools import fit_image_tokenizer
from im2sp.tools.fitting import image_start as image_tokenizer_start
from im2sp.tools.fitting import image_trainer as image_tokenizer_trainer
from im2sp.tools.fitting.image_start import fit_patches
from im2sp.tools.fitting.image_trainer import (
    Recipe,
    Trainer,
    nearest_codes,
    network_config,
)
from im2sp.tools.fitting.kmeans import nearest_centroids

DEMO_DIR = Path(__file__).resolve().parents[2] / "docs" / "demo-images"
RECIPE = Recipe(
    width=192,
    encoder_depth=1,
    decoder_depth=1,
    batch_size=4,
    crop_patches=7,
    block_rate=1.5e-4,
    encoder_rate_factor=0.4,
    other_rate=1e-5,
    commitment=1.0,
    decay=0.99,
    whole_share=0.1,
    seed=0,
)


@pytest.fixture(scope="module")
def pictures():
    return fit_image_tokenizer.read_images([DEMO_DIR])


@pytest.fixture(scope="module")
def statistics(pictures):
    generator = np.random.default_rng(0)
    patches = image_tokenizer_start.sample_patches(pictures, 20000, generator)
    return fit_patches(patches, num_codes=8192, code_width=32, num_rounds=3, seed=0)


def test_the_start_is_plain_vector_quantisation(pictures, statistics):
    network = ViTVQGAN(network_config(RECIPE))
    image_tokenizer_start.start_network(network, statistics, seed=0)
    plain = fit_image_tokenizer.measure_kmeans(statistics, pictures[:4])
    started = fit_image_tokenizer.measure(network, pictures[:4], torch.device("cpu"))
    assert started.psnr_db == pytest.approx(plain.psnr_db, abs=0.25)
    assert started.num_codes_used > 0.9 * plain.num_codes_used


def test_a_neighbour_head_looks_at_its_neighbour(statistics):
    network = ViTVQGAN(network_config(RECIPE))
    image_tokenizer_start.start_network(network, statistics, seed=0)
    decoder = network.decoder
    attention = decoder.transformer.layers[0][0]
    x = attention.norm(decoder.positions((28, 28)))
    q, k, _ = attention.fn.to_qkv(x).view(784, 3, 3, 64).permute(1, 2, 0, 3)
    looked_at = (q @ k.transpose(1, 2)).argmax(-1)  # (H, N)
    patch = 10 * 28 + 10
    assert looked_at[:, patch].tolist() == [patch + 1, patch - 1, patch + 28]


def test_nearest_codes_and_centroids_equal_the_distances_written_out():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(700, 31, generator=generator)
    centroids = torch.randn(128, 31, generator=generator)
    distances = torch.cdist(points, centroids)
    owners, squares = nearest_centroids(points, centroids)
    assert (owners == distances.argmin(1)).all()
    torch.testing.assert_close(squares, distances.amin(1).square(), rtol=1e-3, atol=1e-3)
    points, centroids = F.normalize(points, dim=1), F.normalize(centroids, dim=1)
    assert (nearest_codes(points, centroids) == (points @ centroids.T).argmax(1)).all()


def test_training_a_crop_lowers_its_error(pictures, statistics):
    trainer = Trainer(RECIPE, statistics, torch.device("cpu"))
    crop = fit_image_tokenizer.to_pixels(pictures[:1, 32:88, 32:88], trainer.device)
    errors = [trainer.train_step(crop, (4, 4), 0.5) for _ in range(5)]
    assert errors[-1] < 0.6 * errors[0]


def test_a_crop_has_the_positions_of_its_place(statistics, pictures):
    network = ViTVQGAN(network_config(RECIPE))
    image_tokenizer_start.start_network(network, statistics, seed=0)
    pixels = fit_image_tokenizer.to_pixels(pictures[:1, :56, :56], torch.device("cpu"))
    assert network.encode_features(pixels, (3, 5), torch.bfloat16).shape == (1, 49, 32)
    whole = network.encoder.positions((28, 28)).view(28, 28, -1)
    crop = network.encoder.positions((7, 7), (3, 5)).view(7, 7, -1)
    torch.testing.assert_close(crop, whole[3:10, 5:12])


def test_a_loss_that_is_not_finite_stops_with_the_step(pictures, statistics):
    trainer = Trainer(RECIPE, statistics, torch.device("cpu"))
    with torch.no_grad():
        trainer.network.post_quant.weight.fill_(float("nan"))
    crop = fit_image_tokenizer.to_pixels(pictures[:1, :56, :56], trainer.device)
    with pytest.raises(ValueError, match="nan at step 0; lower the learning rates"):
        trainer.train_step(crop, (0, 0), 0.0)


def test_the_state_goes_on_where_it_was(pictures, statistics):
    crop = fit_image_tokenizer.to_pixels(pictures[:2, :56, :56], torch.device("cpu"))
    first = Trainer(RECIPE, statistics, torch.device("cpu"))
    first.train_step(crop, (0, 0), 0.5)
    second = Trainer(RECIPE, statistics, torch.device("cpu"))
    second.restore(copy.deepcopy(first.state()))
    assert first.train_step(crop, (0, 0), 0.5) == second.train_step(crop, (0, 0), 0.5)
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_command_writes_weights_that_load_and_a_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(image_tokenizer_trainer, "WARM_UP_STEPS", 1)
    arguments = ["--images", str(DEMO_DIR), "--val", str(DEMO_DIR), "--out", str(tmp_path)]
    sizes = ["--minutes", "0.02", "--num-patches", "25000", "--width", "192", "--batch-size", "1"]
    depths = ["--encoder-depth", "1", "--decoder-depth", "1"]
    assert fit_image_tokenizer.main([*arguments, *sizes, *depths]) == 0
    capsys.readouterr()
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["num_train_images"] == card["val"]["num_images"] == 12
    assert card["val"]["psnr_db"] > 15
    tokenizer = load_image_tokenizer(tmp_path / "tokenizer.safetensors")
    assert tokenizer.codebook.shape == (8192, 32)


def test_no_pictures_is_one_line(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    arguments = ["--images", str(tmp_path), "--val", str(tmp_path), "--out", str(tmp_path / "o")]
    assert fit_image_tokenizer.main(arguments) == 1
    assert "no readable image" in capsys.readouterr().err
