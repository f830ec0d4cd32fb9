import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from im2sp.pipeline import load_image_tokenizer
from im2sp.pipeline.image_tokenizer import tokenizer as image_tokenizer
from im2sp.pipeline.image_tokenizer.network import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.image_tokenizer.tokenizer import _QUOTIENTS, ImageTokenizer
from im2sp.pipeline.image_tokenizer.weights import image_tokenizer_bytes
from im2sp.shards.weights.pickles import WeightsError
from support.hub import COMMIT, cached_repository

BASE = "thuanz123/vitvqgan-imagenet-base"


def make_network(num_codes=300, grid=(32, 32), heads=2):
    torch.manual_seed(11)
    stack = TransformerConfig(width=64, depth=2, heads=heads, mlp_width=96)
    config = ViTVQGANConfig(encoder=stack, decoder=stack, num_codes=num_codes)
    return ViTVQGAN(config, grid).eval().requires_grad_(False)


class Features(nn.Module):
    """The module that SeiT pickled: pixels -> features before quantisation."""

    def __init__(self, network):
        super().__init__()
        self.encoder, self.pre_quant = network.encoder, network.pre_quant


@pytest.fixture
def network():
    return make_network()


@pytest.fixture
def pixels():
    return torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(4))


@pytest.fixture
def lightning(network, tmp_path):
    path = tmp_path / "imagenet_vitvq_base.ckpt"
    state = {**network.state_dict(), "loss.perceptual.weight": torch.ones(3)}
    torch.save({"epoch": 9, "state_dict": state, "hyper_parameters": {"dim": 64}}, path)
    return path


def library_units(network, pixels):
    _, ids, _ = network.vector_quantizer()(network.encoder(pixels))
    return ids.view(len(pixels), pixels.shape[2] // 8, pixels.shape[3] // 8)


def test_every_published_form_gives_the_same_units_and_fingerprint(
    network, pixels, lightning, tmp_path
):
    state, rows = network.state_dict(), network.quantizer.embedding.weight.detach()
    old = {
        "encoder.transformer.norm": "encoder.norm",
        "decoder.to_pixel.1": "decoder.to_pixel.conv_out",
    }
    renamed = {}
    for name, tensor in state.items():
        for new_part, old_part in old.items():
            name = name.replace(new_part, old_part)
        renamed[name] = tensor
    forms = {
        "legacy.ckpt": ({"state_dict": state}, False),
        "bare.pt": (state, True),
        "module.ckpt": (network, True),
        "module_legacy.ckpt": (network, False),
        "seit.ckpt": (Features(network), True),
        "sequential.ckpt": (nn.Sequential(network.encoder, network.pre_quant), True),
        "parallel.ckpt": ({f"module.{name}": tensor for name, tensor in state.items()}, True),
        "older_names.ckpt": ({"state_dict": renamed}, True),
        "codebook.ckpt": (rows, True),
    }
    for name, (content, zipped) in forms.items():
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
    (tmp_path / "ours.safetensors").write_bytes(image_tokenizer_bytes(network, torch.float32))
    expected = library_units(network, pixels)
    fingerprints = set()
    for name in [lightning.name, *forms, "ours.safetensors"]:
        if name == "codebook.ckpt":
            continue
        needs_codebook = name in ("seit.ckpt", "sequential.ckpt")
        codebook = tmp_path / "codebook.ckpt" if needs_codebook else None
        tokenizer = load_image_tokenizer(tmp_path / name, codebook)
        assert torch.equal(tokenizer.encode(pixels), expected), name
        assert torch.equal(tokenizer.codebook, rows)
        assert tokenizer.name == name
        fingerprints.add(tokenizer.fingerprint)
    assert len(fingerprints) == 1
    assert len(fingerprints.pop()) == 64


def test_the_fingerprint_depends_on_weights_and_precision(lightning, network, tmp_path):
    same = load_image_tokenizer(lightning)
    other_rows = network.quantizer.embedding.weight.clone()
    other_rows[5, 5] += 1e-3
    fingerprints = {
        same.fingerprint,
        load_image_tokenizer(lightning, precision="bf16").fingerprint,
        load_image_tokenizer(lightning, other_rows).fingerprint,
    }
    network.encoder.transformer.norm.bias[0] += 1e-3
    fingerprints.add(ImageTokenizer(network, name="x").fingerprint)
    assert len(fingerprints) == 4


def test_uint8_images_give_the_units_of_their_quotients(lightning):
    rng = np.random.default_rng(6)
    images = rng.integers(0, 256, (3, 32, 40, 3), dtype=np.uint8)
    images.reshape(-1)[:256] = np.arange(256)
    planes = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    tokenizer = load_image_tokenizer(lightning)
    seen = []
    features = tokenizer.features
    tokenizer.features = lambda pixels: (seen.append(pixels), features(pixels))[1]
    units = tokenizer.encode_uint8(images)
    assert torch.equal(torch.cat(seen), torch.from_numpy(planes))  # to the last bit
    assert torch.equal(units, tokenizer.encode(torch.from_numpy(planes)))
    assert tokenizer.encode_uint8(torch.from_numpy(images[:0])).shape == (0, 4, 5)


def test_quotients_on_a_gpu_are_those_of_the_cpu():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(_QUOTIENTS[levels.int()], levels.to(torch.float32) / 255)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), r"torch.float32 of shape \[2, 8, 8, 3\], expected"),
        (np.zeros((8, 8, 3), np.uint8), r"expected torch.uint8 \[B, H, W, 3\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \[2, 8, 3, 8\], expected \[B, 3, H, W\]"),
        (np.zeros((2, 8, 12, 3), np.uint8), "8x12, expected multiples of 8"),
    ],
)
def test_images_that_are_refused(lightning, images, message):
    with pytest.raises(ValueError, match=message):
        load_image_tokenizer(lightning).encode_uint8(images)


def test_bfloat16_keeps_most_units(lightning, pixels):
    exact = load_image_tokenizer(lightning).encode(pixels)
    reduced = load_image_tokenizer(lightning, precision="bf16").encode(pixels)
    assert reduced.dtype == torch.int64
    assert (exact == reduced).float().mean() > 0.9


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_onednn_the_module_itself_runs(lightning, pixels, precision, monkeypatch):
    packed = load_image_tokenizer(lightning, precision=precision).encode(pixels)
    monkeypatch.setattr(image_tokenizer, "is_supported", lambda dtype: False)
    plain = load_image_tokenizer(lightning, precision=precision)
    assert plain._encoder is None
    share = (plain.encode(pixels) == packed).float().mean()
    assert share > (0.9999 if precision == "fp32" else 0.9)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (8, 8), (16, 40)])
def test_any_grid_of_patches(lightning, network, size):
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(5))
    tokenizer = load_image_tokenizer(lightning)
    units = tokenizer.encode(pixels)
    assert units.shape == (2, size[0] // 8, size[1] // 8)
    assert torch.equal(units, library_units(network, pixels))
    decoded = tokenizer.decode(units)
    rows = F.normalize(network.quantizer.embedding.weight, dim=-1)
    grid = (size[0] // 8, size[1] // 8)
    expected = network.decode_features(rows[units.flatten(1)], grid).clamp(0, 1)
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_units_do_not_depend_on_batch_or_cores(lightning, pixels, precision):
    tokenizer = load_image_tokenizer(lightning, precision=precision)
    num_threads = torch.get_num_threads()
    together = tokenizer.encode(pixels)
    try:
        for cores in (1, 2, 4):
            torch.set_num_threads(cores)
            assert torch.equal(tokenizer.encode(pixels), together)
    finally:
        torch.set_num_threads(num_threads)
    assert all(
        torch.equal(tokenizer.encode(image[None])[0], units)
        for image, units in zip(pixels, together, strict=True)
    )
    together[0, 0, 0] = 1  # an ordinary tensor, not one of inference mode
    assert tokenizer.encode(pixels[:0]).shape == (0, 28, 28)
    assert tokenizer.decode(together[:0]).shape == (0, 3, 224, 224)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ".npy"])
def test_a_codebook_of_391_rows(network, pixels, tmp_path, suffix):
    rows = torch.randn(391, 32, generator=torch.Generator().manual_seed(6))
    torch.save(Features(network), tmp_path / "tokenizer.ckpt")
    codebook = tmp_path / f"codebook{suffix}"
    if suffix == ".ckpt":
        torch.save(rows, codebook)
    elif suffix == ".npy":
        np.save(codebook, rows.numpy())
    else:
        save_file({"codebook": rows}, codebook)
    tokenizer = load_image_tokenizer(tmp_path / "tokenizer.ckpt", codebook)
    units = tokenizer.encode(pixels)
    assert units.min() >= 0
    assert units.max() < 391
    assert tokenizer.codebook.shape == (391, 32)
    assert torch.equal(tokenizer.codebook, rows)
    features = F.normalize(network.encode_features(pixels), dim=-1)
    expected = torch.cdist(features, F.normalize(rows, dim=-1)).argmin(-1)
    assert (units.flatten(1) == expected).float().mean() > 0.999
    with pytest.raises(ValueError, match="have no decoder"):
        tokenizer.decode(units)


def test_decode_refuses_ids_beyond_the_codebook(lightning):
    tokenizer = load_image_tokenizer(lightning, torch.randn(391, 32))
    units = torch.zeros(1, 4, 4, dtype=torch.int64)
    tokenizer.decode(units + 390)
    for bad, message in [
        (units + 391, r"from 391 to 391, expected \[0, 391\)"),
        (units - 1, r"from -1 to -1"),
        (units.float(), "expected an integer tensor"),
        (units[0], r"shape \[4, 4\], expected \[B, h, w\]"),
        (units[:, :0], "expected"),
        (units.tolist(), "units are list"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(bad)


def test_encode_refuses_what_is_no_image(lightning):
    tokenizer = load_image_tokenizer(lightning)
    image = torch.full((1, 3, 16, 16), 0.5)
    not_finite = image.clone()
    not_finite[0, 1, 2, 3] = float("nan")
    infinite = image.clone()
    infinite[0, 1, 2, 3] = float("inf")
    for bad, message in [
        (image.double(), "pixels are torch.float64, expected a torch.float32"),
        ((image * 255).to(torch.uint8), "pixels are torch.uint8"),
        (image.numpy(), "pixels are ndarray"),
        (image[0], r"shape \[3, 16, 16\], expected \[B, 3, H, W\]"),
        (image[:, :1], r"shape \[1, 1, 16, 16\]"),
        (image[:, :, :15], "15x16, expected multiples of 8"),
        (image[:, :, :0], "0x16"),
        (not_finite, "not finite"),
        (infinite, "not finite"),
        (image * 255, "from 127.5 to 127.5, expected"),
        (image - 0.75, "from -0.25"),
    ]:
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(bad)


def test_our_file_is_half_precision_with_metadata(network, pixels, tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(image_tokenizer_bytes(network, settings={"recipe": "none"}))
    tokenizer = load_image_tokenizer(path)
    assert tokenizer.network.config == network.config
    assert tokenizer.network.encoder.grid == (32, 32)
    assert torch.equal(tokenizer.network.encoder.en_pos_embedding, network.encoder.en_pos_embedding)
    share = (tokenizer.encode(pixels) == library_units(network, pixels)).float().mean()
    assert share > 0.95
    # The same numbers, stored as float32, are the same tokenizer.
    path.write_bytes(image_tokenizer_bytes(tokenizer.network, torch.float32))
    assert load_image_tokenizer(path).fingerprint == tokenizer.fingerprint


def test_heads_of_another_width_come_from_the_metadata(pixels, tmp_path):
    torch.manual_seed(2)
    stack = TransformerConfig(width=64, depth=1, heads=4, mlp_width=96, head_width=16)
    network = ViTVQGAN(ViTVQGANConfig(encoder=stack, decoder=stack, num_codes=50)).eval()
    path = tmp_path / "x.safetensors"
    path.write_bytes(image_tokenizer_bytes(network, torch.float32))
    tokenizer = load_image_tokenizer(path)
    assert tokenizer.network.config.encoder.heads == 4
    assert torch.equal(tokenizer.encode(pixels), library_units(network, pixels))


def test_wrong_files_are_named(network, lightning, tmp_path):
    state = network.state_dict()
    without = {name: value for name, value in state.items() if "layers.1.1.fn.net.2" not in name}
    wrong = {**state, "pre_quant.weight": torch.ones(32, 65)}
    infinite = {**state, "pre_quant.bias": torch.full((32,), float("inf"))}
    hubert = {"feature_extractor.conv_layers.0.0.weight": torch.ones(2)}
    encoder_only = {name: value for name, value in state.items() if name.startswith("encoder.")}
    no_blocks = {name: value for name, value in state.items() if ".layers." not in name}
    for content, message in [
        (
            {"state_dict": without},
            r"lacks encoder.transformer.layers.1.1.fn.net.2.weight .*\(4",
        ),
        (wrong, r"pre_quant.weight is torch.float32 of shape \[32, 65\], expected .* \[32, 64\]"),
        (infinite, "pre_quant.bias holds values that are not finite"),
        (hubert, "HuBERT or wav2vec 2.0.*expected a ViT-VQGAN"),
        (encoder_only, "without a codebook"),
        (no_blocks, "lacks encoder.transformer.layers.0.0.fn.to_qkv.weight"),
        (torch.ones(8192, 32), "one tensor of shape"),
        ([1, 2], "a list without tensors"),
    ]:
        path = tmp_path / "wrong.ckpt"
        torch.save(content, path)
        with pytest.raises(WeightsError, match=message) as caught:
            load_image_tokenizer(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)
    for rows, message in [
        (torch.ones(5, 31), r"pre_quant.weight|shape"),
        (torch.zeros(5, 32), "row is zero"),
        (torch.full((5, 32), float("nan")), "not finite"),
        (torch.ones(5), "expected one codebook"),
        (lightning, None),
        (tmp_path / "wrong.ckpt", "expected one codebook"),
    ]:
        if message is None:  # a whole checkpoint holds a codebook
            load_image_tokenizer(lightning, rows)
            continue
        with pytest.raises(WeightsError, match=message):
            load_image_tokenizer(lightning, rows)


def test_bad_metadata_is_named(network, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(dict(network.state_dict()), path, {"im2sp": "["})
    with pytest.raises(WeightsError, match="metadata 'im2sp' is not a JSON object"):
        load_image_tokenizer(path)


def test_the_bundled_tokenizer_is_looked_for_in_the_package(network, monkeypatch, tmp_path):
    path = tmp_path / "compact.safetensors"
    monkeypatch.setattr(image_tokenizer, "BUNDLED", {"compact": path})
    with pytest.raises(WeightsError, match=r"compact: its file compact.safetensors is missing"):
        load_image_tokenizer()
    path.write_bytes(image_tokenizer_bytes(network))
    assert load_image_tokenizer().name == "compact"


def test_hub_ids_go_through_the_hub_client(lightning, monkeypatch):
    asked = []

    def download(repository, file, *, revision=None):
        asked.append((repository, file, revision))
        return str(lightning)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    tokenizer = load_image_tokenizer(BASE)
    assert tokenizer.name == BASE
    assert load_image_tokenizer(f"{BASE}@abc123").name == f"{BASE}@abc123"
    load_image_tokenizer("thuanz123/vitvqgan-imagenet-small")
    load_image_tokenizer("someone/else/folder/vq.ckpt@v1")
    assert asked == [
        (BASE, "imagenet_vitvq_base.ckpt", None),
        (BASE, "imagenet_vitvq_base.ckpt", "abc123"),
        ("thuanz123/vitvqgan-imagenet-small", "imagenet_vitvq_small.ckpt", None),
        ("someone/else", "folder/vq.ckpt", "v1"),
    ]


def test_offline_the_local_cache_is_used(lightning, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    lightning.rename(cached_repository(cache, BASE) / lightning.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert load_image_tokenizer(BASE).num_codes == 300
    assert load_image_tokenizer(f"{BASE}@{COMMIT}").num_codes == 300


def test_offline_without_a_cache_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError,
        match=rf"{BASE}@v2: .*`hf download {BASE} imagenet_vitvq_base.ckpt --revision v2`.*pass",
    ) as caught:
        load_image_tokenizer(f"{BASE}@v2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compakt", "no such file; expected compact, thuanz123"),
        ("runs/none.ckpt", "no such file"),
        (Path("a/b"), "no such file"),
        ("/nowhere/x.safetensors", "no such file"),
        ("tests/pipeline/none.ckpt", "no such file"),
        ("someone/else", "write someone/else/FILE"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(WeightsError, match=message):
        load_image_tokenizer(name)


def test_unknown_precision(lightning):
    with pytest.raises(ValueError, match="precision 'fp16', expected one of fp32, tf32, bf16"):
        load_image_tokenizer(lightning, precision="fp16")


def test_importing_the_package_does_not_import_torch():
    code = "import sys, im2sp.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
