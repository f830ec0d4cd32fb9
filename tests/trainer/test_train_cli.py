import json
import os
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from im2sp.tools.engines.git_reference import git_from, git_state_dict
from im2sp.trainer.checkpoint import read_checkpoint
from im2sp.trainer.cli import main
from im2sp.trainer.config import MAX_TOKENS
from im2sp.trainer.export import export_model
from im2sp.trainer.generation import generate
from im2sp.trainer.model_config import PRESETS, StackConfig
from im2sp.trainer.text import read_text_model
from im2sp.trainer.vocabulary import Vocabulary
from im2sp.trainer.weights import load_model
from support.hub import cached_repository
from support.published import timm_state_dict
from support.training import git_tokenizer, make_shards

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--preset", "tiny", "--batch-size", "2", "--device", "cpu", "--no-tensorboard"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


def run(capsys, *args):
    """Exit status, standard output and standard error."""
    with pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def test_a_run_and_the_same_command_again(shards, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--shards", shards, "--out", out, *QUICK, "--steps", 4, "--checkpoint-every", 2]
    status, text, errors = run(capsys, *command)
    assert status == 0
    assert text.splitlines()[0].startswith("trained   4 steps; 4 in ")
    assert "images/s" in text
    assert "best      step " in text
    assert text.splitlines()[-1] == f"written   {out}"
    assert "0.3 M trainable, for 20 speech units; 8 images of" in errors
    assert "fp32 on cpu" in errors
    names = {path.name for path in out.iterdir()}
    assert names == {
        "config.toml", "metrics.jsonl", "curves.png", "step-000002", "step-000004"
    }  # fmt: skip
    assert {path.name for path in (out / "step-000004").iterdir()} == {
        "config.toml", "model.safetensors", "optimizer.pt", "state.json"
    }  # fmt: skip
    state = json.loads((out / "step-000004/state.json").read_text())
    assert (state["step"], state["format_version"]) == (4, 1)
    status, text, errors = run(capsys, *command)
    assert (status, text.splitlines()[0]) == (
        0,
        "trained   4 steps, resumed at 4; nothing left to do",
    )
    assert f"resuming from {out / 'step-000004'}" in errors


def test_the_best_model_is_what_load_model_finds(shards, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--shards", shards, "--out", out, *QUICK, "--steps", 2, "--checkpoint-every", 1]
    status, text, _ = run(capsys, *command, "--learning-rate", 0.5, "--warmup-steps", 0, "--json")
    assert status == 0
    result = json.loads(text)
    assert result["step"] == 2
    best = out / f"step-{result['best_step']:06d}"
    model, expected = load_model(out), load_file(best / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert model.config.vocabulary.num_ids == 20


def test_quiet(shards, tmp_path, capsys):
    command = ["--shards", shards, "--out", tmp_path / "run", *QUICK, "--steps", 1, "--quiet"]
    assert run(capsys, *command) == (0, "", "")


def test_from_text_to_speech(shards, tmp_path, capsys):
    text_run, speech_run = tmp_path / "text", tmp_path / "speech"
    command = ["--shards", shards, *QUICK, "--steps", 1, "--quiet"]
    assert run(capsys, *command, "--out", text_run, "--target", "text")[0] == 0
    assert (text_run / "text.model").is_file()
    transfer = ["--init-from", text_run, "--freeze", "encoder", "--warmup-steps", 1000]
    status, *_ = run(capsys, *command, "--out", speech_run, *transfer)
    assert status == 0
    before, after = load_model(text_run).state_dict(), load_model(speech_run).state_dict()
    assert after["decoder.embedding.weight"].shape == (23, 64)
    assert before["decoder.embedding.weight"].shape[0] > 23
    for name in before.keys() - {"decoder.embedding.weight", "decoder.output_bias"}:
        # One step at a thousandth of the learning rate.
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-5)
        if name.startswith("encoder."):
            assert torch.equal(before[name], after[name])
    again = tmp_path / "again"
    arguments = ["--target", "text", "--init-from", text_run, "--warmup-steps", 1000]
    assert run(capsys, *command, "--out", again, *arguments)[0] == 0
    assert (again / "text.model").read_bytes() == (text_run / "text.model").read_bytes()
    kept = load_model(again).state_dict()["decoder.embedding.weight"]
    torch.testing.assert_close(kept, before["decoder.embedding.weight"], rtol=0, atol=1e-5)


def test_from_words_to_text(shards, tmp_path, capsys):
    words_run, text_run = tmp_path / "words", tmp_path / "text"
    command = ["--shards", shards, *QUICK, "--quiet"]
    words = ["--target", "words", "--text-pieces", 8, "--steps", 2]
    assert run(capsys, *command, *words, "--out", words_run)[0] == 0
    model, bag = load_model(words_run), read_text_model(words_run / "text.model")
    assert model.config.vocabulary == Vocabulary(kind="words", num_ids=8)
    assert model.decoder.output_bias[3:].tolist() == pytest.approx(bag.log_odds, abs=1e-2)
    with pytest.raises(ValueError, match="the model predicts a bag of words and cannot generate"):
        generate(model, torch.zeros(1, 28, 28, dtype=torch.int64))
    text = ["--target", "text", "--steps", 1, "--init-from", words_run, "--warmup-steps", 1000]
    assert run(capsys, *command, *text, "--out", text_run)[0] == 0
    assert read_text_model(text_run / "text.model").vocabulary.kind == "text"
    before, after = model.state_dict(), load_model(text_run).state_dict()
    for name in before.keys() - {"decoder.embedding.weight", "decoder.output_bias"}:
        torch.testing.assert_close(before[name], after[name], rtol=0, atol=1e-5)


def test_from_one_step_or_an_exported_file(shards, tmp_path, capsys):
    command = ["--shards", shards, *QUICK, "--quiet", "--checkpoint-every", 1]
    text = [*command, "--target", "text"]
    assert run(capsys, *text, "--steps", 2, "--out", tmp_path / "text")[0] == 0
    again = ["--steps", 1, "--init-from", tmp_path / "text/step-000001"]
    assert run(capsys, *text, *again, "--out", tmp_path / "again")[0] == 0
    models = [(tmp_path / name / "text.model").read_bytes() for name in ("text", "again")]
    assert models[0] == models[1]
    pieces = [*command, "--unit-pieces", 30, "--steps", 1]
    assert run(capsys, *pieces, "--out", tmp_path / "units")[0] == 0
    step = tmp_path / "units/step-000001"
    assert run(capsys, *pieces, "--init-from", step, "--out", tmp_path / "more")[0] == 0
    models = [(tmp_path / name / "units.model").read_bytes() for name in ("units", "more")]
    assert models[0] == models[1]
    file = tmp_path / "captioner.safetensors"
    export_model(read_checkpoint(step), file)
    other = make_shards(tmp_path / "other", image_fingerprint="c" * 64)
    for origin in (file, step):
        options = ["--shards", other, *QUICK, "--steps", 1, "--init-from", origin]
        status, _, error = run(capsys, *options, "--out", tmp_path / "refused")
        assert (status, "its image units have the fingerprint cccc" in error) == (1, True)
    assert run(capsys, *command, "--steps", 1, "--init-from", file, "--out", tmp_path / "x")[0] == 0


def test_a_run_on_pieces_of_units(shards, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    command = ["--shards", shards, *QUICK, "--quiet", "--best-by", "bleu"]
    assert run(capsys, *command, "--unit-pieces", 30, "--steps", 2, "--out", first)[0] == 0
    assert run(capsys, *command, "--unit-pieces", 30, "--steps", 2, "--out", first)[0] == 0
    model = load_model(first)
    vocabulary = model.config.vocabulary
    assert (vocabulary.num_units, 20 < vocabulary.num_ids <= 30) == (20, True)
    units = generate(model, torch.zeros(1, 28, 28, dtype=torch.int64), max_tokens=50)[0]
    assert all(0 <= unit < 20 for unit in units)
    more = ["--unit-pieces", 30, "--init-from", first, "--steps", 1, "--warmup-steps", 1000]
    assert run(capsys, *command, *more, "--out", second)[0] == 0
    assert (first / "units.model").read_bytes() == (second / "units.model").read_bytes()
    before, after = model.state_dict(), load_model(second).state_dict()
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)
    # The same ids in a vocabulary of single units are different tokens.
    assert (
        run(capsys, *command, "--init-from", first, "--steps", 1, "--out", tmp_path / "x")[0] == 0
    )
    assert load_model(tmp_path / "x").config.vocabulary == Vocabulary(kind="speech", num_ids=20)


def test_from_a_git_with_its_own_word_pieces(shards, tmp_path, capsys, make_model, monkeypatch):
    stack = StackConfig(width=128, depth=2, heads=2, mlp_width=48)
    model = make_model(
        encoder=stack,
        decoder=stack,
        vocabulary=Vocabulary(kind="text", num_ids=120, layout="git"),
        num_codes=8192,
        code_width=4,
    )
    seit, out, hub = tmp_path / "seit.ckpt", tmp_path / "run", tmp_path / "hub"
    git = cached_repository(hub, "microsoft/git-large")
    git_from(model).save_pretrained(git, state_dict=git_state_dict(model))
    (git / "tokenizer.json").write_bytes(git_tokenizer(120))
    torch.save({"model": timm_state_dict(model)}, seit)
    command = ["--shards", shards, "--out", out, "--target", "text", "--batch-size", 2,
               "--device", "cpu", "--no-tensorboard", "--quiet", "--steps", 1,
               "--warmup-steps", 1000, "--init-from", git, "--encoder-from", seit]  # fmt: skip
    status, _, error = run(capsys, *command)
    assert (status, "has 40 positions; give a smaller --max-length" in error) == (1, True)
    assert run(capsys, *command, "--max-length", 39) == (0, "", "")
    found, expected = load_model(out).state_dict(), model.state_dict()
    for name in ("decoder.embedding.weight", "decoder.output_bias", "encoder.positions"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)
    pieces = (git / "tokenizer.json").read_bytes()
    assert (out / "text.model").read_bytes() == pieces
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    command += ["--init-from", "microsoft/git-large", "--max-length", 39]
    assert run(capsys, *command, "--out", tmp_path / "by_id") == (0, "", "")
    assert (tmp_path / "by_id/text.model").read_bytes() == pieces
    (git / "tokenizer.json").unlink()
    status, _, error = run(capsys, *command, "--out", tmp_path / "without")
    assert (status, "tokenizer.json is not in the local cache" in error) == (1, True)
    command += ["--init-from", git]
    status, _, error = run(capsys, *command, "--out", tmp_path / "without")
    assert (status, error.count("embedding and output layers are re-initialised")) == (0, 1)


def test_an_encoder_of_seit_brings_its_stem(shards, tmp_path, capsys, make_model):
    encoder, _ = PRESETS["mini"]
    model = make_model(encoder=encoder, num_codes=8192, code_width=4)
    torch.save({"model": timm_state_dict(model)}, tmp_path / "seit.ckpt")
    command = ["--shards", shards, *QUICK, "--quiet", "--steps", 1, "--preset", "mini"]
    command += ["--encoder-from", tmp_path / "seit.ckpt", "--out", tmp_path / "run"]
    assert run(capsys, *command) == (0, "", "")
    sizes = load_model(tmp_path / "run").config
    assert (sizes.stem_stride, sizes.conv_stem) == (2, False)


@pytest.mark.parametrize("has_decoder", [False, True])
def test_an_encoder_of_another_run(shards, tmp_path, capsys, has_decoder):
    quick = [*QUICK, "--quiet", "--steps", 1]
    words = ["--target", "words", "--seed", 5]
    assert run(capsys, *quick, *words, "--shards", shards, "--out", tmp_path / "words")[0] == 0
    begin = []
    if has_decoder:
        former = tmp_path / "former"
        assert run(capsys, *quick, "--shards", shards, "--out", former)[0] == 0
        begin = ["--init-from", former]
    command = [*quick, *begin, "--encoder-from", tmp_path / "words", "--learning-rate", 1e-12]
    assert run(capsys, *command, "--shards", shards, "--out", tmp_path / "run") == (0, "", "")
    found = load_model(tmp_path / "run").state_dict()
    encoder = load_model(tmp_path / "words").state_dict()
    for name, tensor in found.items():
        if not name.startswith("decoder."):
            torch.testing.assert_close(tensor, encoder[name])
        elif has_decoder:
            torch.testing.assert_close(tensor, load_model(former).state_dict()[name])
    other = make_shards(tmp_path / "other", image_fingerprint="c" * 64)
    status, _, error = run(capsys, *command, "--shards", other, "--out", tmp_path / "refused")
    assert status == 1
    assert "its image units have the fingerprint cccccccccccc, those of --encoder-from" in error


def test_unsuitable_initial_weights_are_refused(shards, tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = [*QUICK, "--steps", 1, "--quiet"]
    assert run(capsys, *command, "--shards", shards, "--out", run_dir)[0] == 0
    command += ["--out", tmp_path / "new", "--init-from", run_dir]
    other = make_shards(tmp_path / "other", image_fingerprint="c" * 64)
    status, _, error = run(capsys, *command, "--shards", other)
    assert status == 1
    assert "its image units have the fingerprint cccccccccccc, those of --init-from" in error
    status, _, error = run(capsys, *command, "--shards", shards, "--preset", "small")
    assert (status, "--preset small:" in error) == (1, True)
    assert "omit --preset" in error


def test_the_saved_settings_can_be_fed_back(shards, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--betas", 0.8, 0.9, "--code-noise", 0.1, "--steps", 2, "--seed", 7]
    assert run(capsys, "--shards", shards, "--out", first, *QUICK, *options)[0] == 0
    saved = first / "step-000002" / "config.toml"
    assert saved.read_bytes() == (first / "config.toml").read_bytes()
    assert tomllib.loads(saved.read_text())["betas"] == [0.8, 0.9]
    assert run(capsys, "--config", saved, "--out", second)[0] == 0
    weights = [(out / "step-000002/model.safetensors").read_bytes() for out in (first, second)]
    assert weights[0] == weights[1]
    assert run(capsys, "--config", saved, "--out", second, "--seed", 8)[0] == 1


ONE_LINE = [
    (["--batch-size", 0], 2, "--batch-size is 0; expected at least 1"),
    (["--max-length", MAX_TOKENS], 2, "--max-length is 1024; expected at most 1023"),
    (["--config", "no.toml"], 2, "--config no.toml: No such file or directory"),
    (["--recipe", "papr"], 2, "--recipe is papr; expected one of paper"),
    (["--shards", "nowhere"], 2, "nowhere: no such file or folder"),
    (["--device", "cuda:99"], 1, "--device cuda:99: there is no CUDA device"),
    (
        ["--batch-size", 99],
        1,
        "8 samples, expected at least a batch of 99; give a smaller --batch-size",
    ),
    (["--split", "test"], 1, "no split 'test'; it has ['train', 'val']"),
    (["--max-length", 2], 1, "8 samples with no utterances left"),
    (["--text-model", "x"], 2, "--text-model applies to --target text only"),
    (["--target", "words", "--text-model", "x"], 2, "--text-model applies to --target text only"),
    (["--target", "text", "--unit-pieces", 9], 2, "--unit-pieces applies to --target speech only"),
    (["--unit-pieces", -1], 2, "--unit-pieces is -1; expected 0 or more"),
    (["--unit-pieces", 9], 1, "cannot fit 9 pieces of 20 units to these utterances: "),
    (["--target", "words", "--best-by", "bleu"], 2, "--target words generates nothing; use loss"),
    (["--target", "text", "--text-model", __file__], 1, "not a sentencepiece model; fit one with"),
    (["--init-from", "./nowhere"], 1, "./nowhere: there is no such file"),
    (["--target", "text", "--init-from", "tests/x"], 1, "tests/x: there is no such file"),
]


@pytest.mark.parametrize(("options", "status", "message"), ONE_LINE, ids=lambda x: str(x)[:30])
def test_errors_are_one_line(shards, tmp_path, capsys, monkeypatch, options, status, message):
    monkeypatch.chdir(ROOT)
    command = ["--shards", shards, "--out", tmp_path / "run", *QUICK, "--quiet", "--steps", 1]
    found, text, error = run(capsys, *command, *options)
    assert (found, text, error.count("\n")) == (status, "", 1)
    assert error.startswith("im2sp-train: ")
    assert message in error


def test_a_misspelt_key_fails_as_a_misspelt_flag_does(shards, tmp_path, capsys):
    (tmp_path / "run.toml").write_text("stepz = 3\n")
    command = ["--shards", shards, "--out", tmp_path / "run"]
    for options in (["--stepz=3"], ["--config", tmp_path / "run.toml"]):
        status, _, error = run(capsys, *command, *options)
        assert status == 2
        assert "Unrecognized options: --stepz=3" in error


def test_out_of_memory_is_reported(shards, tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore")

    monkeypatch.setattr("im2sp.trainer.step.TrainStep.step", fail)
    command = ["--shards", shards, "--out", tmp_path / "run", *QUICK, "--quiet"]
    status, _, error = run(capsys, *command)
    assert (status, error.count("\n")) == (1, 1)
    assert "Tried to allocate 9 GiB.; give a smaller --batch-size" in error


def test_two_processes_equal_one(shards, tmp_path, capsys):
    """A step has the same samples; processes share them and sum their gradients."""
    options = ["--shards", shards, *QUICK, "--steps", 2, "--dropout", 0, "--bucket-window", 0,
               "--checkpoint-every", 1]  # fmt: skip
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
           "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0",
           "-m", "im2sp.trainer.cli"]  # fmt: skip
    outs = [tmp_path / "one", tmp_path / "two"]
    assert run(capsys, *options, "--out", outs[0], "--batch-size", 4, "--quiet")[0] == 0
    done = subprocess.run(
        [*two, *map(str, options), "--out", str(outs[1])],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained   2 steps") == 1
    assert "4 per step" in done.stderr
    for step in (1, 2):
        one, other = (load_file(out / f"step-00000{step}/model.safetensors") for out in outs)
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)
    states = [json.loads((out / "step-000002/state.json").read_text()) for out in outs]
    assert states[0]["scores"]["loss"] == pytest.approx(states[1]["scores"]["loss"], rel=1e-4)


DIES = """
import os, signal, sys
from im2sp.trainer import cli, ranks
summed, calls = ranks.Ranks.summed, iter(range(100))
def dies(self, values):
    if next(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return summed(self, values)
ranks.Ranks.summed = dies
cli.main(sys.argv[1:])
"""


def test_a_process_that_is_killed_ends_the_run_and_one_process_resumes_it(shards, tmp_path, capsys):
    """Two processes as a scheduler starts them on two machines, with a shared run folder."""
    options = ["--shards", shards, *QUICK, "--steps", 4, "--dropout", 0, "--bucket-window", 0,
               "--checkpoint-every", 1, "--quiet", "--out"]  # fmt: skip
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    out = tmp_path / "run"
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, *program, *map(str, options), str(out)],
            env=os.environ | variables | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, program in enumerate([["-m", "im2sp.trainer.cli"], ["-c", DIES]])
    ]
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [1, -9], errors
    assert errors[0] == "im2sp-train: another process of this run ended; see its message\n"
    num_steps = max(int(path.name[5:]) for path in out.glob("step-*"))
    assert 1 <= num_steps < 4
    assert run(capsys, *options, out, "--batch-size", 4)[0] == 0
    assert run(capsys, *options, tmp_path / "whole", "--batch-size", 4)[0] == 0
    one, other = (load_file(path / "step-000004/model.safetensors") for path in
                  (out, tmp_path / "whole"))  # fmt: skip
    torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_the_papers_recipe(shards, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["--shards", shards, "--out", out, "--recipe", "paper", *QUICK, "--steps", 1]
    status, _, error = run(capsys, *command)
    assert status == 0
    settings = tomllib.loads((out / "config.toml").read_text())
    assert settings["learning_rate"] == 5e-5
    assert settings["schedule_steps"] == 100_000
    assert (settings["freeze"], settings["preset"], settings["clip_norm"]) == ("image", "tiny", 0)
    assert "--freeze image keeps random weights" in error
    model = load_model(out)
    assert (model.config.encoder, model.config.decoder) == PRESETS["tiny"]
