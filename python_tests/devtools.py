# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium driven over a pipe by the DevTools protocol; needs no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Tab": 9, "Enter": 13, " ": 32}
_REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
"""


class Browser:
    """One browser with one tab at a time.

    Attributes:
        complaints: What the console said as an error or warning, uncaught exceptions and
            violations of the page's policy, since the last `open`.
        asked: Addresses requested since the last `open`.
        downloads: Folder that downloads are saved in.
    """

    def __init__(self, chromium: str, profile: Path, downloads: Path) -> None:
        """Starts Chromium.

        Args:
            chromium: The program.
            profile: Folder for its state; removed on exit.
            downloads: Folder that downloads are saved in.
        """
        commands, self._send = os.pipe()
        self._receive, answers = os.pipe()
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        script = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._profile = profile
        self.downloads = downloads
        self._buffer = b""
        self._count = 0
        self._session = ""
        self._target = ""
        self.complaints: list[str] = []
        self.asked: list[str] = []

    def __enter__(self) -> Browser:
        """The browser."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the browser and removes its profile."""
        try:
            self._call("Browser.close", session="")
            self._process.wait(timeout=10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        os.close(self._send)
        os.close(self._receive)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        dark: bool = False,
        mobile: bool = False,
    ) -> None:
        """Opens an address in a fresh tab of a given size, in pixels."""
        if self._target:
            self._call("Target.closeTarget", {"targetId": self._target}, session="")
        made = self._call("Target.createTarget", {"url": "about:blank"}, session="")
        self._target = made["targetId"]
        attached = self._call(
            "Target.attachToTarget", {"targetId": self._target, "flatten": True}, session=""
        )
        self._session = attached["sessionId"]
        self.complaints, self.asked = [], []
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self._call(f"{domain}.enable")
        self._call("Page.addScriptToEvaluateOnNewDocument", {"source": _REPORT_VIOLATIONS})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self._call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]})
        folder = {"behavior": "allow", "downloadPath": str(self.downloads)}
        self._call("Browser.setDownloadBehavior", folder, session="")
        self._call("Page.navigate", {"url": url})
        self.wait(
            f"location.href.startsWith({json.dumps(url)}) && document.readyState !== 'loading'"
        )

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression; promises are awaited."""
        options = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._call("Runtime.evaluate", options)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            said = details.get("exception", {}).get("description", details["text"])
            raise AssertionError(f"{expression}: {said}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 20.0) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise AssertionError(f"not true within {seconds} s: {condition} {self.complaints}")
            time.sleep(0.03)

    def choose_file(self, selector: str, path: Path) -> None:
        """Chooses a file in a file input, as a user does."""
        document = self._call("DOM.getDocument")["root"]["nodeId"]
        found = self._call("DOM.querySelector", {"nodeId": document, "selector": selector})
        self._call("DOM.setFileInputFiles", {"nodeId": found["nodeId"], "files": [str(path)]})

    def press(self, key: str) -> None:
        """Presses and releases a key; the focused element gets it."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        text = {"text": {"Enter": "\r", " ": " "}[key]} if key in ("Enter", " ") else {}
        self._call("Input.dispatchKeyEvent", {"type": "keyDown", **event, **text})
        self._call("Input.dispatchKeyEvent", {"type": "keyUp", **event})

    def click(self, x: float, y: float) -> None:
        """Clicks at a place of the window, in pixels."""
        event = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self._call("Input.dispatchMouseEvent", {"type": "mousePressed", "buttons": 1, **event})
        self._call("Input.dispatchMouseEvent", {"type": "mouseReleased", **event})

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """Writes a PNG of the page, or of the part in the window."""
        answer = self._call("Page.captureScreenshot", {"captureBeyondViewport": whole})
        path.write_bytes(base64.b64decode(answer["data"]))

    def accessible_names(self) -> Sequence[tuple[str, str]]:
        """(role, name) of everything in the accessibility tree."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def _call(
        self, method: str, params: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params or {}}
        session = self._session if session is None else session
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._send, data) :]
        end = time.monotonic() + 60.0
        while True:
            answer = self._next(end)
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._receive], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._receive, 1 << 20)
            if not part:
                raise OSError(f"the browser ended ({self._process.poll()})")
            self._buffer += part
        first, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(first)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("sessionId") != self._session:
            return
        params = event.get("params", {})
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", "exception"))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                said = [str(arg.get("value", arg.get("description"))) for arg in params["args"]]
                self.complaints.append(" ".join(said))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                entry = params["entry"]
                self.complaints.append(f"{entry['text']} {entry.get('url', '')}")
