import itertools
import shutil
from pathlib import Path

import pytest
import torch

from im2sp.pipeline.cli import main as tokenize
from im2sp.pipeline.decoding.images import read_image
from im2sp.pipeline.decoding.views import VIEWS
from im2sp.shards import ShardDataset
from im2sp.tools.engines import image_features
from im2sp.tools.engines.image_encoders import load_image_encoder
from im2sp.tools.train import main
from im2sp.trainer.features import ImageFeatures
from support.teachers import make_teacher

pytest.importorskip("transformers")
DOCS = Path(__file__).parents[2] / "docs"
SOURCE = ["--images", DOCS / "demo-captions.jsonl", "--image-root", DOCS / "demo-images"]
TINY = [
    "--target", "text", "--text-pieces", 60, "--preset", "tiny", "--steps", 2, "--batch-size", 4,
    "--no-tensorboard", "--device", "cpu",
]  # fmt: skip


def run(command, *args):
    """Exit status of a command line."""
    with pytest.raises(SystemExit) as left:
        command([str(arg) for arg in args])
    return left.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Shards of the demo images, and two image encoders."""
    folder = tmp_path_factory.mktemp("made")
    flags = ["--out", folder / "shards", "--image-root", DOCS / "demo-images", "--quiet"]
    assert run(tokenize, DOCS / "demo-captions.jsonl", *flags, "--num-workers", 1) == 0
    make_teacher(folder / "clip", "clip")
    make_teacher(folder / "other", "clip", seed=1)
    return folder


def train(made, out, *args, encoder="clip"):
    flags = ["--input", "pixels", "--shards", made / "shards", "--image-encoder", made / encoder]
    return run(main, *flags, "--out", out, *TINY, *args)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(image_features, "BATCH_SIZE", 2)
    monkeypatch.setattr(image_features, "PART_BATCHES", 2)
    monkeypatch.setattr(image_features, "_MAX_WORKERS", 1)


@pytest.mark.usefixtures("small_parts")
def test_features_are_written_once_and_resumed(made, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    write_part = image_features.write_part
    calls = itertools.count()

    def killed(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        write_part(*args)

    monkeypatch.setattr(image_features, "write_part", killed)
    assert train(made, out, *SOURCE) != 0
    before = {path: path.read_bytes() for path in (out / "features").glob("*.safetensors")}
    assert len(before) == 2
    monkeypatch.setattr(image_features, "write_part", write_part)
    capsys.readouterr()
    assert train(made, out, *SOURCE) == 0
    shown = capsys.readouterr()
    assert "features of 4 images by" in shown.err
    assert "trained   2 steps" in shown.out
    assert all(path.read_bytes() == data for path, data in before.items())
    # All are there now: neither images nor encoder are needed.
    monkeypatch.setattr(image_features, "load_image_encoder", None)
    assert train(made, tmp_path / "again", "--features", out / "features") == 0


@pytest.mark.usefixtures("small_parts")
def test_features_are_those_of_the_decoded_images(made, tmp_path):
    assert train(made, tmp_path, *SOURCE, "--quiet") == 0
    features = ImageFeatures(tmp_path / "features", str(made / "clip"))
    keys = [sample.key for sample in ShardDataset(made / "shards")]
    assert all(key in features for key in keys)
    encoder = load_image_encoder(str(made / "clip"), "cpu")
    assert features.record == encoder.record
    image = read_image(DOCS / "demo-images/koi-pond.jpg", name="koi-pond.jpg")
    pixels = torch.from_numpy(VIEWS["center-224"].apply(image))[None]
    found = features.take(["koi-pond"])
    torch.testing.assert_close(found, encoder.states(pixels), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("small_parts")
def test_what_is_refused(made, tmp_path, capsys, monkeypatch):
    def error(*args, **kwargs):
        assert train(made, tmp_path / "run", *args, **kwargs) == 1
        return capsys.readouterr().err

    assert "--images is missing: " in (text := error())
    assert "lacks the features of 12 images, such as" in text
    (tmp_path / "few").mkdir()
    shutil.copy(DOCS / "demo-images/koi-pond.jpg", tmp_path / "few")
    assert "few: lacks 11 of 12 images of the shards, such as" in error(
        "--images", tmp_path / "few"
    )
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(image_features.shutil, "disk_usage", lambda _: usage)
    assert "needs 0.0 GB for 12 images, and 0.0 GB are free; name another" in error(*SOURCE)
    monkeypatch.undo()
    images = shutil.copytree(DOCS / "demo-images", tmp_path / "images")
    (images / "koi-pond.jpg").write_bytes(b"no image")
    text = error("--images", images)
    assert "1 of 12 images of the shards are refused, such as koi-pond.jpg: " in text
    # The encoder of that name has other weights now.
    renamed = shutil.copytree(made / "clip", tmp_path / "clip")
    flags = ["--features", tmp_path / "own", "--image-encoder", renamed]
    assert error("--images", images, *flags)
    shutil.rmtree(renamed)
    shutil.copytree(made / "other", renamed)
    assert "features of the encoder" in error(*SOURCE, *flags)
