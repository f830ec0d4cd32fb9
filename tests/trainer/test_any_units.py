"""Training on units of any tokenizer: shapes, numbers of codes, targets; and what is refused."""

import json

import numpy as np
import pytest
import torch

from im2sp.shards import DatasetWriter, ShardDataset, ShardLoader, UnitColumn
from im2sp.trainer import generate, load_model
from im2sp.trainer.checkpoint import read_checkpoint
from im2sp.trainer.cli import main
from im2sp.trainer.data import TokenBatches
from im2sp.trainer.encoder import CodeEmbedding
from im2sp.trainer.export import export_model, read_notes
from im2sp.trainer.loop import train
from im2sp.trainer.model import Im2SpModel
from im2sp.trainer.model_config import grid_of, preset_config
from im2sp.trainer.sources import speech_vocabulary, target_vocabulary
from im2sp.trainer.vocabulary import Vocabulary
from support.any_units import COLUMNS, write_any
from support.training import make_config, make_shards, weights_of

SPEECH = Vocabulary(kind="speech", num_ids=50)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_any(tmp_path_factory.mktemp("data") / "shards")


# Images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "grid", "num_states", "target"),
    [
        ("image_units", 16, 1 + 64, "speech"),
        ("grid_18", 16, 1 + 64, "text"),
        ("line", (32,), 1 + 32, "audio_units"),
        ("levels", (32,), 1 + 32, "frames"),
    ],
)
def test_any_column_of_images_and_of_units(shards, tmp_path, column, grid, num_states, target):
    settings = {"image_column": column, "target": target, "code_noise": 0.1}
    settings |= {"text_pieces": 30}
    out = tmp_path / "run"
    result = train(make_config(shards, out, **settings, steps=2))
    assert np.isfinite(result.scores["loss"])
    text = (out / "config.toml").read_text()
    assert f'image_column = "{column}"' in text
    assert f'target = "{target}"' in text
    kind = "speech" if target == "speech" else "target"
    expected = {"image": column}
    if target != "text":
        expected[kind] = "speech_units" if target == "speech" else target
    assert json.loads((out / "step-000002/state.json").read_text())["unit_columns"] == expected
    model = load_model(out, device="cpu")
    sizes = model.config
    assert (sizes.grid, sizes.num_states) == (grid, num_states)
    assert (sizes.num_codes, sizes.learned_codes) == (COLUMNS[column].num_codes, True)
    units = torch.from_numpy(ShardDataset(shards)[0][column].astype(np.int64))
    ids = generate(model, units[None], max_tokens=40)[0]
    if kind == "target" and target != "text":
        shape = model.config.vocabulary.array(ids).shape
        fixed = COLUMNS[target].shape
        assert [s if f else None for s, f in zip(shape, fixed, strict=True)] == list(fixed)
    file = tmp_path / "captioner.safetensors"
    export_model(read_checkpoint(out / "step-000002"), file)
    assert read_notes(file)["unit_columns"] == expected
    exported = load_model(file, device="cpu")
    assert exported.config == sizes


def test_2_steps_and_2_more_are_4_steps(shards, tmp_path):
    settings = {"image_column": "grid_18", "target": "audio_units", "schedule_steps": 4}
    for out, all_steps in (("run", (2, 4)), ("whole", (4,))):
        for steps in all_steps:
            train(make_config(shards, tmp_path / out, **settings, steps=steps))
    assert weights_of(tmp_path / "run", 4) == weights_of(tmp_path / "whole", 4)


def test_the_vectors_are_those_of_the_codebook_if_there_is_one(tmp_path):
    codebook = np.random.default_rng(0).normal(size=(4096, 6)).astype(np.float32)
    records = {"line": {"name": "TiTok", "fingerprint": "d" * 64}}
    shards = write_any(tmp_path / "a", codebooks={"line": codebook}, tokenizers=records)
    train(make_config(shards, tmp_path / "run", image_column="line", steps=1))
    model = load_model(tmp_path / "run", device="cpu")
    torch.testing.assert_close(model.encoder.codebook, torch.from_numpy(codebook))
    state = read_checkpoint(tmp_path / "run/step-000001").state
    assert state["fingerprints"] == {"image": "d" * 64, "speech": None}
    assert state["tokenizers"]["image"] == records["line"]


def test_learned_vectors_of_parts():
    embedding = CodeEmbedding(1 << 18, 5)
    embedding.reset()
    assert embedding.table.weight.shape == (2 * 512, 5)
    units = torch.tensor([[0, 511, 512], [1 << 17, (1 << 18) - 1, 5]])
    table = embedding.table.weight
    torch.testing.assert_close(embedding(units), table[units & 511] + table[512 + (units >> 9)])
    assert CodeEmbedding(1 << 32, 2).table.weight.shape == (3 << 11, 2)
    assert CodeEmbedding(65536, 2).table.weight.shape == (65536, 2)
    # Every code has its own vector, and a new model's are as large as standardised codebooks.
    small = CodeEmbedding(65537, 8)
    small.reset()
    found = small(torch.randint(0, 65537, (2000,)))
    assert len(torch.unique(found, dim=0)) > 1900
    assert found.std().item() == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize(
    ("preset", "grid", "stride", "num_states"),
    [
        ("tiny", 28, 2, 197),
        ("mini", 28, 4, 50),
        ("mini", 16, 2, 65),
        ("mini", (16, 24), 2, 97),
        ("mini", (8, 8), 1, 65),
        ("small", 15, 1, 226),
        ("mini", (32,), 1, 33),
        ("base", (256,), 1, 257),
    ],
)
def test_the_stem_fits_the_grid(preset, grid, stride, num_states):
    config = preset_config(preset, SPEECH, grid=grid, num_codes=9, code_width=3)
    assert (config.stem_stride, config.num_states) == (stride, num_states)
    with torch.device("meta"):
        model = Im2SpModel(config, torch.empty(9, 3))
        units = torch.zeros(2, *config.shape, dtype=torch.int64)
        assert model.encoder(units).shape == (2, num_states, config.encoder.width)


def test_rows_and_columns_keep_their_places(make_model):
    """A unit moves the states near it in its own row; a line's unit its own state only."""
    for grid, place, near in (((8, 16), (7, 0), {24}), ((6,), (4,), {4})):
        stride = 2 if len(grid) == 2 else 1
        model = make_model(grid=grid, stem_stride=stride)
        units = torch.zeros(1, *grid, dtype=torch.int64)
        other = units.clone()
        other[(0, *place)] = 3
        model.encoder.layers = torch.nn.ModuleList()
        moved = (model.encoder(other) - model.encoder(units)).abs().amax(-1)[0, 1:] > 1e-6
        assert set(torch.nonzero(moved)[:, 0].tolist()) == near


def test_grids_of_shapes():
    shapes = [(28, 28), (16, 24), (32,), (4, 8, 8)]
    assert [grid_of(shape) for shape in shapes] == [28, (16, 24), (32,), (256,)]


# Targets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["audio_units", "frames", "line", "image_units"])
def test_tokens_of_a_target_are_its_units_in_time(shards, tmp_path, target):
    dataset = ShardDataset(shards, "train")
    config = make_config(shards, tmp_path, target=target)
    vocabulary = target_vocabulary(config, dataset)
    column = COLUMNS[target]
    loader = ShardLoader(dataset, batch_size=6, shuffle=False, target=target)
    (batch,) = TokenBatches(loader, vocabulary, None)
    for row, sample in zip(batch.tokens.tolist(), dataset, strict=True):
        units = sample[target].astype(int)
        expected = units.reshape(-1).tolist()
        if None in column.shape:
            in_time = np.moveaxis(units, column.shape.index(None), 0)
            expected = [
                book * column.num_codes + code
                for time in in_time.reshape(len(in_time), -1).tolist()
                for book, code in enumerate(time)
            ]
        ids = vocabulary.decode(row)
        assert ids == expected
        np.testing.assert_array_equal(vocabulary.array(ids), units)
        assert vocabulary.array([*ids, 0]).shape == units.shape


def test_codebooks_around_the_time_axis():
    vocabulary = Vocabulary(kind="units", num_ids=6 * 10, shape=(2, None, 3))
    arrays = [np.random.default_rng(i).integers(0, 10, (2, i, 3)) for i in (4, 1, 0)]
    rows = torch.full((3, 24), -1)
    for row, array in zip(rows, arrays, strict=True):
        row[: array.size] = torch.from_numpy(array.reshape(-1))
    lengths = torch.tensor([array.size for array in arrays])
    ids = vocabulary.in_time(rows, lengths)
    for row, length, array in zip(ids.tolist(), lengths.tolist(), arrays, strict=True):
        np.testing.assert_array_equal(vocabulary.array(row[:length]), array)


def test_a_target_without_images(shards, tmp_path):
    columns = {"audio_units": COLUMNS["audio_units"]}
    alone = write_any(tmp_path / "audio", columns=columns)
    config = make_config(alone, tmp_path / "run", target="audio_units", without_image=True, steps=2)
    assert train(config).step == 2
    state = read_checkpoint(tmp_path / "run/step-000002").state
    assert state["unit_columns"] == {"target": "audio_units"}


def test_speech_units_is_the_target_speech(shards, tmp_path):
    config = make_config(shards, tmp_path, target="speech_units")
    assert config.target == "speech"
    assert speech_vocabulary(ShardDataset(shards)).num_ids == 50
    assert target_vocabulary(config, ShardDataset(shards)) == SPEECH


def test_a_long_array_of_a_fixed_shape_has_positions(tmp_path):
    columns = {"image_units": UnitColumn((4, 4), 9), "picture": UnitColumn((40, 30), 9)}
    with DatasetWriter(tmp_path / "shards", columns=columns) as writer:
        units = {"image_units": np.zeros((4, 4), int), "picture": np.zeros((40, 30), int)}
        writer.write(key="a", **units)
    settings = {"target": "picture", "batch_size": 1, "steps": 1}
    train(make_config(tmp_path / "shards", tmp_path / "run", **settings))
    assert load_model(tmp_path / "run", device="cpu").config.max_positions == 1201


# Several datasets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [("", ""), ("=0.7", "=0.3")])
def test_several_datasets_are_mixed_and_resumed(shards, tmp_path, capsys, weights):
    other = write_any(tmp_path / "other", num_train=4, num_val=1, seed=1)
    command = ["--shards", *(f"{p}{w}" for p, w in zip((shards, other), weights, strict=True))]
    command += ["--image-column", "line", "--target", "text", "--text-pieces", "30", "--preset"]
    command += ["tiny", "--batch-size", "2", "--device", "cpu", "--no-tensorboard", "--quiet"]
    command += ["--schedule-steps", "4", "--warmup-steps", "1"]
    for out, all_steps in (("run", "24"), ("whole", "4")):
        for steps in all_steps:
            with pytest.raises(SystemExit) as left:
                main([*command, "--out", str(tmp_path / out), "--steps", steps])
            assert left.value.code == 0, capsys.readouterr().err
    assert weights_of(tmp_path / "run", 4) == weights_of(tmp_path / "whole", 4)
    state = read_checkpoint(tmp_path / "run/step-000004").state
    assert state["loader"]["settings"]["weights"] == ([0.7, 0.3] if weights[0] else None)
    with pytest.raises(SystemExit):
        main(["--config", str(tmp_path / "run/config.toml"), "--out", str(tmp_path / "again")])
    assert weights_of(tmp_path / "again", 4) == weights_of(tmp_path / "whole", 4)


def test_datasets_of_other_columns_or_tokenizers_are_refused(shards, tmp_path):
    other = make_shards(tmp_path / "other")
    message = r"other: column image_units is \(28, 28\) of 8,192 codes, but in .*\(16, 16\) of 16,"
    with pytest.raises(ValueError, match=message):
        train(make_config((str(shards), str(other)), tmp_path / "run"))
    records = {"image_units": {"name": "x", "fingerprint": "e" * 64}}
    other = write_any(tmp_path / "strange", tokenizers=records)
    message = (
        r"strange: its image units have the fingerprint eeeeeeeeeeee, those of .*shards \(none"
    )
    with pytest.raises(ValueError, match=message):
        train(make_config((str(shards), str(other)), tmp_path / "run"))


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "sound"}, r"--target sound is no column of units; expected speech, text, word"),
        ({"target": "url"}, "--target url is no column of units; .* one of audio_units, clip,"),
        (
            {"target": "clip"},
            r"--target clip has the shape \(None, 2, None\), expected at most one",
        ),
        ({"image_column": "audio_units"}, "column audio_units is .*; the loader needs images, one"),
        ({"image_column": "nothing"}, "no column nothing; the loader needs images"),
        (
            {"image_column": "line", "crop_area": 0.5},
            r"--crop-area needs rows and columns of image units, but the column line has the shap",
        ),
    ],
)
def test_columns_that_are_refused(shards, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(make_config(shards, tmp_path / "run", **settings))


def test_too_many_codes_are_refused(tmp_path):
    columns = {"image_units": UnitColumn((4, 4), 9), "wide": UnitColumn((4, None), 1 << 19)}
    with DatasetWriter(tmp_path / "shards", columns=columns) as writer:
        for i in range(2):
            units = {"image_units": np.zeros((4, 4), int), "wide": np.zeros((4, 2), int)}
            writer.write(key=str(i), **units)
    with pytest.raises(
        ValueError, match=r"wide has 4 x 524,288 codes .* expected at most 1,048,57"
    ):
        train(make_config(tmp_path / "shards", tmp_path / "run", target="wide"))


def test_weights_of_other_units_are_refused(shards, tmp_path):
    train(make_config(shards, tmp_path / "run", steps=1))
    for flag in ("init_from", "encoder_from"):
        start = {flag: str(tmp_path / "run")}
        message = r"takes images of 16 x 16 units of 16,384 codes, .* dataset are 32 of 4,096"
        with pytest.raises(ValueError, match=message):
            train(make_config(shards, tmp_path / flag, image_column="line", **start))
    train(make_config(shards, tmp_path / "again", init_from=str(tmp_path / "run"), steps=1))


def test_validation_on_other_columns_is_refused(shards, tmp_path):
    other = make_shards(tmp_path / "other")
    message = r"other: column image_units is \(28, 28\) of 8,192 codes, but in .*\(16, 16\) of 16,"
    with pytest.raises(ValueError, match=message):
        train(make_config(shards, tmp_path / "run", val_shards=other))


def test_arrays_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="ids of kind 'speech' are no arrays; expected kind"):
        SPEECH.array([1])
    with pytest.raises(ValueError, match=r"3 ids, expected 4 for the shape \(2, 2\)"):
        Vocabulary(kind="units", num_ids=9, shape=(2, 2)).array([1, 2, 3])
    with pytest.raises(ValueError, match=r"arrays of the shape \(8, None\) for 9 ids of kind"):
        Vocabulary(kind="units", num_ids=9, shape=(8, None))
