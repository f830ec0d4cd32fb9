import json
import os
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from im2sp.shards import ShardLoader, files
from im2sp.trainer.data import TokenBatches
from im2sp.trainer.loop import train
from im2sp.trainer.metrics import read_metrics
from im2sp.trainer.sources import speech_vocabulary
from im2sp.trainer.step import DivergedError, Objective, StepRecord
from support.training import make_config, make_samples, make_shards, weights_of


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """A run of 6 steps with checkpoints at 3 and 6, never interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(make_config(shards, out, crop_area=0.5, code_noise=0.1, label_smoothing=0.1))
    return out


def copied_at_3(whole, out):
    """The run in the state after a kill behind step 3."""
    shutil.copytree(whole, out)
    shutil.rmtree(out / "step-000006")
    return out


def resumed(shards, out, **changes):
    settings = {"crop_area": 0.5, "code_noise": 0.1, "label_smoothing": 0.1}
    return train(make_config(shards, out, **(settings | changes)))


def without_times(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_per_s")} for row in rows]


def optimizer_of(out, step):
    return torch.load(out / f"step-{step:06d}" / "optimizer.pt", weights_only=True)


# Resuming -----------------------------------------------------------------------------------------


def test_3_steps_and_3_more_are_6_steps(shards, whole, tmp_path):
    out = copied_at_3(whole, tmp_path / "run")
    result = resumed(shards, out)
    assert (result.first_step, result.step) == (3, 6)
    assert weights_of(out, 6) == weights_of(whole, 6)
    found, expected = optimizer_of(out, 6), optimizer_of(whole, 6)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    states = [json.loads((run / "step-000006/state.json").read_text()) for run in (out, whole)]
    for name in ("loader", "rng", "scores", "images_a_step", "fingerprints", "tokenizers"):
        assert states[0][name] == states[1][name]
    assert without_times(read_metrics(out)) == without_times(read_metrics(whole))


def test_a_resumed_average_equals_an_uninterrupted_one(shards, tmp_path):
    straight, out = tmp_path / "straight", tmp_path / "run"
    train(make_config(shards, straight, ema=0.9))
    copied_at_3(straight, out)
    train(make_config(shards, out, ema=0.9))
    for name in ("model", "trained"):
        found, expected = (run / f"step-000006/{name}.safetensors" for run in (out, straight))
        assert found.read_bytes() == expected.read_bytes()


def test_the_average_follows_the_weights(shards, tmp_path):
    settings = {"checkpoint_every": 1, "keep_last": 10, "steps": 4}
    train(make_config(shards, tmp_path / "plain", **settings))
    train(make_config(shards, tmp_path / "mean", ema=0.2, **settings))
    name = "decoder.layers.0.mlp_in.weight"
    average, trained, plain = (
        [load_file(tmp_path / run / f"step-00000{k}" / file)[name] for k in range(1, 5)]
        for run, file in (
            ("mean", "model.safetensors"),
            ("mean", "trained.safetensors"),
            ("plain", "model.safetensors"),
        )
    )
    torch.testing.assert_close(trained, plain, rtol=0, atol=0)
    for k, decay in ((1, 2 / 11), (2, 0.2), (3, 0.2)):
        expected = decay * average[k - 1] + (1 - decay) * trained[k]
        torch.testing.assert_close(average[k], expected)


def test_a_compiled_run_learns_the_same(shards, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(Objective, "compile", lambda _, **options: found.append(options))
    settings = {"dropout": 0.0, "steps": 3, "checkpoint_every": 3}
    train(make_config(shards, tmp_path / "plain", **settings))
    assert not found
    train(make_config(shards, tmp_path / "compiled", **settings, compile=True))
    assert found == [{"dynamic": False}]
    losses = [
        [row["loss"] for row in read_metrics(tmp_path / run) if "loss" in row]
        for run in ("plain", "compiled")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("fail_at", range(1, 8))
def test_a_kill_at_any_write_changes_nothing(shards, whole, tmp_path, monkeypatch, fail_at):
    """The first checkpoint: weights written atomically, four files that are synced, a rename."""
    out, num_calls = tmp_path / "run", 0

    def killing(function):
        def call(*arguments):
            nonlocal num_calls
            if "step-" in str(arguments[0]):
                num_calls += 1
                if num_calls == fail_at:
                    raise _Killed
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(files, "fsync_path", killing(files.fsync_path))
        patch.setattr(os, "replace", killing(os.replace))
        # A killed process does not clean up.
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(_Killed):
            resumed(shards, out)
    assert num_calls == fail_at
    assert not (out / "step-000003").exists()
    result = resumed(shards, out)
    assert result.first_step == 0
    assert weights_of(out, 6) == weights_of(whole, 6)
    assert sorted(path.name for path in out.glob("step-*")) == ["step-000003", "step-000006"]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "config.toml", "state.json"])
def test_a_broken_checkpoint_is_named_and_skipped(shards, whole, tmp_path, file):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = out / "step-000006" / file
    path.write_bytes(path.read_bytes()[:-7])
    messages = []
    config = make_config(shards, out, crop_area=0.5, code_noise=0.1, label_smoothing=0.1)
    result = train(config, messages.append)
    assert result.first_step == 3
    assert any(f"broken checkpoint, now {out}/step-000006.broken" in text for text in messages)
    assert any(f"step-000006/{file}" in text for text in messages)
    assert weights_of(out, 6) == weights_of(whole, 6)


def test_a_finished_run_is_unchanged(shards, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    result = resumed(shards, out)
    assert (result.first_step, result.step, result.loss) == (6, 6, None)
    assert weights_of(out, 6) == weights_of(whole, 6)


def test_other_settings_are_refused(shards, whole, tmp_path):
    out = copied_at_3(whole, tmp_path / "run")
    with pytest.raises(ValueError, match=r"learning_rate was 0.0005 and is 0.001; seed was 0"):
        resumed(shards, out, seed=1, learning_rate=1e-3)
    with pytest.raises(ValueError, match=r"images per step was 2 and is 4 \(batch_size x"):
        resumed(shards, out, grad_accumulation=2, seed=1)
    # Another number of processes or of parts, and nothing else: the batch has to fit.
    with pytest.raises(ValueError, match=r"processes\); give --batch-size 1, or another --out$"):
        resumed(shards, out, grad_accumulation=2)
    assert not (out / "step-000006").exists()


def test_units_of_other_tokenizers_are_refused(shards, whole, tmp_path):
    out = copied_at_3(whole, tmp_path / "run")
    other = make_shards(tmp_path / "images", image_fingerprint="c" * 64)
    message = r"images: its image units have the fingerprint cccccccccccc, those of the run .*run a"
    with pytest.raises(ValueError, match=message):
        resumed(other, out)
    other = make_shards(tmp_path / "speech", speech_fingerprint="d" * 64)
    with pytest.raises(ValueError, match="its speech units have the fingerprint dddddddddddd"):
        resumed(other, out)
    with pytest.raises(ValueError, match=r"speech: its speech units .* those of .*shards b"):
        train(make_config(shards, tmp_path / "new", val_shards=other))


def test_another_dataset_of_the_same_units_is_refused(whole, tmp_path):
    out = copied_at_3(whole, tmp_path / "run")
    other = make_shards(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="loader state: of the dataset with manifest_sha256"):
        resumed(other, out)


# Steps --------------------------------------------------------------------------------------------


def final_weights(shards, out, **changes):
    train(make_config(shards, out, **changes))
    return load_file(out / "step-000006" / "model.safetensors")


def test_prefetching_changes_nothing(shards, whole, tmp_path):
    for num_threads in (0, 2):
        out = tmp_path / str(num_threads)
        resumed(shards, out, loader_threads=num_threads, checkpoint_every=6, keep_last=1)
        assert weights_of(out, 6) == weights_of(whole, 6)


def test_two_batches_accumulated_are_one_batch(shards, tmp_path):
    settings = {"dropout": 0.0, "bucket_window": 0, "checkpoint_every": 6}
    one = final_weights(shards, tmp_path / "1", batch_size=4, **settings)
    two = final_weights(shards, tmp_path / "2", batch_size=2, grad_accumulation=2, **settings)
    torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("what", "names"),
    [("encoder", ["encoder."]), ("image", ["encoder.", "projection.", "projection_norm."])],
)
def test_freezing(shards, tmp_path, what, names):
    config = make_config(shards, tmp_path / "run", freeze=what, steps=2, checkpoint_every=1)
    train(config)
    before, after = (
        load_file(tmp_path / f"run/step-00000{step}/model.safetensors") for step in (1, 2)
    )
    same = {name for name, tensor in before.items() if torch.equal(tensor, after[name])}
    frozen = {name for name in before if name.startswith(tuple(names))}
    assert same == frozen | {"encoder.codebook"}


def test_bfloat16(shards, tmp_path):
    found = final_weights(shards, tmp_path / "run", precision="bf16", checkpoint_every=6)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert 'precision = "bf16"' in (tmp_path / "run/config.toml").read_text()


@pytest.mark.parametrize("target", ["speech", "text"])
def test_a_few_images_are_memorised(tmp_path, target):
    shards = make_shards(tmp_path / "shards", {"train": 2})
    result = train(
        make_config(
            shards,
            tmp_path / "run",
            target=target,
            items="all",
            steps=110,
            batch_size=2,
            dropout=0.0,
            learning_rate=3e-3,
            warmup_steps=10,
            checkpoint_every=110,
            log_every=10,
            val_split="train",
            best_by="bleu",
        )
    )
    assert read_metrics(tmp_path / "run")[0]["loss"] > 2
    # The choice between the two captions of an image cannot be predicted.
    assert result.loss < 0.35
    assert result.scores["loss"] < 0.35
    assert result.scores["bleu"] > 0.9


def test_a_loss_that_is_not_finite_stops_the_run(shards, tmp_path):
    config = make_config(
        shards, tmp_path / "run", learning_rate=1e30, clip_norm=0, checkpoint_every=1, items="one"
    )
    message = (
        r"step [23]: the (loss|gradient) is .*at the images train\d, train\d; start a new run with"
    )
    with pytest.raises(DivergedError, match=message):
        train(config)
    assert not (tmp_path / "run/step-000003").exists()


def test_a_loss_of_another_process_names_no_images_of_this_one(shards):
    loader = ShardLoader(shards, split="train", batch_size=2, shuffle=False)
    batch = next(iter(TokenBatches(loader, speech_vocabulary(loader.dataset), None)))
    one, nan = torch.tensor(1.0), torch.tensor(float("nan"))
    own = {"step": 4, "learning_rate": 1.0, "num_tokens": one, "batches": [batch]}
    with pytest.raises(DivergedError, match="step 4: the loss is nan, in a batch of another proc"):
        StepRecord(**own, loss=nan, grad_norm=nan, own_losses=[one]).check()
    with pytest.raises(DivergedError, match="the gradient norm is nan, at the images train0, tr"):
        StepRecord(**own, loss=one, grad_norm=nan, own_losses=[one]).check()
    StepRecord(**own, loss=one, grad_norm=one, own_losses=[one]).check()


# Checkpoints and metrics --------------------------------------------------------------------------


def test_the_best_and_the_last_are_kept(shards, tmp_path, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 1.5, 1.6, 1.7])
    monkeypatch.setattr("im2sp.trainer.step.TrainStep.evaluate", lambda *_: next(scores))
    result = train(make_config(shards, tmp_path / "run", checkpoint_every=1))
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-000002", "step-000005", "step-000006"]
    assert (result.best_step, result.scores) == (2, {"loss": 1.0})


def test_rows_of_metrics(shards, tmp_path):
    out = tmp_path / "run"
    result = train(make_config(shards, out, eval_every=2, log_every=2, tensorboard=True))
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [2, 2, 3, 3, 4, 4, 6, 6]
    assert [row["step"] for row in rows if "val_loss" in row] == [2, 3, 4, 6]
    (last,) = (row for row in rows if row["step"] == 6 and "loss" in row)
    assert last["epoch"] == 1
    assert last["loss"] == result.loss
    assert result.num_images == 12
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert (out / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_validation_is_the_mean_over_all_tokens(tmp_path):
    samples = make_samples({"train": 4, "val": 5})
    shards = make_shards(tmp_path / "shards", {"train": 4, "val": 5}, samples=samples)
    losses = []
    for i, batch_size in enumerate((1, 4)):
        config = make_config(shards, tmp_path / str(i), batch_size=batch_size, steps=1)
        train(config)
        losses.append(read_metrics(config.out)[-1]["val_loss"])
    # One step with another batch changes the weights by the small learning rate of the warm-up.
    assert losses[0] == pytest.approx(losses[1], abs=2e-2)


def test_no_validation(shards, tmp_path):
    only_train = make_shards(tmp_path / "shards", {"train": 2})
    result = train(make_config(only_train, tmp_path / "run", steps=2))
    assert (result.best_step, result.scores) == (2, {})
    message = "no split 'test'; it has"
    with pytest.raises(ValueError, match=message):
        train(make_config(shards, tmp_path / "other", val_split="test"))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", r"none of 2 samples of split 'train' .*it has no captions; use another targ"),
        ("val", r"^validation: .*none of 1 samples of split 'val' .*name another --val-split"),
    ],
)
def test_captions_that_are_missing_are_named_before_a_text_model_is_fitted(
    tmp_path, split, message
):
    samples = make_samples({"train": 2, "val": 1})
    samples = [replace(s, captions=[""] if s.split == split else s.captions) for s in samples]
    shards = make_shards(tmp_path / "shards", {"train": 2, "val": 1}, samples=samples)
    with pytest.raises(ValueError, match=message):
        train(make_config(shards, tmp_path / "run", target="text"))
