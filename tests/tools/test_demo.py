"""im2sp-demo: its page in a browser, and its answers."""

import base64
import io
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import soundfile

from im2sp.tools import demo
from im2sp.tools.speaking import server as demo_server
from im2sp.tools.speaking.describe import Describer
from im2sp.tools.speaking.server import example_names, serve
from support.browser import NAMES, Browser, find_chromium

IMAGES = Path(__file__).parents[2] / "docs/demo-images"
PHOTO = IMAGES / "koi-pond.jpg"


@pytest.fixture(scope="module")
def describer():
    return Describer(device="cpu")


@pytest.fixture(scope="module")
def url(describer):
    """The served page of the bundled captioners."""
    with serve(describer, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def ask(url, data=None, **headers):
    """Status and content of an answer."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=60
        ) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.skipif(find_chromium() is None, reason=f"no Chromium is installed ({NAMES[0]}, ..)")
def test_a_photograph_is_described_on_the_page(url, describer, tmp_path):
    with Browser(tmp_path) as browser:
        browser.visit(url)
        assert browser.run("document.querySelectorAll('#examples img').length") == 12
        browser.choose("#file", PHOTO)
        browser.run("""new Promise((done) => { const wait = () =>
            el("sound").duration > 0 && el("decoded").complete ? done() : setTimeout(wait, 20);
            wait(); })""")
        text, seconds = browser.run("[el('text').textContent, el('sound').duration]")
        expected, _ = describer.describe(demo_server.read_image(PHOTO, name="a"), 4)
        assert text == expected.text
        assert seconds == pytest.approx(len(expected.waveform) / expected.rate_hz, abs=0.05)
        assert browser.run("el('decoded').naturalWidth") == 224
        about = browser.run("el('about').textContent")
        assert "compact-text (text, step " in about
        assert "compact (text to units)" in about
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        # A file that is no image, then an example.
        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"no image")
        browser.choose("#file", bad)
        browser.run("""new Promise((done) => { const wait = () =>
            el("text").textContent.startsWith("the image: ") ? done() : setTimeout(wait, 20);
            wait(); })""")
        assert browser.run("el('sound').hidden")


def test_answers(url):
    status, data = ask(f"{url}/describe?beams=1", PHOTO.read_bytes())
    found = json.loads(data)
    assert status == 200
    sound = base64.b64decode(found["sound"].partition(",")[2])
    assert soundfile.info(io.BytesIO(sound)).duration == pytest.approx(found["duration_s"])
    assert found["text"]
    assert found["num_units"] > 0
    status, data = ask(f"{url}/describe?temperature=1.5", PHOTO.read_bytes())
    assert status == 200
    assert json.loads(data)["text"] is not None
    assert ask(f"{url}/examples/{example_names()[0]}")[0] == 200


@pytest.mark.parametrize(
    ("path", "data", "headers", "status", "message"),
    [
        ("/", None, {"Host": "example.org"}, 403, "only this machine's own page is answered"),
        ("/describe", b"x", {"Origin": "http://example.org"}, 403, "only this machine's own page"),
        ("/examples/../README.md", None, {}, 404, "no such page"),
        ("/other", b"x", {}, 404, "no such page"),
        ("/describe", b"no image", {}, 400, "the image: not an image"),
        ("/describe?beams=0", b"x", {}, 400, "beams is 0; expected 1 to 16"),
        ("/describe?beams=x", b"x", {}, 400, "beams is x; expected 1 to 16"),
        ("/describe?temperature=x", b"x", {}, 400, "temperature is x; expected above 0 to 5"),
        ("/describe", b"x", {"Content-Length": str(1 << 40)}, 413, "expected an image of up to"),
    ],
)
def test_refusals(url, path, data, headers, status, message):
    found, content = ask(url + path, data, **headers)
    assert found == status
    assert message in json.loads(content)["error"]


def test_the_command_prints_its_address(describer, monkeypatch, capsys):
    def interrupt(server):
        raise KeyboardInterrupt

    monkeypatch.setattr("im2sp.tools.speaking.describe.Describer", lambda *_: describer)
    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", interrupt)
    with pytest.raises(SystemExit) as left:
        demo.main(["--port", "0"])
    assert left.value.code == 130
    assert "http://127.0.0.1:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        demo.main(["--port", "70000"])
    assert left.value.code == 2
    assert "--port is 70000; expected 0 to 65535" in capsys.readouterr().err
