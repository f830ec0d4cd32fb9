"""The sheet shows the dataset's own pictures, decoded by the tokenizer that made their units."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import im2sp.pipeline
from im2sp.shards import (
    DEFAULT_COLUMNS,
    Layout,
    Manifest,
    Sample,
    ShardDataset,
    encode_batch,
    write_shard,
)
from im2sp.tools.reconstruct import decode_samples, main, psnr
from support.any_units import write_any

IMAGES = Path(__file__).resolve().parents[2] / "docs/demo-images"
KEYS = sorted(path.stem for path in IMAGES.glob("*.jpg"))


class GreyTokenizer:
    """Decodes a unit to a grey 8 x 8 patch of brightness unit / 8191."""

    fingerprint = "f" * 64

    def decode(self, units):
        grey = (units.float() / 8191).repeat_interleave(8, -1).repeat_interleave(8, -2)
        return grey[:, None].expand(-1, 3, -1, -1)


@pytest.fixture
def grey(monkeypatch):
    """Have every tokenizer be the grey one; returns what was asked for."""
    asked = []

    def load(name, codebook=None, *, precision="fp32"):
        asked.append((name, codebook, precision))
        return GreyTokenizer()

    monkeypatch.setattr(im2sp.pipeline, "load_image_tokenizer", load, raising=False)
    return asked


def grey_units(key, side_px=224):
    """Units of a demo picture for the grey tokenizer."""
    image = Image.open(IMAGES / f"{key}.jpg").convert("L").resize((side_px, side_px))
    patches = np.asarray(image.resize((side_px // 8, side_px // 8), Image.Resampling.BOX))
    edge = (side_px // 8 - 28) // 2
    units = np.round(patches * (8191 / 255)).astype(np.uint16)
    return units[edge : edge + 28, edge : edge + 28]


def write_dataset(folder, keys, *, view="squash-224", fingerprint="f" * 64, side_px=224):
    samples = [Sample(key=key, image_units=grey_units(key, side_px)) for key in keys]
    samples.append(Sample(key="no picture", captions=["nothing to see"]))
    shard = write_shard(folder / "00000.arrow", [encode_batch(samples)], Layout())
    Manifest(
        num_samples=len(samples),
        splits={"": len(samples)},
        layout=Layout(),
        columns=DEFAULT_COLUMNS,
        image_tokenizer={
            "name": "compact",
            "fingerprint": fingerprint,
            "view": view,
            "precision": "bf16",
        },
        shards=[shard],
    ).write(folder)
    return folder


def test_psnr_of_known_errors():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black, black + 255) == 0
    assert psnr(black, black + 1) == pytest.approx(48.13, abs=0.01)


def test_units_are_decoded_to_pixels(tmp_path, grey):
    dataset = ShardDataset(write_dataset(tmp_path, KEYS[:1]))
    (picture,) = decode_samples([dataset[0]], dataset.manifest.image_tokenizer, "compact", None)
    assert picture.shape == (224, 224, 3)
    assert picture.dtype == np.uint8
    expected = np.round(dataset[0].image_units * (255 / 8191))
    assert np.abs(picture[::8, ::8, 0] - expected).max() <= 1


@pytest.mark.parametrize(("view", "side_px"), [("squash-224", 224), ("squash-256-crop", 256)])
def test_each_picture_stands_beside_its_own_original(tmp_path, grey, capsys, view, side_px):
    write_dataset(tmp_path, KEYS, view=view, side_px=side_px)
    out = tmp_path / "made" / "sheet.png"
    assert main([str(tmp_path), "--out", str(out), "--images", str(IMAGES)]) == 0
    assert grey == [("compact", None, "bf16")]
    said = capsys.readouterr().out
    assert "12 images decoded" in said
    # Grey 8 x 8 patches of the right picture; those of another one stay below 10 dB.
    assert float(said.split("PSNR")[1].split()[0]) > 12.5
    with Image.open(out) as sheet:
        assert sheet.size == (3 * (2 * 224 + 8) + 8, 4 * (224 + 20 + 8) + 8)


def test_without_originals_the_decoded_pictures_stand_alone(tmp_path, grey, capsys):
    write_dataset(tmp_path, KEYS[:4])
    out = tmp_path / "sheet.png"
    arguments = ["--num-images", "2", "--image-tokenizer", "mine", "--codebook", "c.safetensors"]
    assert main([str(tmp_path), "--out", str(out), *arguments]) == 0
    assert grey == [("mine", Path("c.safetensors"), "bf16")]
    assert "2 images decoded" in capsys.readouterr().out
    with Image.open(out) as sheet:
        assert sheet.size == (3 * (224 + 8) + 8, 224 + 20 + 8 + 8)


def test_another_tokenizer_is_refused(tmp_path, grey, capsys):
    write_dataset(tmp_path, KEYS[:1], fingerprint="e" * 64)
    assert main([str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "compact: its fingerprint is ffff" in message
    assert "--image-tokenizer" in message


def test_a_source_without_the_picture_is_refused(tmp_path, grey, capsys):
    write_dataset(tmp_path, KEYS[:1])
    (tmp_path / "others").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "others/else.png")
    wrong = ["--images", str(tmp_path / "others")]
    assert main([str(tmp_path), "--out", str(tmp_path / "sheet.png"), *wrong]) == 1
    assert f"no image for the key {KEYS[0]!r}" in capsys.readouterr().err


def test_a_dataset_without_image_units_is_refused(tmp_path, grey, capsys):
    write_dataset(tmp_path, [])
    assert main([str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 1
    assert "holds no image units" in capsys.readouterr().err
    write_any(tmp_path / "a")
    write_any(tmp_path / "b", tokenizers={"image_units": {"name": "LlamaGen"}})
    for name, made_by in (("a", "no known tokenizer"), ("b", "LlamaGen")):
        assert main([str(tmp_path / name), "--out", str(tmp_path / "sheet.png")]) == 1
        assert f"its image units are of {made_by}, which im2sp cannot de" in capsys.readouterr().err


def test_no_dataset_is_exit_code_1_and_wrong_usage_2(tmp_path, capsys):
    assert main([str(tmp_path), "--out", str(tmp_path / "sheet.png")]) == 1
    assert "dataset.json" in capsys.readouterr().err
    assert main([str(tmp_path), "--out", "sheet.png", "--num-images", "0"]) == 2
    assert "--num-images is 0" in capsys.readouterr().err
