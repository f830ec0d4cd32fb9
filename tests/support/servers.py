"""A web server on loopback whose answers a test chooses."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """Files of the server, faults of its next answers, and the requests that it got."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str]] = {}
        """Of a path, in turn: a status, "cut" (the connection is dropped) or "endless"."""
        self.requests: Counter[str] = Counter()


@contextmanager
def web_server() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0].lstrip("/")
            site.requests[f"{self.command} {path}"] += 1
            fault = site.faults.get(path, [])[:1]
            del site.faults.get(path, [])[:1]
            data = site.files.get(path)
            status = 404 if data is None else 200
            if fault and isinstance(fault[0], int):
                status, data = fault[0], b"no"
            self.send_response(status)
            if fault == ["endless"]:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET" and data:
                with suppress(ConnectionError):  # the reader has enough
                    self.wfile.write(data[:-1] if fault == ["cut"] else data)
            self.close_connection = fault != []

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
