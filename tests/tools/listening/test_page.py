"""The page of a listening test in a browser: opened from disk, answered, saved, scored."""

import json
import re

import pytest

from im2sp.tools.listening_test import main
from support.browser import NAMES, Browser, find_chromium
from support.listening import save_reference, save_spoken

WORDS = ("Bad", "Poor", "Fair", "Good", "Excellent")  # ITU-T P.800, Annex B

needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason=f"no Chromium is installed ({', '.join(NAMES)})"
)

# What the tests do in the page, as a listener would.
HELPERS = """
window.el = (id) => document.getElementById(id);
window.sampleId = () => el("audio").src.match(/([0-9a-f]+)\\.wav$/)[1];
window.start = (name) => { if (name) el("listener").value = name; el("start").requestSubmit(); };
window.choose = (scale, score) =>
  document.querySelector(`input[name=${scale}][value="${score}"]`).click();
window.checked = (scale) =>
  document.querySelector(`input[name=${scale}]:checked`)?.value ?? null;
window.toEnd = () => el("audio").dispatchEvent(new Event("ended"));
window.listen = () => new Promise((done, failed) => {
  el("audio").addEventListener("ended", () => done(true), { once: true });
  el("audio").play().catch(failed);
});
window.idsInOrder = () => {
  const found = [sampleId()];
  while (el("next").textContent === "Next") { el("next").click(); found.push(sampleId()); }
  return found;
};
window.missing = () => [...el("missing").children].map((item) => item.innerText.trim());
true
"""


@pytest.fixture
def test_dir(tmp_path, request):
    """A test of three systems on two images; another one for each function."""
    systems = [f"{n}={save_spoken(tmp_path / n, 300, ('a', 'b'))}" for n in ("ours", "theirs")]
    flags = ["--reference", f"people={save_reference(tmp_path / 'wavs', ('a', 'b'))}"]
    flags += ["--num-images", "2", "--out", str(tmp_path / "test")]
    flags += ["--seed", str(request.function.__code__.co_firstlineno)]
    assert main(["build", *systems, *flags]) == 0
    return tmp_path / "test"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(test_dir, chromium):
    """The browser with the page of the test."""
    chromium.call("Emulation.clearDeviceMetricsOverride")
    chromium.open(test_dir / "page/index.html")
    chromium.run(HELPERS)
    return chromium


def opinion(system, image):
    """What the listener of these tests thinks: naturalness and descriptiveness."""
    return {"people": 5, "ours": 3, "theirs": 2}[system], 4 if image == "a" else 1


def start_again(browser, name=""):
    browser.reload()
    browser.run(HELPERS)
    browser.run(f"start({name!r})")


def answer_all(browser, key):
    """Answer every sample from the first on."""
    browser.run("while (!el('previous').disabled) el('previous').click()")
    for place in range(len(key["samples"])):
        row = key["samples"][browser.run("sampleId()")]
        naturalness, descriptiveness = opinion(row["system"], row["image"])
        browser.run(f"choose('naturalness', {naturalness}); toEnd()")
        browser.run(f"choose('descriptiveness', {descriptiveness})")
        assert browser.run("el('left').textContent") == "This sample is complete."
        assert browser.run("el('bar').value") == place + 1
        browser.run("el('next').click()")


@needs_chromium
def test_from_the_page_to_the_scores(test_dir, browser, tmp_path, capsys):
    key = json.loads((test_dir / "key.json").read_text())
    name = browser.run("el('listener').value")
    assert re.fullmatch("listener-[a-z2-9]{8}", name)
    browser.run("el('listener').focus(); el('listener').value = ' Anna '")
    browser.press("Enter", 13, "\r")  # no mouse: Enter starts
    assert browser.run("el('number').textContent") == "Sample 1 of 6"
    assert browser.run("document.activeElement === el('number')")

    # One sample in full: the sound really plays, the keyboard chooses.
    first = browser.run("sampleId()")
    assert browser.run("listen()")
    browser.run("document.querySelector('input[name=naturalness]').focus()")
    browser.press(" ", 32, " ")
    browser.press("ArrowRight", 39)
    browser.press("ArrowRight", 39)
    assert browser.run("checked('naturalness')") == "3"
    assert browser.run("el('left').textContent") == "Still missing here: descriptiveness."
    browser.run("choose('descriptiveness', 5)")
    browser.press("Enter", 13, "\r")  # and on to the next one, of which a part stays open
    assert browser.run("el('number').textContent") == "Sample 2 of 6"
    assert browser.run("checked('naturalness')") is None
    browser.run("choose('naturalness', 1); el('to-overview').click()")
    assert browser.run("el('verdict').textContent").startswith("5 of 6 samples are not complete.")
    left = [" ".join(text.split()) for text in browser.run("missing()")]
    assert left[0] == "Sample 2 listening to the end, descriptiveness"
    assert left[1:] == [f"Sample {n} everything" for n in (3, 4, 5, 6)]

    # Saved half done, it is told here and by the scores.
    browser.run("el('save').click()")
    saved = browser.download()
    assert saved.name == f"answers-{key['test']}-anna.json"
    told = browser.run("el('saved').textContent")
    assert "It is not complete: 5 of 6 samples have answers missing." in told
    half = json.loads(saved.read_text())
    assert half["answers"][first] == {"heard": True, "naturalness": 3, "descriptiveness": 5}
    assert main(["score", str(test_dir / "key.json"), str(saved)]) == 0
    shown = capsys.readouterr().out
    assert "anna: 1 of 6 samples rated in full, 1 not played to the end and skipped" in shown
    saved.unlink()

    # A reload loses nothing, and goes on at the first sample that is open.
    browser.reload()
    browser.run(HELPERS)
    assert browser.run("el('listener').value") == "anna"
    assert browser.run("el('welcome').hidden") is False
    browser.run("start('')")
    assert browser.run("el('number').textContent") == "Sample 2 of 6"
    assert browser.run("checked('naturalness')") == "1"
    answer_all(browser, key)
    assert browser.run("el('verdict').textContent") == "You have answered everything. Thank you!"
    browser.run("el('save').click()")
    saved = browser.download()
    content = json.loads(saved.read_text())
    assert (content["test"], content["listener"]) == (key["test"], "anna")
    assert sorted(content["order"]) == sorted(content["answers"]) == sorted(key["samples"])
    assert content["order"][0] == first
    for sample, row in key["samples"].items():
        given = content["answers"][sample]
        scores = given["naturalness"], given["descriptiveness"]
        assert (given["heard"], scores) == (True, opinion(row["system"], row["image"]))

    # Another listener on the same machine starts with nothing.
    start_again(browser, "bert")
    assert browser.run("el('done').textContent") == "0 of 6 samples complete"
    answer_all(browser, key)
    browser.run("el('save').click()")
    files = [saved, browser.download()]
    out = tmp_path / "scores.json"
    args = ["score", str(test_dir / "key.json"), *map(str, files), "--out", str(out)]
    assert main(args) == 0
    table = capsys.readouterr().out
    assert "not complete" not in table
    for row in json.loads(out.read_text())["systems"]:
        natural, descriptive = (row["opinions"][s] for s in ("naturalness", "descriptiveness"))
        assert natural["mean"] == opinion(row["name"], "a")[0]
        assert (descriptive["mean"], descriptive["num_ratings"]) == (2.5, 4)
        assert natural["half_width"] == 0


@needs_chromium
def test_each_listener_has_an_order_and_keeps_it(browser):
    orders = {}
    for name in ("anna", "bert", "cleo", "anna"):
        start_again(browser, name)
        order = browser.run("idsInOrder()")
        assert len(set(order)) == 6
        assert orders.setdefault(name, order) == order
    assert len(set(map(tuple, orders.values()))) == 3


@needs_chromium
def test_two_tabs_of_a_listener_share_the_answers(test_dir, browser):
    test = json.loads((test_dir / "key.json").read_text())["test"]
    place = f"im2sp-listening-test/{test}/answers/anna"
    browser.run("start('anna'); choose('naturalness', 2)")
    first = browser.run("sampleId()")
    browser.run("el('next').click()")
    second = browser.run("sampleId()")
    # What another tab stores.
    other = {first: {"heard": True, "naturalness": 2, "descriptiveness": 4}}
    other[second] = {"heard": False, "naturalness": 5, "descriptiveness": None}
    browser.run(f"localStorage.setItem({place!r}, {json.dumps(json.dumps(other))})")
    event = f"new StorageEvent('storage', {{key: {place!r}}})"
    browser.run(f"window.dispatchEvent({event})")
    assert browser.run("el('done').textContent") == "1 of 6 samples complete"
    assert browser.run("checked('naturalness')") == "5"
    other[second]["heard"] = True
    browser.run(f"localStorage.setItem({place!r}, {json.dumps(json.dumps(other))})")
    browser.run("choose('descriptiveness', 3)")
    assert browser.run("el('done').textContent") == "2 of 6 samples complete"
    kept = json.loads(browser.run(f"localStorage.getItem({place!r})"))
    assert kept[second] == {"heard": True, "naturalness": 5, "descriptiveness": 3}
    # A browser that stores nothing keeps what it has in memory.
    browser.run("Storage.prototype.setItem = () => { throw new Error('full'); }")
    browser.run("choose('descriptiveness', 1); choose('naturalness', 1)")
    browser.run("el('previous').click(); el('next').click()")
    assert browser.run("checked('descriptiveness')") == "1"


@needs_chromium
def test_what_goes_wrong_in_a_browser_is_told(test_dir, browser):
    # A name that would not make a file name does not start the test.
    browser.run("start('a/b')")
    assert browser.run("el('sample').hidden")
    # Answers that cannot be read are asked again.
    test = json.loads((test_dir / "key.json").read_text())["test"]
    place = f"im2sp-listening-test/{test}/answers/anna"
    for kept in ('{"x', "[]", "7", '{"no": {"heard": true}}'):
        browser.run(f"localStorage.setItem({place!r}, {kept!r})")
        start_again(browser, "anna")
        assert browser.run("el('done').textContent") == "0 of 6 samples complete"
    # A browser that keeps nothing says so.
    assert browser.run("el('unkept').hidden")
    browser.run("Storage.prototype.setItem = () => { throw new Error('full'); }")
    browser.run("choose('naturalness', 2)")
    assert browser.run("el('unkept').hidden") is False
    # A sound that is not there says so, and the next one is well again.
    (test_dir / "page/media" / f"{browser.run('sampleId()')}.wav").unlink()
    start_again(browser, "anna")
    browser.run(
        "el('audio').error || new Promise((done) => el('audio').addEventListener('error', done))"
    )
    assert browser.run("el('broken').hidden") is False
    browser.run("el('next').click()")
    assert browser.run("el('broken').hidden")


@needs_chromium
def test_the_page_fits_a_phone_and_names_what_it_asks(browser):
    browser.run("start('anna')")
    size = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    assert browser.run("document.documentElement.scrollWidth") == 320
    browser.call("Accessibility.enable")
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node.get("ignored") and "name" in node
    ]
    scales = ("Naturalness", "Descriptiveness")
    assert [name for role, name in named if role == "group"] == list(scales)
    choices = [f"{value} {word}" for value, word in enumerate(WORDS, 1)]
    assert [name for role, name in named if role == "radio"] == 2 * choices
    roles = dict(named)
    assert roles["image"] == "The photo that the speech should describe"
    assert roles["progressbar"] == "0 of 6 samples complete"
    assert roles["Audio"] == "The spoken description"
