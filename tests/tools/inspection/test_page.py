"""The page of im2sp-info in a browser: opened from disk, on a desktop and a phone."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from im2sp.pipeline import load_image_tokenizer, load_vocoder
from im2sp.shards import Sample, ShardDataset
from im2sp.tools.info import main
from im2sp.tools.inspection.media import MediaConfig, show_samples
from im2sp.tools.inspection.page import page
from im2sp.tools.inspection.report import report
from support.browser import NAMES, Browser, find_chromium
from support.datasets import make_rows, make_samples, write_dataset, write_rows

needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason=f"no Chromium is installed ({', '.join(NAMES)})"
)
HOSTILE = (
    '<img src=x onerror="document.title=1"></title><script>document.title=2</script>\u202e&amp;\x00'
)

# Smallest contrast of a text with the nearest background behind it, as WCAG 2 defines it.
CONTRAST = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = (el) => {
    for (; el; el = el.parentElement) {
      const found = rgb(getComputedStyle(el).backgroundColor);
      if (found.length < 4 || found[3] > 0) return found;
    }
    return [255, 0, 0];
  };
  let worst = 99, place = "";
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const el = walk.currentNode.parentElement;
    if (!walk.currentNode.textContent.trim()) continue;
    const [a, b] = [light(rgb(getComputedStyle(el).color)), light(behind(el))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst) [worst, place] = [ratio, walk.currentNode.textContent];
  }
  return [worst, place];
})()"""


def compact_dataset(folder):
    """Units of the bundled tokenizers, with a hostile key, caption and split."""
    samples = make_samples(6, speech=True)
    samples[1] = Sample(
        key=HOSTILE,
        split=HOSTILE,
        image_units=samples[1].image_units,
        speech_units=samples[1].speech_units,
        durations=samples[1].durations,
        captions=[HOSTILE, "lang" * 2000, ""],
    )
    folder.mkdir()
    image_fingerprint = load_image_tokenizer("compact").fingerprint
    speech_fingerprint = load_vocoder("compact").speech_fingerprint
    image = {"name": "compact", "fingerprint": image_fingerprint, "view": "squash-224"}
    speech = {"name": "compact", "fingerprint": speech_fingerprint, "num_units": 200}
    rejects = json.dumps({"file": HOSTILE, "reason": HOSTILE}).encode() + b"\n"
    settings = {"source": HOSTILE, "x" * 200: "y" * 500}
    return write_dataset(
        folder,
        samples,
        rejects=rejects,
        image_tokenizer=image,
        speech_tokenizer=speech,
        settings=settings,
    )


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = folder / "new folder" / "page.html"
    with pytest.raises(SystemExit) as left:
        main([str(compact_dataset(folder / "<set>")), "--quiet", "--html", str(path)])
    assert left.value.code == 0
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture(params=["desktop", "phone"])
def browser(request, chromium, page_path):
    """The browser with the page, at 1280 or 390 pixels."""
    width = 1280 if request.param == "desktop" else 390
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.call("Emulation.setDeviceMetricsOverride", **size)
    chromium.open(page_path)
    assert chromium.run("document.documentElement.clientWidth") in (width, width - 15)
    return chromium


@needs_chromium
def test_the_page_fits_the_screen(browser):
    page_px, screen_px = browser.run(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page_px <= screen_px
    wide = "[...document.querySelectorAll('body *')].filter(el => "
    wide += "el.getBoundingClientRect().right > document.documentElement.clientWidth + 1)"
    assert browser.run(f"{wide}.map(el => el.outerHTML.slice(0, 99))") == []


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.call("Emulation.setEmulatedMedia", features=features)
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 384) == (scheme == "dark")
    worst, place = browser.run(CONTRAST)
    assert worst >= 4.5, place


@needs_chromium
def test_images_and_sound_are_decoded(browser):
    images = browser.run(
        "Promise.all([...document.images].map(async (image) => "
        "{ await image.decode(); return [image.naturalWidth, image.naturalHeight]; }))"
    )
    assert images == [[224, 224]] * 6
    seconds = browser.run(
        "Promise.all([...document.querySelectorAll('audio')].map((clip) => new Promise("
        "(done, failed) => { clip.onloadedmetadata = () => done(clip.duration);"
        " clip.onerror = failed; clip.load(); })))"
    )
    frames = [int(s.durations[0].sum()) for s in make_samples(6, speech=True)]
    assert seconds == pytest.approx([320 * n / 16_000 for n in frames], abs=1e-3)


@needs_chromium
def test_hostile_texts_are_only_text(browser):
    assert browser.run("document.title") == "<set>"
    assert browser.run("document.scripts.length") == 0
    shown = browser.run("document.querySelectorAll('article')[1].innerText")
    assert '<img src=x onerror="document.title=1"></title><script>' in shown
    assert "&amp;" in shown
    assert ".. (8,000 characters)" in shown
    styles = browser.run(
        "[...document.querySelectorAll('bdi')].map(el => getComputedStyle(el).unicodeBidi)"
    )
    assert set(styles) == {"isolate"}


@needs_chromium
def test_links_lead_to_parts_of_the_page(browser):
    links = browser.run("[...document.querySelectorAll('nav a')].map(a => a.hash)")
    assert links == ["#samples", "#columns", "#bytes", "#rejects", "#origin"]
    assert browser.run(f"{links}.every(one => document.querySelector(one))")
    assert browser.run("document.querySelectorAll('svg path').length") >= 5
    assert browser.run("[...document.querySelectorAll('svg')].every(el => el.ariaLabel)")


def test_the_page_needs_no_other_file(page_path):
    text = page_path.read_text("utf-8")
    assert set(re.findall(r'(?:src|href)="([^"#]{5})', text)) == {"data:"}
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|http[^-]", text)


# What is decoded ----------------------------------------------------------------------------------


def shown_of(folder, **config):
    lines = []
    media = show_samples(ShardDataset(folder), MediaConfig(**config), lines.append)
    assert lines == media.notes
    return media


def test_units_of_other_tokenizers_are_maps_and_numbers(tmp_path):
    samples = make_samples(4, speech=True)
    write_dataset(tmp_path, samples, speech_tokenizer={"name": "m", "num_units": 1000})
    media = shown_of(tmp_path)
    assert all(one.image.startswith("data:image/png;base64,") for one in media.shown)
    assert all(one.sound is None for one in media.shown)
    images, sounds = media.notes
    assert "maps of their units, a colour for each code: compact: its fingerprint is" in images
    assert "no sound here: vocoder compact: made for 200 units" in sounds
    text = page(report(ShardDataset(tmp_path)), media)
    first = " ".join(map(str, samples[0].speech_units[0]))
    assert f"utterance 1 of 2: 5 speech units · {first}" in text


def test_units_of_no_named_tokenizer(tmp_path):
    write_dataset(tmp_path, make_samples(3, speech=True), image_tokenizer=None)
    images, sounds = shown_of(tmp_path).notes
    assert "dataset.json names no image tokenizer" in images
    assert "dataset.json names no speech tokenizer" in sounds


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--image-tokenizer", "compact"], "compact: its fingerprint is"),
        (["--image-tokenizer", "./no-such.ckpt"], "no-such.ckpt"),
        (["--vocoder", "compact"], "vocoder compact: made for 200 units"),
        (["--vocoder", "no-such-folder"], "no-such-folder"),
    ],
)
def test_a_model_that_was_named_and_does_not_fit_is_an_error(tmp_path, capsys, flags, message):
    folder = tmp_path / "set"
    folder.mkdir()
    write_dataset(folder, make_samples(3, speech=True), speech_tokenizer={"num_units": 9})
    with pytest.raises(SystemExit) as left:
        main([str(folder), "--quiet", "--html", str(tmp_path / "page.html"), *flags])
    assert left.value.code == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_samples_are_spaced_evenly_and_the_fullest_of_each_range(tmp_path):
    samples = make_samples(40)
    full = make_samples(40, speech=True)
    for i in (4, 17, 18, 38):
        samples[i] = full[i]
    write_dataset(tmp_path, samples, image_tokenizer=None)
    keys = [one.sample.key for one in shown_of(tmp_path, num_samples=4).shown]
    numbers = [int(key.split("-")[1]) for key in keys]
    assert numbers == [4, 17, 20, 38]
    assert len(shown_of(tmp_path, num_samples=100).shown) == 40


def test_samples_of_captions_alone(tmp_path):
    write_dataset(tmp_path, make_samples(5, images=False), image_tokenizer=None)
    media = shown_of(tmp_path)
    assert media.notes == []
    text = page(report(ShardDataset(tmp_path)), media)
    assert "<img" not in text
    assert "Empty columns: image_units, speech_units, durations." in text


def test_a_map_has_one_colour_a_code(tmp_path):
    units = np.zeros((28, 28), np.uint16)
    units[3, 5] = 9
    samples = [Sample(key=key, image_units=units) for key in "abc"]
    write_dataset(tmp_path, samples, image_tokenizer=None)
    url = shown_of(tmp_path).shown[0].image
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    pixels = np.asarray(image)
    assert pixels.shape == (224, 224, 3)
    other = (pixels != pixels[0, 0]).any(-1)
    assert other.sum() == 64
    assert other[24:32, 40:48].all()


def test_other_columns_are_shown(tmp_path):
    rows = make_rows(5)
    folder = write_rows(tmp_path / "set", rows)
    text = page(report(ShardDataset(folder)), shown_of(folder))
    assert "url <bdi>https://example.org/1</bdi>" in text
    assert "blob <bdi>3 bytes</bdi>" in text
    assert "tags <bdi>a, b</bdi>" in text
    wide = " ".join(map(str, rows[0]["wide_units"]))
    assert f"wide_units <bdi>4 units: {wide}</bdi>" in text
    assert "audio_units <bdi>8 x 3 units: " in text
