"""The whole chain, tiny and offline: a trained run speaks, is heard, scored; killed and resumed."""

import json
import sys

import numpy as np
import pytest
import soundfile as sf
import torch

from im2sp import pipeline
from im2sp.pipeline import load_text_to_units
from im2sp.pipeline.text_to_units.model import text_to_units_bytes
from im2sp.pipeline.text_to_units.network import NetworkConfig, TextToUnitsNetwork
from im2sp.pipeline.vocoder import vocoder
from im2sp.shards import ShardDataset
from im2sp.tools import evaluate
from im2sp.tools.engines import asr
from im2sp.tools.evaluate import EvaluateConfig, main, read_captions
from im2sp.tools.evaluation import chain as evaluate_chain
from im2sp.tools.evaluation import stages as evaluate_stages
from im2sp.tools.evaluation.stages import StageFolder
from im2sp.trainer.loop import train
from support.any_units import write_any
from support.evaluation import CANDIDATES, REFERENCES
from support.speech import install_flite
from support.training import SPEECH_FINGERPRINT, make_config, make_shards


class Vocoder:
    """A tone a unit."""

    name, fingerprint, num_units, num_speakers = "tones", "f" * 64, 20, 0
    speech_fingerprint = None
    check_units = vocoder.Vocoder.check_units

    def synthesize(self, units, durations=None, speaker=None):
        tones = [np.sin(np.arange(640) * (1 + unit) / 20) for unit in units]
        return np.concatenate([np.zeros(0), *tones]).astype(np.float32)


class Recognizer:
    """Hears as many words as there are tenths of a second."""

    name, fingerprint = "counter", "counter 1"

    def transcribe(self, samples):
        return " ".join(["a", "dog", "runs", "on", "snow"][: len(samples) // 1600])


class Judge:
    name, fingerprint = "DNSMOS", "judge 1"

    def score(self, samples):
        return {"OVRL": 1 + min(4.0, len(samples) / 16_000)}


def load_predictor(name, device):
    if name == "none":
        raise ValueError("none: there is\nno such predictor")
    return Judge() if name == "dnsmos" else Utmos()


class Utmos(Judge):
    name = "UTMOS"

    def score(self, samples):
        return {"UTMOS": 3.0}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards", {"train": 8, "val": 3})


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
    """A run of speech and one of text."""
    folder = tmp_path_factory.mktemp("runs")
    for target in ("speech", "text"):
        options = {"text_pieces": 30} if target == "text" else {}
        train(make_config(shards, folder / target, target=target, **options))
    return folder


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    monkeypatch.setitem(vars(pipeline), "load_vocoder", lambda *a, **k: Vocoder())
    monkeypatch.setattr(evaluate_chain, "load_recognizer", lambda *a: Recognizer())
    monkeypatch.setattr(evaluate_chain, "load_predictor", load_predictor)
    no_java = evaluate.score_captions

    def without_java(*args, **options):
        from im2sp.tools.engines.java import JavaTools

        return no_java(*args, tools=JavaTools(java=None, jars=None), **options)

    monkeypatch.setattr(evaluate, "score_captions", without_java)


def options(shards, out, **more):
    settings = {"split": "val", "max_tokens": 9, "resamples": 20, "quiet": True, "device": "cpu"}
    return EvaluateConfig(shards=shards, out=out, **(settings | more))


def test_a_run_of_speech(shards, runs, tmp_path, capsys):
    command = ["--run", str(runs / "speech"), "--shards", str(shards), "--split", "val"]
    command += ["--out", str(tmp_path), "--max-tokens", "9", "--device", "cpu"]
    command += ["--resamples", "20"]
    assert main(command) == 0
    result = json.loads((tmp_path / "scores.json").read_text())
    assert result["captions"]["num_items"] == 3
    assert 0 <= result["captions"]["Bleu_1"] <= 1
    assert result["captions"]["missing"]["METEOR"].startswith("Java is not installed")
    assert 0 <= result["units"]["unit_bleu_4"] <= 1
    low, high = result["units"]["intervals"]["unit_error_rate"]
    assert 0 <= low <= result["units"]["unit_error_rate"] <= high
    printed = capsys.readouterr().out
    assert "Table 4: quality of the speech" in printed
    row = next(line for line in printed.splitlines() if line.startswith("ours"))
    assert row.split()[:3] == ["ours", "shards", "val"]
    assert "image units, speech (speech)" in row
    assert "counter" in row
    names = {"scores.json", "tables.md", "tables.json", "tables.svg"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert "METEOR is missing: Java is not installed" in printed
    spoken = [json.loads(s) for s in (tmp_path / "spoken.jsonl").read_text().splitlines()[1:]]
    for row in spoken:
        if row["file"] is not None:
            assert sf.info(tmp_path / row["file"]).samplerate == 16_000
            assert sf.info(tmp_path / row["file"]).duration == row["duration_s"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "words"}, "run: trained with --target words, which makes neither captions nor"),
        ({"target": "image_units"}, "run: trained with --target image_units, which makes neither"),
        ({"without_image": True}, "run: a language model without images cannot describe any"),
    ],
)
def test_a_run_that_describes_nothing_is_refused(shards, tmp_path, settings, message):
    train(make_config(shards, tmp_path / "run", steps=1, checkpoint_every=1, **settings))
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(options(shards, tmp_path / "a", run=str(tmp_path / "run")))


def test_a_run_on_units_of_another_tokenizer(shards, tmp_path):
    own = write_any(tmp_path / "own")
    train(make_config(own, tmp_path / "run", image_column="line", target="text", text_pieces=30))
    found = evaluate.evaluate(options(own, tmp_path / "a", run=str(tmp_path / "run")))
    assert found["captions"]["num_items"] == 2
    train(make_config(own, tmp_path / "speech", steps=1))
    with pytest.raises(ValueError, match="made for 20 units, the shards' speech has 50; name the"):
        evaluate.evaluate(options(own, tmp_path / "c", run=str(tmp_path / "speech")))
    train(make_config(own, tmp_path / "grid", target="text", text_pieces=30, steps=1))
    message = "takes images of 16 x 16 units of 16,384 codes, but those of the dataset are 28 x 28"
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(options(shards, tmp_path / "b", run=str(tmp_path / "grid")))


def test_a_run_of_text_is_scored_directly_or_spoken(shards, runs, tmp_path, monkeypatch):
    plain = evaluate.evaluate(options(shards, tmp_path / "a", run=str(runs / "text")))
    assert not (tmp_path / "a" / "spoken.jsonl").exists()
    assert "units" not in plain
    assert "opinions" not in plain
    install_flite(tmp_path / "bin", monkeypatch)
    spoken = evaluate.evaluate(
        options(shards, tmp_path / "b", run=str(runs / "text"), cascade="flite")
    )
    assert (tmp_path / "b" / "heard.jsonl").exists()
    assert spoken["cascade"] == "flite"
    assert "words" in spoken


def test_a_run_of_text_is_spoken_by_a_text_to_unit_model(shards, runs, tmp_path):
    torch.manual_seed(0)
    network = TextToUnitsNetwork(NetworkConfig(num_units=20, width=8, depth=1))
    path = tmp_path / "t2u.safetensors"
    path.write_bytes(text_to_units_bytes(network, {"fingerprint": SPEECH_FINGERPRINT}))
    for out, source in (("a", {"run": str(runs / "text")}), ("b", {"topline": "captions"})):
        settings = options(shards, tmp_path / out, cascade=str(path), **source)
        result = evaluate.evaluate(settings)
        assert (result["cascade"], result["vocoder"]) == ("t2u.safetensors", "tones")
        assert "words" in result
        (row, *_) = map(json.loads, (tmp_path / out / "said.jsonl").read_text().splitlines()[-3:])
        (clip, *_) = map(
            json.loads, (tmp_path / out / "spoken.jsonl").read_text().splitlines()[-3:]
        )
        assert clip["duration_s"] == len(load_text_to_units(path).units(row["text"])) * 640 / 16000
    network = TextToUnitsNetwork(NetworkConfig(num_units=9, width=8, depth=1))
    path.write_bytes(text_to_units_bytes(network, {}))
    with pytest.raises(ValueError, match="made for 20 units, the text-to-unit model t2u.* has 9"):
        evaluate.evaluate(
            options(shards, tmp_path / "c", run=str(runs / "text"), cascade=str(path))
        )


def test_parts_that_fail_are_named_and_the_other_scores_stay(
    shards, runs, tmp_path, monkeypatch, capsys
):
    class Fails(Recognizer):
        def transcribe(self, samples):
            raise RuntimeError("the recognizer is broken")

    def no_judge(name, device):
        raise ValueError("DNSMOS needs speechmos")

    monkeypatch.setattr(evaluate_chain, "load_recognizer", lambda *a: Fails())
    result = evaluate.evaluate(options(shards, tmp_path / "units", topline="units"))
    assert 1 <= result["opinions"]["DNSMOS_OVRL"] <= 5
    command = ["--run", str(runs / "speech"), "--shards", str(shards), "--split", "val"]
    command += ["--max-tokens", "9", "--device", "cpu", "--resamples", "20"]
    # Its few steps do not always generate a clip, which a recognizer would not get.
    monkeypatch.setattr(evaluate_chain, "load_recognizer", lambda *a: Fails().transcribe(0))
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    result = json.loads((tmp_path / "a/scores.json").read_text())
    assert 0 <= result["units"]["unit_bleu_4"] <= 1
    assert "words" not in result
    assert "transcription is missing: the recognizer is broken" in capsys.readouterr().out
    monkeypatch.setattr(evaluate_chain, "load_recognizer", lambda *a: Recognizer())
    monkeypatch.setattr(evaluate_chain, "load_predictor", no_judge)
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    printed = capsys.readouterr().out
    assert "DNSMOS is missing: DNSMOS needs speechmos" in printed
    assert "unit error rate is missing: edit distances need rapidfuzz" in printed
    result = json.loads((tmp_path / "a/scores.json").read_text())
    assert 0 <= result["captions"]["Bleu_1"] <= 1
    assert 0 <= result["units"]["unit_bleu_4"] <= 1


def test_toplines(shards, tmp_path, monkeypatch):
    units = evaluate.evaluate(options(shards, tmp_path / "units", topline="units"))
    assert units["words"]["num_items"] == 3
    assert "units" not in units
    assert 1 <= units["opinions"]["DNSMOS_OVRL"] <= 5
    install_flite(tmp_path / "bin", monkeypatch)
    captions = evaluate.evaluate(options(shards, tmp_path / "captions", topline="captions"))
    assert captions["name"] == "topline (captions)"
    first = ShardDataset(shards, "val")[0].captions[0]
    line = (tmp_path / "captions" / "said.jsonl").read_text().splitlines()[1]
    assert json.loads(line)["text"] == first


def test_a_killed_run_goes_on_and_gives_the_same(shards, runs, tmp_path, monkeypatch):
    whole = evaluate.evaluate(options(shards, tmp_path / "whole", run=str(runs / "speech")))
    files = {p.name: p.read_bytes() for p in (tmp_path / "whole").glob("*.jsonl")}
    for stop in range(3):
        calls = iter(range(100))

        def fail(self, samples, stop=stop, calls=calls):
            if next(calls) == stop:
                raise KeyboardInterrupt
            return Recognizer().transcribe(samples)

        class Stops(Recognizer):
            transcribe = fail

        monkeypatch.setattr(evaluate_chain, "load_recognizer", lambda *a, kind=Stops: kind())
        out = tmp_path / f"stopped{stop}"
        with pytest.raises(KeyboardInterrupt):
            evaluate.evaluate(options(shards, out, run=str(runs / "speech")))
        assert len((out / "heard.jsonl.part").read_bytes().splitlines()) == 1 + stop
        monkeypatch.setattr(evaluate_chain, "load_recognizer", lambda *a: Recognizer())
        assert evaluate.evaluate(options(shards, out, run=str(runs / "speech"))) == whole
        assert {p.name: p.read_bytes() for p in out.glob("*.jsonl")} == files


def test_stages_are_kept_until_what_they_depend_on_changes(tmp_path):
    def rows(folder, inputs, num=3):
        return folder.rows("s", inputs, num, lambda start: ({"n": i} for i in range(start, num)))

    first = StageFolder(tmp_path)
    assert rows(first, {"a": 1}) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert first.made == ["s"]
    again = StageFolder(tmp_path)
    assert rows(again, {"a": 1}) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert again.made == []
    assert len(rows(again, {"a": 2})) == 3
    assert again.made == ["s"]
    assert len(rows(again, {"a": 2}, 4)) == 4
    whole = again.path("s").read_bytes()
    for cut in range(len(whole)):
        again.path("s").unlink(missing_ok=True)
        (tmp_path / "s.jsonl.part").write_bytes(whole[:cut])
        rows(StageFolder(tmp_path), {"a": 2}, 4)
        assert again.path("s").read_bytes() == whole
    assert evaluate_stages._kept(tmp_path / "none.jsonl", "x") is None


def test_captions_of_a_file(tmp_path, capsys):
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"candidates": CANDIDATES, "references": REFERENCES}))
    command = ["--captions", str(path), "--resamples", "20", "--out", str(tmp_path / "new")]
    assert main(command) == 0
    result = json.loads((tmp_path / "new/scores.json").read_text())
    assert result["captions"]["Bleu_4"] == pytest.approx(0.47772274)
    assert "5 images" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == result
    path.write_text("{}")
    with pytest.raises(ValueError, match=r'expected {"candidates": {id: text}, "references"'):
        read_captions(path)
    path.write_text("[")
    assert main(["--captions", str(path)]) == 1
    assert "cannot be read as JSON" in capsys.readouterr().err


def test_speech_lm_score(shards, runs, tmp_path):
    lm = tmp_path / "lm"
    train(make_config(shards, lm, without_image=True))
    found = evaluate.evaluate(options(shards, tmp_path / "a", topline="units", speech_lm=lm))
    assert found["speech_lm"] == "lm"
    scores = found["likelihood"]
    rows = [json.loads(s) for s in (tmp_path / "a/likelihood.jsonl").read_text().splitlines()[1:]]
    said = [row["generated"] for row in rows]
    assert said == [row["references"][0] for row in rows]
    assert scores["num_items"] == 3
    assert scores["log_likelihood"] == pytest.approx(np.mean(said))
    references = [np.mean(row["references"]) for row in rows]
    assert scores["reference_log_likelihood"] == pytest.approx(np.mean(references))
    assert scores["difference"] == pytest.approx(np.mean(said) - np.mean(references))
    low, high = scores["intervals"]["difference"]
    assert low <= scores["difference"] <= high
    assert "SpeechLMScore (lower is better)" in evaluate.report(found)
    silent = evaluate.evaluate(
        options(shards, tmp_path / "b", run=str(runs / "speech"), speech_lm=lm)
    )
    assert silent["likelihood"]["missing"] == {"SpeechLMScore": "no speech was generated"}
    text = evaluate.evaluate(options(shards, tmp_path / "c", run=str(runs / "text"), speech_lm=lm))
    why = text["likelihood"]["missing"]["SpeechLMScore"]
    assert why == "text was generated, which has no speech units"
    assert f"SpeechLMScore is missing: {why}" in evaluate.report(text)
    other = make_shards(tmp_path / "other", speech_fingerprint="c" * 64)
    found = evaluate.evaluate(options(other, tmp_path / "d", topline="units", speech_lm=lm))
    why = found["likelihood"]["missing"]["SpeechLMScore"]
    assert "was trained on units of the speech tokenizer bbbbbbbbbbbb" in why
    found = evaluate.evaluate(
        options(shards, tmp_path / "e", topline="units", speech_lm=tmp_path / "none")
    )
    assert "none" in found["likelihood"]["missing"]["SpeechLMScore"]
    assert found["captions"]["num_items"] == 3


def test_predictors_of_opinions(shards, tmp_path):
    """One that is missing is named and loses nothing."""
    found = evaluate.evaluate(
        options(shards, tmp_path, topline="units", mos=("none", "dnsmos", "utmos22_strong"))
    )
    assert found["opinions"]["missing"] == {"none": "none: there is no such predictor"}
    assert found["opinions"]["UTMOS"] == 3.0
    assert found["opinions"]["intervals"]["UTMOS"] == [3.0, 3.0]
    assert 1 <= found["opinions"]["DNSMOS_OVRL"] <= 5
    assert "none is missing: none: there is no such predictor" in evaluate.report(found)
    assert {"mos-dnsmos.jsonl", "mos-utmos.jsonl"} <= {p.name for p in tmp_path.iterdir()}


def test_several_results_in_one_set_of_tables(tmp_path, capsys):
    content = {"candidates": CANDIDATES, "references": REFERENCES}
    (tmp_path / "captions.json").write_text(json.dumps(content))
    command = ["--captions", str(tmp_path / "captions.json"), "--resamples", "20", "--quiet"]
    for name in ("evaluate-val", "evaluate-test"):
        assert main([*command, "--out", str(tmp_path / "run" / name), "--data", "coco"]) == 0
    opinions = {"form": "im2sp-listening-scores 1", "systems": []}
    (tmp_path / "opinions.json").write_text(json.dumps(opinions))
    scores = ["--scores", str(tmp_path / "run"), str(tmp_path / "run/evaluate-val/scores.json")]
    scores += [str(tmp_path / "opinions.json")]
    assert main([*scores, "--out", str(tmp_path / "all"), "--json"]) == 0
    written = json.loads((tmp_path / "all/tables.json").read_text())
    assert json.loads(capsys.readouterr().out) == written
    rows = written["tables"][1]["rows"]
    assert [row["data"] for row in rows if row["source"] == "ours"] == ["COCO"] * 3
    assert not (tmp_path / "all/scores.json").exists()
    assert main([*scores, "--data", "Flickr8k"]) == 0
    assert capsys.readouterr().out.count("ours   Flickr8k") == 3


def test_results_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"neither scores.json nor \*/scores.json is in this"):
        evaluate.read_rows([tmp_path], None)
    with pytest.raises(ValueError, match=r"none\.json: No such file or directory"):
        evaluate.read_rows([tmp_path / "none.json"], None)
    for text in ("{", "[]", "{}", '{"captions": {}}', '{"form": "im2sp-listening-scores 1"}'):
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(ValueError, match=r"scores.json: .*; expected a scores\.json of im2sp"):
            evaluate.read_rows([tmp_path], None)


def test_a_vocoder_of_other_units(shards, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(Vocoder, "num_units", 10)
    with pytest.raises(ValueError, match="tones: made for 10 units, the shards' speech has"):
        evaluate.evaluate(options(shards, tmp_path, run=str(runs / "speech")))
    monkeypatch.undo()
    monkeypatch.setitem(vars(pipeline), "load_vocoder", lambda *a, **k: Vocoder())
    monkeypatch.setattr(Vocoder, "speech_fingerprint", "d" * 64)
    with pytest.raises(ValueError, match=r"of the speech tokenizer dddddddddddd\.\., the shards'"):
        evaluate.evaluate(options(shards, tmp_path, topline="units"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "expected exactly one of --run, --topline, --captions and --scores, found none"),
        ({"run": "a", "topline": "units"}, "and --scores, found 2"),
        ({"run": "a"}, "--shards is missing: the dataset to describe"),
        ({"topline": "units", "shards": "s"}, "--out is missing: the folder of the stages"),
        ({"captions": "c", "cascade": "flite"}, "--cascade goes with --run or --topline captions"),
        ({"captions": "c", "limit": 0}, "--limit is 0, expected at least 1"),
        ({"captions": "c", "resamples": 1}, "--resamples is 1, expected at least 2"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(ValueError, match=message):
        EvaluateConfig(**settings)


def test_nothing_to_score(shards, tmp_path):
    samples = [s for s in ShardDataset(shards, "val")]
    for sample in samples:
        sample.captions.clear()
    bare = make_shards(tmp_path / "bare", {"val": 3}, samples=samples)
    with pytest.raises(ValueError, match="no sample of split 'val' has an image and a caption"):
        evaluate.evaluate(options(bare, tmp_path / "out", run="unused"))
    assert asr.RATE_HZ == 16_000
