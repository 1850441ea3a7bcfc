"""A headless browser, driven by the DevTools protocol over two pipes: no port, and nothing more to install."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cdc_archiver.sandbox.packages import Tool, find

_PROGRAM: Final = "chromium-headless-shell"
_PATIENCE: Final = 30.0
_FONTS: Final = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>{directories}<cachedir>{cache}</cachedir>
<match><edit name="family" mode="append" binding="strong"><string>DejaVu Sans</string></edit></match>
<alias binding="strong"><family>sans-serif</family><prefer><family>DejaVu Sans</family></prefer></alias>
<alias binding="strong"><family>system-ui</family><prefer><family>DejaVu Sans</family></prefer></alias>
</fontconfig>
"""
_LAUNCH: Final = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.closerange(5, 256)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A browser with one page.

    Arguments:
        directory: for its profile; short-lived.
    """

    def __init__(self, tool: Tool, directory: Path) -> None:
        self._number = 0
        self._rest = b""
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        directories = "".join(f"<dir>{root / 'usr/share/fonts'}</dir>" for root in {tool.root, Path("/")})
        fonts = directory / "fonts.conf"
        fonts.write_text(_FONTS.format(directories=directories, cache=directory / "fonts"))
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # It reads from descriptor 3 and writes to 4, whatever the numbers here.
        command = tool.command(
            "--remote-debugging-pipe",
            "--no-sandbox",  # root may have none; it opens only the page under test
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            f"--user-data-dir={directory / 'profile'}",
        )
        self._log = (directory / "browser.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCH, str(to_browser), str(from_browser), *command],
            env=tool.environ() | {"FONTCONFIG_FILE": str(fonts), "HOME": str(directory)},
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends it and all its child processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(_PATIENCE)
        os.close(self._read)
        os.close(self._write)
        self._log.close()

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Calls a method of the protocol; returns its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser has not answered within {_PATIENCE} s"
            more = os.read(self._read, 1 << 16)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    # The page.

    def open(self, address: str) -> None:
        """Goes there."""
        self.call("Page.navigate", url=address)

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """Sets screen and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def text(self, selector: str = "body") -> str:
        """The visible text of an element; empty if there is none or it is hidden."""
        return str(self.ask(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait_text(self, wanted: str, selector: str = "body", within: float = _PATIENCE) -> str:
        """Waits until an element shows a text; returns all its text."""
        deadline = time.monotonic() + within
        while wanted not in (seen := self.text(selector)):
            assert time.monotonic() < deadline, f"{selector} does not say {wanted!r} within {within} s, but: {seen}"
            time.sleep(0.05)
        return seen

    def wait(self, expression: str, what: str, within: float = _PATIENCE) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + within
        while not self.ask(f"Boolean({expression})"):
            assert time.monotonic() < deadline, f"not within {within} s: {what}"
            time.sleep(0.05)

    def press(self, key: str, code: int) -> None:
        """A key on the keyboard."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Moves the pointer there, in pixels of the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, file: Path, *, whole: bool = True) -> None:
        """Saves a PNG of the page.

        Arguments:
            whole: the whole page, not only the window.
        """
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

    def complaints(self) -> list[str]:
        """Errors in its console: of scripts, and violations of the page's content policy."""
        self.ask("0")  # pending events are read with the answer
        found = []
        for event in self.events:
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    found.append(json.dumps(event["params"]["exceptionDetails"]))
                case "Log.entryAdded" if event["params"]["entry"]["level"] in ("error", "warning"):
                    found.append(event["params"]["entry"]["text"])
                case "Runtime.consoleAPICalled" if event["params"]["type"] in ("error", "warning", "assert"):
                    found.append(json.dumps(event["params"]["args"]))
        return found

    def requests(self) -> list[str]:
        """The addresses that it has requested."""
        self.ask("0")
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]


@contextlib.contextmanager
def new_browser() -> Iterator[Browser]:
    """A new browser; SandboxError if none is available."""
    tool = find(_PROGRAM)
    directory = Path(tempfile.mkdtemp(prefix="cdc-browser-", dir="/tmp"))
    try:
        with contextlib.closing(Browser(tool, directory)) as browser:
            yield browser
    finally:
        shutil.rmtree(directory, ignore_errors=True)
