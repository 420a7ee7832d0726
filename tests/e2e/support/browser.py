"""Chromium without a window, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

from support.places import environment
from support.program import Program, until

# Of an answer of the browser, and of what is waited for in a page, in seconds.
PATIENCE = 20.0

KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}


class Browser:
    """A browser of its own profile; what its pages ask for and complain of is kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._program = Program(
            "Chromium",
            [
                "chromium",
                "--headless=new",
                # Tests run as root too, and in containers without a /dev/shm to speak of.
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--disable-gpu",
                "--no-first-run",
                "--no-default-browser-check",
                "--disable-background-networking",
                "--disable-component-update",
                "--hide-scrollbars",
                "--remote-debugging-port=0",
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            environment=environment(),
            directory=folder,
            log=folder / "chromium.log",
        )
        told = folder / "DevToolsActivePort"
        until("Chromium does not start", lambda: told.exists() and told.read_text(), PATIENCE)
        port, path = told.read_text().split()
        self._held = ExitStack()
        self._held.callback(self._program.end)
        address = f"ws://127.0.0.1:{port}{path}"
        self._socket = self._held.enter_context(connect(address, max_size=64 << 20))
        self._session: str | None = None
        self._last = 0
        # The addresses of all that pages have asked for, and what they wrote to their console.
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._held.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Asks the browser for something; its answer."""
        self._last += 1
        asked: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        self._socket.send(json.dumps(asked))
        while True:
            said = json.loads(self._socket.recv(timeout=PATIENCE))
            if said.get("id") == self._last:
                assert "error" not in said, (method, said["error"])
                return dict(said["result"])
            self._note(said)

    def _note(self, event: dict[str, Any]) -> None:
        about = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(about["exceptionDetails"]))
        elif event["method"] == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(about["args"]))
        elif event["method"] == "Log.entryAdded":
            self.complaints.append(json.dumps(about["entry"]))

    def open(self, address: str) -> None:
        self.send("Page.navigate", url=address)
        self.wait("it is not there", "document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def wait(self, problem: str, script: str, right: Callable[[Any], bool] = bool) -> Any:
        """Until the expression has a value that is right; that value."""
        end = time.monotonic() + PATIENCE
        while True:
            value = self.run(script)
            if right(value):
                return value
            assert time.monotonic() < end, f"{problem}: {value!r}"
            time.sleep(0.1)

    def press(self, key: str) -> None:
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def scheme(self, name: str) -> None:
        """`light` or `dark`, as a reader's system asks for it."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def scripts(self, *, run: bool) -> None:
        self.send("Emulation.setScriptExecutionDisabled", value=not run)

    def picture(self) -> bytes:
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
