import itertools
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from im2sp import describe
from im2sp.pipeline.cli import main as tokenize
from im2sp.pipeline.decoding.images import read_image
from im2sp.pipeline.decoding.views import VIEWS
from im2sp.shards import ShardDataset
from im2sp.tools.engines import image_features
from im2sp.tools.engines.image_encoders import load_image_encoder
from im2sp.tools.engines.image_features import prepare_features
from im2sp.tools.evaluation.chain import run_chain
from im2sp.tools.evaluation.config import EvaluateConfig
from im2sp.tools.evaluation.samples import find_images, judged_samples
from im2sp.tools.evaluation.stages import StageFolder
from im2sp.tools.speak import main as speak
from im2sp.tools.train import main
from im2sp.trainer import generate, load_model
from im2sp.trainer.config import TrainConfig
from im2sp.trainer.features import ImageFeatures
from im2sp.trainer.text import read_text_model
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


# Use of a run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_run(made):
    """A run of text on pixels, whose descriptions depend on the image."""
    flags = ["--steps", 20, "--warmup-steps", 2, "--learning-rate", "3e-3", "--quiet"]
    assert train(made, made / "run", *SOURCE, *flags) == 0
    return made / "run"


def test_sentences_about_photographs(made, text_run, tmp_path, capsys):
    """The sentences are those of the model on the cached features."""
    photos = sorted((DOCS / "demo-images").glob("*.jpg"))[:2]
    flags = ["--run", text_run, "--max-tokens", 12, "--device", "cpu"]
    assert run(speak, *photos, "--out", tmp_path / "spoken", *flags) == 0
    assert f"images through {made / 'clip'}, view center-224" in capsys.readouterr().err
    lines = (tmp_path / "spoken/spoken.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    features = ImageFeatures(text_run / "features", str(made / "clip"))
    model = load_model(text_run, device="cpu")
    states = features.take([path.stem for path in photos])
    ids = generate(model, states, max_tokens=12)
    text_model = read_text_model(text_run / "text.model")
    expected = [text_model.decode(one) for one in ids]
    assert [row["text"].lower() for row in rows] == [text.strip() for text in expected]
    found = describe(photos[0], run=text_run, device="cpu")
    assert found.units is None
    assert found.text is not None
    assert found.text.startswith(rows[0]["text"])
    # An encoder of other weights is refused, and so is a codebook.
    args = [*photos, "--out", tmp_path / "x", *flags]
    assert run(speak, *args, "--image-tokenizer", made / "other") == 1
    assert "was trained on features of" in capsys.readouterr().err
    assert run(speak, *args, "--codebook", made / "shards/codebook.safetensors") == 1
    assert "--codebook: the run run sees pixels; omit it" in capsys.readouterr().err


def test_evaluation_of_a_run_on_pixels(made, text_run, tmp_path):
    """By default the images are those of the run; samples without one are left out."""
    dataset = ShardDataset(made / "shards")

    def generated(name, **changes):
        settings = {"run": str(text_run), "shards": made / "shards", "device": "cpu"} | changes
        config = EvaluateConfig(**settings, max_tokens=12, quiet=True)
        images = find_images(config)
        items, num_without = judged_samples(dataset, None, None, "image_units", images)
        chain = run_chain(config, dataset, items, StageFolder(tmp_path / name), images)
        assert chain.about["image_encoder"] == str(made / "clip")
        return chain.generated, num_without

    whole, num_without = generated("all")
    assert (len(whole), num_without) == (12, 0)
    few = tmp_path / "images"
    few.mkdir()
    shutil.copy(DOCS / "demo-images/koi-pond.jpg", few)
    (one,), num_without = generated("few", images=(str(few),))
    assert num_without == 11
    assert one in whole
    (few / "koi-pond.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="--images: koi-pond.jpg: .*; restore it"):
        generated("x", images=(str(few),))
    with pytest.raises(ValueError, match="name that one with --image-encoder"):
        generated("y", image_encoder=str(made / "other"))
    with pytest.raises(ValueError, match="--images applies to runs of im2sp-train --input pixel"):
        generated("z", run="compact-text", images=("x",))


def test_a_run_with_its_features_elsewhere_names_no_images(made, text_run, tmp_path):
    flags = ["--features", text_run / "features", "--quiet"]
    assert train(made, tmp_path / "run", *flags) == 0
    config = EvaluateConfig(run=str(tmp_path / "run"), shards=made / "shards")
    with pytest.raises(ValueError, match="--images is missing: .*run describes pixels"):
        find_images(config)


def test_a_process_waits_for_the_one_that_writes_features(made, text_run, tmp_path, monkeypatch):
    """As in a run on several processes, of which one writes."""
    held = iter([False, False, True])
    waited = []
    monkeypatch.setattr(image_features, "file_lock", lambda path: nullcontext(next(held)))
    monkeypatch.setattr(image_features.time, "sleep", waited.append)
    config = TrainConfig(
        shards=(str(made / "shards"),),
        out=tmp_path,
        input="pixels",
        image_encoder=str(made / "clip"),
        features=text_run / "features",
    )
    prepare_features(config, lambda _: None)
    assert len(waited) == 2
    assert next(held, None) is None
