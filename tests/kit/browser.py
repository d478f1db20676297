"""Debian's Chromium without a window, driven over its own protocol (CDP).

A tab notes what it asked for, what the page's security policy refused, and what the console said,
so that a test can look at all of it at its end.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from websockets.sync.client import ClientConnection, connect

#: Above what a slow machine needs, below pytest's own limit.
PATIENCE_S: Final = 20.0

_OPTIONS: Final = (
    "--headless=new",
    "--remote-debugging-port=0",
    # Its sandbox needs rights that containers and root do not have; the pages are our own.
    "--no-sandbox",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--hide-scrollbars",
    # Names are not looked up: whatever a page loads from elsewhere fails at once.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


def chromium() -> str:
    """The path of Chromium; empty without one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), "")


class Tab:
    """A page of the browser.

    Attributes:
        requests: the addresses that it asked for, in order.
        refused: what its security policy refused.
        errors: what its scripts did not catch, and what the browser called an error.
        received: the bytes that came over the network.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self._loaded = 0
        self.requests: list[str] = []
        self.refused: list[str] = []
        self.errors: list[str] = []
        self.received = 0
        for domain in ("Page", "Network", "Runtime", "Log", "Audits"):
            self.send(f"{domain}.enable")
        # As the tab that a person looks at, also where others are open.
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have the browser do something; its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._connection.send(json.dumps(message))
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(
            self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        )
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Network.loadingFinished":
            self.received += int(told["encodedDataLength"])
        elif event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details)))
        elif event == "Log.entryAdded":
            entry = told["entry"]
            if entry["source"] == "security" or "Content Security Policy" in entry["text"]:
                self.refused.append(entry["text"])
            elif entry["level"] == "error" and entry["source"] != "network":
                self.errors.append(entry["text"])
        elif event == "Audits.issueAdded":
            issue = told["issue"]
            if issue["code"] == "ContentSecurityPolicyIssue":
                self.refused.append(json.dumps(issue["details"]))

    # --- what a person does ------------------------------------------------------------------

    def open(self, address: str) -> None:
        """Go to an address, and wait until its page is there."""
        with self.loading():
            self.send("Page.navigate", url=address)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait until another page is there, after what is done meanwhile."""
        before = self._loaded
        yield
        deadline = time.monotonic() + PATIENCE_S
        while self._loaded == before:
            self._receive(deadline)

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript, or of the promise that it makes."""
        result = self.send(
            "Runtime.evaluate",
            expression=code,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        if "exceptionDetails" in result:
            raise AssertionError(f"{code[:200]}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, code: str, *, within_s: float = PATIENCE_S) -> Any:
        """Wait until an expression is true; its value."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if found := self.run(code):
                return found
            time.sleep(0.05)
        raise AssertionError(f"not within {within_s} s: {code}\n{self.text()[-2000:]}")

    def text(self) -> str:
        """What the page says."""
        return str(self.run("document.body.innerText"))

    def path(self) -> str:
        """The address without its origin."""
        return str(self.run("location.pathname + location.search + location.hash"))

    def fill(self, selector: str, value: str) -> None:
        """Write into a field."""
        self.run(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)});"
            f" field.value = {json.dumps(value)};"
            " field.dispatchEvent(new Event('input', {bubbles: true}));"
            " field.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def click(self, selector: str) -> None:
        """Click on something that changes this page."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def follow(self, selector: str) -> None:
        """Click on something that leads to another page, and wait for that."""
        with self.loading():
            self.click(selector)

    def misdeeds(self, origin: str) -> list[str]:
        """What it asked for elsewhere than at its origin; what was refused; its errors."""
        own = (origin + "/", "data:", "blob:", "about:")
        elsewhere = [each for each in self.requests if not each.startswith(own)]
        return [*elsewhere, *self.refused, *self.errors]

    # --- how it looks ------------------------------------------------------------------------

    def size(self, width: int, height: int = 900) -> None:
        """Make the window another size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def theme(self, name: str) -> None:
        """`light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": name}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def scripts(self, on: bool) -> None:
        """Let pages run scripts, or not."""
        self.send("Emulation.setScriptExecutionDisabled", value=not on)

    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.run("document.documentElement.scrollWidth - innerWidth"))

    def picture(self, path: Path) -> None:
        """Keep a picture of the whole page."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def flaws(self) -> list[str]:
        """What axe-core finds serious or critical for people who see or move badly."""
        if not self.run("typeof axe === 'object'"):
            self.run(axe().read_text() + "\n;0")
        found = self.run(
            "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations"
            ".filter(each => ['serious', 'critical'].includes(each.impact))"
            ".map(each => each.id + ': ' + each.help + ': '"
            " + each.nodes.map(node => node.html.slice(0, 200) + ' ' + node.failureSummary)"
            ".join(' | ')))"
        )
        return [str(each) for each in found]


def axe() -> Path:
    """axe-core's script, which comes with a package of the extra `dev`."""
    spec = importlib.util.find_spec("axe_core_python")
    assert spec is not None and spec.origin is not None, "axe-core-python is not installed"
    return Path(spec.origin).with_name("axe.min.js")


@contextmanager
def browsing() -> Iterator[Callable[[], Tab]]:
    """A running browser; what it yields opens a tab in a profile of its own, without cookies."""
    with tempfile.TemporaryDirectory(prefix="qp-chromium", ignore_cleanup_errors=True) as profile:
        directory = Path(profile)
        options = [*_OPTIONS, f"--user-data-dir={directory}"]
        environment = {"PATH": os.environ["PATH"], "HOME": profile, "TMPDIR": profile}
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [chromium(), *options, "about:blank"], env=environment, stdout=log, stderr=log
            )
        connections: list[ClientConnection] = []
        try:
            port = _port(process, directory)

            yield lambda: _new_tab(port, connections)
        finally:
            for connection in connections:
                connection.close()
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[bytes], directory: Path) -> int:
    """Where the browser listens: it writes it into its profile."""
    file, deadline = directory / "DevToolsActivePort", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and (text := file.read_text()).count("\n"):
            return int(text.split()[0])
        time.sleep(0.02)
    raise AssertionError(f"Chromium does not start:\n{(directory / 'log').read_text()[-3000:]}")


def _new_tab(port: int, connections: list[ClientConnection]) -> Tab:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/version") as answer:
        address = json.load(answer)["webSocketDebuggerUrl"]
    with connect(address, max_size=None) as whole:
        made = _ask(whole, 1, "Target.createBrowserContext", disposeOnDetach=False)
        target = _ask(
            whole,
            2,
            "Target.createTarget",
            url="about:blank",
            browserContextId=made["browserContextId"],
        )
    page = f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}"
    connection = connect(page, max_size=None)
    connections.append(connection)
    return Tab(connection)


def _ask(connection: Any, number: int, method: str, **parameters: Any) -> Any:
    connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
    while True:
        answer = json.loads(connection.recv(timeout=PATIENCE_S))
        if answer.get("id") == number:
            return answer["result"]
