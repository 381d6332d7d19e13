"""A headless Chromium that is spoken to through its DevTools protocol, over two pipes: no driver, no library.

https://chromedevtools.github.io/devtools-protocol/; messages are JSON, each ended by a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Where all tests are to run, one that needs a browser fails without one, unless that was said to be meant.
MAY_BE_MISSING = not os.environ.get("CI") or os.environ.get("CHROMIUM") == "none"
DEADLINE = 60  # seconds for one answer; pages take tenths of one
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
)


class Tab:
    """One page. said: console messages, log entries and exceptions so far."""

    def __init__(self, to_browser, from_browser):
        self._out, self._in, self._number, self._session, self.said = to_browser, from_browser, 0, None, []
        self._rest = b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        answer = self._wait(lambda message: message.get("id") == self._number, method)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, path: Path, *, width: int, scheme: str, height: int = 900):
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=path.as_uri())
        self._wait(lambda message: message.get("method") == "Page.loadEventFired", f"{path.name} to load")

    def evaluate(self, expression: str):
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def press(self, key: str):
        code, text = {"Tab": (9, ""), "Enter": (13, "\r")}[key]
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def picture(self, path: Path, *, whole: bool = True):
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    def _wait(self, is_it, what):
        """The first message that is the one; all others on the way are noted."""
        until = time.monotonic() + DEADLINE
        while not is_it(message := self._read(until, what)):
            pass
        return message

    def _read(self, until, what):
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0, until - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser did not answer in {DEADLINE} seconds: {what}")
            piece = os.read(self._in.fileno(), 1 << 16)
            if not piece:
                raise RuntimeError("the browser is gone")
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(message["params"])
        if message.get("method") == "Network.requestWillBeSent":
            self.said.append({"asked for": message["params"]["request"]["url"]})
        return message


@contextmanager
def tab(profile: Path):
    """A tab of a browser of its own, whose files lie in `profile`."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()

    def three_and_four():
        one, two = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(one, 3)
        os.dup2(two, 4)

    program = subprocess.Popen(
        [PROGRAM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
        preexec_fn=three_and_four,  # noqa: PLW1509 -- between fork and exec two descriptors are named, no more
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        with os.fdopen(ours_out, "wb") as out, os.fdopen(ours_in, "rb", buffering=0) as back:
            yield Tab(out, back)
    finally:
        program.terminate()
        try:
            program.wait(20)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait(20)
