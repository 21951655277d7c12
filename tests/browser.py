"""Chromium driven over a pipe: no port, no driver, no library. Skips where there is no Chromium."""

import itertools
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tda.web.serve import server

SECONDS = 30.0
DRIVER = "[.WebGL-"
"""How remarks of the graphics driver begin, which are none of the page's."""


class BrowserError(Exception):
    """What the browser or a script answered in place of a value."""


class Browser:
    """Chromium with one tab; keeps what it requested and complained about.

    Parameters
    ----------
    program : str
        Path of Chromium.
    profile : Path
        An empty folder.
    """

    FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
             "--enable-unsafe-swiftshader",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")  # fmt: skip

    def __init__(self, program: str, profile: Path) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads commands from descriptor 3 and writes to 4, whatever these pipes are called here.
        script = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", script, "bash", program, *self.FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers = itertools.count(1)
        self._read = b""
        self._session: str | None = None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(1280, 1600)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol, and return its result."""
        number = self._send(method, **parameters)
        while True:
            answer = self._message()
            if answer.get("id") == number:
                if "error" in answer:
                    raise BrowserError(answer["error"]["message"])
                return dict(answer["result"])
            if "method" in answer:
                self._note(answer["method"], answer["params"])

    def _send(self, method: str, **parameters: Any) -> int:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        return number

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], SECONDS)
            assert ready, "the browser does not answer"
            piece = os.read(self._in, 1 << 16)
            assert piece, "the browser has ended"
            self._read += piece
        message, self._read = self._read.split(b"\0", 1)
        return dict(json.loads(message))

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(event["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(event["args"]))
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(f"a dialog: {event['message']}")
            self._send("Page.handleJavaScriptDialog", accept=True)  # whoever waits for an answer skips this one's
        elif method == "Log.entryAdded":
            level, text = event["entry"]["level"], event["entry"]["text"]
            if level in ("error", "warning") and not text.startswith(DRIVER):
                self.complaints.append(f"{text} {event['entry'].get('url')}")

    def resize(self, width: int, height: int) -> None:
        """Give the page a view of so many pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def ask(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(answer["result"]["description"])
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value; while a page changes it may not make sense yet."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                value = self.ask(expression)
            except BrowserError as error:
                value, told_last = None, str(error)
            else:
                told_last = str(value)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}; it is {told_last}; the page shows {self.text()[:2000]}")

    def find(self, selector: str) -> None:
        """Wait until there is an element."""
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")

    def click(self, selector: str, words: str) -> None:
        """Click the first element that holds some words."""
        which = f"(found) => found.innerText.includes({json.dumps(words)})"
        self.ask(f"[...document.querySelectorAll({json.dumps(selector)})].find({which}).click()")

    def open(self, url: str) -> None:
        """Load a page afresh, whatever was shown before."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url.split('#')[0])}) && document.readyState === 'complete'")

    def text(self, selector: str = "body") -> str:
        """What a reader sees of an element, on one line."""
        return " ".join(str(self.ask(f"document.querySelector({json.dumps(selector)}).innerText")).split())

    def press(self, key: str, code: int) -> None:
        """Press a key where the focus is."""
        down = {"type": "keyDown", "text": key} if len(key) == 1 else {"type": "rawKeyDown"}
        for kind in (down, {"type": "keyUp"}):
            self.call("Input.dispatchKeyEvent", key=key, code=key, windowsVirtualKeyCode=code, **kind)

    def close(self) -> None:
        """End it."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(20)


@contextmanager
def opened(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile folder."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    started = Browser(program, profile)
    try:
        yield started
    finally:
        started.close()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on loopback; the value is its address."""
    served = server(folder)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}"
    finally:
        served.shutdown()
        served.server_close()


@contextmanager
def watching(browser: Browser, address: str) -> Iterator[None]:
    """Inside, nothing may complain, and nothing may be asked of another address."""
    browser.call("Page.navigate", url="about:blank")
    browser.complaints.clear()
    browser.requests.clear()
    yield
    browser.ask("1")  # whatever was said until now has been heard
    assert not browser.complaints, browser.complaints
    asked = [url for url in browser.requests if not url.startswith(("data:", "about:", "blob:"))]
    assert asked, "the page asked for nothing at all"
    assert [url for url in asked if not url.startswith(f"{address}/")] == []
