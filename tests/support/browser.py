"""A headless Chromium for tests of pages, driven through its DevTools pipe."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LIMIT_S = 60.0
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",  # the pages are trusted, and CI may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--no-first-run",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
)
# Chromium reads commands from descriptor 3 and writes answers to 4.
_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4);"
    "os.execv(sys.argv[3], sys.argv[3:])"
)


@cache
def find_chromium() -> str | None:
    """Path of a working Chromium, None if there is none."""
    for name in NAMES:
        path = shutil.which(name)
        if path and not subprocess.run([path, "--version"], capture_output=True).returncode:
            return path
    return None


class Browser:
    """One page of a browser with a temporary profile; a context manager."""

    def __init__(self, folder: Path, *, width_px: int = 1000, height_px: int = 800) -> None:
        """Start the browser with profile and downloads in the folder."""
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        program = find_chromium()
        assert program is not None
        # Duplicates whose numbers are neither 3 nor 4.
        spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
        commands_read, self._commands = os.pipe()
        self._answers, answers_write = os.pipe()
        for descriptor in spare:
            os.close(descriptor)
        flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}"]
        flags.append(f"--window-size={width_px},{height_px}")
        given = [sys.executable, "-c", _START, str(commands_read), str(answers_write), program]
        self._process = subprocess.Popen(
            [*given, *flags, "about:blank"],
            pass_fds=(commands_read, answers_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands_read)
        os.close(answers_write)
        self._buffer = b""
        self._number = 0
        self._events: list[dict] = []
        self._session: str | None = None

    def __enter__(self) -> "Browser":
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        call = {"targetId": target, "flatten": True}
        session = self.call("Target.attachToTarget", **call)["sessionId"]
        where = {"downloadPath": str(self.downloads), "eventsEnabled": True}
        self.call("Browser.setDownloadBehavior", behavior="allow", **where)
        self._session = session
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_) -> None:
        os.close(self._commands)
        os.close(self._answers)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, **params) -> dict:
        """A DevTools command's result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, f"{method}: {found['error']}"
                return found["result"]
            self._events.append(found)

    def wait_for(self, method: str, **wanted) -> dict:
        """Parameters of the next event of this kind with the wanted values."""
        while True:
            for place, event in enumerate(self._events):
                params = event.get("params", {})
                if event.get("method") == method and wanted.items() <= params.items():
                    del self._events[: place + 1]
                    return params
            self._events.append(self._next())

    def open(self, path: Path) -> None:
        """Open a page from disk and wait until it is loaded."""
        self.visit(path.resolve().as_uri())

    def visit(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        found = self.call("Page.navigate", url=url)
        assert "errorText" not in found, found
        self.wait_for("Page.loadEventFired")

    def reload(self) -> None:
        """Load the page again."""
        self.call("Page.reload")
        self.wait_for("Page.loadEventFired")

    def run(self, script: str):
        """Value of a script in the page, awaited if it is a promise."""
        flags = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        found = self.call("Runtime.evaluate", expression=script, **flags)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def choose(self, selector: str, file: Path) -> None:
        """Choose a file in an input of the page."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key; `code` is its Windows key code."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def download(self) -> Path:
        """The file of the next download that is finished."""
        begun = self.wait_for("Browser.downloadWillBegin")
        self.wait_for("Browser.downloadProgress", guid=begun["guid"], state="completed")
        return self.downloads / begun["suggestedFilename"]

    def _next(self) -> dict:
        deadline = time.monotonic() + LIMIT_S
        while b"\0" not in self._buffer:
            left_s = max(deadline - time.monotonic(), 0)
            ready, _, _ = select.select([self._answers], [], [], left_s)
            assert ready, f"Chromium is silent for {LIMIT_S:.0f} s; last: {self._events[-3:]}"
            data = os.read(self._answers, 1 << 16)
            assert data, "Chromium has ended"
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)
