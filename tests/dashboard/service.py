"""The real control plane in a process of its own: uvicorn, TLS, tokens, SQLite."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from protocol.control import INGEST_EVENTS, INGEST_NODES, SITE_PROGRESS, Role
from protocol.events import Event

from .factories import Hospitals, batches, certificate, snapshot

SETTINGS = """\
state = "state"
registry = "registry.json"
{more}
[listen]
port = {port}
certificate = "plane.crt"
key = "plane.key"

[database]
url = "{url}"
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Service:
    """A control plane with three enrolled hospitals."""

    def __init__(self, folder: Path, *, url: str = "", more: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        certificate(folder)
        self.hospitals = Hospitals(folder / "registry.json")
        self.settings = folder / "control-plane.toml"
        self.settings.write_text(SETTINGS.format(port=self.port, url=url, more=more))
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it is ready."""
        log = (self.folder / "log.txt").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dashboard", "--settings", str(self.settings)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        deadline = time.monotonic() + 30
        with self.client(None) as client:
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    break
                try:
                    if client.get("/readyz").status_code == 200:
                        return
                except httpx.TransportError:
                    time.sleep(0.05)
        raise AssertionError((self.folder / "log.txt").read_text()[-4000:])

    def kill(self) -> None:
        """As the kernel does it."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """As an operator does it; the exit code."""
        return self._end(signal.SIGTERM)

    def token(self, role: Role) -> str:
        """The role's token."""
        return (self.folder / "tokens" / f"{role}.token").read_text().strip()

    def client(self, role: Role | None) -> httpx.Client:
        """A client that speaks for a role, or for nobody."""
        context = ssl.create_default_context(cafile=str(self.folder / "plane.crt"))
        headers = {"authorization": f"Bearer {self.token(role)}"} if role else {}
        return httpx.Client(base_url=self.url, verify=context, headers=headers, timeout=30)

    def send(self, events: list[Event]) -> int:
        """Send events as the aggregator; how many were new."""
        stored = 0
        with self.client(Role.AGGREGATOR) as client:
            for batch in batches(events):
                answer = client.post(INGEST_EVENTS, json=batch)
                assert answer.status_code == 200, answer.text
                stored += answer.json()["stored"]
        return stored

    def send_nodes(self, **changes: Any) -> None:
        """Say that every hospital is online, and report from each."""
        with self.client(Role.AGGREGATOR) as client:
            body = [
                snapshot(site, **changes).model_dump(mode="json") for site in self.hospitals.keys
            ]
            assert client.post(INGEST_NODES, json=body).status_code == 200
            for site in self.hospitals.keys:
                answer = client.post(SITE_PROGRESS, content=self.hospitals.report(site))
                assert answer.status_code == 204, answer.text

    def get(self, path: str, **parameters: Any) -> Any:
        """Read as an operator."""
        with self.client(Role.OPERATOR) as client:
            answer = client.get(path, params=parameters)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def _end(self, number: int) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.process.pid, number)
        return self.process.wait(timeout=20)
