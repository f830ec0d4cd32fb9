"""The page of im2sp-demo, served to this machine: images in, descriptions out.

| request | answer |
| --- | --- |
| `GET /` | the page, `demo.html` |
| `GET /examples/NAME` | an image of `docs/demo-images`, in a clone |
| `POST /describe?beams=4` or `?temperature=0.7`, an image file | JSON: text, image, sound |

Only requests to this machine by its own name are answered, so that no other page can use it.
"""

import base64
import json
import threading
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from im2sp.pipeline.decoding.images import read_image
from im2sp.tools.speaking.describe import Describer
from im2sp.tools.speaking.output import jpeg_bytes, wav_bytes

HOST = "127.0.0.1"
EXAMPLES = Path(__file__).parents[2] / "docs/demo-images"
MAX_BYTES = 64 << 20
MAX_BEAMS = 16
_NAMES = (HOST, "localhost")


def serve(describer: Describer, port: int) -> ThreadingHTTPServer:
    """A server on the port of this machine, 0 for any; a context, not yet serving.

    Raises:
        OSError: The port is taken.
    """
    lock = threading.Lock()

    class Handler(_Handler):
        pass

    Handler.describer, Handler.lock = describer, lock
    return ThreadingHTTPServer((HOST, port), Handler)


class _Handler(BaseHTTPRequestHandler):
    describer: Describer
    lock: threading.Lock
    """Held while a description is generated: one at a time."""
    timeout = 60

    def do_GET(self) -> None:
        """Answer with the page or an example."""
        if not self._is_local():
            return
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/":
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", _page(self.describer))
        elif path.removeprefix("/examples/") in example_names():
            data = (EXAMPLES / path.removeprefix("/examples/")).read_bytes()
            self._answer(HTTPStatus.OK, "image/jpeg", data)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")

    def do_POST(self) -> None:
        """Answer with the description of an image."""
        if not self._is_local():
            return
        url = urllib.parse.urlsplit(self.path)
        size = self.headers.get("Content-Length", "")
        if url.path != "/describe":
            self._refuse(HTTPStatus.NOT_FOUND, "no such page")
        elif not size.isdecimal() or int(size) > MAX_BYTES:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"expected an image of up to {MAX_BYTES:,} bytes",
            )
        else:
            data = self.rfile.read(int(size))
            try:
                settings = _settings(urllib.parse.parse_qs(url.query))
                image = read_image(data, name="the image")
            except ValueError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
                return
            with self.lock:
                found = _described(self.describer, image, settings)
            self._answer(HTTPStatus.OK, "application/json", json.dumps(found).encode())

    def _is_local(self) -> bool:
        """True if the request names this machine; else it is refused."""
        name = self.headers.get("Host", "").partition(":")[0]
        origin = urllib.parse.urlsplit(self.headers.get("Origin", "")).hostname
        if name in _NAMES and (origin is None or origin in _NAMES):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "only this machine's own page is answered")
        return False

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self.close_connection = True
        self._answer(status, "application/json", json.dumps({"error": reason}).encode())

    def _answer(self, status: HTTPStatus, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


def example_names() -> list[str]:
    """File names of the examples; none outside of a clone."""
    return sorted(path.name for path in EXAMPLES.glob("*.jpg"))


def _page(describer: Describer) -> bytes:
    """The page, with the names of captioners and examples."""
    names = [f"{run.name} ({run.target}, step {run.step:,})" for run in describer.runs]
    if describer.t2u is not None:
        names.append(f"{describer.t2u.name} (text to units)")
    about = {"runs": names, "are_independent": len(describer.runs) > 1}
    about |= {"examples": example_names(), "max_beams": MAX_BEAMS}
    data = json.dumps(about).replace("<", "\\u003c")
    page = files(__name__.rpartition(".")[0]).joinpath("demo.html").read_text("utf-8")
    return page.replace("$about", data).encode()


def _settings(query: dict[str, list[str]]) -> tuple[int | None, float | None]:
    """Beams and temperature of a query; None where they are not given."""
    beams, temperature = (query.get(name, [""])[0] for name in ("beams", "temperature"))
    num_beams = int(beams) if beams.isdecimal() else None
    if beams and (num_beams is None or not 1 <= num_beams <= MAX_BEAMS):
        raise ValueError(f"beams is {beams}; expected 1 to {MAX_BEAMS}")
    try:
        found = float(temperature) if temperature else None
    except ValueError:
        found = 0.0
    if found is not None and not 0 < found <= 5:
        raise ValueError(f"temperature is {temperature}; expected above 0 to 5")
    return num_beams, found


def _described(
    describer: Describer, image: Image.Image, settings: tuple[int | None, float | None]
) -> dict[str, Any]:
    """The description as JSON values; image and sound as data URLs."""
    found, decoded = describer.describe(image, *settings)
    answer: dict[str, Any] = {"text": found.text, "width": image.width, "height": image.height}
    if decoded is not None:
        answer["decoded"] = _url("image/jpeg", jpeg_bytes(Image.fromarray(decoded)))
    if found.units and found.waveform is not None and found.rate_hz is not None:
        answer["sound"] = _url("audio/wav", wav_bytes(found.waveform, found.rate_hz))
        answer["num_units"] = len(found.units)
        answer["duration_s"] = len(found.waveform) / found.rate_hz
    return answer


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
