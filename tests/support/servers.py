"""Servers on loopback whose answers a test chooses: files of a web server, and a proxy of S3."""

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers without Content-Length, and content."""


class Site:
    """Files of the server, faults of its next answers, and the requests that it got."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        """Of a path ("x") or a request ("PUT x"), in turn: a status, "cut" (the connection is
        dropped halfway), "drop" (it is dropped after the work, without an answer) or "endless"."""
        self.requests: Counter[str] = Counter()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site
    answer: Callable[["_Handler", str, bytes], Answer]

    def _do(self) -> None:
        path, site = self.path.split("?")[0].lstrip("/"), self.site
        site.requests[f"{self.command} {path}"] += 1
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        faults = site.faults.get(f"{self.command} {path}") or site.faults.get(path, [])
        fault = faults[:1]
        del faults[:1]
        if fault and isinstance(fault[0], int):
            status, headers, data = fault[0], {}, b"no"
        else:
            status, headers, data = self.answer(path, body)
        if fault == ["drop"]:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault == ["endless"]:
            self.send_header("Connection", "close")
        elif "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # the reader has enough
                self.wfile.write(data[: len(data) // 2] if fault == ["cut"] else data)
        self.close_connection = fault != []

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _do

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def _serving(answer: Callable[[_Handler, str, bytes], Answer], site: Site) -> Iterator[Site]:
    handler = type("Handler", (_Handler,), {"site": site, "answer": answer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def web_server() -> Iterator[Site]:
    """Server of `files`."""
    site = Site()

    def answer(_: _Handler, path: str, __: bytes) -> Answer:
        data = site.files.get(path)
        return 404 if data is None else 200, {}, data or b""

    with _serving(answer, site):
        yield site


@contextmanager
def proxy(port: int) -> Iterator[Site]:
    """Server that passes requests on to another one on loopback."""

    def answer(request: _Handler, _: str, body: bytes) -> Answer:
        upstream = http.client.HTTPConnection("127.0.0.1", port)
        upstream.request(request.command, request.path, body, dict(request.headers))
        with upstream.getresponse() as found:
            dropped = {"transfer-encoding", "connection", "date", "server"}
            headers = {k: v for k, v in found.getheaders() if k.lower() not in dropped}
            data = found.read()
        upstream.close()
        return found.status, headers, data

    with _serving(answer, Site()) as site:
        yield site
