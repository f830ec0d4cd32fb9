import tomllib
from pathlib import Path

import pytest

from im2sp.trainer.config import TrainConfig, differences, to_toml
from im2sp.trainer.flags import RECIPES, flags_of, read_toml, with_files
from support.training import make_config


def test_order_of_recipe_file_and_flags(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('batch_size = 3\nbetas = [0.8, 0.9]\ntensorboard = false\nshards = "a b"\n')
    args = with_files(["--recipe", "paper", f"--config={path}", "--steps", "5"])
    recipe, file = args.index("--batch-size=64"), args.index("--batch-size=3")
    assert recipe < file < args.index("--recipe")
    assert args[file + 1 : file + 6] == [
        "--betas",
        "0.8",
        "0.9",
        "--no-tensorboard",
        "--shards=a b",
    ]
    assert args[-2:] == ["--steps", "5"]
    path.write_text('recipe = "paper"\n')
    assert "--freeze=image" in with_files(["--config", str(path)])
    assert with_files(["--steps", "5"]) == ["--steps", "5"]


def test_several_paths_come_back_as_they_were(tmp_path):
    path = tmp_path / "run.toml"
    config = make_config("shards", "run", other_view=(Path("a b"), Path("c")))
    path.write_bytes(to_toml(config))
    args = with_files(["--config", str(path)])
    first = args.index("--other-view")
    assert args[first + 1 : first + 3] == ["a b", "c"]
    path.write_bytes(to_toml(make_config("shards", "run")))
    assert "--other-view" not in with_files(["--config", str(path)])
    assert differences(config, tomllib.loads(to_toml(config).decode())) == []


def test_several_datasets_and_their_weights(tmp_path):
    config = make_config(("a=0.7", "b=3"), "run")
    assert (config.shard_dirs, config.weights) == ([Path("a"), Path("b")], (0.7, 3.0))
    saved = tomllib.loads(to_toml(config).decode())
    assert saved["shards"] == ["a=0.7", "b=3"]
    assert flags_of({"shards": saved["shards"]}) == ["--shards", "a=0.7", "b=3"]
    config = make_config(("a", "b"), "run")
    assert (config.shard_dirs, config.weights) == ([Path("a"), Path("b")], None)
    (tmp_path / "c=1").mkdir()  # a folder of this name
    config = make_config((str(tmp_path / "c=1"), "d=x"), "run")
    assert (config.shard_dirs, config.weights) == ([tmp_path / "c=1", Path("d=x")], None)
    assert make_config(("a=2",), "run").weights is None


def test_a_recipe_names_settings_only():
    for name, settings in RECIPES.items():
        config = TrainConfig(shards="a", out="b", recipe=name, **settings)
        assert {key: getattr(config, key) for key in settings} == dict(settings)
    assert RECIPES["paper"]["learning_rate"] == 5e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = ", "not TOML"),
        ('config = "other.toml"', "one file cannot name another"),
        ("steps = [[1]]", r"steps is \[\[1\]\]; expected a number, a string, true or false"),
        ('recipe = "papr"', "--recipe is papr; expected one of paper"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        with_files(["--config", str(path)])


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"--config .*run.toml: No such file"):
        read_toml(tmp_path / "run.toml")


def test_saved_settings_equal_the_config(tmp_path):
    config = make_config(tmp_path / "a", tmp_path / "b", eval_every=5, betas=(0.5, 0.6), json=True)
    saved = tomllib.loads(to_toml(config).decode())
    assert saved["betas"] == [0.5, 0.6]
    assert saved["shards"] == str(tmp_path / "a")
    assert not {"json", "quiet", "config", "text_model"} & saved.keys()
    assert f"--shards={tmp_path / 'a'}" in flags_of(saved)
    assert differences(config, saved) == []
    # A run of an earlier version does not have newer settings; they had their defaults.
    older = {name: value for name, value in saved.items() if name != "ema"}
    assert differences(config, older) == []
    averaged = make_config("a", "b", betas=(0.5, 0.6), ema=0.9)
    assert differences(averaged, older) == ["ema was 0.0 and is 0.9"]
    other = make_config(tmp_path / "c", tmp_path / "b", steps=9, dropout=0.5)
    assert differences(other, saved) == [
        "dropout was 0.1 and is 0.5",
        "betas was [0.5, 0.6] and is [0.9, 0.999]",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps is 0; expected at least 1"),
        ({"warmup_steps": -1}, "--warmup-steps is -1; expected 0 or more"),
        ({"clip_norm": float("nan")}, "--clip-norm is nan; expected 0 or more"),
        ({"dropout": 1.0}, "--dropout is 1.0; expected 0 up to below 1"),
        ({"code_noise": 1.5}, "--code-noise is 1.5; expected 0 to 1"),
        ({"crop_area": 0.0}, "--crop-area is 0.0; expected above 0 up to 1"),
        ({"learning_rate": 0.0}, "--learning-rate is 0.0; expected more than 0"),
        ({"betas": (0.9, 1.0)}, "--betas is .* expected each 0 up to below 1"),
        ({"max_length": 2000}, "--max-length is 2000; expected at most 1023"),
        ({"schedule_steps": 5, "steps": 6}, "--schedule-steps is 5; expected at least --steps, 6"),
        ({"shards": ()}, "--shards is missing; expected at least one dataset"),
        ({"shards": ("a=1", "b")}, "--shards b has no weight; give all a weight, or none"),
        ({"shards": ("a=0", "b=1")}, "--shards a=0: the weight is 0; expected more than 0"),
        ({"text_model": "a"}, "--text-model applies to --target text only"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**{"shards": tmp_path, "out": tmp_path, **changes})


def test_longest(tmp_path):
    assert make_config(tmp_path, tmp_path).longest == 1023
    assert make_config(tmp_path, tmp_path, target="text").longest == 512
    assert make_config(tmp_path, tmp_path, max_length=9).longest == 9


def test_datasets_by_url(tmp_path):
    shards = ("s3://bucket/a=0.25", f"{tmp_path}=0.75")
    config = TrainConfig(shards=shards, out=tmp_path / "r", val_shards=Path("s3://bucket/v/"))
    assert config.shard_dirs == ["s3://bucket/a", tmp_path]
    assert config.weights == (0.25, 0.75)
    saved = tomllib.loads(to_toml(config).decode())
    assert (saved["shards"], saved["val_shards"]) == (list(shards), "s3://bucket/v")
