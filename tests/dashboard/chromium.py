"""Chromium through chromedriver's own HTTP interface (W3C WebDriver): no further dependency."""

import base64
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from .service import free_port

NEEDED = ("chromium", "chromedriver")
LOADED = (
    "document.querySelector('#main h1')"
    " && !document.querySelector('#main h1').textContent.includes('Log in')"
)
_QUIET = (  # nothing but the page that is looked at
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing() -> str:
    """Why there is no browser; "" when there is one."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed (Debian: chromium, chromium-driver)" * bool(
        absent
    )


class Browser:
    """One window."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client = client
        self._path = f"/session/{session}"

    def go(self, url: str, ready: str) -> None:
        """Open an address and wait until an expression is true.

        Tried again, because Chromium drops every connection when a network interface of the
        machine comes or goes (ERR_NETWORK_CHANGED), as containers make them do.
        """
        for last in (False, False, False, False, True):
            try:
                self._post("/url", {"url": url})
                self.wait(ready, 40 if last else 10)
            except AssertionError:
                if last:
                    raise
            else:
                return

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function body in the page."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str) -> Any:
        """Run a function body that calls its last argument when it is done."""
        return self._post("/execute/async", {"script": script, "args": []})

    def wait(self, script: str, seconds: float = 40.0) -> Any:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = self.run(f"return {script}")
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"never true: {script}\n{self.run('return document.body.innerText')}")

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def size(self, width: int, height: int, *, dark: bool) -> None:
        """Be a screen of this size and theme."""
        self._cdp(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        scheme = "dark" if dark else "light"
        self._cdp(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    def screenshot(self, file: Path) -> None:
        """The whole page."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return document.documentElement.clientWidth")
        shot = self._cdp(
            "Page.captureScreenshot",
            {
                "captureBeyondViewport": True,
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
            },
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the browser's console says at the level of errors, refused loads included."""
        entries = self._post("/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]

    def log_in(self, url: str, token: str) -> None:
        """Through the form, until the overview is drawn."""
        self.go(url + "/", "document.getElementById('token')")
        self.run(
            "const token = document.getElementById('token');"
            "token.value = arguments[0]; token.form.requestSubmit();",
            token,
        )
        self.wait("document.querySelectorAll('.u-wrap').length === 3", 30)

    def judge(self, file: Path, width: int, axe: str) -> None:
        """Take a picture of the page; it must fit, and axe (its source) find nothing serious."""
        self.wait("document.querySelector('#main h1').offsetHeight > 0")
        assert self.run("return document.documentElement.scrollWidth") <= width
        self.screenshot(file)
        assert file.stat().st_size > 5_000
        if not axe:
            pytest.skip("axe-core cannot be fetched by npm")
        self.run(axe)
        found: list[dict[str, Any]] = self.run_async(
            "const done = arguments[0]; axe.run().then((found) => done(found.violations))"
        )
        serious = [
            (one["id"], [node["html"] for node in one["nodes"]][:3])
            for one in found
            if one["impact"] in {"serious", "critical"}
        ]
        assert serious == []

    def _cdp(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._client.post(self._path + path, json=body)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value


@contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium that accepts the test's own certificate."""
    port = free_port()
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    options = {
        # No sandbox: containers that run tests rarely allow one. No /dev/shm: often 64 MB there.
        "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *_QUIET],
    }
    wanted = {
        "acceptInsecureCerts": True,
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            _patiently(lambda: client.get("/status").json()["value"]["ready"])
            made = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()
            session = made["value"]["sessionId"]
            yield Browser(client, session)
            client.delete(f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait(timeout=10)


def _patiently(check: Callable[[], bool]) -> None:
    for _ in range(100):
        try:
            if check():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("chromedriver does not answer")
