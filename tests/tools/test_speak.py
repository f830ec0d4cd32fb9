import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import im2sp
from im2sp.pipeline import load_text_to_units
from im2sp.pipeline.cli import main as tokenize
from im2sp.pipeline.vocoder.weights import load_weights, vocoder_bytes
from im2sp.shards import DatasetWriter, ShardDataset, UnitColumn
from im2sp.shards.layouts.batch import Batch
from im2sp.tools.export_captioner import main as export
from im2sp.tools.listening.build import read_spoken
from im2sp.tools.speak import main
from im2sp.tools.speaking import output as speak_output
from im2sp.tools.speaking import run as speak_job
from im2sp.tools.speaking.captioner import Captioner, read_run
from im2sp.trainer import load_model
from im2sp.trainer.cli import main as train
from im2sp.trainer.export import text_model_path
from im2sp.trainer.weights import BUNDLED
from support import hostile
from support.any_units import write_any
from support.training import SPEECH_FINGERPRINT, make_shards
from support.vocoder import make_config, random_generator, save_published

IMAGES = Path(__file__).parents[2] / "docs/demo-images"
NUM_UNITS = 20
SMALL = {
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
    "upsample_rates": [10, 8, 4],
    "upsample_kernel_sizes": [20, 16, 8],
    "upsample_initial_channel": 16,
}


def left(command, *args):
    """Exit status of a command line."""
    with pytest.raises(SystemExit) as stopped:
        command([str(arg) for arg in args])
    return stopped.value.code


def save_vocoder(folder, name, *, fingerprint=None, **changes):
    """A small random vocoder in our own form."""
    config = make_config(**SMALL, **changes)
    published = save_published(folder / f"published-{name}", config, random_generator(config))
    notes = {"speech_tokenizer": {"fingerprint": fingerprint}} if fingerprint else None
    path = folder / f"{name}.safetensors"
    path.write_bytes(vocoder_bytes(load_weights(published), torch.float32, notes))
    return path


def with_speech(image_shards, folder):
    """The dataset of the pictures with speech units of the same kind for each."""
    dataset = ShardDataset(image_shards)
    rng = np.random.default_rng(0)
    columns = dataset.columns | {
        "speech_units": UnitColumn((None,), NUM_UNITS, many=True),
        "durations": UnitColumn((None,), 65536, many=True, coding="varint"),
    }
    tokenizers = {
        "image_units": dataset.manifest.image_tokenizer,
        "speech_units": {
            "name": "test", "fingerprint": SPEECH_FINGERPRINT, "num_units": NUM_UNITS
        },
    }  # fmt: skip
    codebooks = {"image_units": dataset.codebook()}
    with DatasetWriter(folder, columns=columns, tokenizers=tokenizers, codebooks=codebooks) as out:
        for sample in dataset:
            units = rng.integers(0, NUM_UNITS, rng.integers(20, 30))
            durations = [rng.integers(1, 4, len(units))]
            speech = {"speech_units": [units], "durations": durations, "captions": ["a <b>"]}
            out.write(**{**sample, **speech})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures to units to a run of 50 steps, and a vocoder."""
    folder = tmp_path_factory.mktemp("made")
    flags = ["--num-workers", 1, "--device", "cpu", "--quiet"]
    assert left(tokenize, IMAGES, "--out", folder / "images", *flags) == 0
    shards = with_speech(folder / "images", folder / "shards")
    flags = ["--preset", "tiny", "--batch-size", 2, "--steps", 50, "--checkpoint-every", 50]
    flags += ["--warmup-steps", 5, "--device", "cpu", "--no-tensorboard", "--quiet"]
    assert left(train, "--shards", shards, "--out", folder / "run", *flags) == 0
    save_vocoder(folder, "vocoder", fingerprint=SPEECH_FINGERPRINT)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures, one of them with a key that has to be escaped, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deep & <i>").mkdir()
    Image.open(IMAGES / "koi-pond.jpg").convert("RGB").save(folder / "deep & <i>/a b#.png")
    first = sorted(IMAGES.glob("*.jpg"))[0]
    (folder / "first.jpg").write_bytes(first.read_bytes())
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


def speak(made, out, *args, vocoder="vocoder", run="run"):
    flags = ["--vocoder", made / f"{vocoder}.safetensors", "--out", out, "--device", "cpu"]
    flags += [] if run is None else ["--run", made / run, "--max-tokens", 40]
    return left(main, *args, *flags)


def rows_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def text_run(made):
    """A run of text on the same images."""
    flags = ["--text-pieces", 40, "--steps", 40, "--warmup-steps", 5, "--learning-rate", 3e-3]
    train_tiny(made / "shards", made / "text", "--target", "text", *flags)
    return made / "text"


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words = [], []
        self.open = []
        self.feed(path.read_text("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


class FakeRecognizer:
    name, fingerprint = "fake", "fake 1"

    def transcribe(self, samples):
        assert samples.dtype == np.float32
        return "<script>1 & 2</script>"


# The whole chain ----------------------------------------------------------------------------------


def test_from_pictures_to_a_page_that_speaks(made, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speak_job, "load_recognizer", lambda name, device: FakeRecognizer())
    out = tmp_path / "new" / "spoken"
    assert speak(made, out, pictures, "--transcribe", "--num-beams", 2) == 0
    printed, told = capsys.readouterr()
    assert "first (transcript): <script>1 & 2</script>" in printed
    assert "described 2 of 3 inputs: " in printed
    assert f"refused   1; see {out / 'rejects.jsonl'}\nwritten   {out / 'index.html'}" in printed
    assert "run run: speech, step 50, images through compact, view squash-224" in told
    (reject,) = rows_of(out / "rejects.jsonl")
    assert reject["file"] == "bad.jpg"
    assert not reject["reason"].startswith("bad.jpg")
    rows = rows_of(out / "spoken.jsonl")
    assert [row["key"] for row in rows] == ["deep & <i>/a b#", "first"]
    assert [row["wav"] for row in rows] == ["deep____i__a_b_.wav", "first.wav"]
    for row in rows:
        assert 0 < len(row["units"]) <= 40
        assert all(0 <= unit < NUM_UNITS for unit in row["units"])
        assert (row["text"], row["transcript"]) == (None, "<script>1 & 2</script>")
        samples, rate_hz = soundfile.read(out / row["wav"])
        info = soundfile.info(out / row["wav"])
        assert (rate_hz, info.subtype, info.channels) == (16_000, "PCM_16", 1)
        assert len(samples) == round(row["duration_s"] * 16_000) >= 320 * len(row["units"])
        assert samples.std() > 0
    check_page(out, [row["key"] for row in rows])
    listed = read_spoken("run", out)  # as a listening test takes it
    assert list(listed.sounds) == list(listed.pictures) == [row["key"] for row in rows]


def check_page(out, keys):
    page = Page(out / "index.html")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "i"}
    places = [tag["src"] for tag in page.attributes("img") + page.attributes("audio")]
    places += [tag["href"] for tag in page.attributes("a")]
    assert len(page.attributes("img")) == 2 * len(keys)
    assert len(page.attributes("audio")) == len(keys)
    for place in places:
        assert "/" not in place
        assert (out / place).stat().st_size > 100
    text = "".join(page.words)
    assert all(key in text for key in keys)
    assert "<script>1 & 2</script>" in text
    source = (out / "index.html").read_text()
    assert "http" not in source
    assert "url(" not in source
    assert {"charset": "utf-8"} in page.attributes("meta")
    assert all("controls" in tag for tag in page.attributes("audio"))
    assert all(tag["alt"] for tag in page.attributes("img"))
    shown = page.attributes("img")[-1]
    with Image.open(out / "first.units.jpg") as decoded, Image.open(out / "first.jpg") as picture:
        assert decoded.size == (224, 224)
        assert (int(shown["width"]), int(shown["height"])) == picture.size
        assert not picture.getexif()


def test_the_units_of_a_picture_are_those_of_the_dataset(made):
    captioner = Captioner([read_run(made / "run")], device="cpu", max_tokens=5)
    asked = []
    encode = captioner.input.tokenizer.encode_uint8
    captioner.input.tokenizer.encode_uint8 = lambda images: (
        asked.append(encode(images)) or asked[-1]
    )
    dataset = ShardDataset(made / "images")
    files = {path.stem: path for path in IMAGES.iterdir()}
    samples = [dataset[i] for i in (0, 5)]
    said = captioner.describe(
        [captioner.view.apply(Image.open(files[sample.key]).convert("RGB")) for sample in samples]
    )
    for sample, units in zip(samples, asked[0], strict=True):
        np.testing.assert_array_equal(sample.image_units, units)
    assert all(len(one.units) <= 5 and one.decoded.shape == (224, 224, 3) for one in said)
    assert captioner.describe([]) == []


def test_an_image_whose_decoder_crashes_is_a_reject(made, pictures, tmp_path, monkeypatch):
    real = speak_job.list_images

    def with_bomb(*args):
        found = real(*args)
        found.items[0] = dataclasses.replace(found.items[0], image=hostile.Killed("bomb.jpg"))
        return found

    monkeypatch.setattr(speak_job, "list_images", with_bomb)
    out = tmp_path / "out"
    assert speak(made, out, pictures / "first.jpg", IMAGES / "koi-pond.jpg", "--quiet") == 0
    assert [row["key"] for row in rows_of(out / "spoken.jsonl")] == ["koi-pond"]
    (reject,) = rows_of(out / "rejects.jsonl")
    assert reject["file"] == "first.jpg"
    assert "died twice" in reject["reason"]


def test_the_same_command_again_gives_the_same_files(made, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert speak(made, out, pictures / "first.jpg", "--quiet") == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    names = ["first.jpg", "first.units.jpg", "first.wav"]
    own = [".im2sp-speak.json", "index.html", "rejects.jsonl", "spoken.jsonl"]
    assert sorted(first) == sorted([*names, *own])
    assert speak(made, out, pictures / "first.jpg", "--json") == 0
    printed, _ = capsys.readouterr()
    result = json.loads(printed)
    assert (result["num_inputs"], result["num_spoken"], result["num_rejects"]) == (1, 1, 0)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert rows_of(out / "spoken.jsonl")[0]["transcript"] is None
    # Below or beside its inputs: what it wrote is no input.
    (tmp_path / "in").mkdir()
    Image.open(IMAGES / "dunes.jpg").save(tmp_path / "in/dunes.png")
    for place in ("in/spoken", "in", "in"):
        assert speak(made, tmp_path / place, tmp_path / "in", "--json") == 0
        assert json.loads(capsys.readouterr().out)["num_inputs"] == 1
    # Speaking its own table again: other files go, the sound is the same.
    table = tmp_path / "copy.jsonl"
    table.write_bytes(first["spoken.jsonl"])
    assert speak(made, out, "--units", table, "--quiet", run=None) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*own, "first.wav"])
    assert (out / "first.wav").read_bytes() == first["first.wav"]


# Text ---------------------------------------------------------------------------------------------


def test_a_run_of_text_gives_a_sentence_and_no_sound(made, text_run, tmp_path, capsys):
    picture, out = IMAGES / "koi-pond.jpg", tmp_path / "out"
    assert left(main, picture, "--run", text_run, "--out", out, "--device", "cpu") == 0
    printed, logged = capsys.readouterr()
    (row,) = rows_of(out / "spoken.jsonl")
    assert row["text"]
    assert (row["wav"], row["transcript"], row["units"]) == (None, None, [])
    assert f"koi-pond: {row['text']}\ndescribed 1 of 1 inputs in " in printed
    assert "run text: text, step 40," in logged
    assert "vocoder" not in logged
    assert not list(out.glob("*.wav"))
    page = Page(out / "index.html")
    assert not page.attributes("audio")
    assert row["text"] in "".join(page.words)


def test_a_sentence_and_sound_of_two_runs(made, text_run, tmp_path, capsys):
    picture = IMAGES / "koi-pond.jpg"
    assert speak(made, tmp_path / "a", picture, "--quiet") == 0
    assert speak(made, tmp_path / "b", picture, "--run", text_run, "--quiet") == 0
    (sound,), (both,) = (rows_of(tmp_path / out / "spoken.jsonl") for out in "ab")
    assert both == sound | {"text": both["text"]}
    assert both["text"]
    text = "".join(Page(tmp_path / "b/index.html").words)
    assert "Images described by run and text" in text
    assert "sound and sentence may differ" in text
    message = refusal(capsys, 1, made, tmp_path / "c", picture, "--run", made / "run")
    assert "2 runs, 2 of them of speech; expected one of speech, one of text, or one of" in message


def test_the_bundled_captioner_and_its_voice(tmp_path, capsys):
    picture = IMAGES / "koi-pond.jpg"
    found = im2sp.describe(picture, run="compact", device="cpu")
    assert left(main, picture, "--out", tmp_path, "--device", "cpu") == 0
    printed, logged = capsys.readouterr()
    (row,) = rows_of(tmp_path / "spoken.jsonl")
    assert "run compact-text: text, step " in logged
    assert "text-to-unit model compact: 200 units" in logged
    assert row["units"] == load_text_to_units(device="cpu").units(row["text"])
    text = "".join(Page(tmp_path / "index.html").words)
    assert "Sound: the sentence, in units by the text-to-unit model compact, and synth" in text
    assert f"koi-pond: {row['text']}\n" in printed
    assert (found.text, found.units) == (row["text"], row["units"])
    assert row["text"][0].isupper()
    assert " ." not in row["text"]
    samples, rate_hz = soundfile.read(tmp_path / row["wav"], dtype="float32")
    assert found.rate_hz == rate_hz
    np.testing.assert_allclose(found.waveform, samples, atol=1e-4)
    weights = BUNDLED["compact-text"]
    assert weights.stat().st_size < 32_000_000
    assert weights.with_suffix(".md").is_file()


def test_description_of_an_image_in_memory(made, text_run, tmp_path):
    picture = IMAGES / "koi-pond.jpg"
    expected = im2sp.describe(picture, text_run, device="cpu")
    with Image.open(picture) as image:
        found = im2sp.describe(image.convert("RGB"), str(text_run), device="cpu")
    assert found.text == expected.text
    assert (found.units, found.waveform, found.rate_hz) == (None, None, None)
    voice = str(made / "vocoder.safetensors")
    found = im2sp.describe(picture, [text_run, made / "run"], vocoder=voice, device="cpu")
    assert found.text == expected.text
    assert found.waveform.dtype == np.float32
    assert max(found.units) < NUM_UNITS
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.jpg: not an image"):
        im2sp.describe(tmp_path / "bad.jpg", text_run, device="cpu")
    found = im2sp.describe(picture, "compact-text", device="cpu", t2u="compact")
    assert found.units == load_text_to_units(device="cpu").units(found.text)
    with pytest.raises(ValueError, match="--t2u compact: the run run generates speech units; exp"):
        im2sp.describe(picture, made / "run", vocoder=voice, device="cpu", t2u="compact")
    with pytest.raises(AttributeError, match="module 'im2sp' has no attribute 'descibe'"):
        im2sp.descibe(picture)


def test_an_exported_run_of_text(made, text_run, tmp_path, capsys):
    file = tmp_path / "words.safetensors"
    assert export([str(text_run), str(file), "--precision", "fp32"]) == 0
    assert (tmp_path / "words.model").read_bytes() == (text_run / "text.model").read_bytes()
    picture = IMAGES / "koi-pond.jpg"
    texts = [im2sp.describe(picture, run, device="cpu").text for run in (file, text_run)]
    assert texts[0] == texts[1]
    again = train_tiny(made / "shards", tmp_path / "more", "--target", "text", "--init-from", file)
    assert (again / "text.model").read_bytes() == (tmp_path / "words.model").read_bytes()
    (tmp_path / "words.model").write_bytes(text_model_path("compact-text").read_bytes())
    assert left(main, picture, "--run", file, "--out", tmp_path / "out", "--device", "cpu") == 1
    message = capsys.readouterr().err
    assert "words.model: sha256 " in message
    assert "expected that of the run words.safetensors, " in message
    assert "; restore that file" in message
    words = train_tiny(made / "shards", tmp_path / "bag", "--target", "words")
    assert export([str(words), str(tmp_path / "x")]) == 1
    assert "its target is words, so it generates no descriptions" in capsys.readouterr().err
    assert left(main, picture, "--run", words, "--out", tmp_path / "out", "--device", "cpu") == 1
    assert "the run bag: its target is words, so it generates no desc" in capsys.readouterr().err


def test_runs_on_other_images_do_not_go_together(made, text_run, tmp_path, capsys):
    shards = make_shards(tmp_path / "shards")
    manifest = ShardDataset(shards).manifest
    record = dict(manifest.image_tokenizer) | {"name": "compact", "view": "center-224"}
    dataclasses.replace(manifest, image_tokenizer=record).write(shards)
    other = train_tiny(shards, tmp_path / "other", "--target", "text")
    message = refusal(capsys, 1, made, tmp_path / "out", IMAGES, "--run", other)
    assert "the runs run and other: trained on other image units, " in message
    assert "and aaaaaaaaaaaa.. with view center-224; describe the images with one run" in message


@pytest.mark.parametrize("flags", [["--transcribe"], ["--speaker", 0], ["--vocoder", "x"]])
def test_settings_of_sound_need_a_run_of_speech(text_run, tmp_path, capsys, flags):
    picture = IMAGES / "koi-pond.jpg"
    assert left(main, picture, "--run", text_run, *flags, "--out", tmp_path / "out") == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"{flags[0]} needs speech, and the run text generates text; add --t2u compact, or"
        in message
    )
    assert not (tmp_path / "out").exists()


def test_the_captions_of_a_list_are_on_the_page(made, tmp_path):
    listed = IMAGES.parent / "demo-captions.jsonl"
    args = [listed, "--image-root", IMAGES, "--limit", 1, "--quiet"]
    assert speak(made, tmp_path, *args) == 0
    captions = json.loads(listed.read_text().splitlines()[0])["caption"]
    text = "".join(Page(tmp_path / "index.html").words)
    assert "Known captions" in text
    assert all(caption in text for caption in captions)


# Units --------------------------------------------------------------------------------------------


def test_units_of_a_list(made, tmp_path, capsys):
    rows = [
        {"key": "a/b", "units": [1, 2, 3], "durations": [2, 1, 4]},
        {"key": "A_b", "units": [4, 5]},
        {"key": "out", "units": [20]},
        {"key": "less", "units": [1, 2], "durations": [1]},
        {"key": "zero", "units": [1], "durations": [0]},
        {"key": "long", "units": [1], "durations": [180_001]},
        {"key": "none", "units": []},
        {"key": "float", "units": [1.0]},
        {"units": [1]},
        {"key": "a/b", "units": [1]},
    ]
    path = tmp_path / "u.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "\nno json\n")
    out = tmp_path / "out"
    assert speak(made, out, "--units", path, run=None) == 0
    assert "described 2 of 11 inputs" in capsys.readouterr().out
    assert [row["wav"] for row in rows_of(out / "spoken.jsonl")] == ["a_b.wav", "A_b-2.wav"]
    assert soundfile.info(out / "a_b.wav").frames == 7 * 320
    found = {row["file"]: row["reason"] for row in rows_of(out / "rejects.jsonl")}
    assert found == {
        "out": "unit 20, but the vocoder vocoder.safetensors has units 0 to 19",
        "u.jsonl:4": "1 durations for 2 units",
        "u.jsonl:5": "durations are not a list of whole numbers from 1 on",
        "u.jsonl:6": "180,001 frames of 20 ms, over the limit of 180,000",
        "u.jsonl:7": "no units, so there is nothing to synthesize",
        "u.jsonl:8": "units are not a list of whole numbers from 0 on",
        "u.jsonl:9": 'expected {"key": text, "units": [numbers]}',
        "u.jsonl:10": "the key 'a/b' is also on an earlier line",
        "u.jsonl:12": "not JSON (Expecting value: line 1 column 1 (char 0))",
    }
    assert "<img" not in (out / "index.html").read_text()
    path = path.rename(tmp_path / "U.JSONL")
    path.write_text("\n\n" + "".join(json.dumps(rows[n]) + "\n \n" for n in (0, 1, 2)))
    assert speak(made, out, "--units", path, "--limit", 2, run=None) == 0
    assert "described 2 of 2 inputs" in capsys.readouterr().out
    path.write_text('{"key": "x", "units": []}\n')
    assert speak(made, out, "--units", path, run=None) == 1
    assert "im2sp-speak: nothing was described; see " in capsys.readouterr().err


def test_units_of_an_array_and_of_a_dataset(made, tmp_path):
    np.save(tmp_path / "clip.npy", np.array([1, 2, 3], np.uint8))
    assert speak(made, tmp_path / "a", "--units", tmp_path / "clip.npy", run=None) == 0
    assert (tmp_path / "a/clip.wav").is_file()
    args = ["--units", made / "shards", "--limit", 2]
    assert speak(made, tmp_path / "b", *args, run=None) == 0
    rows = rows_of(tmp_path / "b/spoken.jsonl")
    sample = ShardDataset(made / "shards")[1]
    assert rows[1]["key"] == sample.key
    assert rows[1]["units"] == sample.speech_units[0].tolist()
    frames = int(sample.durations[0].sum())
    assert soundfile.info(tmp_path / "b" / rows[1]["wav"]).frames == 320 * frames
    several = make_shards(tmp_path / "several")
    args = ["--units", several, "--split", "val", "--quiet"]
    assert speak(made, tmp_path / "c", *args, run=None) == 0
    keys = [row["key"] for row in rows_of(tmp_path / "c/spoken.jsonl")]
    assert keys == ["val0_0", "val0_1", "val1_0", "val1_1", "val2_0", "val2_1"]


def test_bad_clips_of_units_are_rejects(made, tmp_path, monkeypatch):
    """A key with half of a character, and a sample with fewer lists of durations than clips."""
    path = tmp_path / "u.jsonl"
    rows = [{"key": "a\ud800", "units": [1, 2]}, {"key": "b", "units": [1, 2]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert speak(made, tmp_path / "a", "--units", path, "--quiet", run=None) == 0
    assert [row["key"] for row in rows_of(tmp_path / "a/spoken.jsonl")] == ["b"]
    (reject,) = rows_of(tmp_path / "a/rejects.jsonl")
    assert reject == {
        "file": "u.jsonl:1",
        "reason": "the key 'a\\ud800' is not text: it has half of a character",
    }
    whole = Batch.sample

    def short(*args):
        sample = whole(*args)
        return dataclasses.replace(sample, durations=[np.ones(len(sample.speech_units[0]), int)])

    monkeypatch.setattr(Batch, "sample", short)
    several = make_shards(tmp_path / "several")
    args = ["--units", several, "--split", "val", "--limit", 2, "--quiet"]
    assert speak(made, tmp_path / "b", *args, run=None) == 0
    assert [row["key"] for row in rows_of(tmp_path / "b/spoken.jsonl")] == ["val0_0"]
    (reject,) = rows_of(tmp_path / "b/rejects.jsonl")
    assert reject["file"] == "val0_1"
    assert re.fullmatch("0 durations for [0-9]+ units", reject["reason"])


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("u.npy", np.zeros((2, 2), int), "int64 of shape .2, 2., expected whole numbers of shape"),
        ("u.npy", None, "not a .npy file of numbers"),
        ("u.txt", None, "expected a .jsonl with key and units, a .npy, or a folder with data"),
        ("images", None, "this dataset holds no speech units"),
        ("other", None, "vocoder vocoder.safetensors: made for 20 units, .*other has 9; name the"),
        (
            "foreign",
            None,
            "made for units of the speech tokenizer bbbbbbbbbbbb.., .* of dddddddddd",
        ),
    ],
)
def test_units_that_cannot_be_spoken(made, tmp_path, capsys, name, values, message):
    path = tmp_path / name
    if name == "images":
        path = made / "images"
    elif name == "other":
        make_shards(path, num_units=9)
    elif name == "foreign":
        make_shards(path, speech_fingerprint="d" * 64)
    else:
        path.write_bytes(b"text")
    if values is not None:
        np.save(path, values)
    assert speak(made, tmp_path / "out", "--units", path, run=None) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("im2sp-speak: ")
    pytest.raises(ValueError, _raise, error).match(message)
    assert not (tmp_path / "out").exists()


def _raise(message):
    raise ValueError(message)


# Refusals -----------------------------------------------------------------------------------------


def refusal(capsys, status, *args, **options):
    assert speak(*args, **options) == status
    return capsys.readouterr().err.splitlines()[-1]


def test_files_of_others_stay(made, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "first.jpg").write_text("mine")
    message = refusal(capsys, 1, made, out, pictures / "first.jpg")
    assert "holds first.jpg, which im2sp-speak did not write; move it away" in message
    assert {path.name for path in out.iterdir()} == {"notes.txt", "first.jpg"}
    (out / "first.jpg").unlink()
    (out / ".im2sp-speak.json").write_text('{"form": "im2sp-speak 1", "files": ["../x"]}')
    message = refusal(capsys, 1, made, out, pictures / "first.jpg")
    assert "not written by im2sp-speak; remove it or choose another --out" in message
    (out / ".im2sp-speak.json").unlink()
    assert speak(made, out, pictures / "first.jpg", "--quiet") == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_what_a_killed_run_left_is_known_as_ours(made, pictures, tmp_path, monkeypatch):
    out = tmp_path / "out"
    finish = speak_output.Output.finish

    def killed(output, title, about):
        raise KeyboardInterrupt

    monkeypatch.setattr(speak_output.Output, "finish", killed)
    assert speak(made, out, pictures / "first.jpg", "--quiet") == 130
    assert (out / "first.wav").is_file()
    assert not (out / "index.html").exists()
    monkeypatch.setattr(speak_output.Output, "finish", finish)
    assert speak(made, out, pictures / "first.jpg", "--quiet") == 0
    assert (out / "index.html").is_file()


def test_another_image_tokenizer_is_refused_by_its_fingerprint(made, tmp_path, capsys):
    state = json.loads((made / "run/step-000050/state.json").read_text())
    assert state["tokenizers"]["image"]["view"] == "squash-224"
    shards = make_shards(tmp_path / "shards")
    manifest = ShardDataset(shards).manifest
    record = dict(manifest.image_tokenizer) | {"name": "compact", "view": "center-224"}
    dataclasses.replace(manifest, image_tokenizer=record).write(shards)
    train_tiny(shards, tmp_path / "run")
    message = refusal(
        capsys, 1, made, tmp_path / "out", IMAGES / "koi-pond.jpg", run=tmp_path / "run"
    )
    assert "image tokenizer compact: its fingerprint is " in message
    assert "the run run was trained on units of compact, aaaaaaaaaaaa..; name that one" in message
    record["name"] = "lost.safetensors"
    dataclasses.replace(manifest, image_tokenizer=record).write(shards)
    train_tiny(shards, tmp_path / "lost")
    message = refusal(
        capsys, 1, made, tmp_path / "out", IMAGES / "koi-pond.jpg", run=tmp_path / "lost"
    )
    assert "lost.safetensors: there is no such file" in message
    assert "the run lost needs that image tokenizer, give its path with --image-tok" in message


def train_tiny(shards, out, *flags):
    flags = ["--preset", "tiny", "--batch-size", 2, "--steps", 1, *flags]
    assert left(
        train, "--shards", shards, "--out", out, *flags, "--device", "cpu", "--no-tensorboard",
        "--quiet",
    ) == 0  # fmt: skip
    return out


def test_runs_that_are_refused(made, tmp_path, capsys):
    picture, out = IMAGES / "koi-pond.jpg", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    message = refusal(capsys, 1, made, out, picture, run=tmp_path / "empty")
    assert "holds no checkpoint; expected the --out of im2sp-train, or one of its step" in message
    unknown = train_tiny(make_shards(tmp_path / "shards"), tmp_path / "unknown")
    message = refusal(capsys, 1, made, out, picture, run=unknown)
    assert (
        "describes units of the column image_units by test, which im2sp cannot make from pix"
        in message
    )
    strange = train_tiny(write_any(tmp_path / "any"), tmp_path / "strange", "--target", "text")
    message = refusal(capsys, 1, made, out, picture, run=strange)
    assert (
        "units of the column image_units by a tokenizer that is not recorded, which im" in message
    )
    target = ["--image-column", "line", "--target", "audio_units"]
    strange = train_tiny(tmp_path / "any", tmp_path / "audio", *target)
    message = refusal(capsys, 1, made, out, picture, run=strange)
    assert "generates units of the column audio_units, which im2sp cannot turn into so" in message
    assert not out.exists()


def test_a_checkpoint_that_tells_less_is_completed_by_its_dataset(made, monkeypatch):
    expected = read_run(made / "run")
    assert read_run(made / "run/step-000050") == expected
    from im2sp.trainer import checkpoint

    read = checkpoint.read_checkpoint

    def older(path):
        found = read(path)
        state = {name: value for name, value in found.state.items() if name != "tokenizers"}
        return checkpoint.Checkpoint(found.path, state)

    monkeypatch.setattr(checkpoint, "read_checkpoint", older)
    assert read_run(made / "run") == expected


def test_the_bundled_captioner_of_speech(tmp_path, capsys):
    picture = IMAGES / "koi-pond.jpg"
    args = [picture, "--run", "compact", "--device", "cpu"]
    assert left(main, *args, "--out", tmp_path / "a") == 0
    told = capsys.readouterr().err
    assert "run compact: speech, step " in told
    assert "images through compact, view squash-224" in told
    for out, num_beams in (("b", 4), ("c", 1)):
        command = [picture, "--run", "compact", "--num-beams", num_beams, "--device", "cpu"]
        assert left(main, *command, "--out", tmp_path / out) == 0
    (row,), (again,), (greedy,) = (rows_of(tmp_path / out / "spoken.jsonl") for out in "abc")
    assert row["units"] == again["units"] != greedy["units"]
    # A caption takes some seconds.
    assert 1 < row["duration_s"] < 15
    samples, _ = soundfile.read(tmp_path / "a" / row["wav"])
    assert samples.std() > 0.01


def test_an_exported_run_says_what_the_run_says(made, tmp_path, capsys):
    file, half = made / "exported.safetensors", made / "half.safetensors"
    assert export([str(made / "run"), str(file), "--precision", "fp32"]) == 0
    assert "exported.safetensors: step 50, fp32, " in capsys.readouterr().out
    assert export([str(made / "run/step-000050"), str(half)]) == 0
    assert half.stat().st_size < 0.6 * file.stat().st_size
    picture = IMAGES / "koi-pond.jpg"
    for out, run in (("a", "run"), ("b", file.name), ("c", half.name)):
        assert speak(made, tmp_path / out, picture, run=run) == 0
    found = [rows_of(tmp_path / out / "spoken.jsonl") for out in "abc"]
    assert found[0][0]["units"] == found[1][0]["units"]
    assert found[2][0]["units"]
    whole, rounded = load_model(file).state_dict(), load_model(half).state_dict()
    for name, tensor in load_model(made / "run").state_dict().items():
        assert torch.equal(whole[name], tensor)
        assert torch.equal(rounded[name], tensor.half().float())


def test_what_is_no_captioner_is_refused(made, tmp_path, capsys):
    message = refusal(capsys, 1, made, tmp_path / "out", IMAGES, run="vocoder.safetensors")
    assert "vocoder.safetensors: not an exported captioner; " in message
    assert "a run of im2sp-train, or a file written by tools/export_captioner.py" in message
    assert export([str(tmp_path), str(tmp_path / "x")]) == 1
    assert "holds no checkpoint; expected the --out of im2sp-train" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_vocoders_that_are_refused(made, tmp_path, capsys):
    picture, out = IMAGES / "koi-pond.jpg", tmp_path / "out"
    save_vocoder(made, "more", num_embeddings=21)
    message = refusal(capsys, 1, made, out, picture, vocoder="more")
    assert "vocoder more.safetensors: made for 21 units, the run run has 20; name the" in message
    save_vocoder(made, "foreign", fingerprint="d" * 64)
    message = refusal(capsys, 1, made, out, picture, vocoder="foreign")
    assert "of the speech tokenizer dddddddddddd.., the run run has those of bbbbb" in message
    save_vocoder(made, "plain", durations=False)
    message = refusal(capsys, 1, made, out, picture, vocoder="plain")
    assert "vocoder plain.safetensors: has no duration predictor, and the" in message
    message = refusal(capsys, 1, made, out, picture, "--speaker", 0)
    assert "--speaker 0: the vocoder vocoder.safetensors has no speakers" in message
    save_vocoder(made, "voices", num_speakers=2)
    message = refusal(capsys, 1, made, out, picture, "--speaker", 2, vocoder="voices")
    assert "--speaker 2: the vocoder voices.safetensors has 2 speakers" in message
    args = ["--units", made / "shards", "--limit", 1, "--quiet"]
    assert speak(made, out / "1", *args, "--speaker", 1, vocoder="voices", run=None) == 0
    assert speak(made, out / "0", *args, vocoder="voices", run=None) == 0
    assert len({path.read_bytes() for path in out.glob("?/*.wav")}) == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["x.jpg"], "x.jpg: no such file or folder"),
        ([], "expected images or --units, got neither"),
        ([IMAGES, "--units", IMAGES], "expected images or --units, got both"),
        (["--units", IMAGES, "--run", IMAGES], "--run applies to images, not to --units"),
        (["--units", IMAGES, "--image-root", IMAGES], "--image-root applies to images"),
        (["--units", IMAGES, "--text"], "--text applies to images, not to --units"),
        (["--units", IMAGES, "--asr", "x/y"], "--asr needs --transcribe"),
        (["--units", IMAGES, "--num-beams", 0], "--num-beams is 0; expected at least 1"),
        (["--units", IMAGES, "--speaker", -1], "--speaker is -1; expected at least 0"),
    ],
)
def test_wrong_usage(made, tmp_path, capsys, args, message):
    assert f"im2sp-speak: {message}" in refusal(capsys, 2, made, tmp_path, *args, run=None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([IMAGES, IMAGES], "a folder, tar or list must be the only input; this run has 2 inputs"),
        ([IMAGES, "--split", "val"], "has no split 'val', only ['']"),
        ([IMAGES / "koi-pond.jpg", "--split", "val"], "--split applies to a list of images, not"),
        ([IMAGES / "koi-pond.jpg", "--image-root", IMAGES], "--image-root applies to a list of"),
    ],
)
def test_pictures_that_cannot_be_listed(made, tmp_path, capsys, args, message):
    assert message in refusal(capsys, 1, made, tmp_path, *args)


def test_out_has_to_be_a_folder(made, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    message = refusal(capsys, 2, made, tmp_path / "file", IMAGES / "koi-pond.jpg")
    assert message.endswith("file: not a folder")
