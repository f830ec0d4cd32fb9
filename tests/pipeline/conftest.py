"""Tokenizers and pictures that are small enough for tests of the whole job."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from im2sp.pipeline import job, job_config
from im2sp.pipeline.decode import decode
from im2sp.pipeline.vitvqgan import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.vitvqgan_weights import image_tokenizer_bytes


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A real, random image tokenizer: width 64, depth 1."""
    torch.manual_seed(5)
    stack = TransformerConfig(width=64, depth=1, heads=1, mlp_width=64)
    network = ViTVQGAN(ViTVQGANConfig(encoder=stack, decoder=stack, num_codes=512), (28, 28))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(image_tokenizer_bytes(network))
    return path


class FakeTokenizer:
    """Units straight from the pixels, at no cost; what `run_job` uses of a tokenizer."""

    name, precision, patch_size_px, num_codes = "fake", "fp32", 8, 64
    device = SimpleNamespace(type="cpu")

    def __init__(self, seed=0):
        self.seed = seed
        self.fingerprint = hashlib.sha256(bytes([seed])).hexdigest()
        self.codebook = torch.arange(2048.0).reshape(64, 32) + seed

    def encode(self, pixels):
        corners = pixels[:, :, ::8, ::8] * 255
        weights = torch.tensor([1.0, 3.0, 7.0])[:, None, None]
        return ((corners * weights).sum(1).round().long() + self.seed) % 64


@pytest.fixture
def fake_tokenizer():
    return FakeTokenizer()


@pytest.fixture
def make_fake_tokenizer():
    return FakeTokenizer


def _draw(folder, num, broken=()):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    for index in range(num):
        path = folder / f"{index:03d}.png"
        Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).save(path)
        if index in broken:
            path.write_bytes(path.read_bytes()[:50])
    return folder


@pytest.fixture(scope="session")
def draw():
    """draw(folder, num, broken=()) -> folder with num pictures, those of some numbers cut."""
    return _draw


@pytest.fixture
def twenty(tmp_path):
    """A folder with 20 good pictures and 2 broken ones."""
    return _draw(tmp_path / "p", 22, broken=[2, 9])


class InlinePool:
    """Decodes in this process."""

    def __init__(self, *, num_workers, view, max_pixels, max_audio_s):
        self.settings = (view, max_pixels, max_audio_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self):
        pass

    def decode(self, tasks):
        for task in tasks:
            for medium in task:
                yield decode(medium, *self.settings)


@pytest.fixture
def inline_pool(monkeypatch):
    monkeypatch.setattr(job, "DecodePool", InlinePool)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 4 inputs, tasks of 2, so that a few pictures make several shards."""
    monkeypatch.setattr(job_config, "CHUNK_SIZE", 4)
    monkeypatch.setattr(job, "MEDIA_PER_TASK", 2)


def _files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="session")
def files_of():
    """files_of(folder) -> content of every file below it, by relative path."""
    return _files_of
