"""Tokenizers and images that are small enough for tests of the whole job."""

import hashlib
import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from im2sp.pipeline import cli
from im2sp.pipeline.image_tokenizer.network import TransformerConfig, ViTVQGAN, ViTVQGANConfig
from im2sp.pipeline.image_tokenizer.weights import image_tokenizer_bytes
from im2sp.pipeline.job import config as job_config
from im2sp.pipeline.job import decode_pool
from im2sp.pipeline.job import run as job
from im2sp.pipeline.job.decode_pool import decode


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A real, random image tokenizer: width 64, depth 1."""
    torch.manual_seed(5)
    stack = TransformerConfig(width=64, depth=1, heads=1, mlp_width=64)
    network = ViTVQGAN(ViTVQGANConfig(encoder=stack, decoder=stack, num_codes=512), (28, 28))
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(image_tokenizer_bytes(network))
    return path


@pytest.fixture
def tokenize(capsys, tiny_checkpoint):
    """tokenize(*args) -> exit status, stdout, stderr of the command with a tiny tokenizer."""

    def run(*args):
        args = [*map(str, args), "--image-tokenizer", str(tiny_checkpoint), "--num-workers", "1"]
        with pytest.raises(SystemExit) as left:
            cli.main(args)
        return left.value.code, *capsys.readouterr()

    return run


class FakeTokenizer:
    """Units straight from the pixels, at no cost; what `run_job` uses of a tokenizer."""

    name, precision, patch_size_px, num_codes = "fake", "fp32", 8, 64
    device = SimpleNamespace(type="cpu")

    def __init__(self, seed=0):
        self.seed = seed
        self.fingerprint = hashlib.sha256(bytes([seed])).hexdigest()
        self.codebook = torch.arange(2048.0).reshape(64, 32) + seed

    def encode_uint8(self, images):
        corners = torch.from_numpy(images[:, ::8, ::8]).long()
        return ((corners * torch.tensor([1, 3, 7])).sum(-1) + self.seed) % 64


@pytest.fixture
def fake_tokenizer():
    return FakeTokenizer()


@pytest.fixture
def make_fake_tokenizer():
    return FakeTokenizer


class FakeSpeechTokenizer:
    """Units straight from the samples, at no cost; what `run_job` uses of a speech tokenizer."""

    name, precision, layer, num_units = "fake-speech", "fp32", 6, 200
    waveform_eps = None
    device = SimpleNamespace(type="cpu")

    def __init__(self, seed=0):
        self.seed = seed
        self.fingerprint = hashlib.sha256(bytes([seed, 1])).hexdigest()
        self.calls = []

    def encode_batch(self, waveforms):
        self.calls.append([len(waveform) for waveform in waveforms])
        return [self.encode(waveform) for waveform in waveforms]

    def encode(self, waveform):
        """Of a clip of at most 100 s; louder frames have higher units."""
        num_frames = (len(waveform) - 400) // 320 + 1
        loudness = np.abs(waveform[: 320 * num_frames].reshape(num_frames, 320)).mean(1)
        units = ((loudness * 600).astype(int) + self.seed) % self.num_units
        return units.astype(np.uint16)


@pytest.fixture
def fake_speech():
    return FakeSpeechTokenizer()


@pytest.fixture
def make_fake_speech():
    return FakeSpeechTokenizer


def _speak(folder, *names, seconds=0.4, broken=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        random = np.random.default_rng(sum(name.encode()))
        num_samples = int(16_000 * seconds * random.uniform(0.5, 1.5))
        loudness = np.repeat(random.uniform(0, 0.3, num_samples // 900 + 1), 900)[:num_samples]
        samples = loudness * random.uniform(-1, 1, num_samples)
        soundfile.write(folder / name, samples, 16_000, subtype="PCM_16")
        if name in broken:
            (folder / name).write_bytes((folder / name).read_bytes()[:-50])
    return folder


@pytest.fixture(scope="session")
def speak():
    """speak(folder, *names, seconds=0.4, broken=()) -> folder with noise of changing loudness."""
    return _speak


@pytest.fixture
def spoken(tmp_path):
    """12 images, of which 1 is cut, most with 0 to 3 clips, 2 cut; and 2 clips without an image."""
    folder = _draw(tmp_path / "s", 12, broken=[5])
    names = [f"{i:03d}_{k}.flac" for i in range(3, 12) for k in range(i % 4)]
    _speak(folder, *names, "talk.wav", "talk2.wav", broken=("007_1.flac", "talk2.wav"))
    return folder


@pytest.fixture
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)


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
    """draw(folder, num, broken=()) -> folder with num images, those of some numbers cut."""
    return _draw


@pytest.fixture
def twenty(tmp_path):
    """A folder with 20 good images and 2 broken ones."""
    return _draw(tmp_path / "p", 22, broken=[2, 9])


class InlinePool:
    """Decodes in this process."""

    def __init__(self, *, num_workers, view, max_pixels, max_audio_s, timeout_s):
        self.settings = (view, max_pixels, max_audio_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self):
        pass

    def decode(self, media):
        for medium in media:
            yield decode(medium, *self.settings)


@pytest.fixture
def inline_pool(monkeypatch):
    monkeypatch.setattr(job, "DecodePool", InlinePool)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 4 inputs, tasks of 2, so that a few images make several shards."""
    monkeypatch.setattr(job_config, "CHUNK_SIZE", 4)
    monkeypatch.setattr(job, "IMAGES_PER_TASK", 2)
    monkeypatch.setattr(decode_pool, "IMAGES_PER_TASK", 2)


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
