import dataclasses
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from im2sp.shards import ShardDataset
from im2sp.trainer.features import part_path, write_part
from im2sp.trainer.loop import train
from im2sp.trainer.metrics import read_metrics
from im2sp.trainer.teacher import PLACES, POOLED, TEACHER, Features, Teacher, TeacherHeads
from im2sp.trainer.weights import load_model
from support.training import make_config, make_shards, weights_of

RECORD = {"teacher": "test", "fingerprint": "f" * 64, "view": "squash-224"}
KEYS = [f"train{i}" for i in range(8)]


def features_of(num, seed=0):
    rng = np.random.default_rng(seed)
    pooled, places = rng.normal(3, 2, (num, 6)), rng.normal(-1, 0.5, (num, 49, 5))
    return torch.from_numpy(pooled).half(), torch.from_numpy(places).half()


def save_part(folder, number, keys, record, pooled, places):
    tensors = {POOLED: pooled, PLACES: places}
    write_part(part_path(folder, number), TEACHER, keys, record, tensors)


def save(folder, keys=KEYS, part_size=5, seed=0, **changes):
    """A folder of features in parts."""
    folder.mkdir(parents=True)
    pooled, places = features_of(len(keys), seed)
    for number, first in enumerate(range(0, len(keys), part_size)):
        rows = slice(first, first + part_size)
        save_part(folder, number, keys[rows], RECORD | changes, pooled[rows], places[rows])
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return with_view(make_shards(tmp_path_factory.mktemp("data") / "shards"), "squash-224")


def with_view(shards, view):
    """Record a view in a dataset's manifest."""
    manifest = ShardDataset(shards).manifest
    record = {**manifest.image_tokenizer, "view": view}
    dataclasses.replace(manifest, image_tokenizer=record).write(shards)
    return shards


# Features -----------------------------------------------------------------------------------------


def test_features_by_key(tmp_path):
    features = Features(save(tmp_path / "a"))
    pooled, places = features_of(8)
    for row, key in enumerate(KEYS):
        assert key in features
        found = features.take(key)
        assert torch.equal(found[0], pooled[row])
        assert torch.equal(found[1], places[row])
    assert "val0" not in features
    assert (features.widths, features.record) == ((6, 5), RECORD)
    (mean, std), (place_mean, _) = features.moments()
    torch.testing.assert_close(mean, pooled.float().mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(std, pooled.float().std(0, correction=0), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(place_mean, places.float().mean((0, 1)), rtol=1e-3, atol=1e-3)


def test_features_of_several_views(tmp_path):
    folders = [
        save(tmp_path / "b", seed=1, view="random-224-1"),
        save(tmp_path / "a"),
    ]
    teacher = Teacher(folders, ["squash-224", "random-224-1"], KEYS)
    pooled, places = teacher.take(["train3", "train6", "train3"], [0, 1, 1])
    expected = [features_of(8, seed) for seed in (0, 1)]
    rows = [(0, 3), (1, 6), (1, 3)]
    assert torch.equal(pooled, torch.stack([expected[view][0][row] for view, row in rows]))
    assert torch.equal(places, torch.stack([expected[view][1][row] for view, row in rows]))
    assert teacher.first.folder == tmp_path / "a"


def test_features_that_cannot_be_used(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="--teacher .*empty: holds no features; expected a folder"):
        Features(tmp_path / "empty")
    folder = save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"no features of the view center-224, only of squash-224"):
        Teacher([folder], ["center-224"], KEYS)
    with pytest.raises(ValueError, match=r"a: lacks 1 of 2 images, such as x"):
        Teacher([folder], ["squash-224"], ["train1", "x"])
    other = save(tmp_path / "b", view="x", fingerprint="0" * 64, teacher="another")
    with pytest.raises(ValueError, match=r"b: features of another, those of .*a are of test; use"):
        Teacher([folder, other], ["squash-224", "x"], KEYS)
    part = part_path(folder, 1)
    save_part(folder, 1, ["z"], RECORD | {"view": "x"}, *features_of(1))
    with pytest.raises(ValueError, match=r"part-00001.*'view': 'x'}, those of part-00000"):
        Features(folder)
    save_file({"x": torch.zeros(1)}, part)
    with pytest.raises(ValueError, match="not features of a teacher; expected a file of tools/te"):
        Features(folder)
    part.write_bytes(b"cut")
    with pytest.raises(ValueError, match="part-00001.safetensors: cannot be read: .*; write it ag"):
        Features(folder)


# Heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [28, 56])
def test_the_loss_of_the_heads(make_model, tmp_path, grid):
    """Against the formula; with more states than places, those of a place are averaged."""
    model = make_model(grid=grid, stem_stride=4)
    features = Features(save(tmp_path / "a"))
    torch.manual_seed(0)
    heads = TeacherHeads(model.config, features)
    states, projected = model.encode(torch.randint(50, (2, grid, grid)))
    pooled, places = features_of(2)
    found = heads(states, projected, pooled, places)
    (mean, std), (place_mean, place_std) = features.moments()
    wanted = ((pooled.float() - mean) / std).clamp(-5, 5)
    wanted_places = ((places.float() - place_mean) / place_std).clamp(-5, 5)
    side = grid // 4
    at = states[:, 1:].reshape(2, 7, side // 7, 7, side // 7, -1).mean((2, 4)).flatten(1, 2)
    expected = F.smooth_l1_loss(heads.pooled(projected.mean(1)), wanted)
    expected = expected + F.smooth_l1_loss(heads.places(at), wanted_places)
    torch.testing.assert_close(found, expected)


# Training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["words", "text"])
def test_a_resumed_run_equals_an_uninterrupted_one(shards, tmp_path, target):
    views = with_view(make_shards(tmp_path / "views", seed=5), "random-224-1")
    folders = (save(tmp_path / "a"), save(tmp_path / "b", seed=1, view="random-224-1"))
    settings = {
        "target": target,
        "text_pieces": 40,
        "teacher": folders,
        "other_view": (views,),
        "ema": 0.9,
        "stochastic_depth": 0.3,
    }
    straight, out = tmp_path / "straight", tmp_path / "run"
    train(make_config(shards, straight, **settings))
    shutil.copytree(straight, out)
    shutil.rmtree(out / "step-000006")
    train(make_config(shards, out, **settings))
    assert weights_of(out, 6) == weights_of(straight, 6)
    heads = [load_file(run / "step-000006/heads.safetensors") for run in (out, straight)]
    torch.testing.assert_close(heads[0], heads[1], rtol=0, atol=0)
    # The heads are not part of the model, and the loss is that of the tokens.
    assert not [name for name in load_model(out, device="cpu").state_dict() if "places" in name]
    train(make_config(shards, tmp_path / "plain", **settings | {"teacher": ()}))
    first, plain = (read_metrics(run)[0]["loss"] for run in (out, tmp_path / "plain"))
    assert first == plain
    assert weights_of(tmp_path / "plain", 6) != weights_of(out, 6)


def test_the_encoder_learns_from_the_teacher(shards, tmp_path):
    """Features that differ between images are predicted better with training."""
    folder = save(tmp_path / "a")
    settings = {"target": "words", "steps": 60, "checkpoint_every": 60, "learning_rate": 3e-3}
    train(make_config(shards, tmp_path / "run", **settings, teacher=(folder,), batch_size=8))
    model = load_model(tmp_path / "run", device="cpu")
    features = Features(folder)
    losses = []
    for path in (tmp_path / "run/step-000060/heads.safetensors", None):
        heads = TeacherHeads(model.config, features)
        if path is not None:
            heads.load_state_dict(load_file(path))
        units = torch.stack(
            [
                torch.from_numpy(s.image_units.astype(np.int64))
                for s in ShardDataset(shards, "train")
            ]
        )
        taken = [features.take(key) for key in KEYS]
        pooled, places = (torch.stack(parts) for parts in zip(*taken, strict=True))
        losses.append(float(heads(*model.encode(units), pooled, places).detach()))
    assert losses[0] < 0.7 * losses[1]


def test_a_teacher_needs_a_trained_encoder(tmp_path):
    with pytest.raises(ValueError, match="--teacher trains the image encoder, which --freeze excl"):
        make_config(tmp_path, tmp_path, teacher=(tmp_path,), freeze="encoder")
    with pytest.raises(ValueError, match="--teacher-weight is -1; expected 0 or more"):
        make_config(tmp_path, tmp_path, teacher_weight=-1)


def test_parts_are_the_same_bytes(tmp_path):
    first, again = save(tmp_path / "a"), save(tmp_path / "b")
    assert part_path(first, 0).read_bytes() == part_path(again, 0).read_bytes()
